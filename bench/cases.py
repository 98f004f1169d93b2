# SPDX-License-Identifier: Apache-2.0
"""The cases: every comparison of a run, table by table. `quick` covers each row of the tables,
`full` is the whole grid."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cases_peers import decode, grid, lengths, training
from plan import Cell, Comparison, square, threads_words
from problem import Problem, Subject


@dataclass(frozen=True)
class Request:
    """What the cases depend on."""

    full: bool
    threads: int  # those of every ratio to a peer
    peers: tuple[str, ...]  # contenders that take part beside attentile
    cache_bytes: float  # the largest cache
    intel: bool  # torch as installed is torch-unlocked


def ours(problem: Problem, threads: int) -> Subject:
    return Subject("attentile", problem, threads)


@dataclass(frozen=True)
class PeakRow:
    """A row of the table of fractions: its lengths, and what else sets it apart."""

    row: str
    seqlens: tuple[int, ...]
    dtype: str = "f32"
    backward: bool = False
    causal: bool = False
    head_dims: tuple[int, ...] = (64, 128)
    isa: str = ""
    more_seqlens: tuple[int, ...] = ()  # with --full


PEAK_ROWS = (
    PeakRow("forward f32, full, seqlen >= 1024", (1024, 4096), more_seqlens=(2048, 16384)),
    PeakRow("forward f32, causal, seqlen 1024", (1024,), causal=True),
    PeakRow("forward f32, causal, seqlen >= 4096", (4096,), causal=True, more_seqlens=(16384,)),
    PeakRow("forward f32, full, seqlen 128..512", (128, 512), more_seqlens=(256,)),
    PeakRow("forward bf16, full, seqlen 1024", (1024,), "bf16"),
    PeakRow("forward bf16, full, seqlen >= 4096", (4096,), "bf16", more_seqlens=(16384,)),
    PeakRow("forward bf16, causal, seqlen >= 4096", (4096,), "bf16", causal=True,
            more_seqlens=(16384,)),
    PeakRow("forward f16, full", (1024,), "f16", more_seqlens=(4096,)),
    PeakRow("backward f32, full", (1024,), backward=True, more_seqlens=(4096,)),
    PeakRow("backward f32, causal, seqlen 4096", (4096,), backward=True, causal=True),
    PeakRow("backward f32, causal, seqlen 1024", (1024,), backward=True, causal=True),
    PeakRow("backward bf16, full", (1024, 4096), "bf16", backward=True),
    PeakRow("backward bf16, causal", (1024, 4096), "bf16", backward=True, causal=True),
    PeakRow("backward f16, full", (1024, 4096), "f16", backward=True),
    PeakRow("backward f16, causal", (1024, 4096), "f16", backward=True, causal=True),
    *(PeakRow(f"forward f32, many heads, seqlen {n}", (n,), head_dims=(64,))
      for n in (16, 32, 64, 128)),
    PeakRow("AVX2 path (forced), forward f32, of the AVX2 peak", (1024,), isa="avx2"),
)


def peak_heads(seqlen: int, head_dim: int, full: bool) -> int:
    """Heads that make a case long enough to be timed: fewer where it is long by itself."""
    tokens = (16384 if full else 8192) * 64 // head_dim
    return max(2, tokens // seqlen)


def peak(request: Request) -> list[Comparison]:
    """Fractions of the peak, by `attentile bench`; with it comes our own standard."""
    result = []
    for row in PEAK_ROWS:
        seqlens = row.seqlens + (row.more_seqlens if request.full else ())
        for head_dim, seqlen in ((d, n) for d in row.head_dims for n in seqlens):
            problem = square(seqlen, peak_heads(seqlen, head_dim, request.full), head_dim,
                             dtype=row.dtype, causal=row.causal, backward=row.backward)
            for threads in (1, 2):
                subject = Subject("attentile-avx2" if row.isa else "attentile", problem, threads)
                cell = Cell("peak", row.row, f"d{head_dim}, seqlen {seqlen}, "
                            f"{threads_words(threads)}", "fraction", subject, None, f"d{head_dim}")
                result.append(Comparison("peak", [subject], [cell], 0.5, "program", row.isa))
    return result


def pair(table: str, row: str, detail: str, subjects: tuple[Subject, Subject],
         kind: str) -> Comparison:
    """A subject against another of ours. A speedup is that of the first over the second."""
    return Comparison(table, list(subjects), [Cell(table, row, detail, kind, *subjects, kind)], 0.6)


def neighbours(request: Request) -> list[Comparison]:
    """Shapes that should be as fast as those with a target."""
    result = []
    for head_dim, near in ((32, 64), (80, 64), (96, 128), (192, 128), (256, 128)):
        for backward in (False, True) if request.full else (False,):
            base = square(1024, 8, near, backward=backward)
            subjects = (ours(replace(base, head_dim=head_dim), 1), ours(base, 1))
            result.append(pair("neighbours", "head_dim against the nearest with a target",
                               f"{base.pass_name} f32 d{head_dim} / d{near}", subjects, "rate"))
    for seqlen, head_dim in ((n, d) for n in (1023, 1025) for d in (64, 128)):
        for causal in (False, True):
            base = square(1024, 8, head_dim, causal=causal)
            ragged = replace(base, seqlen_q=seqlen, seqlen_k=seqlen)
            result.append(pair(
                "neighbours", "ragged lengths against round ones",
                f"{seqlen} / 1024, d{head_dim}, {'causal' if causal else 'full'}",
                (ours(ragged, 1), ours(base, 1)), "rate"))
    for head_dim in (64, 128):
        base = square(1024, 4096 // head_dim, head_dim)  # 4096 float32: rows of 16 KB
        for backward in (False, True) if request.full else (False,):
            contiguous = replace(base, backward=backward)
            result.append(pair("neighbours", "bshd with 16 KB rows against contiguous",
                               f"{contiguous.pass_name} f32 d{head_dim}, seqlen 1024",
                               (ours(replace(contiguous, layout="bshd"), 1), ours(contiguous, 1)),
                               "rate"))
    return result


def scaling(request: Request) -> list[Comparison]:
    """Two threads against one where the heads do not divide the work."""
    problems = [("one head", square(2048, 1, 64)),
                ("GQA, one KV head", Problem(2048, 2048, 4, 1, 64)),
                ("packed, one long and many short",
                 Problem(0, 0, 2, 2, 64, seqlens=(2048, *([64] * 16)), layout="bshd"))]
    result = []
    for row, base in problems:
        for causal, backward in ((c, b) for b in (False, True) for c in (False, True)):
            problem = replace(base, causal=causal, backward=backward)
            result.append(pair("scaling", row, f"{problem.pass_name} f32 d64, "
                               f"{'causal' if causal else 'full'}",
                               (ours(problem, 2), ours(problem, 1)), "speedup"))
    return result


FEATURES = ("mask", "softcap", "dropout", "alibi", "window", "sink")


def features(request: Request) -> list[Comparison]:
    """Each feature against the plain pass of the same comparison."""
    result = []
    for threads, backward in ((t, b) for t in ((1, 2) if request.full else (1,))
                              for b in (False, True)):
        plain = square(2048, 4, 64, backward=backward)
        short = square(512, 4, 64, backward=backward)
        rows = [(name, replace(plain, feature=name), plain) for name in FEATURES]
        rows += [("gqa", replace(plain, num_heads_kv=1), plain),
                 ("bias in cache", replace(short, feature="bias_shared"), short),
                 ("bias from memory", replace(plain, feature="bias"), plain)]
        for base in (plain, short):
            chosen = [(name, problem) for name, problem, against in rows if against == base]
            subjects = [ours(base, threads), *(ours(problem, threads) for _, problem in chosen)]
            cells = [Cell("features", name, f"{base.pass_name}, {threads_words(threads)}", "rate",
                          ours(problem, threads), subjects[0], "" if backward else "rate")
                     for name, problem in chosen]
            result.append(Comparison("features", subjects, cells, 0.4 * len(subjects)))
    return result


def overhead(request: Request) -> list[Comparison]:
    subject = ours(Problem(1, 1, 1, 1, 64), 1)
    return [Comparison("overhead", [subject],
                       [Cell("overhead", "C API call, seqlen 1, one thread", "1 head, d64",
                             "seconds", subject, None, "seconds")], 0.3)]


TABLES = {"peak": peak, "neighbours": neighbours, "scaling": scaling, "features": features,
          "overhead": overhead, "grid": grid, "decode": decode, "training": training,
          "lengths": lengths}


def all_cases(request: Request, tables: list[str]) -> list[Comparison]:
    """Every comparison of the named tables, in their order."""
    return [comparison for name in tables for comparison in TABLES[name](request)]
