# SPDX-License-Identifier: Apache-2.0
"""Forward and backward pass one by one, for callers that put attention together themselves.

Ring attention runs the forward pass over pieces of the keys, merges (out, lse), and gives the
merged ones to the backward pass of each piece. Names, arguments and results are flash_attn's:

    forward:   (out, softmax_lse, S_dmask, rng_state); rng_state int64 [2] replays the dropout.
    backward:  softmax_d [batch, num_heads_q, seqlen_q] (packed [num_heads_q, total_q]), the sum of
               dout * out over head_dim; dq, dk and dv are written in place.

Nothing is recorded for autograd. softmax_d is not padded to multiples of 128.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from attentile.compat.flash_attn._arguments import check_tensor, indices, integer, keywords_of
from attentile.compat.flash_attn._dense import add_dropout, dense
from attentile.compat.flash_attn._varlen import Bounds, add_pages, check_packed, varlen
from attentile.torch import attention_backward

if TYPE_CHECKING:
    from torch import Tensor

    from attentile._call import Keywords

_Gradients = tuple["Tensor | None", "Tensor | None", "Tensor | None"]


def _state_of(keywords: Keywords) -> Tensor:
    return torch.tensor([keywords.get("dropout_seed", 0), keywords.get("dropout_offset", 0)])


@torch.no_grad()
# signature of flash_attn.flash_attn_interface._flash_attn_forward
def _flash_attn_forward(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float, softmax_scale: float, causal: bool,
    window_size_left: int, window_size_right: int, softcap: float, alibi_slopes: Tensor | None,
    return_softmax: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The forward pass of `flash_attn_func`."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_tensor(name, tensor, ("batch", "seqlen", "num_heads", "head_dim"))
    window = window_size_left, window_size_right
    keywords = keywords_of(softmax_scale, causal, window, softcap, alibi_slopes)
    add_dropout(keywords, dropout_p, True)
    return (*dense(q, k, v, keywords, return_softmax), _state_of(keywords))


@torch.no_grad()
# signature of flash_attn.flash_attn_interface._flash_attn_varlen_forward
def _flash_attn_varlen_forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: Any,
    max_seqlen_k: Any, dropout_p: float, softmax_scale: float, causal: bool,
    window_size_left: int = -1, window_size_right: int = -1, softcap: float = 0.0,
    alibi_slopes: Tensor | None = None, return_softmax: bool = False,
    block_table: Tensor | None = None, leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None, zero_tensors: bool = False, num_splits: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The forward pass of `flash_attn_varlen_func`; seqused_k int32 [batch]: keys used of each."""
    check_tensor("q", q, ("total_q", "num_heads_q", "head_dim"))
    integer("num_splits", num_splits)
    window = window_size_left, window_size_right
    keywords = keywords_of(softmax_scale, causal, window, softcap, alibi_slopes)
    sides = Bounds("_q", cu_seqlens_q, max_seqlen_q), Bounds("_k", cu_seqlens_k, max_seqlen_k)
    batch = sides[1].cu_seqlens.shape[0] - 1
    if seqused_k is not None:
        keywords["seqused_k"] = indices("seqused_k", seqused_k, (batch,))
    if leftpad_k is not None:
        keywords["leftpad_k"] = indices("leftpad_k", leftpad_k, (batch,))
    if block_table is not None:
        lengths = keywords.get("seqused_k", sides[1].cu_seqlens.diff())
        add_pages(keywords, k, v, lengths, block_table)
    else:
        check_packed(k, v)
    add_dropout(keywords, dropout_p, True)
    return (*varlen(q, k, v, sides, keywords, return_softmax), _state_of(keywords))


def _backward(dout: Tensor, tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
              gradients: _Gradients, keywords: Keywords) -> None:
    """Gradients of q, k, v, from (q, k, v, out, lse), into those that are given."""
    found = attention_backward(dout, *tensors, **keywords)
    for name, target, gradient in zip(("dq", "dk", "dv"), gradients, found[:3], strict=True):
        if target is not None:
            check_tensor(name, target, tuple(gradient.shape))
            target.copy_(gradient)


def _replay(keywords: Keywords, dropout_p: float, rng_state: Tensor | None) -> None:
    """Keywords of the forward pass's dropout."""
    if dropout_p:
        if rng_state is None:
            raise ValueError("rng_state: was None, expected the forward pass's, as dropout_p is "
                             f"{dropout_p}")
        keywords["dropout_p"] = dropout_p
        keywords["dropout_seed"], keywords["dropout_offset"] = rng_state.tolist()


@torch.no_grad()
# signature of flash_attn.flash_attn_interface._flash_attn_backward
def _flash_attn_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor,
    dq: Tensor | None, dk: Tensor | None, dv: Tensor | None, dropout_p: float,
    softmax_scale: float, causal: bool, window_size_left: int, window_size_right: int,
    softcap: float, alibi_slopes: Tensor | None, deterministic: bool,
    rng_state: Tensor | None = None,
) -> Tensor:
    """The backward pass of `flash_attn_func`."""
    window = window_size_left, window_size_right
    keywords = keywords_of(softmax_scale, causal, window, softcap, alibi_slopes)
    _replay(keywords, dropout_p, rng_state)
    _backward(dout, (q, k, v, out, softmax_lse), (dq, dk, dv), keywords)
    return (dout.to(softmax_lse.dtype) * out).sum(-1).transpose(1, 2)


@torch.no_grad()
# signature of flash_attn.flash_attn_interface._flash_attn_varlen_backward
def _flash_attn_varlen_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor,
    dq: Tensor | None, dk: Tensor | None, dv: Tensor | None, cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor, max_seqlen_q: Any, max_seqlen_k: Any, dropout_p: float,
    softmax_scale: float, causal: bool, window_size_left: int, window_size_right: int,
    softcap: float, alibi_slopes: Tensor | None, deterministic: bool,
    rng_state: Tensor | None = None, zero_tensors: bool = False,
) -> Tensor:
    """The backward pass of `flash_attn_varlen_func`; every row belongs to a sequence."""
    window = window_size_left, window_size_right
    keywords = keywords_of(softmax_scale, causal, window, softcap, alibi_slopes)
    sides = Bounds("_q", cu_seqlens_q, max_seqlen_q), Bounds("_k", cu_seqlens_k, max_seqlen_k)
    keywords["cu_seqlens_q"], keywords["cu_seqlens_k"] = (side.cu_seqlens for side in sides)
    _replay(keywords, dropout_p, rng_state)
    _backward(dout, (q, k, v, out, softmax_lse), (dq, dk, dv), keywords)
    return (dout.to(softmax_lse.dtype) * out).sum(-1).transpose(0, 1)
