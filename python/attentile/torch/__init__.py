# SPDX-License-Identifier: Apache-2.0
"""Attentile for PyTorch: attention on CPU tensors, differentiable, compiled, as a drop-in.

    from attentile.torch import attention
    out = attention(q, k, v, causal=True)                   # [batch, seqlen, heads, head_dim]

    with attentile.torch.sdpa():                            # F.scaled_dot_product_attention
        model(x)
"""

from attentile.torch._autograd import attention, attention_backward

__all__ = ["attention", "attention_backward"]
