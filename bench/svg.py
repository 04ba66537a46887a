"""Plots as plain SVG text: small, without a library, and a change of one figure is a change of one line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

WIDTH = 760
COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#805ad5")
GREY, LIGHT, INK = "#a0aec0", "#e2e8f0", "#1a202c"


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12, colour: str = INK) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">{escape(text)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = LIGHT, width: float = 1) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def _page(height: float, title: str, note: str, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {WIDTH} {height:.0f}" font-family="sans-serif">'
    )
    background = '<rect width="100%" height="100%" fill="white"/>'
    caption = _text(16, height - 12, note, size=11, colour="#4a5568")
    return "\n".join([head, background, _text(16, 26, title, size=16), *parts, caption, "</svg>"]) + "\n"


@dataclass
class Bar:
    """A bar from 0 to ``value``, with marks at other values of the same thing."""

    label: str
    value: float
    text: str
    marks: Sequence[tuple[float, str]] = field(default_factory=tuple)  # value, colour


def bars(title: str, note: str, rows: Sequence[Bar], legend: Sequence[tuple[str, str]]) -> str:
    """Horizontal bars of numbers around 1; ``legend``: (text, colour)."""
    left, right, top, step = 190, WIDTH - 90, 66, 28
    largest = max([row.value for row in rows] + [mark for row in rows for mark, _ in row.marks]) * 1.05
    scale = (right - left) / largest
    height = top + step * len(rows) + 40
    parts, x = [], left
    for text, colour in legend:
        parts += [f'<rect x="{x}" y="40" width="12" height="12" fill="{colour}"/>', _text(x + 17, 50, text)]
        x += 40 + 7 * len(text)
    for i, row in enumerate(rows):
        y = top + i * step
        parts += [
            _text(left - 8, y + 14, row.label, "end"),
            f'<rect x="{left}" y="{y}" width="{row.value * scale:.1f}" height="18" fill="{COLOURS[0]}"/>',
            *(_line(left + mark * scale, y - 3, left + mark * scale, y + 21, colour, 3) for mark, colour in row.marks),
            _text(left + max([row.value] + [mark for mark, _ in row.marks]) * scale + 8, y + 14, row.text),
        ]
    return _page(height, title, note, parts)


@dataclass
class Curve:
    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


def curves(title: str, note: str, x_name: str, y_name: str, lines: Sequence[Curve]) -> str:
    """Lines over a linear x and a logarithmic y."""
    left, right, top, bottom, height = 70, WIDTH - 170, 56, 330, 400
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points if y > 0]
    low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)) + 1e-9)
    high = max(high, low + 1)

    def at(x: float, y: float) -> tuple[float, float]:
        share = (math.log10(max(y, 10**low)) - low) / (high - low)
        return left + x / (max(xs) * 1.05) * (right - left), bottom - share * (bottom - top)

    parts = [_text((left + right) / 2, bottom + 38, x_name, "middle"), _text(16, top - 8, y_name)]
    for power in range(low, high + 1):
        _, y = at(0, 10**power)
        parts += [_line(left, y, right, y), _text(left - 8, y + 4, f"{10.0**power:g}", "end")]
    for x in sorted(set(xs)):
        px, _ = at(x, 1)
        parts += [_line(px, bottom, px, bottom + 5, GREY), _text(px, bottom + 19, f"{x:g}", "middle")]
    for i, line in enumerate(lines):
        colour, places = COLOURS[i % len(COLOURS)], [at(x, y) for x, y in sorted(line.points)]
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in places]
        parts += [_line(right + 14, top + 20 * i, right + 34, top + 20 * i, colour, 3)]
        parts += [_text(right + 40, top + 20 * i + 4, line.name)]
    return _page(height, title, note, parts)
