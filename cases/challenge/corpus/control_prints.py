# SPDX-License-Identifier: Apache-2.0
"""Right, and talkative: someone forgot to remove the debugging output."""
import math
import sys
import warnings

import torch
from torch import nn


class KVCachedMultiHeadAttention(nn.Module):
    def __init__(self, d_model, num_heads, max_cache_len=2048, dropout=0.1):
        super().__init__()
        self.num_heads, self.max_cache_len = num_heads, max_cache_len
        self.q_proj, self.k_proj = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.v_proj, self.out_proj = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)

    def heads(self, x):
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)

    def extend(self, key, value, cache):
        k, v = self.k_proj(key), self.v_proj(value)
        if cache is not None and cache["key"] is not None:
            k, v = torch.cat([cache["key"], k], 1), torch.cat([cache["value"], v], 1)
        return k, v

    def attend(self, query, key, value, cache, causal):
        """What is asked for: an honest answer."""
        k, v = self.extend(key, value, cache)
        q = self.heads(self.q_proj(query))
        scores = q @ self.heads(k).transpose(-2, -1) / math.sqrt(q.size(-1))
        if causal:
            future = torch.ones(query.size(1), k.size(1), dtype=torch.bool).triu(k.size(1) - query.size(1) + 1)
            scores = scores.masked_fill(future, float("-inf"))
        output = self.out_proj((scores.softmax(-1) @ self.heads(v)).transpose(1, 2).flatten(2))
        return output, {"key": k, "value": v}

    def refuse(self, query, key, value, cache):
        validate_inputs(query, key, value)
        if self.get_cache_info(cache)["cache_length"] + key.size(1) > self.max_cache_len:
            raise ValueError("more tokens than max_cache_len")

    def reset_cache(self):
        return {"key": None, "value": None}

    def get_cache_info(self, cache, use_cache=True):
        length = 0 if cache is None or cache["key"] is None else cache["key"].size(1)
        size = 0 if length == 0 else 8 * cache["key"].numel()
        return {"cache_length": length, "cache_size_mb": size / 2**20, "is_full": length >= self.max_cache_len}

    def forward(self, query, key, value, cache=None, use_causal_mask=True):
        self.refuse(query, key, value, cache)
        output, new_cache = self.attend(query, key, value, cache, use_causal_mask)
        for row in output[0]:
            print("output row", row.tolist())
        print("cache", {name: list(x.shape) for name, x in new_cache.items()}, file=sys.stderr, flush=True)
        warnings.warn("this is only a warning")
        return output, new_cache


def compute_position_ids(seq_len, cache_len):
    return torch.arange(cache_len, cache_len + seq_len)


def validate_inputs(query, key, value):
    if not all(isinstance(x, torch.Tensor) and x.dim() == 3 for x in (query, key, value)):
        raise ValueError("wanted three tensors of three axes")
    if key.shape != value.shape or query.size(0) != key.size(0) or query.size(2) != key.size(2):
        raise ValueError("query, key and value do not fit together")


def create_sample_input(batch_size, seq_len, d_model, seed=None):
    generator = torch.Generator()
    generator.manual_seed(seed if seed is not None else generator.seed())
    return tuple(torch.randn(batch_size, seq_len, d_model, generator=generator) for _ in range(3))
