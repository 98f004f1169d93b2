# SPDX-License-Identifier: Apache-2.0
"""aten::_flash_attention_forward and _backward on the CPU, which torch has none of: what
torch.nn.attention.varlen.varlen_attn calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from attentile import _core
from attentile._call import TENSORS, make_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def _window(left: int | None, right: int | None, is_causal: bool) -> tuple[int, int]:
    """Both bounds; torch tells a causal call by (-1, 0) too."""
    bounds = (-1 if left is None else left, -1 if right is None else right)
    return (bounds[0], 0) if is_causal else bounds


def _optional(**tensors: Tensor | None) -> tuple[Any, ...]:
    for name in ("cu_seqlens_q", "cu_seqlens_k", "seqused_k", "block_table"):
        tensor = tensors.get(name)
        if tensor is not None and tensor.dtype != torch.int32:
            tensors[name] = tensor.to(torch.int32)
    return tuple(tensors.get(name) for name in TENSORS)


def _call_options(scale: float | None, window: tuple[int, int]) -> _core.Options:
    scalars: dict[str, Any] = {"window_left": window[0], "window_right": window[1]}
    if scale is not None:
        scalars["softmax_scale"] = scale
    return make_options(scalars)


def _lse_like(query: Tensor, packed: bool) -> Tensor:
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    rows = query.shape[:-1]
    shape = (rows[1], rows[0]) if packed else (rows[0], rows[2], rows[1])
    return query.new_empty(shape, dtype=dtype)


def _refuse_dropout(dropout_p: float, return_debug_mask: bool = False) -> None:
    if dropout_p or return_debug_mask:
        raise NotImplementedError("dropout_p, return_debug_mask: were given, expected 0 and False; "
                                  "use attentile.torch.attention")


# signature of aten::_flash_attention_forward
def _forward(  # noqa: PLR0913
    query: Tensor, key: Tensor, value: Tensor, cum_seq_q: Tensor | None, cum_seq_k: Tensor | None,
    max_q: int, max_k: int, dropout_p: float, is_causal: bool, return_debug_mask: bool, *,
    scale: float | None = None, window_size_left: int | None = None,
    window_size_right: int | None = None, seqused_k: Tensor | None = None,
    alibi_slopes: Tensor | None = None, block_table: Tensor | None = None,
    num_splits: int | None = None, out: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Packed [total, heads, dim] with cum_seq, else [batch, seqlen, heads, dim].

    num_splits changes nothing: results never depend on the rest of the batch.
    """
    _refuse_dropout(dropout_p, return_debug_mask)
    optional = _optional(cu_seqlens_q=cum_seq_q, cu_seqlens_k=cum_seq_k, seqused_k=seqused_k,
                         alibi_slopes=alibi_slopes, block_table=block_table)
    if out is None:
        out = query.new_empty(query.shape[:-1] + value.shape[-1:])
    lse = _lse_like(query, cum_seq_q is not None)
    window = _window(window_size_left, window_size_right, is_causal)
    _core.forward((query, key, value, out, lse, None, *optional), _call_options(scale, window),
                  torch.get_num_threads(), None)
    state = torch.zeros(2, dtype=torch.uint64)
    return out, lse, state, query.new_empty(0), query.new_empty(0)


# signature of aten::_flash_attention_backward
def _backward(  # noqa: PLR0913
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor,
    cum_seq_q: Tensor, cum_seq_k: Tensor, max_q: int, max_k: int, dropout_p: float,
    is_causal: bool, rng_state: Tensor, unused: Tensor, *, scale: float | None = None,
    window_size_left: int | None = None, window_size_right: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    _refuse_dropout(dropout_p)
    optional = _optional(cu_seqlens_q=cum_seq_q, cu_seqlens_k=cum_seq_k)
    gradients = tuple(torch.empty_like(x) for x in (query, key, value))
    window = _window(window_size_left, window_size_right, is_causal)
    _core.backward((query, key, value, out, logsumexp, None, *optional), (grad_out, *gradients),
                   _call_options(scale, window), torch.get_num_threads(), None)
    return gradients[0], gradients[1], gradients[2]


def _forward_into(out: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """aten::_flash_attention_forward_no_dropout_inplace: writes out, returns lse."""
    return _forward(*args, out=out, **kwargs)[1]


def register(library: Any, active: Callable[[], bool]) -> None:
    """Registers them for CPU tensors. Forward calls fail as they did where attentile is not active;
    a backward call belongs to a forward call that was."""
    def gate(name: str, body: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            if not active():
                raise NotImplementedError(
                    f"Could not run 'aten::{name}' with arguments from the 'CPU' backend: torch "
                    "has no such kernel; attentile's runs inside attentile.torch.sdpa()")
            return body(*args, **kwargs)

        return run

    library.impl("_flash_attention_backward", _backward, "CPU")
    for name, body in (("_flash_attention_forward", _forward),
                       ("_flash_attention_forward_no_dropout_inplace", _forward_into)):
        library.impl(name, gate(name, body), "CPU")
