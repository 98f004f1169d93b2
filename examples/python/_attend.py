# SPDX-License-Identifier: Apache-2.0
"""Three ways to attend, with one signature: (packed qkv, causal) -> (out, None)."""

import torch
import torch.nn.functional as F

from attentile.nn import FlashAttention


def eager(qkv, causal=False):
    """Standard attention: the seqlen x seqlen weights of every head are in memory."""
    q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2), None


def sdpa(qkv, causal=False):
    """PyTorch's own fused attention."""
    q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2), None


ATTEND = {"attentile": FlashAttention(), "eager": eager, "sdpa": sdpa}
