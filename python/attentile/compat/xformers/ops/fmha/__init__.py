# SPDX-License-Identifier: Apache-2.0
"""xformers.ops.fmha: memory-efficient attention, its parts, and the masks of attn_bias."""

from attentile.compat.xformers.ops.fmha import attn_bias
from attentile.compat.xformers.ops.fmha._attention import (
    memory_efficient_attention,
    memory_efficient_attention_backward,
    memory_efficient_attention_forward,
    memory_efficient_attention_forward_requires_grad,
    memory_efficient_attention_partial,
)
from attentile.compat.xformers.ops.fmha._merge import merge_attentions
from attentile.compat.xformers.ops.fmha.attn_bias import (
    AttentionBias,
    BlockDiagonalMask,
    LowerTriangularMask,
)

__all__ = ["AttentionBias", "BlockDiagonalMask", "LowerTriangularMask", "attn_bias",
           "memory_efficient_attention", "memory_efficient_attention_backward",
           "memory_efficient_attention_forward",
           "memory_efficient_attention_forward_requires_grad",
           "memory_efficient_attention_partial", "merge_attentions"]
