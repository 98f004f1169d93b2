# SPDX-License-Identifier: Apache-2.0
"""The cases that peers share: the grid of prefill shapes, decoding, training shapes, lengths."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from contenders import CONTENDERS, ONNXRUNTIME
from plan import Cell, Comparison, square
from problem import Problem, Subject

if TYPE_CHECKING:
    from cases import Request

HEAD_DIMS = (32, 64, 96, 128, 256)
SEQLENS = tuple(2**n for n in range(4, 15))  # 16 .. 16384
OURS = ("attentile", "standard", "flash1")


def contenders_of(request: Request, problem: Problem) -> list[Subject]:
    """attentile first, then everybody who takes part."""
    return [Subject(name, problem, request.threads) for name in ("attentile", *request.peers)]


# --- the grid ------------------------------------------------------------------------------------
def grid_problem(seqlen: int, head_dim: int, dtype: str, causal: bool, backward: bool) -> Problem:
    """About 8,192 tokens times heads: short sequences in batches, long ones with few heads."""
    heads = max(2, min(16, 8192 // seqlen))
    batch = max(1, 8192 // (seqlen * heads))
    return square(seqlen, heads, head_dim, batch=batch, dtype=dtype, causal=causal,
                  backward=backward)


@dataclass(frozen=True)
class Block:
    """A part of the grid: the product of its lists."""

    dtype: str
    backward: bool
    seqlens: tuple[int, ...]
    head_dims: tuple[int, ...]


QUICK_GRID = (
    Block("f32", False, (16, 128, 1024, 4096), (64, 128)),
    Block("f32", False, (1024,), (32, 256)),
    Block("f32", True, (128, 1024), (64, 128)),
    Block("f32", True, (4096,), (64,)),
    Block("bf16", False, (16, 1024, 4096), (64, 128)),
    Block("bf16", True, (1024,), (64, 128)),
    Block("f16", False, (1024,), (64, 128)),
    Block("f16", True, (1024,), (64,)),
)
FULL_GRID = tuple(Block(dtype, backward, SEQLENS, HEAD_DIMS)
                  for dtype in ("f32", "bf16", "f16") for backward in (False, True))


def peer_target(peer: str, problem: Problem, intel: bool) -> tuple[str, str]:
    """Row and column of the table of ratios, "" where it has none. On Intel, torch as installed
    is held against the targets of torch-unlocked, except in f16, which has one row only."""
    if problem.head_dim not in (64, 128) or problem.seqlen_q < 1024:
        return "", ""
    family = "onnxruntime" if peer in ONNXRUNTIME else peer
    if family == "torch" and intel and problem.dtype != "f16":
        family = "torch-unlocked"
    row = f"{family} {problem.pass_name} {problem.dtype}"
    mask = "causal" if problem.causal else "full"
    if row == "torch-unlocked forward f32" and not problem.causal:
        return row, f"full d{problem.head_dim}"
    if family == "torch-unlocked" and problem.backward:
        return row, f"d{problem.head_dim}"
    return row, mask


def grid_cells(subjects: list[Subject], intel: bool) -> list[Cell]:
    first = subjects[0]
    problem = first.problem
    cells = []
    for other in subjects[1:]:
        outsider = not CONTENDERS[other.name].ours
        cells.append(Cell("grid", other.name, problem.words(), "speedup", first, other,
                          "ratio" if outsider else "", "no case loses to a peer"))
        row, column = peer_target(other.name, problem, intel)
        if row:
            cells.append(Cell("peers", f"{other.name} {problem.pass_name} {problem.dtype}",
                              problem.words(), "speedup", first, other, column, row))
    return cells


def grid(request: Request) -> list[Comparison]:
    result = []
    for block in FULL_GRID if request.full else QUICK_GRID:
        for seqlen, head_dim in ((n, d) for n in block.seqlens for d in block.head_dims):
            for causal in (False, True):
                problem = grid_problem(seqlen, head_dim, block.dtype, causal, block.backward)
                subjects = contenders_of(request, problem)
                cells = grid_cells(subjects, request.intel)
                result.append(Comparison("grid", subjects, cells, 2.0))
    return result


# --- decoding ------------------------------------------------------------------------------------
HEADS = {"GQA 32/8": (32, 8), "MQA 32/1": (32, 1), "MHA 32/32": (32, 32), "MHA 12/12": (12, 12)}
QUICK_DECODE = (  # heads, head_dim, cache, new tokens, batch, dtypes
    ("GQA 32/8", 128, 128, 1, 1, ("f32", "bf16")),
    ("GQA 32/8", 128, 1024, 1, 1, ("f32",)),
    ("GQA 32/8", 128, 4096, 1, 1, ("f32", "f16", "bf16")),
    ("GQA 32/8", 128, 16384, 1, 1, ("f32", "bf16")),
    ("GQA 32/8", 128, 65536, 1, 1, ("bf16",)),
    ("GQA 32/8", 128, 4096, 8, 1, ("f32", "bf16")),
    ("GQA 32/8", 128, 2048, 1, 8, ("f32", "bf16")),
    ("MQA 32/1", 128, 4096, 1, 1, ("f32", "bf16")),
    ("MHA 32/32", 128, 4096, 1, 1, ("f32", "bf16")),
    ("MHA 12/12", 64, 1024, 1, 1, ("f32", "bf16")),
)
FULL_DECODE = tuple(
    (heads, 64 if heads == "MHA 12/12" else 128, cache, tokens, batch, ("f32", "f16", "bf16"))
    for heads in HEADS for cache in (128, 512, 1024, 4096, 16384, 65536)
    for tokens in (1, 2, 4, 8) for batch in (1, 8)
    if batch * cache * HEADS[heads][1] <= 65536 * 32 and (tokens == 1 or batch == 1))


def decode_cells(request: Request, row: str, subjects: list[Subject], alone: Subject) -> list[Cell]:
    first = subjects[0]
    problem = first.problem
    words = problem.words().removeprefix("forward ")
    read = "of a streaming read, or 0.6 of the arithmetic peak"
    cells = [Cell("decode", read, words, "bandwidth", first, None, "fraction")]
    for other in subjects[1:]:
        target_row = {"torch": "against torch", "torch-unlocked": "against torch",
                      "onnxruntime-gqa": "against onnxruntime"}.get(other.name, "")
        cells.append(Cell("decode", f"against {other.name}", words, "speedup", first, other,
                          "speedup" if target_row else "", target_row))
        special = "GQA 32/8 d128, cache >= 4096, against torch"
        if (other.name == "torch" and row == "GQA 32/8" and problem.seqlen_k >= 4096
                and problem.dtype != "f16"):
            cells.append(Cell("decode", special, words, "speedup", first, other, problem.dtype))
    scaling = "two threads against one, not DRAM-bound"
    held = problem.cache_bytes() <= request.cache_bytes / 2
    cells.append(Cell("decode", scaling, words, "speedup", Subject("attentile", problem, 2), alone,
                      "speedup" if held else ""))
    return cells


def decode(request: Request) -> list[Comparison]:
    result = []
    for row, head_dim, cache, tokens, batch, dtypes in FULL_DECODE if request.full else \
            QUICK_DECODE:
        for dtype in dtypes:
            problem = Problem(tokens, cache, *HEADS[row], head_dim, batch, dtype, tokens > 1)
            subjects = [s for s in contenders_of(request, problem)
                        if s.name not in ("standard", "flash1")]
            alone = Subject("attentile", problem, 1)
            pair = Subject("attentile", problem, 2)
            cells = decode_cells(request, row, subjects, alone)
            everybody = subjects + [s for s in (alone, pair) if s not in subjects]
            result.append(Comparison("decode", everybody, cells, 1.2, stream=True))
    return result


# --- training and lengths ------------------------------------------------------------------------
@dataclass(frozen=True)
class TrainingShape:
    row: str
    problem: Problem
    quick: Problem  # the same with less of it


TRAINING = (
    TrainingShape("GPT-2 small 8x1024x12x64", square(1024, 12, 64, batch=8, causal=True),
                  square(1024, 12, 64, batch=1, causal=True)),
    TrainingShape("GPT-2 medium 8x1024x16x64", square(1024, 16, 64, batch=8, causal=True),
                  square(1024, 16, 64, batch=1, causal=True)),
    TrainingShape("BERT-large 8x512x16x64", square(512, 16, 64, batch=8),
                  square(512, 16, 64, batch=2)),
    TrainingShape("Llama-like 1x4096x32/8x128", Problem(4096, 4096, 32, 8, 128, causal=True),
                  Problem(4096, 4096, 4, 1, 128, causal=True)),
)
LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
QUICK_LENGTHS = (128, 512, 2048, 4096)


def both_passes(table: str, row: str, problem: Problem, subjects: list[Subject]) -> Comparison:
    """Forward + backward: seconds of attentile, and of the others over them."""
    first = subjects[0]
    cells = [Cell(table, row, "seconds", "training_seconds", first)]
    cells += [Cell(table, row, f"{other.name} / attentile", "training_speedup", first, other)
              for other in subjects[1:]]
    everybody = [replace(s, problem=replace(problem, backward=backward))
                 for s in subjects for backward in (False, True)]
    return Comparison(table, everybody, cells, 6.0)


def training(request: Request) -> list[Comparison]:
    result = []
    for shape in TRAINING:
        problem = shape.problem if request.full else shape.quick
        row = f"{shape.row} ({problem.words().removeprefix('forward ')})"
        result.append(both_passes("training", row, problem, contenders_of(request, problem)))
    return result


def lengths(request: Request) -> list[Comparison]:
    result = []
    for seqlen in LENGTHS if request.full else QUICK_LENGTHS:
        problem = square(seqlen, 8, 64)
        subjects = [s for s in contenders_of(request, problem)
                    if s.name in (*OURS, "torch", "torch-unlocked")]
        result.append(both_passes("lengths", f"{seqlen} tokens", problem, subjects))
    return result


def memory_subjects(comparisons: list[Comparison], full: bool) -> list[Subject]:
    """Whose memory is measured, a fresh process each: forward + backward of training shapes and
    lengths. Quick runs leave out those that take seconds to start, except at the longest."""
    last = max((c.subjects[0].problem.seqlen_q for c in comparisons if c.table == "lengths"),
               default=0)
    return [s for c in comparisons if c.table in ("training", "lengths") for s in c.subjects
            if s.problem.backward and CONTENDERS[s.name].backward
            and (full or CONTENDERS[s.name].ours
                 or (c.table == "lengths" and s.problem.seqlen_q == last))]
