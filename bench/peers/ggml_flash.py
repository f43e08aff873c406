# SPDX-License-Identifier: Apache-2.0
"""ggml's attention as a peer: ggml_flash_attn_ext on its CPU backend, as llama.cpp and whisper.cpp use it.

ggml has no package of its own: the libraries are those that pywhispercpp's wheel brings along, built for AVX2. A step
is one graph: the new tokens are copied into the caches, which are views of the step's memory, and then attended to.
Sequences of different lengths take one operator each. As many threads as cores. Queries and outputs of 16 bits are
copied to and from f32, which is what the operator takes; its caches stay as they are.

Steps in f16 with fewer than 64 queries a sequence are refused: there the operator sums values of f16 in f16, and over
2048 keys its outputs are a percent off, beyond what is allowed (spec/tolerance.md). With more it widens them first.
"""
import ctypes
import itertools
import operator
import os
from ctypes import c_bool, c_char, c_float, c_int, c_int64, c_size_t, c_void_p

import numpy as np
import steps
import wheel

OPTIONS = ()
F32, F16, BF16 = 0, 1, 30  # enum ggml_type
TYPES = {"f32": (F32, 4), "f16": (F16, 2), "bf16": (BF16, 2)}
ALIGNMENT = 32  # of all memory that ggml is given
TILED = 64  # queries from which ggml works in tiles, in f32


class InitParams(ctypes.Structure):
    """struct ggml_init_params"""

    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


class Library:
    """ggml.h, ggml-backend.h and ggml-cpu.h, so far as they are needed."""

    FUNCTIONS = {
        "ggml_init": (c_void_p, InitParams),
        "ggml_free": (None, c_void_p),
        "ggml_tensor_overhead": (c_size_t,),
        "ggml_graph_overhead_custom": (c_size_t, c_size_t, c_bool),
        "ggml_new_graph_custom": (c_void_p, c_void_p, c_size_t, c_bool),
        "ggml_build_forward_expand": (None, c_void_p, c_void_p),
        "ggml_new_tensor_1d": (c_void_p, c_void_p, c_int, c_int64),
        "ggml_view_4d": (c_void_p, c_void_p, c_void_p, *[c_int64] * 4, *[c_size_t] * 4),
        "ggml_cpy": (c_void_p, c_void_p, c_void_p, c_void_p),
        "ggml_flash_attn_ext": (c_void_p, *[c_void_p] * 5, *[c_float] * 3),
        "ggml_backend_cpu_buffer_from_ptr": (c_void_p, c_void_p, c_size_t),
        "ggml_backend_buffer_free": (None, c_void_p),
        "ggml_backend_tensor_alloc": (c_int, c_void_p, c_void_p, c_void_p),
        "ggml_backend_graph_compute": (c_int, c_void_p, c_void_p),
        "ggml_backend_cpu_init": (c_void_p,),
        "ggml_backend_free": (None, c_void_p),
        "ggml_backend_cpu_set_n_threads": (None, c_void_p, c_int),
    }

    def __init__(self):
        loaded = [ctypes.CDLL(wheel.library("pywhispercpp", name)[0]) for name in ("ggml-base", "ggml-cpu")]
        for name, (answer, *arguments) in self.FUNCTIONS.items():
            function = next((getattr(library, name) for library in loaded if hasattr(library, name)), None)
            if function is None:
                raise RuntimeError(f"ggml has no {name}")
            function.restype, function.argtypes = answer, arguments
            setattr(self, name.removeprefix("ggml_"), function)


class Graph:
    """Operators one after the other, on memory of others."""

    def __init__(self, ggml, tensors):
        self.ggml, self.buffers, self.kept = ggml, [], []
        size = tensors * ggml.tensor_overhead() + ggml.graph_overhead_custom(tensors, False)
        self.context = ggml.init(InitParams(size, None, True))
        if not self.context:
            raise MemoryError("ggml_init")
        self.nodes = ggml.new_graph_custom(self.context, tensors, False)

    def __del__(self):
        for buffer in self.buffers:
            self.ggml.backend_buffer_free(buffer)
        self.ggml.free(self.context)

    def place(self, tensor, address, size):
        """Gives a tensor its memory."""
        buffer = self.ggml.backend_cpu_buffer_from_ptr(address, size)
        self.buffers.append(buffer)
        if self.ggml.backend_tensor_alloc(buffer, tensor, address) != 0:
            raise MemoryError("ggml_backend_tensor_alloc")

    def room(self, size):
        """The address of so many bytes of our own, all 0."""
        held = np.zeros(size + ALIGNMENT, np.uint8)
        self.kept.append(held)
        return held.ctypes.data + -held.ctypes.data % ALIGNMENT

    def flat(self, kind, count, address, size):
        base = self.ggml.new_tensor_1d(self.context, kind, count)
        self.place(base, address, size)
        return base

    def view(self, base, extents, strides, offset=0):
        """Four axes, the fastest one first; strides of the others and the offset in bytes."""
        return self.ggml.view_4d(self.context, base, *extents, *strides, offset)

    def floats(self, extents):
        """A tensor of our own, its numbers one after the other."""
        strides = list(itertools.accumulate((4 * extents[0], *extents[1:3]), operator.mul))
        count = strides[-1] // 4 * extents[3]
        return self.view(self.flat(F32, count, self.room(4 * count), 4 * count), extents, strides)

    def run(self, node):
        self.ggml.build_forward_expand(self.nodes, node)

    def copy(self, tensor, to):
        self.run(self.ggml.cpy(self.context, tensor, to))

    def causal_mask(self, queries, total):
        rows = (queries + 63) // 64 * 64  # read in whole blocks
        position = np.arange(rows)[:, None] + total - queries
        mask = np.where(np.arange(total)[None, :] > position, np.float16(-np.inf), np.float16(0))
        address = self.room(mask.nbytes)
        ctypes.memmove(address, mask.ctypes.data, mask.nbytes)
        base = self.flat(F16, mask.size, address, mask.nbytes)
        return self.view(base, (total, rows, 1, 1), (2 * total, mask.nbytes, mask.nbytes))


class Tensor:
    """One of a step's tensors in a graph."""

    def __init__(self, graph, name, given):
        memory, dtype, self.shape, strides = given
        kind, width = TYPES[dtype]
        if self.shape[-1] > 1 and strides[-1] != 1:
            raise NotImplementedError(f"{name}: ggml wants a head's channels side by side")
        self.graph, self.strides, self.row = graph, [stride * width for stride in strides], self.shape[-1] * width
        self.address = ctypes.addressof(c_char.from_buffer(memory))
        graph.kept.append(memory)
        self.before = self.address % ALIGNMENT
        size = self.before + len(memory)
        self.base = graph.flat(kind, size // width, self.address - self.before, size)

    def tokens(self, b, start, first, count):
        """Tokens [first, first + count) of sequence b, or of all where b is None: (view [D, count, H, B], its strides
        but for the first, its address)."""
        if len(self.shape) == 3:  # packed
            batch, offset, apart, (token, head, _) = 1, (start[b] + first) * self.strides[0], 0, self.strides
        else:
            apart, token, head, _ = self.strides
            batch, offset = (self.shape[0], 0) if b is None else (1, b * apart)
            offset += first * token
        heads, width = self.shape[-2:]
        # An axis with one place may have any stride; ggml wants none below a row's.
        strides = [max(stride, self.row) for stride in (token, head, apart)]
        view = self.graph.view(self.base, (width, count, heads, batch), strides, self.before + offset)
        return view, strides, self.address + offset


class Plan:
    def __init__(self, problem, context):
        self.problem, self.context = problem, context

    def bind(self, step):
        problem, ggml = self.problem, self.context.ggml
        if problem.dtype == "f16" and any(0 < queries < TILED for queries in step.queries):
            raise NotImplementedError(f"with fewer than {TILED} queries ggml sums values of f16 in f16: too coarse")
        sequences = [None] if not problem.packed and steps.same_everywhere(step) else range(problem.batch)
        graph = Graph(ggml, 16 + 24 * len(sequences))  # more than it can have
        tensors = {}

        def tokens(name, b, start, first, count):
            if name not in tensors:
                tensors[name] = Tensor(graph, name, getattr(step, name))
            return tensors[name].tokens(b, start, first, count)

        if problem.cached and step.key is not None:
            for b in sequences:
                past, fresh = step.past[b or 0], step.keys[b or 0]
                for name in ("key", "value") if fresh > 0 else ():
                    new, to = tokens(name, b, step.key_start, 0, fresh), tokens(f"cache_{name}", b, None, past, fresh)
                    graph.copy(new[0], to[0])
        masks = {}
        for b in sequences:
            queries, total = step.queries[b or 0], step.past[b or 0] + step.keys[b or 0]
            if queries == 0:
                continue
            if total == 0:
                raise NotImplementedError("key_lengths: ggml has no attention to no keys")
            names = ("cache_key", "cache_value") if problem.cached else ("key", "value")
            key, value = (tokens(name, b, step.key_start, 0, total)[0] for name in names)
            query = tokens("query", b, step.query_start, 0, queries)[0]
            if problem.causal and queries > 1 and (queries, total) not in masks:
                masks[queries, total] = graph.causal_mask(queries, total)
            batch = problem.batch if b is None else 1
            if problem.dtype != "f32":
                floats = graph.floats((problem.qk_head_dim, queries, problem.query_heads, batch))
                graph.copy(query, floats)
                query = floats
            output = tokens("output", b, step.query_start, 0, queries)
            self.attend(graph, query, key, value, masks.get((queries, total)), queries, batch, output)
        compute, backend, nodes = ggml.backend_graph_compute, self.context.backend, graph.nodes

        def run():
            if compute(backend, nodes) != 0:
                raise RuntimeError("ggml_backend_graph_compute failed")

        run.graph = graph
        return run

    def attend(self, graph, query, key, value, mask, queries, batch, output):
        """The operator makes [D, H, queries, B] without gaps: where the output is to be, if that is so and f32."""
        problem, (view, strides, address) = self.problem, output
        heads, width = problem.query_heads, problem.v_head_dim
        row = 4 * width
        made = graph.ggml.flash_attn_ext(graph.context, query, key, value, mask, problem.scale, 0, 0)
        size = row * heads * queries * batch
        # Of an axis with one place the stride means nothing.
        wanted = zip(strides, (row * heads, row, row * heads * queries), (queries, heads, batch))
        in_place = problem.dtype == "f32" and address % ALIGNMENT == 0 and all(
            is_ == to_be or count == 1 for is_, to_be, count in wanted)
        graph.place(made, address if in_place else graph.room(size), size)
        graph.run(made)
        if not in_place:
            extents = (width, queries, heads, batch)
            graph.copy(graph.view(made, extents, (row * heads, row, row * heads * queries)), view)


class Context:
    def __init__(self, threads):
        os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # it would start a debugger
        self.ggml = Library()
        self.backend = self.ggml.backend_cpu_init()
        if not self.backend:
            raise MemoryError("ggml_backend_cpu_init")
        self.ggml.backend_cpu_set_n_threads(self.backend, threads)

    def __del__(self):
        if getattr(self, "backend", None):
            self.ggml.backend_free(self.backend)

    def plan(self, problem):
        return Plan(problem, self)


def open(threads, options):
    return Context(threads)
