"""Frontiers as inline SVG: one panel per quantity, one line per family, a bar for the spread over seeds."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 440, 340, 56, 34, 44
COLOURS = (
    "#1f6fb4", "#d9541e", "#2a8f45", "#8250b8", "#b8344a", "#7b5b3a", "#c74fa8", "#5d6b78", "#9a8a10", "#128d9c",
    "#444444", "#88a63c", "#e09a1a", "#5a78d6",
)  # fmt: skip
#: (quantity, label, range of the vertical axis) of the two panels.
PANELS = (("fvu", "FVU", (0.0, 1.0)), ("loss_recovered_mean", "loss recovered", (0.0, 1.0)))


def curves(points: Sequence[Mapping[str, Any]], quantity: str) -> dict[str, list[tuple[float, float, float]]]:
    """Per family (mean L0, mean of the quantity, its standard deviation over seeds), by L0.

    Settings are averaged over their seeds; the deviation has divisor N - 1, and is 0 for one seed.
    """
    groups: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for p in points:
        if p.get(quantity) is not None and math.isfinite(p[quantity]):
            setting = f"{p['setting']}/{p['k']}"
            groups.setdefault(p["family"], {}).setdefault(setting, []).append((p["l0"], p[quantity]))
    out = {}
    for family, settings in groups.items():
        rows = []
        for values in settings.values():
            a = np.asarray(values)
            rows.append(
                (float(a[:, 0].mean()), float(a[:, 1].mean()), float(a[:, 1].std(ddof=1)) if len(a) > 1 else 0.0)
            )
        out[family] = sorted(rows)
    return out


def draw(
    points: Sequence[Mapping[str, Any]], panels: Sequence[tuple[str, str, tuple[float, float]]], title: str
) -> str:
    """The picture.

    Args:
        points: each with family, setting, k, l0 and the quantities.
        panels: (quantity, label of the vertical axis, its range).
        title: above all panels.
    """
    families = list(dict.fromkeys(p["family"] for p in points))
    colour = {f: COLOURS[i % len(COLOURS)] for i, f in enumerate(families)}
    body = [_panel(curves(points, q), label, span, colour, i * WIDTH) for i, (q, label, span) in enumerate(panels)]
    legend_at = len(panels) * WIDTH + 12
    legend = [
        f'<g transform="translate({legend_at},{TOP + 18 * i})"><line x2="18" y1="5" y2="5" stroke="{colour[f]}" '
        f'stroke-width="2"/><text x="24" y="9">{html.escape(f)}</text></g>'
        for i, f in enumerate(families)
    ]
    width = legend_at + 150
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="11"><rect width="{width}" height="{HEIGHT}" fill="white"/>'
        f'<text x="{LEFT}" y="16" font-size="13">{html.escape(title)}</text>{"".join(body)}{"".join(legend)}</svg>\n'
    )


def _panel(data: dict, label: str, span: tuple[float, float], colour: dict[str, str], left: int) -> str:
    low, high = math.log2(4), math.log2(256)
    x = lambda l0: LEFT + (math.log2(max(l0, 1e-9)) - low) / (high - low) * (WIDTH - LEFT - 16)  # noqa: E731
    floor, roof = span
    y = lambda v: TOP + (roof - min(max(v, floor), roof)) / (roof - floor) * (HEIGHT - TOP - BOTTOM)  # noqa: E731
    out = [f'<g transform="translate({left},0)">']
    for tick in (4, 8, 16, 32, 64, 128, 256):
        out.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#e4e4e4"/>')
        out.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{tick}</text>')
    for i in range(6):
        v = floor + (roof - floor) * i / 5
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - 16}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="#e4e4e4"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.2g}</text>')
    out.append(f'<text x="{(LEFT + WIDTH - 16) / 2:.0f}" y="{HEIGHT - 10}" text-anchor="middle">L0</text>')
    out.append(f'<text transform="translate(14,{HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">{label}</text>')
    for family, rows in data.items():
        rows = [r for r in rows if 4 <= r[0] <= 256]
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b, _ in rows)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour[family]}" stroke-width="1.6"/>')
        for a, b, s in rows:
            out.append(f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.6" fill="{colour[family]}"/>')
            out.append(
                f'<line x1="{x(a):.1f}" x2="{x(a):.1f}" y1="{y(b - s):.1f}" y2="{y(b + s):.1f}" '
                f'stroke="{colour[family]}"/>'
            )
    return "".join(out) + "</g>"
