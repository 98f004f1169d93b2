# SPDX-License-Identifier: Apache-2.0
"""flash_attn_varlen_func and its packed forms: sequences of many lengths, end to end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from attentile._core import UnsupportedError
from attentile.compat.flash_attn._arguments import (
    check_pages,
    check_tensor,
    indices,
    integer,
    keywords_of,
)
from attentile.compat.flash_attn._dense import add_dropout
from attentile.compat.flash_attn._probabilities import packed_signed_weights
from attentile.torch import attention

if TYPE_CHECKING:
    from torch import Tensor

    from attentile._call import Keywords


class Bounds:
    """cu_seqlens and max_seqlen of one side, checked."""

    def __init__(self, side: str, cu_seqlens: Tensor, max_seqlen: Any) -> None:
        name = f"cu_seqlens{side}"
        self.cu_seqlens = indices(name, cu_seqlens, ("batch + 1",))
        self.longest = integer(f"max_seqlen{side}", max_seqlen)
        if torch.compiler.is_compiling():
            return
        if self.cu_seqlens.numel() == 0:
            raise ValueError(f"{name}: was empty, expected batch + 1 elements")
        lengths = self.cu_seqlens.diff()
        if int(self.cu_seqlens[0]) != 0 or bool((lengths < 0).any()):
            raise ValueError(f"{name}: was {self.cu_seqlens.tolist()}, expected to begin with 0 "
                             "and never to fall")
        longest = int(lengths.max()) if lengths.numel() else 0
        if longest > self.longest:
            raise ValueError(f"max_seqlen{side}: was {self.longest}, expected at least {longest}, "
                             f"the longest sequence of {name}")

    def used(self, packed: Tensor) -> Tensor:
        """The rows that belong to a sequence: callers keep unused rows at the end."""
        if torch.compiler.is_compiling():
            return packed
        total = int(self.cu_seqlens[-1])
        return packed[:total] if total < packed.shape[0] else packed


def varlen(q: Tensor, k: Tensor, v: Tensor, sides: tuple[Bounds, Bounds], keywords: Keywords,
           weights: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(out, lse, S_dmask) of packed q, and packed or paged k and v; as `dense`."""
    in_place = keywords.keys() & {"block_table", "seqused_k", "leftpad_k"}
    if weights and "dropout_p" in keywords and in_place:
        raise UnsupportedError("return_attn_probs: was given with dropout_p and "
                               f"{min(in_place)}, expected whole packed sequences for S_dmask")
    keywords["cu_seqlens_q"] = sides[0].cu_seqlens
    rows = sides[0].used(q)
    if "block_table" not in keywords:
        keywords["cu_seqlens_k"] = sides[1].cu_seqlens
        k, v = sides[1].used(k), sides[1].used(v)
    # A cast of the pages would copy the cache.
    cast = torch.is_autocast_enabled("cpu") and "block_table" not in keywords
    with torch.autocast("cpu", enabled=cast):
        out, lse = attention(rows, k, v, return_lse=True, **keywords)
    signed = out.new_empty(0)
    if weights and "dropout_p" in keywords:
        bounds = keywords.pop("cu_seqlens_q"), keywords.pop("cu_seqlens_k")
        longest = sides[0].longest, sides[1].longest
        signed = packed_signed_weights(rows, k, v, bounds, longest, dtype=out.dtype,
                                       keywords=keywords)
    unused = q.shape[0] - rows.shape[0]
    if unused:
        out = torch.nn.functional.pad(out, (0, 0, 0, 0, 0, unused))
        lse = torch.nn.functional.pad(lse, (0, unused), value=-torch.inf)
    return out, lse, signed


def _attend(q: Tensor, k: Tensor, v: Tensor, sides: tuple[Bounds, Bounds], *, dropout_p: float,
            return_attn_probs: bool, keywords: Keywords) -> Any:
    add_dropout(keywords, dropout_p, return_attn_probs)
    results = varlen(q, k, v, sides, keywords, return_attn_probs)
    return results if return_attn_probs else results[0]


def check_packed(k: Tensor, v: Tensor) -> None:
    for name, packed in (("k", k), ("v", v)):
        check_tensor(name, packed, ("total_k", "num_heads_kv", "head_dim"))


def add_pages(keywords: Keywords, k: Tensor, v: Tensor, lengths: Tensor,
              block_table: Tensor) -> None:
    """Keywords for k and v in pages, once the table is known to be good."""
    for name, pages in (("k", k), ("v", v)):
        check_tensor(name, pages, ("num_pages", "page_size", "num_heads_kv", "head_dim"))
    table = indices("block_table", block_table, (lengths.shape[0], "max_pages"))
    check_pages(table, lengths, k.shape[0], k.shape[1])
    keywords["block_table"] = table
    keywords["seqused_k"] = lengths


# signature of flash_attn.flash_attn_varlen_func
def flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: Any,
    max_seqlen_k: Any, dropout_p: float = 0.0, softmax_scale: float | None = None,
    causal: bool = False, window_size: Any = (-1, -1), softcap: float = 0.0,
    alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: bool = False, block_table: Tensor | None = None,
) -> Any:
    """Attention within each of many sequences that lie end to end, differentiable.

    Args as of `flash_attn_func`, but
        q: [total_q, num_heads_q, head_dim]; k, v: [total_k, num_heads_kv, head_dim].
        cu_seqlens_q, cu_seqlens_k: int32 [batch + 1], where each sequence begins, from 0. Rows of q
            after the last sequence are padding: out 0, lse -inf (an error in a compiled graph).
        max_seqlen_q, max_seqlen_k: the longest sequence or more, int or 0-D tensor.
        block_table: int32 [batch, max_pages]; k and v are then pages [num_pages, page_size,
            num_heads_kv, head_dim], read in place, and cu_seqlens_k gives the lengths. Any
            page_size. Forward only.

    Returns: out [total_q, num_heads_q, head_dim]; with return_attn_probs also softmax_lse
    [num_heads_q, total_q] and S_dmask, empty without dropout, else [batch, num_heads_q,
    max_seqlen_q, max_seqlen_k], 0 beyond a sequence's end.

    Raises ValueError, TypeError; RuntimeError naming block_table if a page in use is not there;
    UnsupportedError for S_dmask of a paged call. Source: flash_attn 2.8.
    """
    check_tensor("q", q, ("total_q", "num_heads_q", "head_dim"))
    keywords = keywords_of(softmax_scale, causal, window_size, softcap, alibi_slopes)
    sides = Bounds("_q", cu_seqlens_q, max_seqlen_q), Bounds("_k", cu_seqlens_k, max_seqlen_k)
    if block_table is not None:
        add_pages(keywords, k, v, sides[1].cu_seqlens.diff(), block_table)
    else:
        check_packed(k, v)
    return _attend(q, k, v, sides, dropout_p=dropout_p, return_attn_probs=return_attn_probs,
                   keywords=keywords)


# signature of flash_attn.flash_attn_varlen_kvpacked_func
def flash_attn_varlen_kvpacked_func(
    q: Tensor, kv: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: Any,
    max_seqlen_k: Any, dropout_p: float = 0.0, softmax_scale: float | None = None,
    causal: bool = False, window_size: Any = (-1, -1), softcap: float = 0.0,
    alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """`flash_attn_varlen_func` with kv [total_k, 2, num_heads_kv, head_dim], read in place."""
    check_tensor("q", q, ("total_q", "num_heads_q", "head_dim"))
    check_tensor("kv", kv, ("total_k", 2, "num_heads_kv", "head_dim"))
    k, v = kv.unbind(1)
    keywords = keywords_of(softmax_scale, causal, window_size, softcap, alibi_slopes)
    sides = Bounds("_q", cu_seqlens_q, max_seqlen_q), Bounds("_k", cu_seqlens_k, max_seqlen_k)
    return _attend(q, k, v, sides, dropout_p=dropout_p, return_attn_probs=return_attn_probs,
                   keywords=keywords)


# signature of flash_attn.flash_attn_varlen_qkvpacked_func
def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: Any, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: Any = (-1, -1),
    softcap: float = 0.0, alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """`flash_attn_varlen_func` with qkv [total, 3, num_heads, head_dim], read in place."""
    check_tensor("qkv", qkv, ("total", 3, "num_heads", "head_dim"))
    q, k, v = qkv.unbind(1)
    keywords = keywords_of(softmax_scale, causal, window_size, softcap, alibi_slopes)
    side = Bounds("", cu_seqlens, max_seqlen)
    return _attend(q, k, v, (side, side), dropout_p=dropout_p,
                   return_attn_probs=return_attn_probs, keywords=keywords)
