# SPDX-License-Identifier: Apache-2.0
"""The demo: standard attention in NumPy beside flash2, in time, temporary memory and error.

Peak memory is measured in processes of their own (python -m attentile._demo WAY SEQLEN), because
what NumPy and BLAS and attentile allocate can only be seen together from outside.
"""

from __future__ import annotations

import html as html_text
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import attentile

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH, HEADS, HEAD_DIM = 1, 4, 64
SEQLENS = (512, 1024, 2048, 4096)
_CHECKED_ROWS = 256  # rows of the float64 reference; rows do not depend on each other
_LONG_ENOUGH = 0.4  # seconds of repeats after which the best one is taken


class Row(NamedTuple):
    """One seqlen; seconds, bytes, and largest absolute difference from the float64 reference."""

    seqlen: int
    numpy_seconds: float
    flash_seconds: float
    numpy_bytes: int
    flash_bytes: int
    numpy_measured: int | None
    flash_measured: int | None
    numpy_error: float
    flash_error: float


def standard(q: Any, k: Any, v: Any) -> Any:
    """softmax(q k^T / sqrt(head_dim)) v in NumPy, with one matrix of scores and no more."""
    scores = q @ k.swapaxes(2, 3)
    scores *= 1 / math.sqrt(q.shape[3])
    scores -= scores.max(axis=3, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=3, keepdims=True)
    return scores @ v


def flash(q: Any, k: Any, v: Any) -> Any:
    return attentile.attention(q, k, v, algorithm="flash2", layout="bhsd")


_WAYS: dict[str, Callable[[Any, Any, Any], Any]] = {"numpy": standard, "flash2": flash}


def _inputs(seqlen: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seqlen)
    shape = (BATCH, HEADS, seqlen, HEAD_DIM)
    q, k, v = (rng.standard_normal(shape, dtype=np.float32) for _ in range(3))
    return q, k, v


def _timed(name: str, inputs: tuple[Any, Any, Any]) -> tuple[float, Any]:
    """(seconds of the best of some calls, what it returned)."""
    spent, best = 0.0, math.inf
    while spent < _LONG_ENOUGH:
        start = time.perf_counter()
        out = _WAYS[name](*inputs)
        took = time.perf_counter() - start
        spent += took
        best = min(best, took)
    return best, out


def _peak_bytes() -> int | None:
    """The most memory this process has had so far."""
    try:  # Linux: ru_maxrss would count the parent too, as it was when this process began
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def growth(name: str, seqlen: int) -> int | None:
    """Bytes by which one call raises the peak of this process, its result not counted."""
    way = _WAYS[name]
    inputs = _inputs(seqlen)
    way(*(x[:, :, :64] for x in inputs))  # threads and buffers that stay are there before
    before = _peak_bytes()
    out = way(*inputs)
    after = _peak_bytes()
    if before is None or after is None:
        return None
    return max(0, after - before - int(out.nbytes))


def _measured(name: str, seqlen: int) -> int | None:
    done = subprocess.run([sys.executable, "-m", "attentile._demo", name, str(seqlen)],
                          check=True, capture_output=True, text=True)
    found: int | None = json.loads(done.stdout)
    return found


def _error(out: Any, reference: Any, step: int) -> float:
    return float(np.abs(out[:, :, ::step].astype(np.float64) - reference).max())


def _row(seqlen: int) -> Row:
    q, k, v = inputs = _inputs(seqlen)
    step = max(1, seqlen // _CHECKED_ROWS)
    wide = (x.astype(np.float64) for x in (q[:, :, ::step], k, v))
    reference = attentile.attention(*wide, algorithm="reference", layout="bhsd")
    plan = attentile.plan(*inputs, algorithm="flash2", layout="bhsd")
    numpy_seconds, numpy_out = _timed("numpy", inputs)
    flash_seconds, flash_out = _timed("flash2", inputs)
    return Row(
        seqlen, numpy_seconds, flash_seconds,
        # The scores, and the largest or the sum of each row.
        4 * BATCH * HEADS * seqlen * (seqlen + 1), int(plan["workspace_bytes"]),
        _measured("numpy", seqlen), _measured("flash2", seqlen),
        _error(numpy_out, reference, step), _error(flash_out, reference, step))


def compare(seqlens: tuple[int, ...] = SEQLENS) -> list[Row]:
    """Both ways at each seqlen."""
    return [_row(seqlen) for seqlen in seqlens]


def _mib(count: int | None) -> str:
    return "-" if count is None else f"{count / (1 << 20):.1f}"


def _heading() -> str:
    found = attentile.info()
    return (f"Attention forward, batch {BATCH}, {HEADS} heads, head_dim {HEAD_DIM}, float32, "
            f"{found['cpu'] or 'unknown CPU'}, {found['usable_cores']} cores")


COLUMNS = ("seqlen", "NumPy s", "flash2 s", "ratio", "NumPy MiB", "measured", "flash2 MiB",
           "measured", "NumPy diff", "flash2 diff")
NOTES = ("ratio: NumPy's seconds over flash2's. MiB: temporary memory, computed and measured (peak "
         "of a process of its own; 0.0 where the peak did not move).\n"
         "diff: largest absolute difference from algorithm=\"reference\" in float64, on "
         f"{_CHECKED_ROWS} rows of each head.")


def _cells(row: Row) -> tuple[str, ...]:
    return (str(row.seqlen), f"{row.numpy_seconds:.4f}", f"{row.flash_seconds:.4f}",
            f"{row.numpy_seconds / row.flash_seconds:.1f}x", _mib(row.numpy_bytes),
            _mib(row.numpy_measured), _mib(row.flash_bytes), _mib(row.flash_measured),
            f"{row.numpy_error:.1e}", f"{row.flash_error:.1e}")


def describe(rows: list[Row]) -> str:
    """The table as text."""
    lines = [COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    body = "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
                     for line in lines)
    return f"{_heading()}\n\n{body}\n\n{NOTES}"


class _Panel:
    """One chart with logarithmic axes: seqlen to the right, a quantity upwards."""

    WIDTH, HEIGHT, LEFT, TOP = 330, 240, 70, 70

    def __init__(self, x: float, title: str, unit: str, values: list[float]) -> None:
        self.x = x + self.LEFT
        self.title, self.unit = title, unit
        shown = [v for v in values if v > 0] or [1.0]
        self.low = math.floor(math.log10(min(shown)))
        self.high = max(self.low + 1, math.ceil(math.log10(max(shown))))

    def place(self, index: int, count: int, value: float) -> tuple[float, float]:
        up = (math.log10(value) - self.low) / (self.high - self.low)
        return self.x + self.WIDTH * index / max(1, count - 1), self.TOP + self.HEIGHT * (1 - up)

    def frame(self, seqlens: list[int]) -> list[str]:
        parts = [f'<text x="{self.x}" y="{self.TOP - 16}" class="title">{self.title}</text>']
        for power in range(self.low, self.high + 1):
            _, y = self.place(0, 2, 10.0 ** power)
            label = f"{10.0 ** power:g} {self.unit}"
            parts.append(f'<path d="M{self.x} {y:.1f}h{self.WIDTH}" class="grid"/>'
                         f'<text x="{self.x - 8}" y="{y + 4:.1f}" class="end">{label}</text>')
        for index, seqlen in enumerate(seqlens):
            x, _ = self.place(index, len(seqlens), 10.0 ** self.low)
            parts.append(f'<text x="{x:.1f}" y="{self.TOP + self.HEIGHT + 18}" class="mid">'
                         f"{seqlen}</text>")
        return parts

    def line(self, values: list[float], colour: str, dashed: bool = False) -> list[str]:
        points = [self.place(i, len(values), v) for i, v in enumerate(values) if v > 0]
        if not points:
            return []
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        style = ' stroke-dasharray="5 4"' if dashed else ""
        dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
        return [f'<polyline points="{path}" stroke="{colour}"{style}/>', *dots]


_NUMPY_COLOUR, _FLASH_COLOUR = "#c4501b", "#1f6fb2"
_STYLE = """text{font:13px system-ui,sans-serif;fill:#222}.title{font-weight:600;font-size:15px}
.end{text-anchor:end}.mid{text-anchor:middle}.grid{stroke:#ddd}polyline{fill:none;stroke-width:2}"""


def _svg(rows: list[Row]) -> str:
    seqlens = [row.seqlen for row in rows]
    mib = 1 << 20
    seconds = [[row.numpy_seconds for row in rows], [row.flash_seconds for row in rows]]
    computed = [[row.numpy_bytes / mib for row in rows], [row.flash_bytes / mib for row in rows]]
    measured = [[(row.numpy_measured or 0) / mib for row in rows],
                [(row.flash_measured or 0) / mib for row in rows]]
    left = _Panel(0, "Seconds", "s", sum(seconds, []))
    right = _Panel(430, "Temporary memory", "MiB", sum(computed + measured, []))
    parts = [*left.frame(seqlens), *right.frame(seqlens)]
    for index, colour in enumerate((_NUMPY_COLOUR, _FLASH_COLOUR)):
        parts += left.line(seconds[index], colour)
        parts += right.line(computed[index], colour)
        parts += right.line(measured[index], colour, dashed=True)
    legend = (f'<text x="70" y="24">{html_text.escape(_heading())}</text>'
              f'<text x="70" y="352"><tspan fill="{_NUMPY_COLOUR}">NumPy, standard</tspan>  '
              f'<tspan dx="14" fill="{_FLASH_COLOUR}">attentile, flash2</tspan>'
              '<tspan dx="14">by seqlen; memory computed (solid) and measured (dashed)</tspan>'
              "</text>")
    return ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 850 372" role="img" '
            'aria-label="Standard attention in NumPy and attentile flash2: seconds and temporary '
            f'memory by seqlen"><style>{_STYLE}</style>'
            f'<rect width="850" height="372" fill="#fff"/>{legend}{"".join(parts)}</svg>\n')


def picture(rows: list[Row], *, html: bool) -> str:
    """The charts as SVG; with html, a page that holds them and the table, and nothing foreign."""
    if not html:
        return _svg(rows)

    def line(cells: tuple[str, ...], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html_text.escape(c)}</{tag}>" for c in cells) + "</tr>"

    body = "".join(line(_cells(row), "td") for row in rows)
    notes = html_text.escape(NOTES).replace("\n", "<br>")
    return ('<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Attentile</title>'
            "<style>body{font:15px system-ui,sans-serif;max-width:60rem;margin:2rem auto;"
            "padding:0 1rem;background:#fff;color:#222}td,th{padding:.2rem .7rem;"
            "text-align:right}table{border-collapse:collapse}tr+tr{border-top:1px solid #ddd}"
            f"</style>\n<h1>Standard attention and flash2</h1>\n{_svg(rows)}"
            f"<table>{line(COLUMNS, 'th')}{body}</table>\n<p>{notes}</p>\n</html>\n")


if __name__ == "__main__":
    print(json.dumps(growth(sys.argv[1], int(sys.argv[2]))))
