# SPDX-License-Identifier: Apache-2.0
"""Attention as plain PyTorch has it: `attest certify --python backends/python/example.py:attention`."""
import torch


def attention(q, k, v, *, mask, scale):
    """softmax(q k^T * scale) v, computed in f32"""
    k, v = (x.float().repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    logits = (q.float() @ k.transpose(-2, -1)) * scale
    weights = torch.softmax(logits.masked_fill(~mask, -torch.inf), dim=-1)
    weights = weights.masked_fill(~mask.any(dim=-1, keepdim=True), 0)  # a query that sees no key gets 0, not NaN
    return (weights @ v).to(q.dtype)
