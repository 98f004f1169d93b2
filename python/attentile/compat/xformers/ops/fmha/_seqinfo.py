# SPDX-License-Identifier: Apache-2.0
"""How a dimension of tokens is divided into sequences: back to back, padded, or with gaps."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor


def check_cpu(device: Any) -> None:
    """ValueError unless device is None or the CPU."""
    if device is not None and torch.device(device).type != "cpu":
        raise ValueError(f"device: was {device}, expected cpu")


def lengths_of(name: str, given: Any, least: int = 0) -> list[int]:
    """given as a list of integers of at least `least`."""
    if isinstance(given, torch.Tensor):
        raise TypeError(f"{name}: was a Tensor, expected a sequence of int (give .tolist())")
    try:
        lengths = [operator.index(n) for n in given]
    except TypeError:
        raise TypeError(f"{name}: was {given!r}, expected a sequence of int") from None
    if any(n < least for n in lengths):
        raise ValueError(f"{name}: was {lengths}, expected integers of at least {least}")
    return lengths


def _int32(numbers: list[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


@dataclass
class _SeqLenInfo:
    """Sequences back to back: sequence i lies from seqstart[i] to seqstart[i + 1].

    seqstart is int32 [sequences + 1], seqstart_py the same as a list.
    """

    seqstart: Tensor
    max_seqlen: int
    min_seqlen: int
    seqstart_py: list[int]

    @classmethod
    def from_seqlens(cls, seqlens: Iterable[int], *, device: Any = None) -> _SeqLenInfo:
        """From the length of each sequence."""
        check_cpu(device)
        lengths = lengths_of("seqlens", seqlens)
        starts = list(accumulate(lengths, initial=0))
        return _SeqLenInfo(_int32(starts), max(lengths, default=-1), min(lengths, default=-1),
                           starts)

    def intervals(self) -> Iterator[tuple[int, int]]:
        """(first, last + 1) of each sequence."""
        return pairwise(self.seqstart_py)

    @property
    def total(self) -> int:
        """Length of the dimension."""
        return self.seqstart_py[-1]

    def split(self, x: Tensor, batch_sizes: Sequence[int] | None = None) -> list[Tensor]:
        """x [1, total, ...] as one tensor for each sequence, [1, length, ...]; with batch_sizes for
        each group of that many sequences of one length, [batch size, length, ...]."""
        if x.dim() < 2 or x.shape[0] != 1 or x.shape[1] != self.total:
            raise ValueError(f"tensor: was of shape {tuple(x.shape)}, expected (1, {self.total}, "
                             "...)")
        sizes = [1] * (len(self.seqstart_py) - 1) if batch_sizes is None else list(batch_sizes)
        bounds = [self.seqstart_py[n] for n in accumulate(sizes, initial=0)]
        return [x[:, a:b].reshape(n, -1 if n and b > a else 0, *x.shape[2:])
                for n, (a, b) in zip(sizes, pairwise(bounds), strict=True)]


@dataclass
class _PaddedSeqLenInfo(_SeqLenInfo):
    """Sequences with the same room each, `padding`: sequence i begins at i * padding and has
    seqlen[i] tokens."""

    seqlen: Tensor
    seqlen_py: list[int]
    padding: int

    @classmethod
    def from_seqlens_padded(cls, seqlens: Sequence[int], padding: int, *,
                            device: Any = None) -> _PaddedSeqLenInfo:
        """From the length of each sequence and the room of all."""
        check_cpu(device)
        lengths = lengths_of("kv_seqlen", seqlens)
        room = lengths_of("kv_padding", [padding])[0]
        if any(n > room for n in lengths):
            raise ValueError(f"kv_seqlen: was {lengths}, expected at most kv_padding, {room}")
        starts = [i * room for i in range(len(lengths) + 1)]
        return cls(_int32(starts), max(lengths, default=-1), min(lengths, default=-1), starts,
                   _int32(lengths), lengths, room)

    def intervals(self) -> Iterator[tuple[int, int]]:
        """(first, last + 1) of each sequence."""
        return ((a, a + n) for a, n in zip(self.seqstart_py, self.seqlen_py, strict=False))


@dataclass
class _GappySeqInfo(_SeqLenInfo):
    """Sequences anywhere: sequence i begins at seqstart[i] and has seqlen[i] tokens; the last of
    seqstart is the length of the dimension.

    For pages seqstart counts within each sequence's own pages, and seqlen is where it ends there.
    """

    seqlen: Tensor
    seqlen_py: list[int]

    @classmethod
    def from_seqlens_gappy(cls, seqstarts: Sequence[int], seqlens: Sequence[int], paged: bool, *,
                           device: Any = None) -> _GappySeqInfo:
        """From where each sequence begins, and its length."""
        check_cpu(device)
        lengths = lengths_of("kv_seqlen", seqlens)
        starts = lengths_of("kv_seqstarts", seqstarts)
        wanted = len(lengths) + (0 if paged else 1)
        if len(starts) != wanted:
            raise ValueError(f"kv_seqstarts: was {len(starts)} long, expected {wanted}")
        ends = [a + n for a, n in zip(starts, lengths, strict=False)]
        if paged:
            starts = [*starts, -1]
        elif any(end > starts[-1] for end in ends):
            raise ValueError(f"kv_seqlen: had sequences that end at {ends}, expected at most "
                             f"{starts[-1]}, the last of kv_seqstarts")
        longest, shortest = max(lengths, default=-1), min(lengths, default=-1)
        held = ends if paged else lengths
        return cls(_int32(starts), longest, shortest, starts, _int32(held), held)

    def intervals(self) -> Iterator[tuple[int, int]]:
        """(first, last + 1) of each sequence; not for pages."""
        return ((a, a + n) for a, n in zip(self.seqstart_py, self.seqlen_py, strict=False))
