# SPDX-License-Identifier: Apache-2.0
"""flash_attn_with_kvcache: append to a cache in place, then attend over it where it lies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from attentile.compat.flash_attn._arguments import (
    check_dtype,
    check_pages,
    check_range,
    check_tensor,
    indices,
    integer,
    keywords_of,
)
from attentile.compat.flash_attn.layers.rotary import apply_rotary_emb
from attentile.torch import attention

if TYPE_CHECKING:
    from torch import Tensor

    from attentile._call import Keywords


class _Cache:
    """k_cache and v_cache with what says where a sequence's tokens lie in them."""

    def __init__(self, q: Tensor, caches: tuple[Tensor, Tensor], block_table: Tensor | None,
                 cache_batch_idx: Tensor | None) -> None:
        self.k, self.v = caches
        self.batch = q.shape[0]
        first = "num_pages" if block_table is not None else "batch_cache"
        check_tensor("k_cache", self.k, (first, "seqlen", "num_heads_kv", q.shape[3]))
        check_tensor("v_cache", self.v, (*self.k.shape[:3], "head_dim"))
        check_dtype("k_cache", self.k, q.dtype)
        check_dtype("v_cache", self.v, q.dtype)
        self.table = self.rows = None
        if block_table is not None:
            if cache_batch_idx is not None:
                raise ValueError("cache_batch_idx: was given with block_table, expected one of "
                                 "them: a table has a row per batch entry already")
            self.table = indices("block_table", block_table, (self.batch, "max_pages"))
        elif cache_batch_idx is not None:
            self.rows = indices("cache_batch_idx", cache_batch_idx, (self.batch,))
            check_range("cache_batch_idx", self.rows, 0, self.k.shape[0] - 1)
        elif self.k.shape[0] != self.batch:
            raise ValueError(f"k_cache: batch was {self.k.shape[0]}, expected {self.batch} as of "
                             "q, or cache_batch_idx")

    @property
    def capacity(self) -> int:
        """Tokens that a sequence can have."""
        size = self.k.shape[1]
        return size if self.table is None else size * self.table.shape[1]

    def lengths(self, cache_seqlens: Any, added: int) -> tuple[Tensor, Tensor]:
        """(before, after) the append, int32 [batch], checked against the capacity."""
        if cache_seqlens is None:
            before = torch.full((self.batch,), self.capacity, dtype=torch.int32)
        elif isinstance(cache_seqlens, torch.Tensor):
            before = indices("cache_seqlens", cache_seqlens, (self.batch,))
        else:
            length = integer("cache_seqlens", cache_seqlens)
            if not 0 <= length < 2**31:
                raise ValueError(f"cache_seqlens: was {length}, expected 0 to {self.capacity}")
            before = torch.full((self.batch,), length, dtype=torch.int32)
        after = before + added
        if self.table is None:
            check_range("cache_seqlens", before, 0, self.capacity - added)
        else:
            check_range("cache_seqlens", before, 0, 2**31 - 1 - added)
            check_pages(self.table, after, self.k.shape[0], self.k.shape[1])
        return before, after

    def append(self, k: Tensor, v: Tensor, before: Tensor) -> None:
        """Writes k and v behind the tokens that are there: no other element is touched."""
        at = before.long()[:, None] + torch.arange(k.shape[1])
        if self.table is not None:
            size = self.k.shape[1]
            first = self.table.long().gather(1, at // size)
            at = at % size
        elif self.rows is not None:
            first = self.rows.long()[:, None]
        else:
            first = torch.arange(self.batch)[:, None]
        self.k[first, at] = k
        self.v[first, at] = v


def _check_new(cache: _Cache, k: Tensor, v: Tensor | None, cache_seqlens: Any) -> None:
    if v is None:
        raise ValueError("v: was None, expected the values that belong to k")
    if cache_seqlens is None:
        raise ValueError("cache_seqlens: was None, expected the lengths behind which k and v go")
    heads, head_dim = cache.k.shape[2:]
    check_tensor("k", k, (cache.batch, "seqlen_new", heads, head_dim))
    check_tensor("v", v, (cache.batch, k.shape[1], heads, cache.v.shape[3]))
    if k.shape[1] > cache.capacity:
        raise ValueError(f"k: had {k.shape[1]} new tokens, expected at most {cache.capacity}, "
                         "which is what k_cache holds")
    check_dtype("k", k, cache.k.dtype)
    check_dtype("v", v, cache.v.dtype)


def _rotate(q: Tensor, k: Tensor, tables: tuple[Tensor | None, Tensor | None], before: Tensor,
            interleaved: bool, keywords: Keywords) -> tuple[Tensor, Tensor]:
    """q and k rotated; without causal and window all of q stands at the cache's length."""
    cos, sin = tables
    if cos is None or sin is None:
        name = "rotary_cos" if cos is None else "rotary_sin"
        raise ValueError(f"{name}: was None, expected both rotary_cos and rotary_sin")
    k = apply_rotary_emb(k, cos, sin, interleaved, seqlen_offsets=before)
    if keywords.keys() & {"causal", "window_left", "window_right"}:
        return apply_rotary_emb(q, cos, sin, interleaved, seqlen_offsets=before), k
    one_position = q.flatten(1, 2)[:, None]
    rotated = apply_rotary_emb(one_position, cos, sin, interleaved, seqlen_offsets=before)
    return rotated.view(q.shape), k


@torch.no_grad()
# signature of flash_attn.flash_attn_with_kvcache
def flash_attn_with_kvcache(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor | None = None, v: Tensor | None = None,
    rotary_cos: Tensor | None = None, rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None, cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None, block_table: Tensor | None = None,
    softmax_scale: float | None = None, causal: bool = False, window_size: Any = (-1, -1),
    softcap: float = 0.0, rotary_interleaved: bool = True, alibi_slopes: Tensor | None = None,
    num_splits: int = 0, return_softmax_lse: bool = False,
) -> Any:
    """Attention of q over a cache of keys and values; new ones are appended first, in place.

    The cache is read where it lies: no copy, no gather. Without gradients.

    Args:
        q: [batch, seqlen_q, num_heads_q, head_dim].
        k_cache, v_cache: [batch_cache, seqlen_cache, num_heads_kv, head_dim]; with block_table
            [num_pages, page_size, num_heads_kv, head_dim], any page_size.
        k, v: [batch, seqlen_new, num_heads_kv, head_dim], written at cache_seqlens and behind.
        rotary_cos, rotary_sin: [seqlen_rotary, rotary_dim / 2]: k is rotated by the rows from
            cache_seqlens on; so is q with causal or a window, else all of q by row cache_seqlens.
        cache_seqlens: tokens of each sequence before the append, int or int32 [batch]; default all.
        cache_batch_idx: int32 [batch], the row of the cache that a batch entry uses.
        cache_leftpad: int32 [batch], rows to skip at the front; cache_seqlens counts them, the
            positions of mask and ALiBi do not.
        block_table: int32 [batch, max_pages], the pages of each sequence.
        softmax_scale, causal, window_size, softcap, alibi_slopes: as of `flash_attn_func`.
        rotary_interleaved: pairs are (0, 1), (2, 3), ...; else (0, rotary_dim / 2), ...
        num_splits: accepted; the split is chosen here, and results do not depend on it.
        return_softmax_lse: return (out, softmax_lse), [batch, num_heads_q, seqlen_q].

    Returns: out [batch, seqlen_q, num_heads_q, head_dim].

    Raises ValueError, TypeError; RuntimeError naming block_table if a page in use is not there or
    the table is too narrow. Nothing is written then. Source: flash_attn 2.8.
    """
    check_tensor("q", q, ("batch", "seqlen_q", "num_heads_q", "head_dim"))
    integer("num_splits", num_splits)
    keywords = keywords_of(softmax_scale, causal, window_size, softcap, alibi_slopes)
    cache = _Cache(q, (k_cache, v_cache), block_table, cache_batch_idx)
    if k is not None:
        _check_new(cache, k, v, cache_seqlens)
    elif v is not None or rotary_cos is not None or rotary_sin is not None:
        raise ValueError("k: was None, expected new keys where v or rotary_cos is given")
    before, after = cache.lengths(cache_seqlens, 0 if k is None else k.shape[1])
    if cache_leftpad is not None:
        keywords["leftpad_k"] = indices("cache_leftpad", cache_leftpad, (cache.batch,))
        _check_leftpad(keywords["leftpad_k"], after)
    if k is not None and v is not None:
        if rotary_cos is not None or rotary_sin is not None:
            q, k = _rotate(q, k, (rotary_cos, rotary_sin), before, rotary_interleaved, keywords)
        cache.append(k, v, before)
    keywords["seqused_k"] = after
    if cache.table is not None:
        keywords["block_table"] = cache.table
    if cache.rows is not None:
        keywords["cache_batch_idx"] = cache.rows
    with torch.autocast("cpu", enabled=False):  # a cast would copy the cache
        return attention(q, cache.k, cache.v, return_lse=return_softmax_lse, **keywords)


def _check_leftpad(leftpad: Tensor, lengths: Tensor) -> None:
    if torch.compiler.is_compiling():
        return
    for at, (pad, length) in enumerate(zip(leftpad.tolist(), lengths.tolist(), strict=True)):
        if not 0 <= pad <= length:
            raise ValueError(f"cache_leftpad[{at}]: was {pad}, expected 0 to {length}, the tokens "
                             "of that sequence")
