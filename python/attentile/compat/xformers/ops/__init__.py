# SPDX-License-Identifier: Apache-2.0
"""xformers.ops: its attention, as far as `fmha` tells, and unbind, which models call beside it."""

from torch import unbind

from attentile.compat.xformers.ops import fmha
from attentile.compat.xformers.ops.fmha import (
    AttentionBias,
    LowerTriangularMask,
    memory_efficient_attention,
    memory_efficient_attention_backward,
    memory_efficient_attention_forward,
    memory_efficient_attention_forward_requires_grad,
    memory_efficient_attention_partial,
    merge_attentions,
)

AttentionMask = AttentionBias

__all__ = ["AttentionBias", "AttentionMask", "LowerTriangularMask", "fmha",
           "memory_efficient_attention", "memory_efficient_attention_backward",
           "memory_efficient_attention_forward",
           "memory_efficient_attention_forward_requires_grad",
           "memory_efficient_attention_partial", "merge_attentions", "unbind"]
