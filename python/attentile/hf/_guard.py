# SPDX-License-Identifier: Apache-2.0
"""Models whose code never asks for an attention function are refused, not run wrongly.

Transformers 5.23 has 94 such modelling files among 441. Some accept any name, ignore it, and lose
their masks (CodeGen, BLOOM, XGLM, RoFormer): wrong logits without a word. In other files some
layers ask and others do not (BigBirdPegasus, PP-DocLayoutV2, Informer with "prob").
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import warnings
from typing import Any, NoReturn

from transformers import PreTrainedConfig, PreTrainedModel

from attentile import UnsupportedError

NAME = "attentile"
_LAYER = re.compile(r"^class \w*Attention\w*\(nn\.Module\):", re.MULTILINE)
_CLASS = re.compile(r"^class (\w*Attention\w*)\(.*?(?=^\S|\Z)", re.MULTILINE | re.DOTALL)
_ASKS = "ALL_ATTENTION_FUNCTIONS.get_interface("
# Layers of asking files that compute attention by themselves and get no mask of ours: theirs are
# made from 2-D padding by their own code (or of pixels), or refuse bool (Gemma 4), or are refused
# where they are looked up by name (GIT).
_HARMLESS = re.compile(
    r"\w+MultiscaleDeformableAttention|\w+MHAttentionMap|ClapAudioSelfAttention|GitSelfAttention|"
    r"EsmFold2RowAttentionPooling|EvollaSequenceAlignerCrossAttention|Gemma4AudioAttention|"
    r"LongT5TransientGlobalAttention|PegasusXGlobalLocalAttention")
# Layers that a model has only if its configuration says so: attribute and value.
_CHOSEN = {"InformerProbSparseAttention": ("attention_type", "prob")}
_read: dict[str, tuple[str, ...]] = {}  # answers from source that was read, by module


def own_layers(module_name: str) -> tuple[str, ...]:
    """Layers of a modelling module that compute attention by themselves; () if it cannot be read.

    A module that is not imported yet is asked again next time.
    """
    if module_name not in _read:
        try:
            _read[module_name] = source_layers(inspect.getsource(sys.modules[module_name]))
        except (KeyError, OSError, TypeError):
            return ()
    return _read[module_name]


def source_layers(source: str) -> tuple[str, ...]:
    """The same by a module's text."""
    if _ASKS not in source:
        return ("all of its layers",) if _LAYER.search(source) else ()
    return tuple(match[1] for match in _CLASS.finditer(source)
                 if "oftmax(" in match[0] and "attention_mask" in match[0]
                 and "get_interface(" not in match[0] and not _HARMLESS.fullmatch(match[1]))


def _refuse_bases(thing: Any, base: type, config: Any) -> None:
    """Raise UnsupportedError if the class of a model or configuration, or one that it is made of,
    lies in (or, for configurations, beside) a module that ignores the interface."""
    for cls in type(thing).__mro__:
        if cls is base:
            return
        name = cls.__module__.replace(".configuration_", ".modeling_")
        layers = [layer for layer in own_layers(name) if _has(config, layer)]
        if layers:
            _refuse(type(thing).__name__, name, ", ".join(layers))


def _has(config: Any, layer: str) -> bool:
    if layer not in _CHOSEN:
        return True
    attribute, value = _CHOSEN[layer]
    return getattr(config, attribute, value) == value


def refuse_model(model: Any) -> None:
    """Raise UnsupportedError for a model that ignores the interface, or whose bases do."""
    _refuse_bases(model, PreTrainedModel, getattr(model, "config", None))


def refuse_config(config: Any) -> None:
    """The same by its configuration, when a mask is asked for."""
    if config is not None:
        _refuse_bases(config, PreTrainedConfig, config)


def _refuse(what: str, module_name: str, layers: str, *_: Any, **__: Any) -> NoReturn:
    raise UnsupportedError(
        f'attn_implementation: was "{NAME}" for {what}, expected a model that asks for its '
        f"attention function: {module_name} computes attention by itself ({layers}), and would "
        f'ignore "{NAME}" or lose its masks; use attn_implementation="eager" (for one part of a '
        'model: a dictionary, {"text_config": "attentile", "vision_config": "eager"})')


def _refuse_tables(module_name: str) -> None:
    """Where single layers are looked up by name (SAM, GIT), have our name refused, not missing."""
    for key, table in vars(sys.modules[module_name]).items():
        if key.endswith("ATTENTION_CLASSES") and isinstance(table, dict) and NAME not in table:
            table[NAME] = functools.partial(_refuse, key, module_name, key)
            _tables.append(table)


_tables: list[dict[str, Any]] = []  # with an entry of ours
_active = False
_originals: dict[str, Any] = {}  # methods of Transformers, by name
_ours: dict[str, Any] = {}  # those that stand before them


def _parts_named(model: Any, requested: Any) -> list[Any]:
    """The parts of a model that a name, or a dictionary of names by configuration, is ours for."""
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    if not isinstance(requested, dict):
        return parts if requested == NAME else []
    named = [getattr(model.config, key, None) if key else model.config
             for key, name in requested.items() if name == NAME]
    return [part for part in parts if any(part.config is config for config in named)]


def _before_check(original: Any) -> Any:
    """Of the check of names that every model makes when it is built or switched."""

    @functools.wraps(original)
    def get_correct_attn_implementation(self: Any, requested_attention: str | None,
                                        *args: Any, **kwargs: Any) -> Any:
        if _active and requested_attention == NAME:
            refuse_model(self)
            for cls in type(self).__mro__[:type(self).__mro__.index(PreTrainedModel)]:
                _refuse_tables(cls.__module__)
        return original(self, requested_attention, *args, **kwargs)

    return get_correct_attn_implementation


def _before_switch(original: Any) -> Any:
    """Of the switch, which passes models by that cannot be switched, with no more than a log."""

    @functools.wraps(original)
    def set_attn_implementation(self: Any, attn_implementation: Any, *args: Any,
                                **kwargs: Any) -> Any:
        for part in _parts_named(self, attn_implementation) if _active else ():
            refuse_model(part)
        return original(self, attn_implementation, *args, **kwargs)

    return set_attn_implementation


_BEFORE = {"get_correct_attn_implementation": _before_check,
           "set_attn_implementation": _before_switch}


def install() -> None:
    """Stand before the methods of Transformers that take the name of an implementation."""
    global _active
    _active = True
    for name, before in _BEFORE.items():
        if name not in _ours:
            _originals[name] = getattr(PreTrainedModel, name)
            _ours[name] = before(_originals[name])
            setattr(PreTrainedModel, name, _ours[name])


def remove() -> None:
    """Put the methods of Transformers back, unless another patch was put on ours: then warn."""
    global _active
    _active = False
    while _tables:
        _tables.pop().pop(NAME, None)
    for name in list(_ours):
        if getattr(PreTrainedModel, name) is not _ours[name]:
            warnings.warn(f'PreTrainedModel.{name} was patched by others after "{NAME}" was '
                          "registered, expected nobody to: it is left as it is, and the part of it "
                          "that is ours does nothing now", RuntimeWarning, stacklevel=3)
            continue
        setattr(PreTrainedModel, name, _originals.pop(name))
        del _ours[name]
