# SPDX-License-Identifier: Apache-2.0
"""Masks for memory_efficient_attention: the classes of xformers.ops.fmha.attn_bias.

None of them is ever an array of queries by keys. Each one is a band (causal, windows, alignment)
and a division of tokens into sequences, handed to the library as bounds, lengths and page tables;
`materialize` is for looking at one. Rows that see no key have zeros in the output.
"""

from attentile.compat.xformers.ops.fmha._blocks import (
    BlockDiagonalCausalFromBottomRightMask,
    BlockDiagonalCausalLocalAttentionFromBottomRightMask,
    BlockDiagonalCausalLocalAttentionMask,
    BlockDiagonalCausalLocalAttentionPaddedKeysMask,
    BlockDiagonalCausalMask,
    BlockDiagonalCausalWithOffsetPaddedKeysMask,
    BlockDiagonalLocalAttentionPaddedKeysMask,
    BlockDiagonalMask,
    BlockDiagonalPaddedKeysMask,
)
from attentile.compat.xformers.ops.fmha._dense import (
    AttentionBias,
    LocalAttentionFromBottomRightMask,
    LowerTriangularFromBottomRightLocalAttentionMask,
    LowerTriangularFromBottomRightMask,
    LowerTriangularMask,
    LowerTriangularMaskWithTensorBias,
)
from attentile.compat.xformers.ops.fmha._paged import (
    BlockDiagonalCausalWithOffsetGappyKeysMask,
    BlockDiagonalGappyKeysMask,
    PagedBlockDiagonalCausalWithOffsetGappyKeysMask,
    PagedBlockDiagonalCausalWithOffsetPaddedKeysMask,
    PagedBlockDiagonalGappyKeysMask,
    PagedBlockDiagonalPaddedKeysMask,
)

__all__ = ["AttentionBias", "BlockDiagonalCausalFromBottomRightMask",
           "BlockDiagonalCausalLocalAttentionFromBottomRightMask",
           "BlockDiagonalCausalLocalAttentionMask",
           "BlockDiagonalCausalLocalAttentionPaddedKeysMask", "BlockDiagonalCausalMask",
           "BlockDiagonalCausalWithOffsetGappyKeysMask",
           "BlockDiagonalCausalWithOffsetPaddedKeysMask", "BlockDiagonalGappyKeysMask",
           "BlockDiagonalLocalAttentionPaddedKeysMask", "BlockDiagonalMask",
           "BlockDiagonalPaddedKeysMask", "LocalAttentionFromBottomRightMask",
           "LowerTriangularFromBottomRightLocalAttentionMask",
           "LowerTriangularFromBottomRightMask", "LowerTriangularMask",
           "LowerTriangularMaskWithTensorBias", "PagedBlockDiagonalCausalWithOffsetGappyKeysMask",
           "PagedBlockDiagonalCausalWithOffsetPaddedKeysMask", "PagedBlockDiagonalGappyKeysMask",
           "PagedBlockDiagonalPaddedKeysMask"]
