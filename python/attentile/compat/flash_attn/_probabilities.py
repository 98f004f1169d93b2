# SPDX-License-Identifier: Apache-2.0
"""S_dmask: the weights of softmax with dropout's pattern in their signs. For tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from attentile.torch import attention

if TYPE_CHECKING:
    from torch import Tensor

    from attentile._call import Keywords


def signed_weights(q: Tensor, k: Tensor, keep: Tensor, dtype: torch.dtype,
                   keywords: Keywords) -> Tensor:
    """exp(S - max_j S) of q over k, negative where keep is 0.

    q [batch, seqlen_q, num_heads_q, head_dim], k [batch, seqlen_k, num_heads_kv, head_dim], keep
    [batch, num_heads_q, seqlen_q, seqlen_k]; returned in keep's shape and in dtype. A hidden key
    has weight 0. A dropped weight is at most -finfo.tiny, so that its sign outlives rounding.
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        grouped = q.to(wide).unflatten(2, (k.shape[2], -1))
        scores = torch.einsum("bihgd,bjhd->bhgij", grouped, k.to(wide)).flatten(1, 2)
        scale = keywords.get("softmax_scale")
        scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
        softcap = keywords.get("softcap", 0.0)
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        distance = _distance(q.shape[1], k.shape[1])
        slopes = keywords.get("alibi_slopes")
        if slopes is not None:
            scores = scores - slopes.reshape(-1, q.shape[2], 1, 1) * distance.abs()
        scores = scores.masked_fill(_hidden(distance, keywords), -torch.inf)
        top = scores.amax(-1, keepdim=True) if k.shape[1] else scores
        weights = torch.exp(scores - top.masked_fill(top == -torch.inf, 0.0)).to(dtype)
        dropped = (keep == 0) & (scores != -torch.inf)
        return torch.where(dropped, -weights.clamp_min(torch.finfo(dtype).tiny), weights)


def _distance(seqlen_q: int, seqlen_k: int) -> Tensor:
    """j - i - offset: how far key j stands behind query i, bottom-right aligned."""
    rows = torch.arange(seqlen_q)[:, None] + (seqlen_k - seqlen_q)
    return torch.arange(seqlen_k) - rows


def _hidden(distance: Tensor, keywords: Keywords) -> Tensor:
    left, right = keywords.get("window_left", -1), keywords.get("window_right", -1)
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if keywords.get("causal"):
        hidden = distance > 0
    if left >= 0:
        hidden = hidden | (distance < -left)
    if right >= 0:
        hidden = hidden | (distance > right)
    return hidden


def packed_signed_weights(q: Tensor, k: Tensor, v: Tensor, bounds: tuple[Tensor, Tensor],
                          longest: tuple[int, int], *, dtype: torch.dtype,
                          keywords: Keywords) -> Tensor:
    """`signed_weights` of each sequence, [batch, num_heads_q, *longest], 0 beyond its end.

    bounds: cu_seqlens_q and cu_seqlens_k. keywords hold dropout_p, its seed and offset.
    """
    starts_q, starts_k = (cu.tolist() for cu in bounds)
    batch = len(starts_q) - 1
    weights = torch.zeros((batch, q.shape[1], *longest), dtype=dtype)
    slopes = keywords.get("alibi_slopes")
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for b in range(batch):
            rows = slice(starts_q[b], starts_q[b + 1])
            keys = slice(starts_k[b], starts_k[b + 1])
            own = keywords.copy()
            own["batch_base"] = b
            if slopes is not None and slopes.ndim == 2:
                own["alibi_slopes"] = slopes[b:b + 1]
            part = (q[rows][None], k[keys][None])
            keep = attention(*part, v[keys][None], return_keep=True, **own)[1]
            weights[b, :, :keep.shape[2], :keep.shape[3]] = signed_weights(*part, keep, dtype, own)
    return weights
