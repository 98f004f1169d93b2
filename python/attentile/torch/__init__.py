# SPDX-License-Identifier: Apache-2.0
"""Attentile for PyTorch: attention on CPU tensors, differentiable, compiled, as a drop-in.

    from attentile.torch import attention
    out = attention(q, k, v, causal=True)                   # [batch, seqlen, heads, head_dim]

    with attentile.torch.sdpa():                            # F.scaled_dot_product_attention
        model(x)
"""

import os

import torch

from attentile import _core
from attentile.torch import _vmap  # noqa: F401  registers its rules
from attentile.torch._autograd import attention, attention_backward
from attentile.torch._sdpa import (
    Dispatch,
    last_dispatch,
    register_flash_attention_impl,
    sdpa,
)

__all__ = ["Dispatch", "attention", "attention_backward", "last_dispatch",
           "register_flash_attention_impl", "sdpa"]

register_flash_attention_impl()  # offered by name, activated by nobody

# Calls on tensors run on the threads of torch's own operators, where it was built with OpenMP.
OPENMP = os.path.join(torch.__path__[0], "lib", "libtorch_cpu.so")
_core.use_openmp(OPENMP)
