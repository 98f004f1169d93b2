# SPDX-License-Identifier: Apache-2.0
"""Calls of scaled_dot_product_attention that are torch's alone: nested tensors, other devices.

Their kernels stay torch's own; what is put before them tells who computes the call, and why.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Tell = Callable[[str | None], None]

_NAME = "aten::scaled_dot_product_attention"
_NESTED = ("AutogradNestedTensor", "NestedTensorCPU", "NestedTensorCUDA")
# With gradients or without; in inference mode and below. torch allows no kernel for "Meta".
_DEVICES = ("AutogradCUDA", "CUDA", "AutogradXPU", "XPU", "AutogradMPS", "MPS", "AutogradMeta")


def _why(query: Any) -> str:
    if query.is_nested:
        return "query is a nested tensor"
    return f"device of query is {query.device.type}"


def _pass_on(stock: Any, tell: Tell, query: Tensor, *args: Any, **kwargs: Any) -> Any:
    tell(None)
    kernel, keys = stock
    result = kernel.call_boxed(keys, query, *args, **kwargs)
    tell(_why(query))
    return result


def _jagged(stock: Callable[..., Any], tell: Tell) -> Callable[..., Any]:
    @functools.wraps(stock)
    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return stock(*args, **kwargs)
        tell(None)
        result = stock(*args, **kwargs)
        tell("a nested tensor of layout torch.jagged is among the arguments")
        return result

    return run


def register(library: Any, tell: Tell) -> None:
    """Puts `tell` before the kernels of `library`'s operator: called with None, then with why."""
    for key in (*_NESTED, *_DEVICES):
        try:
            kernel = torch.library.get_kernel(_NAME, key)
        except RuntimeError:  # this torch has none
            continue
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
        library.impl("scaled_dot_product_attention",
                     functools.partial(_pass_on, (kernel, keys), tell), key, allow_override=True)
    # Jagged tensors are a subclass in Python, which calls this by its name in that module.
    import torch.nested._internal.ops as jagged_ops  # noqa: PLC0415 (takes a while)

    stock = getattr(jagged_ops, "jagged_scaled_dot_product_attention", None)
    if stock is not None:
        vars(jagged_ops)["jagged_scaled_dot_product_attention"] = _jagged(stock, tell)
