# SPDX-License-Identifier: Apache-2.0
"""The memory-efficient attention of xFormers, on CPU tensors: its names, shapes and masks.

    import attentile.compat.xformers.ops as xops
    out = xops.memory_efficient_attention(q, k, v, attn_bias=xops.LowerTriangularMask())

Signatures are those of xformers 0.0.35, whose own operators run on GPUs only. Nothing of it is
needed here.
"""

from attentile.compat.xformers import ops

__all__ = ["ops"]
