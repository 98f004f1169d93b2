# SPDX-License-Identifier: Apache-2.0
"""Models whose code never asks for an attention function are refused, not run wrongly.

Transformers 5.23 has 94 such modelling files among 441. Some accept any name, ignore it, and lose
their masks (CodeGen, BLOOM, XGLM, RoFormer): wrong logits without a word.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from typing import Any, NoReturn

from transformers import PreTrainedModel

from attentile import UnsupportedError

NAME = "attentile"
_LAYER = re.compile(r"^class \w*Attention\w*\(nn\.Module\):", re.MULTILINE)
_ASKS = "ALL_ATTENTION_FUNCTIONS.get_interface("


@functools.lru_cache(maxsize=None)
def asks_for_attention(module_name: str) -> bool:
    """Whether a modelling module asks the interface; True also for code that cannot be read."""
    try:
        source = inspect.getsource(sys.modules[module_name])
    except (KeyError, OSError, TypeError):
        return True
    return source_asks(source)


def source_asks(source: str) -> bool:
    """The same by a module's text: no attention layers of its own, or a call of the interface."""
    return _ASKS in source or _LAYER.search(source) is None


def refuse_model(what: str, module_name: str) -> None:
    """Raise UnsupportedError if the module of a model or configuration ignores the interface."""
    if not asks_for_attention(module_name):
        _refuse(what, module_name)


def _refuse(what: str, module_name: str, *_: Any, **__: Any) -> NoReturn:
    raise UnsupportedError(
        f'attn_implementation: was "{NAME}" for {what}, expected a model that asks for its '
        f"attention function: {module_name} computes attention by itself, and would ignore "
        f'"{NAME}" or lose its masks; use attn_implementation="eager" (for one part of a '
        'model: a dictionary, {"text_config": "attentile", "vision_config": "eager"})')


def _refuse_tables(module_name: str) -> None:
    """Where single layers are looked up by name (SAM, GIT), have our name refused, not missing."""
    for key, table in vars(sys.modules[module_name]).items():
        if key.endswith("ATTENTION_CLASSES") and isinstance(table, dict) and NAME not in table:
            table[NAME] = functools.partial(_refuse, key, module_name)
            _tables.append(table)


_tables: list[dict[str, Any]] = []  # with an entry of ours


def refuse_config(config: Any) -> None:
    """The same, when a mask is asked for."""
    if config is not None:
        name = type(config).__module__.replace(".configuration_", ".modeling_")
        refuse_model(type(config).__name__, name)


_checked: Any = None  # the method of Transformers that ours stands before


def install() -> None:
    """Stand before the check of names that every model makes when it is built or switched."""
    global _checked
    if _checked is not None:
        return
    original = _checked = PreTrainedModel.get_correct_attn_implementation

    @functools.wraps(original)
    def get_correct_attn_implementation(self: Any, requested_attention: str | None,
                                        *args: Any, **kwargs: Any) -> Any:
        if requested_attention == NAME:
            refuse_model(type(self).__name__, type(self).__module__)
            _refuse_tables(type(self).__module__)
        return original(self, requested_attention, *args, **kwargs)

    PreTrainedModel.get_correct_attn_implementation = (  # type: ignore[method-assign]
        get_correct_attn_implementation)


def remove() -> None:
    """Put the method of Transformers back."""
    global _checked
    if _checked is not None:
        PreTrainedModel.get_correct_attn_implementation = (  # type: ignore[method-assign]
            _checked)
        _checked = None
    while _tables:
        _tables.pop().pop(NAME, None)
