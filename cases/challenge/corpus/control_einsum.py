# SPDX-License-Identifier: Apache-2.0
"""Attention in the style of a paper: einsum over named axes, the scale folded into the queries."""
import torch
from torch import nn


class KVCachedMultiHeadAttention(nn.Module):
    def __init__(self, d_model, num_heads, max_cache_len=2048, dropout=0.1):
        super().__init__()
        self.heads, self.width, self.max_cache_len = num_heads, d_model // num_heads, max_cache_len
        self.drop = nn.Dropout(dropout)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Linear(d_model, d_model))

    def split(self, x):
        return x.reshape(x.shape[0], x.shape[1], self.heads, self.width)

    def forward(self, query, key, value, cache=None, use_causal_mask=True):
        validate_inputs(query, key, value)
        past = self.get_cache_info(cache)["cache_length"]
        total = past + key.shape[1]
        if total > self.max_cache_len:
            raise ValueError(f"{total} tokens do not fit into {self.max_cache_len}")
        new_cache = {"key": self.k_proj(key), "value": self.v_proj(value)}
        if past:
            new_cache = {name: torch.cat((cache[name], new), dim=-2) for name, new in new_cache.items()}
        q = self.split(self.q_proj(query)) * self.width**-0.5
        logits = torch.einsum("bqhc,bkhc->bhqk", q, self.split(new_cache["key"]))
        if use_causal_mask:
            positions = compute_position_ids(query.shape[1], past)
            visible = torch.arange(total)[None] <= positions[:, None]
            logits = torch.where(visible, logits, torch.full_like(logits, -torch.inf))
        weights = torch.exp(logits - torch.logsumexp(logits, dim=-1, keepdim=True))
        mixed = torch.einsum("bhqk,bkhc->bqhc", self.drop(weights), self.split(new_cache["value"]))
        return self.out_proj(mixed.flatten(-2)), new_cache

    def reset_cache(self):
        return dict.fromkeys(("key", "value"))

    def get_cache_info(self, cache, use_cache=True):
        tensors = [x for x in (cache or {}).values() if x is not None]
        length = tensors[0].shape[1] if tensors else 0
        megabytes = sum(x.nelement() * x.element_size() for x in tensors) / 2**20
        return {"cache_length": length, "cache_size_mb": megabytes, "is_full": length >= self.max_cache_len}


def compute_position_ids(seq_len, cache_len):
    return torch.arange(seq_len) + cache_len


def validate_inputs(query, key, value):
    for name, x in {"query": query, "key": key, "value": value}.items():
        if not torch.is_tensor(x) or x.ndim != 3:
            raise ValueError(f"{name}: wanted a tensor [batch, tokens, d_model]")
    if key.shape != value.shape or (query.shape[0], query.shape[2]) != (key.shape[0], key.shape[2]):
        raise ValueError(f"shapes do not fit: {query.shape}, {key.shape}, {value.shape}")


def create_sample_input(batch_size, seq_len, d_model, seed=None):
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return tuple(torch.randn(3, batch_size, seq_len, d_model, generator=generator).unbind())
