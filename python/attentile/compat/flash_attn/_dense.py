# SPDX-License-Identifier: Apache-2.0
"""flash_attn_func and its packed forms: sequences of one length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attentile.compat.flash_attn._arguments import check_tensor, keywords_of
from attentile.compat.flash_attn._probabilities import signed_weights
from attentile.torch import attention
from attentile.torch._autograd import draw_dropout_state

if TYPE_CHECKING:
    from torch import Tensor

    from attentile._call import Keywords


def add_dropout(keywords: Keywords, dropout_p: float, replayed: bool) -> None:
    """Keywords of dropout; if a later call is to replay it, with a state drawn for it now."""
    if dropout_p:
        keywords["dropout_p"] = dropout_p
        if replayed:
            seed, offset = draw_dropout_state().tolist()
            keywords["dropout_seed"], keywords["dropout_offset"] = seed, offset


def dense(q: Tensor, k: Tensor, v: Tensor, keywords: Keywords, weights: bool,
          ) -> tuple[Tensor, Tensor, Tensor]:
    """(out, lse, S_dmask), the last one empty without dropout or where weights are not wanted."""
    if not weights or "dropout_p" not in keywords:
        out, lse = attention(q, k, v, return_lse=True, **keywords)
        return out, lse, out.new_empty(0)
    out, lse, keep = attention(q, k, v, return_lse=True, return_keep=True, **keywords)
    return out, lse, signed_weights(q, k, keep, out.dtype, keywords)


def _attend(q: Tensor, k: Tensor, v: Tensor, dropout_p: float, return_attn_probs: bool,
            keywords: Keywords) -> Any:
    add_dropout(keywords, dropout_p, return_attn_probs)
    if return_attn_probs:
        return dense(q, k, v, keywords, True)
    return attention(q, k, v, **keywords)


# signature of flash_attn.flash_attn_func
def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None,
    causal: bool = False, window_size: Any = (-1, -1), softcap: float = 0.0,
    alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """Attention of q over k and v, differentiable. Source: flash_attn 2.8, of which it is a twin.

    Causal, windows and ALiBi are aligned bottom-right: query i stands at i + seqlen_k - seqlen_q.

    Args:
        q: [batch, seqlen_q, num_heads_q, head_dim].
        k, v: [batch, seqlen_k, num_heads_kv, head_dim]; num_heads_q is a multiple of num_heads_kv.
        dropout_p: probability of dropping a weight; its state comes from torch's generator.
        softmax_scale: default 1 / sqrt(head_dim).
        causal: key j is visible to query i if j <= i + seqlen_k - seqlen_q.
        window_size: (left, right) keys around that position, inclusive, as a tuple or a tensor of
            two; -1 is unbounded.
        softcap: softcap * tanh(S / softcap) before the mask; 0 is off.
        alibi_slopes: float32 [num_heads_q] or [batch, num_heads_q]: -slope * |distance| is added.
        deterministic: accepted; results are deterministic in any case.
        return_attn_probs: return (out, softmax_lse, S_dmask).

    Returns: out [batch, seqlen_q, num_heads_q, head_dim] in q's dtype. softmax_lse
    [batch, num_heads_q, seqlen_q], float32 (float64 for float64), natural logarithm; -inf for a row
    that sees nothing, whose out is 0. S_dmask is empty without dropout, as flash_attn's; with it
    [batch, num_heads_q, seqlen_q, seqlen_k] in q's dtype: exp(S - max_j S), the softmax before its
    division by the sum of the row, negative where dropped. (flash_attn scales each tile of keys by
    its own maximum and pads to multiples of 128; here one tile holds all keys.)

    Raises ValueError, TypeError; the sentence names the argument.
    """
    _check(q=q, k=k, v=v)
    keywords = keywords_of(softmax_scale, causal, window_size, softcap, alibi_slopes)
    return _attend(q, k, v, dropout_p, return_attn_probs, keywords)


# signature of flash_attn.flash_attn_kvpacked_func
def flash_attn_kvpacked_func(
    q: Tensor, kv: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None,
    causal: bool = False, window_size: Any = (-1, -1), softcap: float = 0.0,
    alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """`flash_attn_func` with kv [batch, seqlen_k, 2, num_heads_kv, head_dim], read in place."""
    _check(q=q)
    check_tensor("kv", kv, ("batch", "seqlen_k", 2, "num_heads_kv", "head_dim"))
    k, v = kv.unbind(2)
    keywords = keywords_of(softmax_scale, causal, window_size, softcap, alibi_slopes)
    return _attend(q, k, v, dropout_p, return_attn_probs, keywords)


# signature of flash_attn.flash_attn_qkvpacked_func
def flash_attn_qkvpacked_func(
    qkv: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: Any = (-1, -1), softcap: float = 0.0, alibi_slopes: Tensor | None = None,
    deterministic: bool = False, return_attn_probs: bool = False,
) -> Any:
    """`flash_attn_func` with qkv [batch, seqlen, 3, num_heads, head_dim], read in place."""
    check_tensor("qkv", qkv, ("batch", "seqlen", 3, "num_heads", "head_dim"))
    q, k, v = qkv.unbind(2)
    keywords = keywords_of(softmax_scale, causal, window_size, softcap, alibi_slopes)
    return _attend(q, k, v, dropout_p, return_attn_probs, keywords)


def _check(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        check_tensor(name, tensor, ("batch", "seqlen", "num_heads", "head_dim"))
