"""Quality against total cost, every method one curve: as tables, and as plots in SVG.

The unit of cost is N, a gradient of every row. A forward pass of all rows is N / 3, as the program counts it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from fidelity_rows import OF_HIDDEN

from clusterucb.run.costs import FORWARD_SHARE
from clusterucb.runtime.files import publish
from clusterucb.selection.share import share

Curve = Sequence[tuple[float, float]]
"""Cost and quality, by rising cost."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#000000", "#999933")
ACROSS = "total cost, gradients of every row (N)"
WIDTH, HEIGHT, LEFT, TOP, BOTTOM, LEGEND = 760, 420, 60, 36, 50, 210


def total_cost(policy: str, budget: float, rows: int, periods: int) -> float:
    """What a policy costs over all periods, in gradients of every row.

    Clusters of gradients: all rows once, then the budget in every period but the first. Of hidden states: a
    forward pass, and the budget in every period. Uniform draws need neither.
    """
    drawn = share(budget, rows) / rows
    if policy == "uniform":
        return periods * drawn
    return FORWARD_SHARE + periods * drawn if policy in OF_HIDDEN else 1 + (periods - 1) * drawn


def recall_curves(
    runs: Sequence[Mapping[str, Any]], policies: Iterable[str], rows: int, periods: int
) -> dict[str, Curve]:
    """Mean recall over targets, checkpoints and seeds against total cost."""
    curves: dict[str, Curve] = {}
    for policy in policies:
        found: dict[float, list[float]] = {}
        for run in runs:
            if run["policy"] == policy:
                found.setdefault(run["budget"], []).append(run["recall"])
        curves[policy] = [
            (total_cost(policy, budget, rows, periods), float(np.mean(recalls)))
            for budget, recalls in sorted(found.items())
        ]
    return curves


def loss_curves(compared: Mapping[str, Any], periods: int) -> dict[str, Curve]:
    """Held-out loss against total cost, a method at several budgets as one curve.

    `compared` is the content of a comparison.json.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, method in compared["methods"].items():
        if "loss" in method:
            point = (periods * method["of_full_dynamic"]["cost"], method["loss"]["mean"])
            curves.setdefault(name.split("@")[0], []).append(point)
    return {name: sorted(points) for name, points in curves.items()}


def cheapest(curves: Mapping[str, Curve], quality: float) -> Iterator[tuple[str, float, float]]:
    """Of each curve, the first point that is as good: its name, cost and quality."""
    for name, curve in curves.items():
        point = next((point for point in curve if point[1] >= quality), None)
        if point:
            yield name, *point


def write_svg(path: Path, curves: Mapping[str, Curve], title: str, quality: str) -> None:
    """Publish a plot of the curves; a curve of one point is a mark alone."""
    points = [point for curve in curves.values() for point in curve]
    low, high = _padded([y for _, y in points])
    most = max(x for x, _ in points) * 1.05

    def place(x: float, y: float) -> tuple[float, float]:
        across, down = WIDTH - LEFT - LEGEND, HEIGHT - TOP - BOTTOM
        return LEFT + across * x / most, TOP + down * (1 - (y - low) / (high - low))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" role="img" aria-label="{escape(title)}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 20, title, weight="bold"),
        _text(
            (LEFT + WIDTH - LEGEND) / 2,
            HEIGHT - 10,
            "total cost, gradients of every row (N)",
            anchor="middle",
        ),
        _text(12, TOP - 4, quality),
    ]
    for x in _ticks(0, most):
        (at, top), (_, bottom) = place(x, high), place(x, low)
        parts += [_line(at, top, at, bottom), _text(at, bottom + 16, f"{x:g}", anchor="middle")]
    for y in _ticks(low, high):
        (left, at), (right, _) = place(0, y), place(most, y)
        parts += [_line(left, at, right, at), _text(left - 6, at + 4, f"{y:g}", anchor="end")]
    for number, (name, curve) in enumerate(curves.items()):
        colour, level = COLOURS[number % len(COLOURS)], TOP + 10 + 20 * number
        spots = [place(*point) for point in curve]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        spots.append((WIDTH - LEGEND + 16.0, level))
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in spots]
        parts.append(_text(WIDTH - LEGEND + 28, level + 4, name))
    with publish(path) as part:
        part.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def _padded(values: Sequence[float]) -> tuple[float, float]:
    margin = 0.05 * (max(values) - min(values)) or 0.05
    return min(values) - margin, max(values) + margin


def _ticks(low: float, high: float) -> list[float]:
    """About six round numbers between the two."""
    raw = (high - low) / 6
    unit = 10.0 ** np.floor(np.log10(raw))
    step = min((unit * factor for factor in (1, 2, 5, 10)), key=lambda step: abs(step - raw))
    numbers = np.arange(np.ceil(low / step), np.floor(high / step) + 1)
    return [round(float(number * step), 10) + 0.0 for number in numbers]  # no -0


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#dddddd"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="#222222">'
        f"{escape(text)}</text>"
    )
