# SPDX-License-Identifier: Apache-2.0
"""NumPy as a floor: the formula as anybody would write it, two products and a softmax, over blocks of queries.

f16 is converted to f32 first, because NumPy has no products of f16. BLAS (OpenBLAS in NumPy's wheels) has as many
threads as there are cores.
"""
import os

import steps

OPTIONS = ()
BLOCK = 256  # queries at once: the scores of a whole prefill would not fit into memory


class Plan:
    def __init__(self, problem, np):
        if problem.dtype == "bf16":
            raise NotImplementedError("NumPy has no bf16")
        self.problem, self.np = problem, np

    def view(self, given):
        memory, dtype, shape, strides = given
        np = self.np
        dtype = np.dtype({"f32": np.float32, "f16": np.float16}[dtype])
        if len(memory) == 0:
            return np.empty(shape, dtype)
        array = np.frombuffer(memory, dtype)
        return np.lib.stride_tricks.as_strided(array, shape, [stride * dtype.itemsize for stride in strides])

    def bind(self, step):
        views = steps.Views(self.problem, step, self.view)
        calls, pairs = [], []
        if not self.problem.packed and steps.same_everywhere(step):
            query, output, pairs, key, value = views.whole()
            calls.append((query, output, key, value))
        else:
            for b in range(self.problem.batch):
                pairs += views.appended(b)
                calls.append(tuple(x[None] for x in (views.queries(b), views.outputs(b), *views.keys(b))))

        def run():
            for to, what in pairs:
                to[...] = what
            for call in calls:
                self.attend(*call)

        return run

    def attend(self, query, output, key, value):
        """All are [B, tokens, H, D]."""
        np, causal = self.np, self.problem.causal
        batch, queries, _, width = query.shape
        if queries == 0:
            return
        total, heads = key.shape[1], key.shape[2]
        key = key.astype(np.float32, copy=False).transpose(0, 2, 3, 1)  # [B, Hk, D, S]
        value = value.astype(np.float32, copy=False).transpose(0, 2, 1, 3)  # [B, Hk, S, D]
        # [B, Hk, queries, group, D]: the rows of one product are all queries of a KV head.
        query = query.reshape(batch, queries, heads, -1, width).transpose(0, 2, 1, 3, 4) * np.float32(self.problem.scale)
        group = query.shape[3]
        for first in range(0, queries, BLOCK):
            last = min(queries, first + BLOCK)
            seen = max(0, total - queries + last) if causal else total
            if seen == 0:
                output[:, first:last] = 0
                continue
            rows = query[:, :, first:last].reshape(batch, heads, -1, width)
            scores = rows @ key[..., :seen]
            if causal and last - first > 1:
                position = np.arange(first, last) + total - queries
                hidden = np.repeat(np.arange(seen)[None, :] > position[:, None], group, axis=0)
                scores = np.where(hidden, np.float32(-np.inf), scores)
            largest = scores.max(-1, keepdims=True)
            np.subtract(scores, np.where(np.isfinite(largest), largest, 0), out=scores)
            np.exp(scores, out=scores)
            sums = scores.sum(-1, keepdims=True)
            result = (scores @ value[:, :, :seen]) / np.where(sums > 0, sums, 1)
            result = result.reshape(batch, heads, last - first, group, -1).transpose(0, 2, 1, 3, 4)
            output[:, first:last] = result.reshape(batch, last - first, heads * group, -1)


class Context:
    def __init__(self, np):
        self.np = np

    def plan(self, problem):
        return Plan(problem, self.np)


def open(threads, options):
    # Read when NumPy loads its BLAS, and so of no effect if another peer has loaded it before.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(threads))
    import numpy

    return Context(numpy)
