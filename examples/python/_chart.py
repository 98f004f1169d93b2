# SPDX-License-Identifier: Apache-2.0
"""Lines in an SVG, written by hand: no plotting library is needed."""

from html import escape

WIDTH, HEIGHT = 860, 480
LEFT, RIGHT, TOP, BOTTOM = 76, 836, 92, 420
# Later lines are drawn over earlier ones: wide below, dashed above, so that equal ones all show.
STYLES = (("#e69f00", 7, ""), ("#0072b2", 3, ""), ("#24292f", 1.5, "4 5"))


def _text(x, y, words, size=12, anchor="start", **more):
    more = {"fill": "#24292f", **more}
    rest = " ".join(f'{name.replace("_", "-")}="{value}"' for name, value in more.items())
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" {rest}>'
            f'{escape(words)}</text>')


def _line(points, colour, width, dash=""):
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" '
            f'stroke-dasharray="{dash}"/>')


def write_lines(path, title, subtitle, x_label, series):
    """Write series, {name: [y at x = 1, 2, ...]}, as lines with a legend."""
    longest = max(map(len, series.values()))
    top = max(max(values) for values in series.values())
    tick = next(t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, top) if t >= top / 6)

    def at(x, y):
        return (LEFT + (RIGHT - LEFT) * (x - 1) / max(longest - 1, 1),
                BOTTOM - (BOTTOM - TOP) * y / top)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="DejaVu Sans, Helvetica, Arial, sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 36, title, 20, font_weight="bold"),
        _text(LEFT, 60, subtitle, 13, fill="#57606a"),
        _text((LEFT + RIGHT) / 2, HEIGHT - 18, x_label, 13, "middle")]
    for i in range(int(top / tick) + 1):
        y = at(1, i * tick)[1]
        parts += [_line([(LEFT, y), (RIGHT, y)], "#e4e8ec", 1),
                  _text(LEFT - 10, y + 4, f"{i * tick:g}", anchor="end")]
    for i in range(6):
        step = 1 + round((longest - 1) * i / 5)
        parts.append(_text(at(step, 0)[0], BOTTOM + 20, str(step), anchor="middle"))
    for row, (name, values) in enumerate(series.items()):
        style = STYLES[row % len(STYLES)]
        y = TOP + 16 + 24 * row
        parts += [_line([at(x, value) for x, value in enumerate(values, 1)], *style),
                  _line([(RIGHT - 200, y), (RIGHT - 160, y)], *style),
                  _text(RIGHT - 150, y + 4, name)]
    with open(path, "w", encoding="utf-8") as svg:
        svg.write("\n".join([*parts, "</svg>\n"]))
