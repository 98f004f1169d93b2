# SPDX-License-Identifier: Apache-2.0
"""Attention modules of torch, with the signatures of FlashAttention 1's flash_attention.py.

    attend = attentile.nn.FlashAttention(attention_dropout=0.1)
    out, _ = attend(qkv, causal=True)       # qkv [batch, seqlen, 3, num_heads, head_dim]

A projection gives [batch, seqlen, 3 * embed_dim]. Split it by

    qkv = qkv.view(batch, seqlen, 3, num_heads, head_dim)

The widely copied view(batch, seqlen, 3, -1).transpose(1, 2) is wrong: it loses the heads and swaps
the axes of seqlen and of q, k, v. FlashAttention refuses what comes out of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from attentile import UnsupportedError
from attentile.torch import attention

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FlashAttention", "FlashMHA"]

_PADDED = "[batch, seqlen, 3, num_heads, head_dim]"
_PACKED = "[total, 3, num_heads, head_dim] with cu_seqlens"


def _check_qkv(qkv: Any, packed: bool) -> None:
    if not isinstance(qkv, torch.Tensor):
        raise TypeError(f"qkv: was a {type(qkv).__name__}, expected a tensor")
    if qkv.dim() == (4 if packed else 5) and qkv.shape[-3] == 3:
        return
    hint = "" if packed else ("; from [batch, seqlen, 3 * embed_dim] it is "
                              "qkv.view(batch, seqlen, 3, num_heads, head_dim), not transposed")
    raise ValueError(f"qkv: was {list(qkv.shape)}, expected {_PACKED if packed else _PADDED}{hint}")


def _check_number(name: str, given: Any, kinds: tuple[type, ...]) -> None:
    if not isinstance(given, kinds) or isinstance(given, bool):
        raise TypeError(f"{name}: was {given!r}, expected "
                        f"{'an integer' if kinds == (int,) else 'a number'}")


def _check_padding(mask: Any, qkv: Tensor, packed: bool) -> None:
    if packed:
        raise ValueError("key_padding_mask: was given beside cu_seqlens, expected one of the two: "
                         "a packed qkv holds no padding")
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise TypeError(f"key_padding_mask: was {kind}, expected a bool tensor, True where a token "
                        "is kept")
    if mask.shape != qkv.shape[:2]:
        raise ValueError(f"key_padding_mask: was {list(mask.shape)}, expected [batch, seqlen] = "
                         f"{list(qkv.shape[:2])}")


def _refuse_weights(need_weights: bool) -> None:
    if need_weights:
        raise UnsupportedError("need_weights: was True, expected False: the seqlen x seqlen "
                               "weights are never held")


class FlashAttention(nn.Module):
    """Scaled dot-product attention of a packed qkv: softmax(softmax_scale * q k^T) v.

    Args:
        softmax_scale: default 1 / sqrt(head_dim).
        attention_dropout: probability in [0, 1] that a weight is dropped, in training mode only.
            The bits come from torch's generator: torch.manual_seed repeats them.
        device, dtype: taken for the signature's sake; the module has no parameters. It runs where
            qkv is.

    Raises: ValueError if attention_dropout is outside [0, 1].

    Source: `FlashAttention` of flash_attn 1 (flash_attention.py), Dao et al. 2022.
    """

    # signature of flash_attn.flash_attention.FlashAttention
    def __init__(self, softmax_scale: float | None = None, attention_dropout: float = 0.0,
                 device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        _check_number("attention_dropout", attention_dropout, (int, float))
        if not 0.0 <= attention_dropout <= 1.0:
            raise ValueError(f"attention_dropout: was {attention_dropout}, expected a probability "
                             "in [0, 1]")
        self.softmax_scale = softmax_scale
        self.dropout_p = attention_dropout

    def extra_repr(self) -> str:
        return f"softmax_scale={self.softmax_scale}, attention_dropout={self.dropout_p}"

    # signature of flash_attn.flash_attention.FlashAttention.forward
    def forward(self, qkv: Tensor, key_padding_mask: Tensor | None = None, causal: bool = False,
                cu_seqlens: Tensor | None = None, max_s: int | None = None,
                need_weights: bool = False) -> tuple[Tensor, None]:
        """(out, None): attention of each sequence over itself.

        Args:
            qkv: [batch, seqlen, 3, num_heads, head_dim], float32, float16, bfloat16 or float64,
                any strides; with cu_seqlens packed, [total, 3, num_heads, head_dim].
            key_padding_mask: bool [batch, seqlen], True where a token is kept. The others are not
                seen, their rows of out and of the gradient are 0, and what they hold, NaN
                included, reaches nothing.
            causal: token i sees tokens 0 to i.
            cu_seqlens: int32 [batch + 1], where each sequence of a packed qkv starts, and total.
            max_s: length of the longest sequence. On a GPU it saves work; on a CPU cu_seqlens
                tells it.
            need_weights: must be False.

        Returns: out, [batch, seqlen, num_heads, head_dim] or [total, num_heads, head_dim] in qkv's
        dtype, and None in the place of the weights.

        Raises: UnsupportedError for need_weights; ValueError and TypeError for other shapes and
        types than these, naming the argument.
        """
        _refuse_weights(need_weights)
        _check_qkv(qkv, cu_seqlens is not None)
        q, k, v = qkv.unbind(-3)
        dropout_p = self.dropout_p if self.training else 0.0
        if key_padding_mask is None:
            longest = max_s if max_s is not None and qkv.is_cuda and cu_seqlens is not None else 0
            return attention(q, k, v, causal=causal, softmax_scale=self.softmax_scale,
                             dropout_p=dropout_p, cu_seqlens_q=cu_seqlens,
                             cu_seqlens_k=cu_seqlens, max_seqlen_q=longest,
                             max_seqlen_k=longest), None
        _check_padding(key_padding_mask, qkv, cu_seqlens is not None)
        # Padding is masked where it stands. A padded query would still see keys: it is cleared
        # before, so that its NaN reaches no dk and dv, and its row of out after.
        padded = ~key_padding_mask[:, :, None, None]
        out = attention(q.masked_fill(padded, 0.0), k, v, causal=causal,
                        mask=key_padding_mask[:, None, None, :], softmax_scale=self.softmax_scale,
                        dropout_p=dropout_p)
        return out.masked_fill(padded, 0.0), None


class FlashMHA(nn.Module):
    """Multi-head self-attention: projection to qkv, `FlashAttention`, projection back.

    The parameters are Wqkv.weight [3 * embed_dim, embed_dim], Wqkv.bias, out_proj.weight and
    out_proj.bias, so a state_dict of flash_attn's FlashMHA loads. Any head_dim is fine.

    Args:
        embed_dim: a multiple of num_heads.
        bias: whether both projections have one.
        batch_first: must be True.
        attention_dropout, causal: as in `FlashAttention`.
        device, dtype: of the parameters.

    Raises: ValueError for an embed_dim that num_heads does not divide, batch_first=False or an
    attention_dropout outside [0, 1].

    Source: `FlashMHA` of flash_attn 1 (flash_attention.py).
    """

    # signature of flash_attn.flash_attention.FlashMHA
    def __init__(self, embed_dim: int, num_heads: int, bias: bool = True, batch_first: bool = True,
                 attention_dropout: float = 0.0, causal: bool = False, device: Any = None,
                 dtype: Any = None) -> None:
        super().__init__()
        if not batch_first:
            raise UnsupportedError("batch_first: was False, expected True: x is [batch, seqlen, "
                                   "embed_dim]")
        _check_number("embed_dim", embed_dim, (int,))
        _check_number("num_heads", num_heads, (int,))
        if num_heads < 1 or embed_dim < 1 or embed_dim % num_heads:
            raise ValueError(f"embed_dim, num_heads: were {embed_dim} and {num_heads}, expected "
                             "positive, embed_dim a multiple of num_heads")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.causal = causal
        self.Wqkv = nn.Linear(embed_dim, 3 * embed_dim, bias=bias, device=device, dtype=dtype)
        self.inner_attn = FlashAttention(attention_dropout=attention_dropout)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)

    def extra_repr(self) -> str:
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, causal={self.causal}"

    # signature of flash_attn.flash_attention.FlashMHA.forward
    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None,
                need_weights: bool = False) -> tuple[Tensor, None]:
        """(out, None) of x [batch, seqlen, embed_dim]; out has x's shape.

        key_padding_mask is that of `FlashAttention`; a padded row of out is out_proj's bias.
        Raises: as `FlashAttention.forward`; ValueError if x has another shape.
        """
        _refuse_weights(need_weights)
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"x: was a {type(x).__name__}, expected a tensor")
        if x.dim() != 3 or x.shape[-1] != self.embed_dim:
            raise ValueError(f"x: was {list(x.shape)}, expected [batch, seqlen, embed_dim] with "
                             f"embed_dim {self.embed_dim}")
        qkv = self.Wqkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        out, _ = self.inner_attn(qkv, key_padding_mask, causal=self.causal)
        return self.out_proj(out.flatten(-2)), None
