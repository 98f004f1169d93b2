# SPDX-License-Identifier: Apache-2.0
"""The functions of other libraries, computed by Attentile on CPU tensors of torch.

    from attentile.compat.flash_attn import flash_attn_func      by name
    attentile.compat.install()                                   or: import flash_attn works
    from attentile.compat import xformers
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

__all__ = ["flash_attn", "install", "uninstall", "xformers"]

_SUBMODULES = frozenset(("flash_attn", "xformers"))
_NAMES = ("flash_attn", "flash_attn.flash_attn_interface", "flash_attn.bert_padding",
          "flash_attn.layers", "flash_attn.layers.rotary")


def install() -> None:
    """Makes `import flash_attn` and its submodules mean `attentile.compat.flash_attn`.

    For this process, until `uninstall()`; a second call changes nothing. Raises RuntimeError if a
    package flash_attn is there already: it is never replaced.
    """
    present = sys.modules.get("flash_attn")
    if present is not None and present is sys.modules.get(f"{__name__}.flash_attn"):
        return
    if "flash_attn" in sys.modules:
        raise _occupied(getattr(present, "__file__", None))
    spec = importlib.util.find_spec("flash_attn")
    if spec is not None:
        raise _occupied(spec.origin)
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in _NAMES}
    sys.modules.update(modules)


def uninstall() -> None:
    """Takes back what `install()` did; names imported meanwhile keep working."""
    for name in _NAMES:
        ours = sys.modules.get(f"{__name__}.{name}")
        if ours is not None and sys.modules.get(name) is ours:
            del sys.modules[name]


def _occupied(where: str | None) -> RuntimeError:
    return RuntimeError(f"flash_attn: was there already, at {where or 'an unknown place'}, "
                        "expected no such package; uninstall it, or import "
                        "attentile.compat.flash_attn by that name")


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBMODULES})
