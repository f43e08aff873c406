# SPDX-License-Identifier: Apache-2.0
"""Does not parse."""
from torch import nn


class KVCachedMultiHeadAttention(nn.Module)
    def forward(self, query, key, value, cache=None, use_causal_mask=True):
        return query, cache
