# SPDX-License-Identifier: Apache-2.0
"""The attention function that models of Transformers call."""

from __future__ import annotations

import contextlib
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch

from attentile import UnsupportedError
from attentile.hf._mask import CompactMask
from attentile.torch import attention

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

# Keywords of single models that change the result and are not handled: which keys are seen is told
# by indices instead of by the mask (sparse indexers), or the sink is a tensor for each token.
_REFUSED = ("indices", "block_indices", "sinks")
_calls = 0
_lock = threading.Lock()
_counter: ContextVar[list[int] | None] = ContextVar("attentile_hf_calls", default=None)


def calls() -> int:
    """How many attention layers ran here since the process began; compiled graphs do not count."""
    return _calls


@contextlib.contextmanager
def counting() -> Iterator[list[int]]:
    """A list of one number: attention layers that run here while this is entered, in this context.

    Other threads do not count.
    """
    counted = [0]
    token = _counter.set(counted)
    try:
        yield counted
    finally:
        _counter.reset(token)


def _count() -> None:
    global _calls
    if torch.compiler.is_compiling():
        return
    with _lock:
        _calls += 1
    counted = _counter.get()
    if counted is not None:
        counted[0] += 1


def attention_forward(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    dropout: float = 0.0, scaling: float | Tensor | None = None, is_causal: bool | None = None,
    position_bias: Tensor | None = None, softcap: float | None = None,
    s_aux: Tensor | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:
    """One attention layer, with the signature of Transformers' AttentionInterface.

    Args: query [batch, num_heads_q, seqlen_q, head_dim]; key, value [batch, num_heads_kv, seqlen_k,
    head_dim]; attention_mask None, a CompactMask, bool (True: seen) or additive, broadcastable to
    [batch, num_heads_q, seqlen_q, seqlen_k]; position_bias likewise, added; s_aux [num_heads_q],
    the sinks. sliding_window among kwargs is not read: the mask holds it. Returns: out [batch,
    seqlen_q, num_heads_q, head_dim_v] and None for the weights. Errors as of
    `attentile.attention`; UnsupportedError for keywords in no list here.
    """
    _count()
    _refuse(query, kwargs)
    options = _mask_keywords(attention_mask, query, key)
    if attention_mask is None:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if query.shape[2] > 1 and causal:
            options = {"causal": True, "alignment": "top_left"}
    if position_bias is not None:
        bias = options.get("bias")
        options["bias"] = position_bias if bias is None else position_bias + bias
    if "bias" in options:
        options["bias"] = _bias_dtype(options["bias"], query)
    if s_aux is not None:
        options["sink"] = s_aux.float()
    if isinstance(scaling, torch.Tensor):
        query, scaling = query * scaling, 1.0
    if softcap:
        options["softcap"] = float(softcap)
    if dropout:
        options["dropout_p"] = float(dropout)
    out = _attend(query, key, value, {**options, "softmax_scale": scaling})
    return out.contiguous(), None


def _refuse(query: Tensor, kwargs: dict[str, Any]) -> None:
    for name in _REFUSED:
        if kwargs.get(name) is not None:
            raise UnsupportedError(f"{name}: was given by the model, expected none: attentile does "
                                   'not know what it hides; use attn_implementation="eager"')
    if kwargs.get("output_attentions"):
        raise UnsupportedError("output_attentions: was True, expected False: the weights are never "
                               'built; use attn_implementation="eager" to look at them')
    if query.device.type != "cpu":
        raise UnsupportedError(f"query: was on device {query.device}, expected on the CPU")


def _mask_keywords(mask: Tensor | None, query: Tensor, key: Tensor) -> dict[str, Any]:
    """Keywords of `attention` for what arrives as the mask."""
    if mask is None:
        return {}
    if isinstance(mask, CompactMask):
        expected = (query.shape[2], key.shape[2])
        if mask.shape[2:] != expected:
            raise ValueError(f"attention_mask: was for {tuple(mask.shape[2:])} queries and keys, "
                             f"expected {expected}")
        return dict(mask.keywords)
    if mask.dtype == torch.bool:
        return {"mask": mask}
    if mask.is_floating_point():
        return {"bias": mask}
    raise TypeError(f"attention_mask: was of {mask.dtype}, expected bool (True: seen) or a "
                    "floating-point tensor to add")


def _bias_dtype(bias: Tensor, query: Tensor) -> Tensor:
    """The bias in a dtype that stands beside query's, whatever autocast makes of that."""
    if bias.dtype == query.dtype and not torch.is_autocast_enabled("cpu"):
        return bias
    return bias.float() if query.dtype != torch.float64 else bias.double()


def _attend(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
    """[batch, seqlen_q, num_heads_q, head_dim_v] of tensors with heads before tokens."""
    if query.shape[0] == 1 < key.shape[0]:  # queries learned once, for every sequence
        query = query.expand(key.shape[0], -1, -1, -1)
    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    if "cu_seqlens_q" not in options:
        out: Tensor = attention(q, k, v, **options)
        return out
    packed = attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), **options)
    return packed.unflatten(0, q.shape[:2])  # type: ignore[no-any-return]
