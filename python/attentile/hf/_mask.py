# SPDX-License-Identifier: Apache-2.0
"""Masks of Transformers that are never built: their description travels in a zero-stride tensor.

Models hand a mask on from where it is made to where it is used, and some look at it on the way.
So the description is a tensor of the mask's shape and one byte of memory. Whoever computes with it
gets the true mask, built at that moment; who only passes it on pays nothing.
"""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel, masking_utils

from attentile import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class Band(NamedTuple):
    """Keys that a query sees: j <= i if causal, i - left <= j <= i + right (-1: no bound).

    With segments [batch, length], both must be of the same segment, whose tokens are neighbours.
    """

    causal: bool = False
    left: int = -1
    right: int = -1
    segments: Tensor | None = None

    def intersect(self, other: Band) -> Band:
        """The keys that both show."""
        def tighter(a: int, b: int) -> int:
            return max(a, b) if min(a, b) < 0 else min(a, b)

        segments = self.segments if other.segments is None else other.segments
        return Band(self.causal or other.causal, tighter(self.left, other.left),
                    tighter(self.right, other.right), segments)


def read_band(function: Callable[..., Any]) -> Band | None:
    """What a mask function of Transformers shows, by what it is made of; None: not a band."""
    band = _read(function)
    return None if band is None or band.segments is _UNKNOWN else band


_UNKNOWN = torch.empty(0)  # positions were remapped, no segments seen yet


def _read(function: Callable[..., Any]) -> Band | None:
    if function is masking_utils.causal_mask_function:
        return Band(causal=True)
    if function is masking_utils.bidirectional_mask_function:
        return Band()
    if getattr(function, "__module__", None) != masking_utils.__name__:
        return None
    maker = function.__qualname__.partition(".<locals>")[0]
    inner = inspect.getclosurevars(function).nonlocals
    if maker == "and_masks":
        return _read_all(inner["mask_functions"])
    if maker == "packed_sequence_mask_function":
        return Band(segments=inner["packed_sequence_mask"])
    if maker == "remap_positions_for_packed_sequence":
        # Positions count from the start of each segment, so differences stay what they were.
        band = _read(inner["mask_function"])
        return None if band is None else band._replace(segments=_UNKNOWN)
    window = inner.get("sliding_window")
    if isinstance(window, int) and window > 0:
        if maker == "sliding_window_overlay":
            return Band(left=window - 1)
        if maker == "sliding_window_bidirectional_overlay":
            return Band(left=window, right=window)
    return None


def _read_all(functions: Any) -> Band | None:
    band, segments = Band(), None
    remapped = False
    for function in functions:
        part = _read(function)
        if part is None:
            return None
        if part.segments is _UNKNOWN:
            remapped, part = True, part._replace(segments=None)
        elif part.segments is not None:
            segments = part.segments
        band = band.intersect(part)
    if remapped and segments is None:
        return band._replace(segments=_UNKNOWN)
    return band


def read_padding(attention_mask: Tensor | None, kv_length: int,
                 kv_offset: int) -> dict[str, Tensor]:
    """seqused_k and/or mask [batch, 1, 1, kv_length] for 2-D padding, True: a token; {}: none."""
    if attention_mask is None:
        return {}
    visible = attention_mask[:, kv_offset:kv_offset + kv_length]
    if visible.shape[1] < kv_length:  # slots of a static cache that wait for tokens
        visible = torch.nn.functional.pad(visible, (0, kv_length - visible.shape[1]))
    if visible.all():
        return {}
    ends = torch.arange(1, kv_length + 1, device=visible.device)
    used = (visible * ends).amax(dim=1)
    found = {}
    if (used < kv_length).any():
        found["seqused_k"] = used.to(torch.int32)
    if (visible.sum(dim=1) < used).any():
        found["mask"] = visible[:, None, None, :]
    return found


def read_segments(segments: Tensor) -> dict[str, Tensor]:
    """cu_seqlens_q and cu_seqlens_k of packed rows [batch, length], all rows laid end to end."""
    batch, length = segments.shape
    first = torch.ones((batch, 1), dtype=torch.bool, device=segments.device)
    starts = torch.cat([first, segments[:, 1:] != segments[:, :-1]], dim=1).flatten().nonzero()
    total = starts.new_tensor([batch * length])
    cu_seqlens = torch.cat([starts.flatten(), total]).to(torch.int32)
    return {"cu_seqlens_q": cu_seqlens, "cu_seqlens_k": cu_seqlens}


def band_keywords(band: Band, q_length: int, kv_length: int, offset: int) -> dict[str, Any]:
    """Keywords of `attentile.torch.attention` for a band, without bounds that hide nothing."""
    found: dict[str, Any] = {}
    if band.causal and offset < kv_length - 1:
        found["causal"] = True
    if 0 <= band.left < offset + q_length - 1:
        found["window_left"] = band.left
    if 0 <= band.right < kv_length - 1 - offset:
        found["window_right"] = band.right
    if found:
        found["position_offset"] = offset
    return found


class CompactMask(torch.Tensor):
    """A mask [batch, 1, q_length, kv_length] of bool by its description, in one byte of memory.

    keywords: the same for `attentile.torch.attention`. `dense()` is the mask itself.
    """

    keywords: dict[str, Any]
    request: dict[str, Any]

    @staticmethod
    def make(keywords: dict[str, Any], request: dict[str, Any]) -> CompactMask:
        """The mask that `request` (keywords of a mask function) asks for."""
        one = torch.ones((), dtype=torch.bool, device=request["device"])
        mask = one.expand(request["batch_size"], 1, request["q_length"], request["kv_length"])
        compact = mask.as_subclass(CompactMask)
        compact.keywords, compact.request = keywords, request
        return compact

    def dense(self) -> Tensor:
        """The mask itself, as attn_implementation="sdpa" builds it."""
        return dense_mask(self.request)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"CompactMask({tuple(self.shape)}, {self.keywords})"

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (),
                           kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _ABOUT:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **kwargs)
        if function in _UNCHANGED:
            return args[0]
        if function is torch.Tensor.to and _stays(args[0], args[1:], kwargs):
            return args[0]
        _refuse_writing(function, args, kwargs)
        _refuse_adding(function, args)
        args, kwargs = tree_map(_densify, (args, kwargs))
        return function(*args, **kwargs)


def _densify(value: Any) -> Any:
    return value.dense() if isinstance(value, CompactMask) else value


def _stays(mask: CompactMask, args: Any, kwargs: Any) -> bool:
    """Whether `.to(...)` asks for what the mask is."""
    with torch._C.DisableTorchFunctionSubclass():
        like: Any = torch.empty(0, dtype=torch.bool, device=mask.device)
        moved = like.to(*(like if isinstance(a, CompactMask) else a for a in args), **kwargs)
        return bool(moved.dtype == torch.bool and moved.device == like.device)


def _refuse_writing(function: Any, args: Any, kwargs: Any) -> None:
    name = getattr(function, "__name__", "")
    in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
    if in_place and args and isinstance(args[0], CompactMask) or isinstance(kwargs.get("out"),
                                                                            CompactMask):
        raise UnsupportedError(
            f"attention mask: was written in place ({name}), expected to be read: it is a "
            'description without memory; call its method dense() first, or use '
            'attn_implementation="eager"')


def _refuse_adding(function: Any, args: Any) -> None:
    """True is 1, so a bool mask that is added to scores hides nothing: never meant."""
    name = getattr(function, "__name__", "").strip("_")
    if name in _ARITHMETIC and any(
            isinstance(a, float) or isinstance(a, torch.Tensor)
            and not isinstance(a, CompactMask) and a.is_floating_point() for a in args):
        raise UnsupportedError(
            f"attention mask: was in arithmetic ({name}) with floating-point numbers, expected to "
            "be handed to the attention function (bool, True: seen): this model computes attention "
            'by itself; use attn_implementation="eager" for it')


_ARITHMETIC = frozenset(f"{prefix}{name}" for prefix in ("", "r", "i")
                        for name in ("add", "sub", "mul")) | {
    "subtract", "multiply", "addcmul", "baddbmm"}
_ABOUT = frozenset((
    *(getattr(torch.Tensor, name).__get__ for name in
      ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_cuda", "is_leaf",
       "is_meta", "grad_fn")),
    *(getattr(torch.Tensor, name) for name in
      ("size", "dim", "numel", "stride", "is_floating_point", "is_complex", "is_contiguous",
       "element_size", "get_device", "__len__", "nelement", "ndimension"))))
_UNCHANGED = frozenset((torch.Tensor.contiguous, torch.Tensor.detach, torch.Tensor.bool,
                        torch.Tensor.cpu, torch.Tensor.clone))


def dense_mask(request: dict[str, Any]) -> Tensor:
    """The bool mask of a request, L x S elements for each sequence."""
    skips = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask = masking_utils.sdpa_mask(**{**request, **skips})
    assert mask is not None
    return mask


# signature of transformers.masking_utils.sdpa_mask
def compact_mask(
    batch_size: int, q_length: int, kv_length: int, q_offset: Any = 0, kv_offset: Any = 0,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: Tensor | None = None, device: Any = "cpu", **kwargs: Any,
) -> Tensor | None:
    """The mask function: a CompactMask for all keys, bands and padding.

    Anything that is not a band (chunks, blocks, functions of the user) is built, as for "sdpa".
    Never None: that leaves causality to module.is_causal, which not every model sets. Only in a
    compiled graph, which holds plain tensors, None stands for the causal mask of models that
    support "sdpa", where Transformers itself relies on is_causal.
    """
    request = {**kwargs, "batch_size": batch_size, "q_length": q_length, "kv_length": kv_length,
               "q_offset": q_offset, "kv_offset": kv_offset, "mask_function": mask_function,
               "attention_mask": attention_mask, "device": device}
    if torch.compiler.is_compiling():
        return _traced_mask(request)
    band = read_band(mask_function)
    if band is None or (attention_mask is not None and attention_mask.ndim != 2):
        return dense_mask(request)
    if band.segments is not None:
        whole = q_length == kv_length and band.segments.shape[0] == batch_size
        if attention_mask is not None or not whole:
            return dense_mask(request)
        keywords = {**band_keywords(band, q_length, kv_length, 0), **read_segments(band.segments)}
        keywords.pop("position_offset", None)  # each segment counts from 0
        return CompactMask.make(keywords, request)
    offset = int(q_offset) - int(kv_offset)
    found = band_keywords(band, q_length, kv_length, offset)
    padding = read_padding(attention_mask, kv_length, int(kv_offset))
    return CompactMask.make({**found, **padding}, request)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _sets_is_causal(config_class: type) -> bool:
    """Whether all models of a configuration's module support "sdpa", so that is_causal is right."""
    name = config_class.__module__.replace(".configuration_", ".modeling_")
    models = [c for c in vars(sys.modules.get(name, sys)).values()
              if isinstance(c, type) and issubclass(c, PreTrainedModel) and c.__module__ == name]
    return bool(models) and all(c._supports_sdpa for c in models)


def _traced_mask(request: dict[str, Any]) -> Tensor | None:
    """For compiled graphs, which hold plain tensors: None or stride 0 where that can say it."""
    function, padding = request["mask_function"], request["attention_mask"]
    q_length, kv_length = request["q_length"], request["kv_length"]
    if function is masking_utils.causal_mask_function and padding is None:
        plain = isinstance(request["q_offset"], int) and request["q_offset"] == 0
        square = q_length == kv_length and request.get("allow_is_causal_skip", True)
        if plain and square and _sets_is_causal(type(request.get("config"))):
            return None
    if function is masking_utils.bidirectional_mask_function:
        shape = (request["batch_size"], 1, q_length, kv_length)
        if padding is None:
            everything: Tensor = torch.ones((), dtype=torch.bool, device=request["device"])
            return everything.expand(shape)
        if padding.ndim == 2 and padding.shape[1] == kv_length:
            plane: Tensor = padding[:, None, None, :]
            return plane.expand(shape)
    return dense_mask(request)
