# SPDX-License-Identifier: Apache-2.0
"""Arguments as flash_attn's callers give them, as Attentile takes them."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from attentile._call import Keywords


def integer(name: str, value: Any) -> int:
    """An int from an int, or from a tensor or NumPy array of one integer."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: was {value!r}, expected an integer or a 0-D integer tensor") \
            from None


def window(window_size: Any) -> tuple[int, int]:
    """(left, right) of a tuple, a list, or a tensor of two integers; -1 is unbounded."""
    try:
        given = list(window_size)
    except TypeError:
        given = []
    if len(given) != 2:
        raise ValueError(f"window_size: was {window_size!r}, expected (left, right)")
    left, right = integer("window_size[0]", given[0]), integer("window_size[1]", given[1])
    if left < -1 or right < -1:
        raise ValueError(f"window_size: was ({left}, {right}), expected both at least -1")
    return left, right


def keywords_of(softmax_scale: float | None, causal: bool, window_size: Any, softcap: float,
                alibi_slopes: Tensor | None) -> Keywords:
    """Keywords of `attentile.torch.attention`, those at their default left out."""
    keywords: Keywords = {}
    if softmax_scale is not None:
        keywords["softmax_scale"] = softmax_scale
    if causal:
        keywords["causal"] = True
    left, right = window(window_size)
    if left != -1:
        keywords["window_left"] = left
    if right != -1:
        keywords["window_right"] = right
    if softcap:
        keywords["softcap"] = softcap
    if alibi_slopes is not None:
        keywords["alibi_slopes"] = alibi_slopes
    return keywords


def check_tensor(name: str, tensor: Any, shape: tuple[str | int, ...]) -> None:
    """Refuses what is no CPU tensor of this rank; a number in shape is a size that must be so."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: was a {type(tensor).__name__}, expected a tensor of torch")
    if tensor.device.type != "cpu":
        raise ValueError(f"{name}: was on device {tensor.device}, expected cpu")
    sizes = tuple(tensor.shape)
    if len(sizes) != len(shape) or any(isinstance(want, int) and size != want
                                       for size, want in zip(sizes, shape, strict=False)):
        expected = ", ".join(map(str, shape))
        raise ValueError(f"{name}: shape was {sizes}, expected ({expected})")


def check_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise ValueError(f"{name}: dtype was {tensor.dtype}, expected {dtype} as of the others")


def indices(name: str, tensor: Any, shape: tuple[str | int, ...]) -> Tensor:
    """An int32 tensor of this shape; int64 is converted, since that copies a few numbers only."""
    check_tensor(name, tensor, shape)
    if tensor.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: dtype was {tensor.dtype}, expected torch.int32")
    found: Tensor = tensor.to(torch.int32)
    if found is not tensor and not torch.compiler.is_compiling() and bool((found != tensor).any()):
        raise ValueError(f"{name}: had elements beyond 32 bits, expected torch.int32")
    return found


def check_range(name: str, tensor: Tensor, low: int, high: int) -> None:
    """Refuses elements outside [low, high]; the sentence names the first."""
    if torch.compiler.is_compiling():  # a graph cannot look at values; the kernel does, later
        return
    values = tensor.tolist()  # one per sequence: quicker in Python than by operators
    if values and (min(values) < low or max(values) > high):
        at, value = next((i, x) for i, x in enumerate(values) if not low <= x <= high)
        raise ValueError(f"{name}[{at}]: was {value}, expected {low} to {high}")


def check_pages(block_table: Tensor, lengths: Tensor, num_pages: int, page_size: int) -> None:
    """Refuses a table too narrow for these lengths, and a page in use that does not exist."""
    if page_size == 0:
        raise ValueError("k_cache: page_size was 0, expected at least 1")
    if torch.compiler.is_compiling():
        return
    width = block_table.shape[1]
    longest = max(lengths.tolist(), default=0)
    if longest > width * page_size:
        raise RuntimeError(f"block_table: has {width} pages of {page_size} tokens per sequence, "
                           f"expected enough for {longest} tokens")
    head = block_table[:, :-(-longest // page_size)]
    if head.numel() == 0 or (int(head.min()) >= 0 and int(head.max()) < num_pages):
        return
    # Only what a shorter sequence does not use may lie outside.
    pages_used = (lengths + (page_size - 1)) // page_size
    used = torch.arange(width) < pages_used[:, None]
    outside = used & ((block_table < 0) | (block_table >= num_pages))
    if bool(outside.any()):
        row, column = outside.nonzero()[0].tolist()
        raise RuntimeError(f"block_table[{row}][{column}]: was {int(block_table[row, column])}, "
                           f"expected a page in [0, {num_pages})")
