# SPDX-License-Identifier: Apache-2.0
"""Tensors and keywords of small calls on torch: one set for each feature, and all together."""

from __future__ import annotations

from typing import Any

import torch

Tensor = torch.Tensor
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def tokens(*, dtype: torch.dtype = torch.float64, rows: int = 5, keys: int = 6, heads: int = 4,
           heads_kv: int = 2, dim: int = 8, dim_v: int = 8, batch: int = 2,
           grad: bool = True) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = ((batch, rows, heads, dim), (batch, keys, heads_kv, dim), (batch, keys, heads_kv,
                                                                        dim_v))
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(grad)
            for s in shapes]


def normal(*shape: int, seed: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed),
                       dtype=torch.float64).to(dtype)


def i32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


# Keywords of calls on tokens(): one for each feature, and all of them together.
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "causal top-left": {"causal": True, "alignment": "top_left"},
    "window": {"window_left": 2, "window_right": 1},
    "position": {"causal": True, "position_offset": -1},
    "scale": {"softmax_scale": 0.7},
    "negative scale": {"softmax_scale": -0.3},
    "softcap": {"softcap": 1.5},
    "bias": {"bias": normal(2, 4, 5, 6)},
    "bias of heads": {"bias": normal(4, 1, 6)},
    "bias of keys": {"bias": normal(2, 1, 1, 6)},
    "bool mask": {"mask": normal(2, 1, 5, 6) > -0.5},
    "mask with dead rows": {"mask": torch.arange(5)[:, None] > torch.tensor([0, 0, 1, 1, 2, 2])},
    "byte mask": {"mask": (normal(5, 6) > 0).to(torch.uint8)},
    "sink": {"sink": normal(4, dtype=torch.float32)},
    "alibi": {"alibi_slopes": normal(4, dtype=torch.float32).abs()},
    "alibi of batch": {"alibi_slopes": normal(2, 4, dtype=torch.float32).abs()},
    "used keys": {"seqused_k": i32(4, 0)},
    "dropout": {"dropout_p": 0.4, "dropout_seed": 3, "dropout_offset": 2**63 + 1},
    "block mask": {"block_mask": normal(4, 2, 3) > -0.5, "block_size_q": 3, "block_size_k": 2},
    "all": {"causal": True, "window_left": 3, "bias": normal(4, 1, 6), "mask": normal(5, 6) > -1,
            "sink": normal(4, dtype=torch.float32), "softcap": 3.0, "seqused_k": i32(6, 5),
            "alibi_slopes": normal(4, dtype=torch.float32).abs(), "dropout_p": 0.2,
            "dropout_seed": 8},
}


def with_leaves(feature: str, dtype: torch.dtype = torch.float64) -> tuple[dict[str, Any],
                                                                           list[Tensor]]:
    """Keywords whose bias and sink require gradients, and those two where given."""
    keywords = dict(FEATURES[feature])
    leaves = []
    for name in ("bias", "sink"):
        if name in keywords:
            kind = dtype if name == "bias" else torch.float32
            keywords[name] = keywords[name].to(kind).requires_grad_()
            leaves.append(keywords[name])
    return keywords, leaves
