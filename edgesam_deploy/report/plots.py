"""Plots as SVG text, to stand inside a page: no script, no font, no file beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

WIDTH, LABEL, ROW, GAP, AXIS = 900, 200, 18, 10, 26  # pixels
COLOURS = ("#2f6fde", "#d9822b", "#2a9d5c", "#a23bb5", "#c02b2b", "#5b6670")


def boxes(rows: Mapping[str, Mapping[str, Sequence[float]]], unit: str = "ms") -> str:
    """Stage -> bundle -> times: a box per bundle from quartile to quartile, its median, whiskers to the extremes, on a
    logarithmic axis. The medians stand beside as text.
    """
    drawn = {stage: {name: t for name, t in entry.items() if len(t)} for stage, entry in rows.items()}
    values = [value for entry in drawn.values() for times in entry.values() for value in times if value > 0]
    if not values:
        return ""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    place = _Axis(low, max(high, low + 1))
    names = list(dict.fromkeys(name for entry in drawn.values() for name in entry))
    parts, top = [], 6
    for stage, entry in drawn.items():
        parts.append(_text(LABEL - 10, top + len(entry) * ROW / 2 + 4, stage, "end"))
        for name, times in entry.items():
            parts.append(_box(place, top, times, COLOURS[names.index(name) % len(COLOURS)], unit))
            top += ROW
        top += GAP
    return _svg(top + AXIS, [*_ticks(low, max(high, low + 1), place, top, unit), *parts], "latency by stage")


def _box(place: _Axis, top: float, times: Sequence[float], colour: str, unit: str) -> str:
    low, q1, median, q3, high = (float(q) for q in np.percentile([t for t in times if t > 0], [0, 25, 50, 75, 100]))
    middle = top + ROW / 2
    width = max(place(q3) - place(q1), 2)
    return (
        f'<line x1="{place(low):.1f}" x2="{place(high):.1f}" y1="{middle}" y2="{middle}" stroke="{colour}"/>'
        f'<rect x="{place(q1):.1f}" y="{top + 3}" width="{width:.1f}" height="{ROW - 6}" fill="{colour}" '
        f'opacity="0.55"/>'
        f'<line x1="{place(median):.1f}" x2="{place(median):.1f}" y1="{top + 2}" y2="{top + ROW - 2}" '
        f'stroke="{colour}" stroke-width="2"/>' + _text(place(high) + 6, middle + 4, f"{median:.3g} {unit}", "start")
    )


def bars(rows: Mapping[str, float], unit: str) -> str:
    """Name -> amount, as horizontal bars with the amount beside."""
    most = max(rows.values(), default=0)
    if most <= 0:
        return ""
    room = WIDTH - LABEL - 120
    parts = []
    for index, (name, value) in enumerate(rows.items()):
        top = 4 + index * (ROW + 4)
        parts.append(_text(LABEL - 10, top + ROW / 2 + 4, name, "end"))
        width = max(room * value / most, 1)
        parts.append(
            f'<rect x="{LABEL}" y="{top}" width="{width:.1f}" height="{ROW}" fill="{COLOURS[0]}" opacity="0.7"/>'
        )
        parts.append(_text(LABEL + width + 6, top + ROW / 2 + 4, f"{value:.3g} {unit}", "start"))
    return _svg(8 + len(rows) * (ROW + 4), parts, unit)


class _Axis:
    """Value -> x, logarithmic."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high

    def __call__(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return LABEL + share * (WIDTH - LABEL - 90)


def _ticks(low: int, high: int, place: _Axis, bottom: float, unit: str) -> list[str]:
    parts = []
    for power in range(low, high + 1):
        x = place(10.0**power)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom}" stroke="currentColor" opacity="0.15"/>')
        parts.append(_text(x, bottom + 16, f"{10.0**power:g} {unit}", "middle"))
    return parts


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor">{escape(text)}</text>'


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title, quote=True)}" '
        f'font-size="12" font-family="system-ui, sans-serif">{"".join(parts)}</svg>'
    )


def legend(names: Sequence[str]) -> str:
    """The colours of ``boxes``, in the order the names first appear there."""
    entries = (
        f'<span><svg width="12" height="12" aria-hidden="true"><rect width="12" height="12" '
        f'fill="{COLOURS[index % len(COLOURS)]}"/></svg> {escape(name)}</span>'
        for index, name in enumerate(names)
    )
    return f'<p class="legend">{" ".join(entries)}</p>'
