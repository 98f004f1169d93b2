# SPDX-License-Identifier: Apache-2.0
"""`F.scaled_dot_product_attention` on attentile, inside `with attentile.torch.sdpa():`.

The kernel of aten::scaled_dot_product_attention for CPU tensors is replaced once, on first use, by
one that asks a context variable. It is never taken back: un-registering while another thread calls
it crashes torch. Outside the context torch's own kernel runs, some microseconds later.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import threading
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from attentile.torch import _elsewhere, _varlen
from attentile.torch._autograd import attention

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

_DTYPES = frozenset((torch.float32, torch.float16, torch.bfloat16, torch.float64))
_MAX_HEAD_DIM = 512
_NAME = "aten::scaled_dot_product_attention"
# Autograd, inference mode and below, vmap.
_KEYS = ("AutogradCPU", "CPU", "FuncTorchVmapMode")


class Dispatch(NamedTuple):
    """Who computed a call of scaled_dot_product_attention, and why."""

    who: str  # "attentile" or "torch"
    why: str


_inside: contextvars.ContextVar[bool] = contextvars.ContextVar("attentile_sdpa", default=False)
_last = threading.local()
_registration = threading.Lock()
_OURS = Dispatch("attentile", "a plain CPU call inside attentile.torch.sdpa()")
_OUTSIDE = Dispatch("torch", "called outside attentile.torch.sdpa()")


class _State:
    """What is registered in torch; the libraries live as long as the process."""

    library: Any = None
    everywhere = False  # activate_flash_attention_impl("attentile")


def last_dispatch() -> Dispatch | None:
    """Who ran this thread's last scaled_dot_product_attention, and why.

    None before the first one in the scope of `sdpa` that was entered last, and after one that
    raised. Calls are seen from the first use of `sdpa` on, but not those on tensors of device
    "meta" made in inference mode: torch allows no kernel there. Compiled functions ask when they
    are traced.
    """
    return getattr(_last, "dispatch", None)


def _why_not(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> str | None:
    """Why torch computes this call; None where attentile does."""
    dtype = query.dtype
    if dtype not in _DTYPES:
        return f"dtype of query is {dtype}"
    if key.dtype != dtype or value.dtype != dtype:
        return f"dtypes of query, key and value differ: {dtype}, {key.dtype}, {value.dtype}"
    if mask is not None and mask.dtype not in (torch.bool, torch.float32, dtype):
        return f"dtype of attn_mask is {mask.dtype}"
    if query.dim() < 2 or key.dim() != query.dim() or value.dim() != query.dim():
        return f"ranks are {query.dim()}, {key.dim()} and {value.dim()}"
    if mask is not None and mask.dim() > query.dim():
        return f"rank of attn_mask is {mask.dim()}"
    if not (0 < query.shape[-1] <= _MAX_HEAD_DIM and 0 < value.shape[-1] <= _MAX_HEAD_DIM):
        return f"head_dim is {query.shape[-1]}, {value.shape[-1]}; attentile's are 1 to 512"
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        return "shapes do not fit"
    return None


def _as_four(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *,
             enable_gqa: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None, bool] | str:
    """The tensors as [batch, heads, rows, dim], the leading dimensions broadcast and folded.

    The last item says whether the result has to be unfolded; a str says what does not fit.
    """
    rank = query.dim()
    if rank == 4 and query.shape[:1] == key.shape[:1] == value.shape[:1] \
            and key.shape[1] == value.shape[1] and (query.shape[1] == key.shape[1] or enable_gqa):
        fits = key.shape[1] > 0 and query.shape[1] % key.shape[1] == 0
        return (query, key, value, mask, False) if fits or query.shape[1] == key.shape[1] else \
            f"enable_gqa with {query.shape[1]} query heads and {key.shape[1]} key heads"
    last = rank - 3 if enable_gqa and rank > 3 else rank - 2  # dimensions that broadcast
    try:
        lead = torch.broadcast_shapes(query.shape[:last], key.shape[:last], value.shape[:last])
    except RuntimeError:
        return "leading dimensions do not broadcast"
    if enable_gqa and rank > 3:
        heads = (query.shape[-3], key.shape[-3])
        if value.shape[-3] != heads[1] or heads[1] == 0 or heads[0] % heads[1]:
            return f"enable_gqa with {heads[0]} query heads and {heads[1]} key heads"

    def fold(x: Tensor) -> Tensor:
        wide = x.expand(*lead, *x.shape[last:])
        while wide.dim() < 4:
            wide = wide.unsqueeze(-3)  # rank 3 is [batch, rows, dim]: one head
        return wide if wide.dim() == 4 else wide.flatten(0, wide.dim() - 4)

    if mask is not None and rank == 3 and mask.dim() == 3:
        mask = mask.unsqueeze(1)
    elif mask is not None and rank > 4 and mask.dim() > 3:
        mask = mask.expand(*lead[:rank - 3], *mask.shape[-3:]).flatten(0, rank - 4)
    return fold(query), fold(key), fold(value), mask, True


def _mask_fits(mask: Tensor | None, query: Tensor, key: Tensor) -> bool:
    if mask is None:
        return True
    want = (*query.shape[:-1], key.shape[-2])
    return all(m in (1, w) for m, w in zip(reversed(mask.shape), reversed(want), strict=False))


def _is_usual(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether nothing has to be asked: four dimensions that agree, as in most calls."""
    dtype, q, k, v = query.dtype, query.shape, key.shape, value.shape
    return (len(q) == len(k) == len(v) == 4 and q[0] == k[0] == v[0] and q[1] == k[1] == v[1]
            and k[2] == v[2] and 0 < q[3] == k[3] <= _MAX_HEAD_DIM and 0 < v[3] <= _MAX_HEAD_DIM
            and dtype in _DTYPES and key.dtype is dtype and value.dtype is dtype)


def _compute(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scalars: Any,
             enable_gqa: bool) -> Tensor | str:
    """The call on attentile, or why not."""
    if mask is None and _is_usual(query, key, value):
        usual: Tensor = attention(query, key, value, layout="bhsd", **scalars)
        return usual
    rank = max(query.dim(), key.dim(), value.dim())  # leading dimensions broadcast
    query, key, value = (x if x.dim() == rank else x[(None,) * (rank - x.dim())]
                         for x in (query, key, value))
    why = _why_not(query, key, value, mask)
    if why is not None:
        return why
    four = _as_four(query, key, value, mask, enable_gqa=enable_gqa)
    if isinstance(four, str):
        return four
    q, k, v, m, folded = four
    if not _mask_fits(m, q, k):
        return f"attn_mask of shape {tuple(m.shape if m is not None else ())} does not broadcast"
    if m is not None:
        scalars["mask" if m.dtype == torch.bool else "bias"] = m
    out: Tensor = attention(q, k, v, layout="bhsd", **scalars)
    if not folded:
        return out
    rank = query.dim()
    rows = (query.shape[-2], value.shape[-1])
    if rank < 4:
        return out.reshape(*out.shape[:rank - 2], *rows)
    lead = torch.broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3])
    return out.reshape(*lead, out.shape[1], *rows)


# signature of aten::scaled_dot_product_attention
def _scaled_dot_product_attention(
    stock: Any, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, *, scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if _inside.get() or _State.everywhere:
        _last.dispatch = None
        scalars: dict[str, Any] = {}
        if is_causal:
            scalars["causal"], scalars["alignment"] = True, "top_left"
        if scale is not None:
            scalars["softmax_scale"] = scale
        if dropout_p:
            scalars["dropout_p"] = dropout_p
        result = _compute(query, key, value, attn_mask, scalars=scalars, enable_gqa=enable_gqa)
        if not isinstance(result, str):
            _last.dispatch = _OURS
            return result
        _last.dispatch = Dispatch("torch", result)
    else:
        _last.dispatch = _OUTSIDE
    kernel, keys = stock
    fallen: Tensor = kernel.call_boxed(keys, query, key, value, attn_mask, dropout_p, is_causal,
                                       scale=scale, enable_gqa=enable_gqa)
    return fallen


def _tell_elsewhere(why: str | None) -> None:
    """Of a call that torch takes: None before it, then why, unless a call within has told."""
    if why is None:
        _last.dispatch = None
    elif _last.dispatch is None:
        _last.dispatch = Dispatch("torch", why) if active() else _OUTSIDE


def _register() -> None:
    """Puts the kernels in place, once in the process."""
    if _State.library is not None:
        return
    with _registration:
        if _State.library is not None:
            return
        # torch's own kernels are found before they are replaced.
        stock = {key: torch.library.get_kernel(_NAME, key) for key in _KEYS}
        library = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():  # torch warns of every kernel that is replaced
            warnings.simplefilter("ignore")
            for key in _KEYS:
                keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
                library.impl("scaled_dot_product_attention",
                             functools.partial(_scaled_dot_product_attention, (stock[key], keys)),
                             key, allow_override=True)
            _elsewhere.register(library, _tell_elsewhere)
        _varlen.register(library, active)
        _State.library = library


def active() -> bool:
    """Whether scaled_dot_product_attention runs on attentile here and now."""
    return _inside.get() or _State.everywhere


@contextlib.contextmanager
def sdpa() -> Iterator[None]:
    """Inside, `torch.nn.functional.scaled_dot_product_attention` on CPU tensors runs on attentile.

    Any mask (bool: True takes part; float: added), also one that requires a gradient, is_causal
    (top-left), dropout, enable_gqa, scale, head dimensions 1 to 512 with value's own, tensors of 2
    to any dimensions, autograd, autocast, inference_mode, vmap, torch.func.grad.
    torch.nn.attention.varlen.varlen_attn works on the CPU too. torch computes, and
    `last_dispatch()` tells, calls on nested tensors, on other devices, on complex and integer
    tensors, with larger head dimensions and with arguments that do not fit: there it raises. A row
    that sees no key is 0.

    The scope is this thread's or task's context: nests, survives exceptions, is not inherited by
    new threads. A compiled function keeps the choice of the time it was traced.
    torch.nn.MultiheadAttention runs here in training mode; its fast path in evaluation is no call
    of scaled_dot_product_attention.
    """
    _register()
    _last.dispatch = None
    token = _inside.set(True)
    try:
        yield
    finally:
        _inside.reset(token)


class _Handle:
    """What torch keeps of an activated implementation."""

    def remove(self) -> None:
        _State.everywhere = False


def _activate() -> _Handle:
    _register()
    _State.everywhere = True
    return _Handle()


def register_flash_attention_impl() -> None:
    """Offers "attentile" to torch.nn.attention.activate_flash_attention_impl, for the process."""
    torch.nn.attention.register_flash_attention_impl("attentile", register_fn=_activate)
