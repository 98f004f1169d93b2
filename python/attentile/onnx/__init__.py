# SPDX-License-Identifier: Apache-2.0
"""Attentile for ONNX: the operator Attention of opsets 23 to 25, as a backend and as a function.

    import attentile.onnx
    rep = attentile.onnx.prepare(onnx.load("attention.onnx"))
    (y,) = rep.run([q, k, v])

    y = attentile.onnx.attention(Q, K, V, is_causal=1).Y        # without a model

A model is compatible if its nodes are Attention nodes. Y comes from the library, tile by tile;
causality, windows, caches and padding are bounds there, never arrays of queries by keys.
"""

from attentile.onnx._attention import Outputs, attention
from attentile.onnx._backend import AttentionRep, Backend

is_compatible = Backend.is_compatible
prepare = Backend.prepare
run_model = Backend.run_model
run_node = Backend.run_node
supports_device = Backend.supports_device

__all__ = ["AttentionRep", "Backend", "Outputs", "attention", "is_compatible", "prepare",
           "run_model", "run_node", "supports_device"]
