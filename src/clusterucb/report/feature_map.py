"""Features as points in a plane: principal components of a sample of the stored rows.

The plane is spanned by the two directions in which the sample varies most, found from a fixed start, so that
the same store gives the same map.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clusterucb.features.influence import Vectors, influence
from clusterucb.features.principal import principal_axes
from clusterucb.report.run_data import RunData
from clusterucb.report.section import COLOURS, FAINT, GREY, Figure, Trace, axis, plotted, rounded

LIMIT = 5000
"""Rows of the sample."""
ARROWS = 12


class FeatureMap(NamedTuple):
    """A sample of features in a plane."""

    rows: NDArray[np.int64]  # (n,), usable rows of the sample, ascending
    points: NDArray[np.float32]  # (n, 2), their coordinates
    influence: NDArray[np.float64]  # (n,), theirs at the checkpoint of the features
    arrows: NDArray[np.float64]  # (S, 2), each subtask's direction in the plane, as a part of its length
    explained: tuple[float, float]  # shares of the sample's variance along both axes


def map_features(
    features: Vectors, directions: NDArray[np.floating], selected: NDArray[np.int64], limit: int = LIMIT
) -> FeatureMap:
    """Map at most `limit` of the rows (N, d), the `selected` among them, and directions (S, d)."""
    rows = sampled(len(features), selected, limit)
    sample = np.concatenate([features[row : row + 1] for row in rows.tolist()]).astype(np.float32)  # (n, d)
    scores = influence(sample, directions)
    sample -= sample.mean(0)
    axes, explained = principal_axes(sample)
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    arrows = directions.astype(np.float64) @ axes / np.maximum(lengths, np.finfo(np.float64).tiny)
    return FeatureMap(rows, sample @ axes, scores, arrows, explained)


def sampled(rows: int, selected: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """At most `limit` of the rows, ascending, drawn at random: selected ones up to a fifth, then others."""
    if rows <= limit:
        return np.arange(rows)
    rng = np.random.default_rng(0)
    chosen = rng.permutation(np.unique(selected))[: limit // 5]
    others = rng.permutation(np.setdiff1d(np.arange(rows), chosen))[: limit - len(chosen)]
    return np.union1d(chosen, others)


def map_figure(run: RunData, found: FeatureMap) -> Figure:
    """The map, to be coloured by cluster, source or influence, with rings around the selected rows."""
    measure = "likeness to the target" if run.method.by_likeness else "influence"
    scores = [f"{measure} {score:.4f}" for score in found.influence.tolist()]
    words = [*map(partial(_described, run), found.rows.tolist(), scores)]

    def points(at: NDArray[np.intp], name: str, colour: Any, **look: Any) -> Trace:
        marker = {"size": 5, "opacity": 0.75, "color": colour, **look}
        hover = {"text": [words[i] for i in at], "hovertemplate": "%{text}<extra></extra>"}
        return {**_scatter(name, found.points[at]), "marker": marker, **hover}

    choices = {}
    if run.clusters is not None:
        labels, mostly = run.clusters[found.rows], run.mostly
        names = {c: f"{c}, mostly {mostly[c]}" if mostly else f"cluster {c}" for c in run.leading}
        choices["cluster"] = _groups(points, labels, names)
    if run.sources is not None:
        sources, codes = run.sources
        order = np.argsort(-np.bincount(codes, minlength=len(sources)), kind="stable").tolist()
        choices["source"] = _groups(points, codes[found.rows], {c: sources[c] for c in order})
    bar = {"title": {"text": measure}, "len": 0.8}
    scale = {"colorscale": "Viridis", "showscale": True, "colorbar": bar}
    everything = points(np.arange(len(words)), "rows", rounded(found.influence), **scale)
    choices[measure] = [{**everything, "showlegend": False}]
    layout = {
        "height": 620,
        "hovermode": "closest",
        "xaxis": axis(f"first component, {found.explained[0]:.0%} of the variance"),
        "yaxis": axis(f"second, {found.explained[1]:.0%}", scaleanchor="x"),
    }
    label = "Map of the rows' features, with the selected ones marked"
    shared = [*_rings(run, found), *_arrows(run, found)]
    return Figure(label, shared, choices, "Colour:", layout, square=True)


def _scatter(name: str, points: NDArray[np.floating]) -> Trace:
    place = {"x": rounded(points[:, 0]), "y": rounded(points[:, 1])}
    return {"type": "scatter", "mode": "markers", "name": plotted(name), **place}


def _described(run: RunData, row: int, score: str) -> str:
    source = run.sources[0][run.sources[1][row]] if run.sources else None
    cluster = None if run.clusters is None else f"cluster {run.clusters[row]}"
    parts = [(run.id(row) or f"row {row}")[:80], source, score, cluster]
    return "<br>".join(plotted(part) for part in parts if part)


def _groups(
    points: Callable[[NDArray[np.intp], str, Any], Trace], labels: NDArray[np.integer], names: dict[int, str]
) -> list[Trace]:
    """A trace for each of the first groups, above one for all the others."""
    leading = [*names][: len(COLOURS)]
    rest = np.flatnonzero(~np.isin(labels, leading))
    traces = [points(rest, f"the {len(names) - len(leading)} others", FAINT)] if len(rest) else []
    return traces + [
        points(np.flatnonzero(labels == group), names[group], colour)
        for group, colour in zip(leading, COLOURS, strict=False)
    ]


def _rings(run: RunData, found: FeatureMap) -> list[Trace]:
    """Around the selected rows, in the ink of the page."""
    chosen = np.isin(found.rows, run.selected)
    if not chosen.any():
        return []
    size, width = (10, 1.5) if chosen.sum() < 300 else (6, 0.75)
    ring = {"symbol": "circle-open", "size": size, "color": GREY, "line": {"width": width}}
    look = {"marker": ring, "hoverinfo": "skip", "meta": "ink"}
    return [{**_scatter("selected", found.points[chosen]), **look}]


def _arrows(run: RunData, found: FeatureMap) -> list[Trace]:
    """From the middle, as long as the cloud is wide, towards the directions that lie most in the plane."""
    parts = np.linalg.norm(found.arrows, axis=1)
    reach = float(np.quantile(np.linalg.norm(found.points, axis=1), 0.98)) or 1.0
    tips = found.arrows / np.maximum(parts, 1e-12)[:, None] * reach
    look = {
        "mode": "lines+markers",
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": COLOURS[2], "width": 2.5},
        "marker": {"symbol": ["circle", "arrow"], "size": [1, 16], "angleref": "previous"},
        "legendgroup": "directions",
    }

    def arrow(subtask: int) -> Trace:
        name = run.subtasks[subtask] if subtask < len(run.subtasks) else f"subtask {subtask + 1}"
        towards = "towards the target" if len(parts) == 1 else f"towards {name}"
        line = _scatter(towards, np.stack([np.zeros(2), tips[subtask]]))
        told = plotted(f"{name}: {parts[subtask]:.0%} of its direction lies in this plane")
        return {**line, **look, "text": ["", told]}

    return [arrow(subtask) for subtask in np.argsort(-parts, kind="stable")[:ARROWS].tolist()]
