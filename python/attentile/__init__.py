# SPDX-License-Identifier: Apache-2.0
"""Attentile: exact attention, forward and backward, tile by tile, in O(seqlen) memory.

    attentile.attention(q, k, v, causal=True)     NumPy, JAX, anything that speaks DLPack
    attentile.torch.attention(q, k, v)            tensors of torch, differentiable
    with attentile.torch.sdpa(): ...              F.scaled_dot_product_attention runs here
    attentile.hf.register()                       attn_implementation="attentile"
    attentile.nn.FlashAttention                   the classic module
    attentile.compat.flash_attn, .xformers        their functions, on CPU tensors
    attentile.jax, attentile.onnx                 JAX, and the ONNX operator Attention

Submodules are imported on first use, so importing attentile imports nothing but NumPy.
"""

from __future__ import annotations

import importlib
from typing import Any

from attentile._arrays import Gradients, attention, attention_backward, info, merge, plan
from attentile._core import UnsupportedError, __version__

__all__ = ["Gradients", "UnsupportedError", "__version__", "attention", "attention_backward",
           "info", "merge", "plan"]

_SUBMODULES = frozenset(("compat", "hf", "jax", "nn", "onnx", "torch"))


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"attentile.{name}")
    raise AttributeError(f"module 'attentile' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBMODULES})
