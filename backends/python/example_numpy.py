# SPDX-License-Identifier: Apache-2.0
"""Attention in NumPy with all that can be asked for by name:
`attest certify --python backends/python/example_numpy.py:attention`."""
import numpy as np


def attention(q, k, v, *, mask, scale, bias, softcap, alibi, sinks, return_lse):
    """two-pass softmax in f32, with masks, softcap, ALiBi, sinks and LSE"""
    heads, queries, keys = q.shape[1], q.shape[2], k.shape[2]
    k, v = (np.repeat(x.astype(np.float32), heads // k.shape[1], axis=1) for x in (k, v))
    logits = q.astype(np.float32) @ k.swapaxes(-2, -1) * np.float32(scale)
    if softcap is not None:
        logits = np.tanh(logits / np.float32(softcap)) * np.float32(softcap)
    if alibi is not None:
        slopes = standard_slopes(heads) if isinstance(alibi, str) else alibi
        distance = np.arange(queries)[:, None] + (keys - queries) - np.arange(keys)  # the last query is at the last key
        logits = logits - slopes[:, None, None] * np.abs(distance).astype(np.float32)
    if bias is not None:  # -inf masks any logit, also one that has overflowed: their sum would be NaN
        mask = mask & (bias != -np.inf)
        logits = logits + np.where(mask, bias, 0).astype(np.float32)
    logits = np.where(mask, logits, -np.inf)
    if sinks is not None:  # one more key, which has no value
        column = np.broadcast_to(sinks[:, None, None], (*logits.shape[:3], 1))
        logits = np.concatenate([logits, column], axis=-1)
    largest = np.max(logits, axis=-1, keepdims=True, initial=-np.inf)
    weights = np.exp(logits - np.where(np.isfinite(largest), largest, 0))
    total = weights.sum(axis=-1, keepdims=True)
    output = weights[..., :keys] @ v / np.where(total > 0, total, 1)  # a query that sees no key gets 0
    output = output.astype(q.dtype)
    return (output, (largest + np.log(total))[..., 0].astype(np.float32)) if return_lse else output


def standard_slopes(heads):
    """2^(-8/n), 2^(-16/n), ... for n heads, the largest power of two; the others lie between them."""
    power = 2 ** (heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * (h + 1) / power) for h in range(power)]
    slopes += [2.0 ** (-4 * (2 * h + 1) / power) for h in range(heads - power)]
    return np.array(slopes, np.float32)
