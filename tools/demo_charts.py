# SPDX-License-Identifier: Apache-2.0
"""Log-log line charts as SVG, for the demo. Python's standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Callable
from xml.sax.saxutils import escape

INK = "#24292f"
SOFT = "#57606a"
GRID = "#e4e8ec"
WIDTH, HEIGHT = 860, 520
LEFT, RIGHT, TOP, BOTTOM = 96, 34, 104, 74
Point = tuple[float, float]


@dataclass
class Series:
    name: str
    color: str
    measured: list[Point]
    computed: list[Point] = field(default_factory=list)  # drawn hollow, dashed


@dataclass
class Chart:
    title: str
    subtitle: str
    y_label: str
    y_words: Callable[[float], str]
    series: list[Series]
    limit: tuple[float, str] | None = None  # a horizontal line and what it is
    no_fit: tuple[float, str] | None = None  # from this length on, shaded; and why, written beside
    computed_word: str = "computed, not run"
    y_base: float = 10.0  # ratio of the horizontal grid lines
    y_unit: float = 1.0  # the grid lines are at y_unit * y_base**n


class Canvas:
    """A list of SVG elements."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def line(self, start: Point, end: Point, color: str, width: float = 1, dash: str = "") -> None:
        extra = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" '
                          f'y2="{end[1]:.1f}" stroke="{color}" stroke-width="{width}"{extra}/>')

    def text(self, at: Point, words: str, size: float = 13, anchor: str = "start",
             style: str = f'fill="{INK}"') -> None:
        self.parts.append(f'<text x="{at[0]:.1f}" y="{at[1]:.1f}" font-size="{size}" '
                          f'text-anchor="{anchor}" {style}>{escape(words)}</text>')

    def path(self, points: list[Point], color: str, dash: str = "") -> None:
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        extra = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<polyline points="{places}" fill="none" stroke="{color}" '
                          f'stroke-width="2.5" stroke-linejoin="round"{extra}/>')

    def dot(self, at: Point, color: str, hollow: bool) -> None:
        fill = "#ffffff" if hollow else color
        self.parts.append(f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="4.5" fill="{fill}" '
                          f'stroke="{color}" stroke-width="2"/>')

    def finish(self) -> str:
        body = "\n".join(self.parts)
        return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
                f'viewBox="0 0 {WIDTH} {HEIGHT}" '
                'font-family="DejaVu Sans, Helvetica, Arial, sans-serif">\n'
                f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n{body}\n</svg>\n')


class Axes:
    """Where data lie on the canvas; both axes are logarithmic."""

    def __init__(self, chart: Chart) -> None:
        points = [p for s in chart.series for p in s.measured + s.computed]
        xs = [x for x, _ in points]
        ys = [y for _, y in points] + ([chart.limit[0]] if chart.limit else [])
        self.x_low, self.x_high = min(xs) / 1.12, max(xs) * 1.12
        base, unit = chart.y_base, chart.y_unit
        self.first = math.floor(math.log(min(ys) / unit, base) + 1e-9)
        self.last = math.ceil(math.log(max(ys) / unit * 1.02, base) - 1e-9)
        self.y_low, self.y_high = unit * base**self.first, unit * base**self.last

    def x(self, value: float) -> float:
        share = math.log(value / self.x_low) / math.log(self.x_high / self.x_low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = math.log(value / self.y_low) / math.log(self.y_high / self.y_low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def draw_grid(canvas: Canvas, axes: Axes, chart: Chart) -> None:
    bottom = HEIGHT - BOTTOM
    if chart.no_fit:
        x = axes.x(chart.no_fit[0] / math.sqrt(2))
        canvas.parts.append(f'<rect x="{x:.1f}" y="{TOP}" width="{WIDTH - RIGHT - x:.1f}" '
                            f'height="{bottom - TOP}" fill="#fff1e5"/>')
    for power in range(axes.first, axes.last + 1):
        value = chart.y_unit * chart.y_base**power
        y = axes.y(value)
        canvas.line((LEFT, y), (WIDTH - RIGHT, y), GRID)
        canvas.text((LEFT - 10, y + 4), chart.y_words(value), 12, "end")
    for value in sorted({x for s in chart.series for x, _ in s.measured + s.computed}):
        x = axes.x(value)
        canvas.line((x, TOP), (x, bottom), GRID)
        canvas.line((x, bottom), (x, bottom + 5), INK)
        canvas.text((x, bottom + 20), f"{value:,.0f}", 12, "middle")
    canvas.parts.append(f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" '
                        f'height="{bottom - TOP}" fill="none" stroke="{INK}"/>')
    canvas.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 26), "sequence length (tokens)", 14, "middle")
    middle = (TOP + bottom) / 2
    canvas.text((24, middle), chart.y_label, 14, "middle",
                f'fill="{INK}" transform="rotate(-90 24 {middle})"')


def draw_series(canvas: Canvas, axes: Axes, series: Series) -> None:
    def place(points: list[Point]) -> list[Point]:
        return [(axes.x(x), axes.y(y)) for x, y in points]

    if series.computed:
        canvas.path(place(series.measured[-1:] + series.computed), series.color, "6 5")
    if series.measured:
        canvas.path(place(series.measured), series.color)
    for at in place(series.computed):
        canvas.dot(at, series.color, True)
    for at in place(series.measured):
        canvas.dot(at, series.color, False)


def draw_legend(canvas: Canvas, chart: Chart) -> None:
    entries = [(series.name, series.color, False) for series in chart.series]
    if any(series.computed for series in chart.series):
        entries.append((chart.computed_word, SOFT, True))
    x, y = float(LEFT), 86.0
    for words, color, hollow in entries:
        canvas.line((x, y - 4), (x + 30, y - 4), color, 2.5, "6 5" if hollow else "")
        canvas.dot((x + 15, y - 4), color, hollow)
        canvas.text((x + 38, y), words)
        x += 62 + 7.9 * len(words)


def draw_notes(canvas: Canvas, axes: Axes, chart: Chart) -> None:
    if chart.limit:
        y = axes.y(chart.limit[0])
        canvas.line((LEFT, y), (WIDTH - RIGHT, y), "#cf222e", 1.5, "2 4")
        canvas.text((LEFT + 10, y - 7), chart.limit[1], 12, style='fill="#cf222e"')
    if chart.no_fit:
        x = axes.x(chart.no_fit[0] / math.sqrt(2)) - 10
        canvas.text((x, HEIGHT - BOTTOM - 14), chart.no_fit[1], 12, "end", 'fill="#9a3412"')


def draw_chart(chart: Chart) -> str:
    canvas = Canvas()
    canvas.text((LEFT, 36), chart.title, 20, style=f'fill="{INK}" font-weight="bold"')
    canvas.text((LEFT, 60), chart.subtitle, 13, style=f'fill="{SOFT}"')
    axes = Axes(chart)
    draw_grid(canvas, axes, chart)
    draw_legend(canvas, chart)
    for series in chart.series:
        draw_series(canvas, axes, series)
    draw_notes(canvas, axes, chart)
    return canvas.finish()
