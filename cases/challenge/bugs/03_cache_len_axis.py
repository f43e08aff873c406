# SPDX-License-Identifier: Apache-2.0
"""Multi-head attention with a KV cache: right, but for place 3 (cache-len-axis).

The cache's length is read from the channel axis: behind a cache nothing is masked any more, which a single token does not notice.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn


class KVCachedMultiHeadAttention(nn.Module):
    """Attention of `num_heads` heads over the tokens at hand and those in the cache.

    A cache is None or {'key': K, 'value': V} with K and V of shape [batch, tokens, d_model]: what k_proj and v_proj
    made of all tokens so far, heads side by side.
    """

    def __init__(self, d_model, num_heads, max_cache_len=2048, dropout=0.1):
        super().__init__()
        if d_model % num_heads != 0:
            raise ValueError(f"d_model is {d_model}, which {num_heads} heads do not divide")
        self.d_model = d_model
        self.num_heads = num_heads
        self.head_dim = d_model // num_heads
        self.max_cache_len = max_cache_len
        self.dropout = dropout
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        # Place 1.
        self.scale = 1.0 / math.sqrt(self.head_dim)

    def _split_heads(self, x):
        """[batch, tokens, d_model] to [batch, heads, tokens, head_dim]."""
        batch, tokens, _ = x.shape
        # Place 2.
        return x.view(batch, tokens, self.num_heads, self.head_dim).transpose(1, 2)

    def _merge_heads(self, x):
        """[batch, heads, tokens, head_dim] to [batch, tokens, d_model]."""
        batch, _, tokens, _ = x.shape
        # Place 12.
        return x.transpose(1, 2).reshape(batch, tokens, self.d_model)

    def _cache_length(self, cache):
        """How many tokens a cache holds."""
        if cache is None or cache["key"] is None:
            return 0
        # Place 3.
        return cache["key"].size(-1)

    def _append(self, past, new):
        """The tokens of the cache, then the new ones."""
        if past is None:
            return new
        # Place 4.
        return torch.cat([past, new], dim=1)

    def forward(self, query, key, value, cache=None, use_causal_mask=True):
        """Returns (output, new_cache): output has the shape of `query`; new_cache holds the new tokens too."""
        # Place 15.
        validate_inputs(query, key, value)
        batch, new_tokens, _ = query.shape
        cache_len = self._cache_length(cache)
        if cache_len + key.size(1) > self.max_cache_len:
            raise ValueError(f"{cache_len} tokens in the cache and {key.size(1)} new ones are more than max_cache_len, "
                             f"{self.max_cache_len}")

        q = self.q_proj(query)
        new_k = self.k_proj(key)
        new_v = self.v_proj(value)
        k = self._append(cache["key"] if cache is not None else None, new_k)
        v = self._append(cache["value"] if cache is not None else None, new_v)

        queries = self._split_heads(q)
        values = self._split_heads(v)
        # Place 5.
        keys = self._split_heads(k)
        scores = torch.matmul(queries, keys.transpose(-2, -1)) * self.scale

        if use_causal_mask:
            query_positions = compute_position_ids(new_tokens, cache_len).to(scores.device)
            key_positions = compute_position_ids(k.size(1), 0).to(scores.device)
            # Place 6.
            hidden = key_positions[None, :] > query_positions[:, None]
            # Place 7.
            scores = scores.masked_fill(hidden, float("-inf"))

        # Place 8.
        weights = torch.softmax(scores, dim=-1)
        # Place 9.
        weights = F.dropout(weights, p=self.dropout, training=self.training)
        output = self.out_proj(self._merge_heads(torch.matmul(weights, values)))
        # Place 10.
        new_cache = {"key": k, "value": v}
        return output, new_cache

    def reset_cache(self):
        """A cache with nothing in it."""
        return {"key": None, "value": None}

    def get_cache_info(self, cache, use_cache=True):
        """How full a cache is."""
        # Place 13.
        del use_cache  # callers of an earlier version pass it; it never meant anything
        cache_length = self._cache_length(cache)
        size = 0
        if cache_length > 0:
            # Place 14.
            for tensor in (cache["key"], cache["value"]):
                size += tensor.numel() * tensor.element_size()
        return {
            "cache_length": cache_length,
            "cache_size_mb": size / (1024 * 1024),
            "is_full": cache_length >= self.max_cache_len,
        }


def compute_position_ids(seq_len, cache_len):
    """Positions of `seq_len` new tokens behind `cache_len` earlier ones."""
    # Place 11.
    return torch.arange(cache_len, cache_len + seq_len)


def validate_inputs(query, key, value):
    """Raises ValueError unless the three have the shape [batch, tokens, d_model], and fit together."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, torch.Tensor) or tensor.dim() != 3:
            raise ValueError(f"{name} is no tensor of three axes: batch, tokens, d_model")
    if not query.size(0) == key.size(0) == value.size(0):
        raise ValueError(f"query, key and value differ in batch: {query.size(0)}, {key.size(0)}, {value.size(0)}")
    if not query.size(2) == key.size(2) == value.size(2):
        raise ValueError(f"query, key and value differ in d_model: {query.size(2)}, {key.size(2)}, {value.size(2)}")
    if key.size(1) != value.size(1):
        raise ValueError(f"key has {key.size(1)} tokens, value {value.size(1)}")


def create_sample_input(batch_size, seq_len, d_model, seed=None):
    """Random (query, key, value) to try things with; the same for the same seed."""
    generator = torch.Generator()
    if seed is not None:
        generator.manual_seed(seed)
    else:
        generator.seed()
    shape = (batch_size, seq_len, d_model)
    return tuple(torch.randn(shape, generator=generator) for _ in range(3))
