# SPDX-License-Identifier: Apache-2.0
"""The operators attentile::forward and attentile::backward: schema, kernels for CPU and
CUDA, fake kernels.

Compiled graphs, vmap and tensor subclasses see these operators; eager calls on plain tensors reach
the binding without the dispatcher (_autograd.py), which costs less than one microsecond a tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from attentile import _core
from attentile._call import POSITION, TENSORS, lse_shape, make_options

if TYPE_CHECKING:
    from torch import Tensor

# Scalars in the operators' order, with their defaults; "seed" and "offset" are held as int64.
SCALARS: dict[str, Any] = {
    "layout": "bshd", "softmax_scale": None, "causal": False, "alignment": "bottom_right",
    "position_offset": None, "window_left": -1, "window_right": -1, "softcap": 0.0,
    "dropout_p": 0.0, "dropout_seed": 0, "dropout_offset": 0, "query_base": 0, "key_base": 0,
    "head_base": 0, "batch_base": 0, "dropout_num_heads_q": 0, "block_size_q": 0,
    "block_size_k": 0, "algorithm": "auto", "isa": "auto", "fast_memory_bytes": 0,
    "max_seqlen_q": 0, "max_seqlen_k": 0, "atomic_dq": False}
_TYPES = {str: "str", bool: "bool", int: "SymInt", float: "float"}
_OPTIONAL = {"softmax_scale": "float?", "position_offset": "SymInt?"}

_BIAS, _SINK = POSITION["bias"] - 6, POSITION["sink"] - 6
_TWO64 = 1 << 64
_LSE_IN_SAME_DTYPE = (torch.float32, torch.float64)


def _schema_scalars() -> str:
    def word(value: Any) -> str:
        return f"'{value}'" if isinstance(value, str) else str(value)

    return ", ".join(f"{_OPTIONAL.get(name) or _TYPES[type(default)]} {name}={word(default)}"
                     for name, default in SCALARS.items())


_OPTIONAL_TENSORS = ", ".join(f"Tensor? {name}=None" for name in (*TENSORS, "dropout_state"))
_LIBRARY = torch.library.Library("attentile", "DEF")
_LIBRARY.define(
    f"forward(Tensor q, Tensor k, Tensor v, {_OPTIONAL_TENSORS}, *, {_schema_scalars()}) "
    "-> (Tensor, Tensor)", tags=(torch.Tag.pt2_compliant_tag,))
_LIBRARY.define(
    "backward(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    f"{_OPTIONAL_TENSORS}, *, bool needs_dbias, {_schema_scalars()}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)", tags=(torch.Tag.pt2_compliant_tag,))


def scalars_of(options: dict[str, Any]) -> dict[str, Any]:
    """Keywords of an operator, from those of a call: seeds become signed 64-bit integers."""
    for name in ("dropout_seed", "dropout_offset"):
        value = options.get(name)
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            if not 0 <= value < _TWO64:
                raise TypeError(f"{name}: was {value}, expected an integer in [0, 2^64)")
            options = {**options, name: value - _TWO64}
    return options


def _options(scalars: dict[str, Any], dropout_state: Tensor | None) -> _core.Options:
    """Options of the binding, from an operator's keywords."""
    given = {name: value for name, value in scalars.items() if value != SCALARS[name]}
    if dropout_state is not None:
        given["dropout_seed"], given["dropout_offset"] = dropout_state.tolist()
    for name in ("dropout_seed", "dropout_offset"):
        if name in given:
            given[name] %= _TWO64
    return make_options(given)


def new_out(q: Tensor, v: Tensor) -> Tensor:
    """Memory for out: q's order of dimensions, v's head_dim."""
    if q is v or q.shape[-1:] == v.shape[-1:]:
        return torch.empty_like(q)
    return q.new_empty(q.shape[:-1] + v.shape[-1:])


def new_lse(q: Tensor, layout: str) -> Tensor:
    shape = lse_shape(q.shape, layout)
    if q.dtype in _LSE_IN_SAME_DTYPE:
        return q.new_empty(shape)
    return q.new_empty(shape, dtype=torch.float32)


def _forward_here(q: Tensor, k: Tensor, v: Tensor, *optional: Tensor | None,
                  **scalars: Any) -> tuple[Tensor, Tensor]:
    tensors, dropout_state = _split_state(optional)
    out, lse = new_out(q, v), new_lse(q, scalars.get("layout", "bshd"))
    _core.forward((q, k, v, out, lse, None, *tensors), _options(scalars, dropout_state),
                  torch.get_num_threads(), None)
    return out, lse


def _split_state(optional: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any]:
    """(optional tensors, dropout_state): the dispatcher leaves out None at the end."""
    if len(optional) > len(TENSORS):
        return optional[:len(TENSORS)], optional[len(TENSORS)]
    return optional, None


def _forward_fake(q: Tensor, k: Tensor, v: Tensor, *optional: Tensor | None,
                  **scalars: Any) -> tuple[Tensor, Tensor]:
    return new_out(q, v), new_lse(q, scalars.get("layout", "bshd"))


def new_gradients(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None,
                  sink: Tensor | None) -> tuple[Tensor | None, ...]:
    """Memory for dq, dk, dv, dbias, dsink."""
    return (torch.empty_like(q), torch.empty_like(k), torch.empty_like(v),
            None if bias is None else torch.empty_like(bias),
            None if sink is None else torch.empty_like(sink))


def _backward_gradients(tensors: tuple[Any, ...], q: Tensor, k: Tensor, v: Tensor,
                        needs_dbias: bool) -> tuple[Tensor | None, ...]:
    given = (*tensors, *(None,) * (len(TENSORS) - len(tensors)))
    return new_gradients(q, k, v, given[_BIAS] if needs_dbias else None, given[_SINK])


def _present(gradients: tuple[Tensor | None, ...], like: Tensor) -> tuple[Tensor, ...]:
    """An operator returns tensors: absent ones are empty."""
    return tuple(like.new_empty(0) if g is None else g for g in gradients)


def _backward_here(dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor,
                   *rest: Any, needs_dbias: bool, **scalars: Any) -> tuple[Tensor, ...]:
    out, lse, *optional = rest
    tensors, dropout_state = _split_state(tuple(optional))
    dq, dk, dv, dbias, dsink = _backward_gradients(tensors, q, k, v, needs_dbias)
    _core.backward((q, k, v, out, lse, None, *tensors), (dout, dq, dk, dv, dlse, dbias, dsink),
                   _options(scalars, dropout_state), torch.get_num_threads(), None)
    return _present((dq, dk, dv, dbias, dsink), q)


def _backward_fake(dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor,
                   *rest: Any, needs_dbias: bool, **scalars: Any) -> tuple[Tensor, ...]:
    tensors, _ = _split_state(tuple(rest[2:]))
    return _present(_backward_gradients(tensors, q, k, v, needs_dbias), q)


for _key in ("CPU", "CUDA"):
    _LIBRARY.impl("forward", _forward_here, _key)
    _LIBRARY.impl("backward", _backward_here, _key)
torch.library.register_fake("attentile::forward", _forward_fake, lib=_LIBRARY)
torch.library.register_fake("attentile::backward", _backward_fake, lib=_LIBRARY)

forward = torch.ops.attentile.forward.default
backward = torch.ops.attentile.backward.default
