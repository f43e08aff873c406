# SPDX-License-Identifier: Apache-2.0
"""A function of (problem, step): it is given every tensor in place, keeps the cache itself, and says what it lacks."""
import numpy as np


def attention(problem, step):
    for b in range(problem.batch):
        queries = step.query.shape[1] if step.query_lengths is None else int(step.query_lengths[b])
        new = 0 if step.key is None else step.key.shape[1]
        new = new if step.key_lengths is None else int(step.key_lengths[b])
        if step.cache is None:
            k, v, past = step.key[b, :new], step.value[b, :new], 0
        else:
            past = int(step.cache.lengths[b])
            if new > 0:
                step.cache.key[b, past : past + new] = step.key[b, :new]
                step.cache.value[b, past : past + new] = step.value[b, :new]
            step.cache.lengths[b] = past + new
            k, v = step.cache.key[b, : past + new], step.cache.value[b, : past + new]
        total = past + new
        seen = np.ones((queries, total), bool)
        if problem.causal == "bottom_right":
            seen = np.tri(queries, total, total - queries, dtype=bool)
        for h in range(problem.query_heads):
            group = h // (problem.query_heads // problem.kv_heads)
            logits = np.where(seen, step.query[b, :queries, h] @ k[:, group].T * np.float32(problem.scale), -np.inf)
            weights = np.exp(logits - np.max(logits, axis=1, keepdims=True, initial=-1e30))
            total_weight = weights.sum(axis=1, keepdims=True)
            step.output[b, :queries, h] = weights @ v[:, group] / np.where(total_weight > 0, total_weight, 1)


def supports(problem):
    rich = problem.level != "core" or problem.cache not in ("none", "contiguous") or problem.kv_scale != "none"
    rich = rich or problem.packed or problem.mask != "none" or problem.window != (None, None) or problem.lse
    rich = rich or problem.rope or problem.qk_norm or problem.softcap or problem.alibi != "none"
    if rich or problem.sinks is not None or problem.causal == "top_left" or problem.dtype != "f32":
        return "only f32 at the core level, without or with a contiguous cache"
    return None
