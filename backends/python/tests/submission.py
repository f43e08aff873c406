# SPDX-License-Identifier: Apache-2.0
"""A small submission to the challenge that is right, for the tests of its worker. `forward` prints whether the cache
that it is given is one of its own."""
import math
import os
import sys

import torch
from torch import nn

print("a submission may print what it likes")
sys.stderr.write("anywhere\n")


class KVCachedMultiHeadAttention(nn.Module):
    def __init__(self, d_model, num_heads, max_cache_len=2048, dropout=0.1):
        super().__init__()
        self.heads, self.limit = num_heads, max_cache_len
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(d_model, d_model) for _ in range(4))
        self.dropout = nn.Dropout(dropout)

    def split(self, x):
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, query, key, value, cache=None, use_causal_mask=True):
        validate_inputs(query, key, value)
        print("cache", None if cache is None else getattr(cache, "mine", False), torch.is_grad_enabled(), self.training)
        k, v = self.k_proj(key), self.v_proj(value)
        if cache is not None:
            k, v = torch.cat([cache["key"], k], dim=1), torch.cat([cache["value"], v], dim=1)
        if k.shape[1] > self.limit:
            raise ValueError(f"{k.shape[1]} tokens do not fit")
        q = self.split(self.q_proj(query))
        logits = q @ self.split(k).transpose(-1, -2) / math.sqrt(q.shape[-1])
        if use_causal_mask:
            rows, columns = logits.shape[-2:]
            seen = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows)
            logits = logits.masked_fill(~seen, -math.inf)
        mixed = self.dropout(torch.softmax(logits, -1)) @ self.split(v)
        output = self.out_proj(mixed.transpose(1, 2).reshape(query.shape))
        return output, Cache(key=k, value=v)

    def reset_cache(self):
        return {"key": None, "value": None}

    def get_cache_info(self, cache, use_cache=True):
        length = cache["key"].shape[1] if cache and use_cache else 0
        return {"cache_length": length, "cache_size_mb": length * 1e-6, "is_full": length >= self.limit}


class Cache(dict):
    mine = True


def validate_inputs(query, key, value):
    if query.dim() != 3 or key.shape != value.shape:
        raise ValueError("wanted [batch, tokens, d_model]")
    if query.shape[1] == 7:
        os._exit(0)
    if query.shape[1] == 9:
        sys.exit(5)


def compute_position_ids(seq_len, cache_len):
    return torch.arange(cache_len, cache_len + seq_len)


def create_sample_input(batch_size, seq_len, d_model, seed=None):
    if seed is not None:
        torch.manual_seed(seed)
    return torch.randn(batch_size, seq_len, d_model)
