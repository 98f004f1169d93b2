# SPDX-License-Identifier: Apache-2.0
"""Attention on tensors of torch: eager calls, autograd, autocast, torch.func, compiled graphs.

One question decides the way of a call: are these plain tensors, with nothing (a compiler, a
functorch transform, a dispatch mode) looking on? Then the binding is called at once, under an
autograd.Function where gradients are wanted. Else the operator of _ops.py is called.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

from attentile import _core
from attentile._arrays import Gradients
from attentile._call import PLAIN_SCALARS, POSITION, TENSORS, keys_of, make_options, split
from attentile.torch import _ops

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor
    from typing_extensions import Unpack

    from attentile._call import Keywords

_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))
_BIAS, _SINK = POSITION["bias"] - 6, POSITION["sink"] - 6
_NO_GRADIENT = ("alibi_slopes",)

_is_compiling = torch.compiler.is_compiling
_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_batched = torch._C._functorch.is_legacy_batchedtensor  # is_grads_batched=True
_peek_functorch = torch._C._functorch.peek_interpreter_stack
_jit_trace = torch._C._get_tracing_state
_is_any_autocast = torch._C._is_any_autocast_enabled


def _alone(q: Any, k: Any, v: Any) -> bool:
    """Whether only this process's memory is at stake: plain tensors, nobody tracing. A negated view
    says of itself that its memory is to be read otherwise; the dispatcher resolves it."""
    return (type(q) in _PLAIN and type(k) in _PLAIN and type(v) in _PLAIN
            and not _is_compiling() and not _dispatch_modes() and _peek_functorch() is None
            and _jit_trace() is None
            and not (q.is_neg() or k.is_neg() or v.is_neg()))


def _require_tensors(**tensors: Any) -> None:
    """TypeError for what is no dense tensor, whichever way the call would go."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name}: was a {type(tensor).__name__}, expected a torch.Tensor")
        if tensor.layout != torch.strided or tensor.is_nested:
            raise TypeError(f"{name}: was of layout {tensor.layout}"
                            f"{', nested' if tensor.is_nested else ''}, expected a dense tensor")


def _require_optional(optional: Any) -> None:
    _require_tensors(**{name: tensor for name, tensor in zip(TENSORS, optional, strict=False)
                        if tensor is not None})


class _Call(NamedTuple):
    """What a call is besides q, k, v: optional tensors, options, threads, progress."""

    optional: Any
    options: _core.Options
    layout: str
    threads: int
    progress: Any
    with_lse: bool
    scalars: dict[str, Any]


def _run_forward(q: Tensor, k: Tensor, v: Tensor, call: _Call) -> tuple[Tensor, Tensor]:
    out, lse = _ops.new_out(q, v), _ops.new_lse(q, call.layout)
    _core.forward((q, k, v, out, lse, None, *call.optional), call.options, call.threads,
                  call.progress)
    return out, lse


class _Saved(torch.autograd.Function):
    """Eager calls with gradients; returns lse only where it is wanted, which is cheaper."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None,
                sink: Tensor | None, call: _Call) -> Any:
        out, lse = _run_forward(q, k, v, call)
        if call.optional:
            ctx.save_for_backward(q, k, v, out, lse, *call.optional)
            call = call._replace(optional=())
        else:
            ctx.save_for_backward(q, k, v, out, lse)
        ctx.call = call
        if not call.with_lse:
            return out
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None = None) -> tuple[Any, ...]:
        q, k, v, out, lse, *optional = ctx.saved_tensors
        if dout is None:
            dout = out.new_zeros(()).expand(out.shape)
        if torch.is_grad_enabled() or not _alone(dout, dout if dlse is None else dlse, out) \
                or _is_batched(dout) or (dlse is not None and _is_batched(dlse)):
            # Somebody looks on: a graph of the gradients is wanted, or many dout come at once.
            return (*_operator_backward(ctx.needs_input_grad, ctx.call.scalars, dout, dlse,
                                        *ctx.saved_tensors), None)
        bias = optional[_BIAS] if optional and ctx.needs_input_grad[3] else None
        sink = optional[_SINK] if optional else None
        gradients = _ops.new_gradients(q, k, v, bias, sink)
        _, options, _, threads, progress, *_ = ctx.call
        _core.backward((q, k, v, out, lse, None, *optional), (dout, *gradients[:3], dlse,
                       *gradients[3:]), options, threads, progress)
        return (*gradients, None)


# Past the checks that Function.apply makes for torch.func: nobody looks on at an eager call.
_apply_saved = super(torch.autograd.Function, _Saved).apply


def _operator_backward(needs: Any, scalars: dict[str, Any], *tensors: Any) -> tuple[Any, ...]:
    """dq, dk, dv, dbias, dsink by attentile::backward; None where nobody needs them."""
    dq, dk, dv, dbias, dsink = _ops.backward(*tensors, needs_dbias=needs[3],
                                             **_ops.scalars_of(scalars))
    return dq, dk, dv, dbias if needs[3] else None, dsink if needs[4] else None


@contextlib.contextmanager
def _below_autograd() -> Iterator[None]:
    """Below this level's autograd; the levels of torch.func beneath record for themselves, though
    a Function's forward turns that off."""
    with torch._C._AutoDispatchBelowAutograd(), torch.enable_grad(), \
            forward_ad._set_fwd_grad_enabled(True):
        yield


class _Operator(torch.autograd.function._SingleLevelFunction):
    """The operator's derivative: in AOT traces, and at each level of torch.func."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None,
                sink: Tensor | None, rest: tuple[Any, dict[str, Any]]) -> tuple[Tensor, Tensor]:
        optional, scalars = rest
        optional = _with(optional, bias, sink)
        with _below_autograd():
            out, lse = _ops.forward(q, k, v, *optional, **scalars)
        ctx.set_materialize_grads(False)
        ctx.scalars = scalars
        ctx.save_for_backward(q, k, v, out, lse, *optional)
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
        if dout is None:
            dout = torch.zeros_like(ctx.saved_tensors[3])
        return (*_operator_backward(ctx.needs_input_grad, ctx.scalars, dout, dlse,
                                    *ctx.saved_tensors), None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(
            "attentile: forward-mode derivatives (jvp) were asked for, expected reverse mode; "
            "torch's own scaled_dot_product_attention has none either, except its math backend")


class _OperatorBackward(torch.autograd.function._SingleLevelFunction):
    """attentile::backward under autograd keys: a second derivative would silently be zero."""

    @staticmethod
    def forward(ctx: Any, scalars: dict[str, Any], *tensors: Any) -> tuple[Tensor, ...]:
        with _below_autograd():
            gradients: tuple[Tensor, ...] = _ops.backward(*tensors, **scalars)
        return gradients

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError("attentile: a second derivative was asked for, expected the "
                                  "first; torch's own flash attention has none either")

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError("attentile: a second derivative was asked for, expected the "
                                  "first; torch's own flash attention has none either")


def _backward_autograd(keyset: Any, *tensors: Any, **scalars: Any) -> Any:
    if (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)) \
            or forward_ad._current_level >= 0:
        with enable_single_level_autograd_function():
            return _OperatorBackward.apply(  # type: ignore[attr-defined]
                scalars, *tensors)
    with torch._C._AutoDispatchBelowAutograd():
        return _ops.backward(*tensors, **scalars)


_ops._LIBRARY.impl("backward", _backward_autograd, "Autograd", with_keyset=True)


def _with(optional: tuple[Any, ...], bias: Tensor | None,
          sink: Tensor | None) -> tuple[Any, ...]:
    """The optional tensors, bias and sink put back into their places."""
    if bias is None and sink is None:
        return optional
    tensors = [*optional, *(None,) * (len(TENSORS) - len(optional))]
    tensors[_BIAS], tensors[_SINK] = bias, sink
    return tuple(tensors)


def _wants_gradient(q: Tensor, k: Tensor, v: Tensor, bias: Any, sink: Any) -> bool:
    return torch.is_grad_enabled() and (
        q.requires_grad or k.requires_grad or v.requires_grad
        or (bias is not None and bias.requires_grad) or (sink is not None and sink.requires_grad))


def _operator_autograd(keyset: Any, q: Tensor, k: Tensor, v: Tensor, *optional: Any,
                       **scalars: Any) -> Any:
    """attentile::forward under autograd keys."""
    given = (*optional, *(None,) * (len(TENSORS) + 1 - len(optional)))
    bias, sink = given[_BIAS], given[_SINK]
    _refuse_gradients(dict(zip(TENSORS, given, strict=False)))
    if _wants_gradient(q, k, v, bias, sink) or forward_ad._current_level >= 0:
        rest = tuple(None if i in (_BIAS, _SINK) else t for i, t in enumerate(given))
        with enable_single_level_autograd_function():
            return _Operator.apply(  # type: ignore[attr-defined]
                q, k, v, bias, sink, (rest, scalars))
    with torch._C._AutoDispatchBelowAutograd():
        return _ops.forward(q, k, v, *optional, **scalars)


_ops._LIBRARY.impl("forward", _operator_autograd, "Autograd", with_keyset=True)


def _refuse_gradients(tensors: dict[str, Any]) -> None:
    for name in _NO_GRADIENT:
        tensor = tensors.get(name)
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name}: requires a gradient, expected a tensor without: none is "
                             "computed for it")


def _autocast(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inside autocast: floating-point tensors in its dtype, as torch's own attention."""
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(t.to(dtype) if t is not None and t.dtype in (torch.float32, torch.float16,
                                                              torch.bfloat16) else t
                 for t in tensors)


def _operator_autocast(key: Any, q: Tensor, k: Tensor, v: Tensor, *optional: Any,
                       **scalars: Any) -> Any:
    """attentile::forward inside autocast."""
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
        return _ops.forward(*_autocast((q, k, v)), *optional, **scalars)


for _key in (torch._C.DispatchKey.AutocastCPU, torch._C.DispatchKey.AutocastCUDA):
    _ops._LIBRARY.impl("forward", functools.partial(_operator_autocast, _key), _key.name)


def draw_dropout_state() -> Tensor:
    """(seed, offset) [2] int64 from torch's default generator: torch.manual_seed repeats it."""
    return torch.randint(0, 1 << 62, (2,), dtype=torch.int64, device="cpu")


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool = False, return_keep: bool = False,
    num_threads: int | None = None, progress: Callable[[float], object] | None = None,
    **keywords: Unpack[Keywords],
) -> Any:
    """`attentile.attention` on tensors of torch, with gradients for q, k, v, bias and sink.

    Shapes, keywords, results and errors are those of `attentile.attention`. Differences: lse is
    differentiable too; num_threads defaults to torch.get_num_threads(); dropout without a
    dropout_seed draws one from torch's generator. Works under autocast, torch.compile(fullgraph),
    torch.export, torch.func.grad and vmap; forward-mode derivatives raise NotImplementedError.
    return_keep, progress and num_threads are for eager calls. Tensors on a GPU take torch's current
    stream; docs/gpu.md tells what runs there.
    """
    optional, scalars = split(keywords) if keywords else ((), {})
    state = None
    if scalars.get("dropout_p", 0.0) and "dropout_seed" not in scalars:
        if "dropout_offset" in scalars:
            raise ValueError("dropout_offset: was given without dropout_seed, expected both or "
                             "none: then both are drawn")
        state = draw_dropout_state()
    if not _alone(q, k, v) or forward_ad._current_level >= 0:
        if return_keep or progress is not None or num_threads is not None:
            raise ValueError("return_keep, progress, num_threads: given in a traced or transformed "
                             "call, expected only in eager calls on plain tensors")
        _require_tensors(q=q, k=k, v=v)
        if not _is_compiling() and all(type(x) in PLAIN_SCALARS for x in scalars.values()):
            make_options(scalars)  # refuses by name, as an eager call does
        if state is not None:
            optional = (*optional, *(None,) * (len(TENSORS) - len(optional)), state)
        out, lse = _ops.forward(q, k, v, *optional, **_ops.scalars_of(scalars))
        return (out, lse) if return_lse else out
    if _is_any_autocast() and torch.is_autocast_enabled(q.device.type):
        q, k, v = _autocast((q, k, v))
    if state is not None:
        seed, offset = state.tolist()
        scalars = {**scalars, "dropout_seed": seed, "dropout_offset": offset}
    options = make_options(scalars)
    threads = torch.get_num_threads() if num_threads is None else num_threads
    bias = sink = None
    if optional:
        _require_optional(optional)
        optional = [None if t is None else t.resolve_neg() for t in optional]
        bias, sink = optional[_BIAS], optional[_SINK]
        _refuse_gradients(dict(zip(TENSORS, optional, strict=True)))
    call = _Call(optional, options, scalars.get("layout", "bshd"), threads, progress, return_lse,
                 scalars)
    try:
        result = _eager(q, k, v, bias, sink, call)
    except (RuntimeError, NotImplementedError):
        _require_tensors(q=q, k=k, v=v)
        raise
    if return_keep:
        kept = _keep(q, k, v, call)
        return (*result, kept) if return_lse else (result, kept)
    return result


def _eager(q: Tensor, k: Tensor, v: Tensor, bias: Any, sink: Any, call: _Call) -> Any:
    if _wants_gradient(q, k, v, bias, sink):
        return _apply_saved(  # type: ignore[no-untyped-call]
            q, k, v, bias, sink, call)
    if call.with_lse:
        return _run_forward(q, k, v, call)
    out = _ops.new_out(q, v)
    _core.forward((q, k, v, out, None, None, *call.optional), call.options, call.threads,
                  call.progress)
    return out


def _keep(q: Tensor, k: Tensor, v: Tensor, call: _Call) -> Tensor:
    """The keep decisions of dropout, uint8 [batch, num_heads_q, seqlen_q, seqlen_k]."""
    with torch.no_grad():
        lse = _ops.new_lse(q, call.layout)
        keys = keys_of(k.shape, {"layout": call.layout,
                                 "max_seqlen_k": call.scalars.get("max_seqlen_k"),
                                 **dict(zip(TENSORS, call.optional, strict=False))})
        keep = q.new_empty((*lse.shape, keys), dtype=torch.uint8)
        _core.forward((q.detach(), k.detach(), v.detach(), _ops.new_out(q, v), lse, keep,
                       *call.optional), call.options, call.threads, call.progress)
    return keep


def attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *,
    dlse: Tensor | None = None, num_threads: int | None = None,
    progress: Callable[[float], object] | None = None, **keywords: Unpack[Keywords],
) -> Gradients:
    """`attentile.attention_backward` on tensors of torch."""
    optional, scalars = split(keywords)
    if scalars.get("dropout_p", 0.0) and "dropout_seed" not in scalars:
        raise ValueError("dropout_seed: is missing, expected that of the forward call")
    _require_tensors(dout=dout, q=q, k=k, v=v, out=out, lse=lse)
    _require_optional(optional)
    if not _alone(dout, q, out) or not _alone(k, v, lse if dlse is None else dlse):
        needs = [True] * 3 + [bool(optional) and optional[i] is not None for i in (_BIAS, _SINK)]
        found = _operator_backward(needs, scalars, dout, dlse, q, k, v, out, lse, *optional)
        return Gradients(*found)
    optional = [None if t is None else t.resolve_neg() for t in optional]
    with torch.no_grad():
        bias, sink = (optional[_BIAS], optional[_SINK]) if optional else (None, None)
        dq, dk, dv, dbias, dsink = _ops.new_gradients(q, k, v, bias, sink)
        threads = torch.get_num_threads() if num_threads is None else num_threads
        _core.backward((q, k, v, out, lse, None, *optional), (dout, dq, dk, dv, dlse, dbias, dsink),
                       make_options(scalars), threads, progress)
    return Gradients(dq, dk, dv, dbias, dsink)
