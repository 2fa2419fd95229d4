"""Why these rows: clusters and their influence, the features as a map, the bandit's draws in their course."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusterucb.report.course import Course, course
from clusterucb.report.feature_map import FeatureMap
from clusterucb.report.markup import count, number, plotted
from clusterucb.report.run_data import RoundData, RunData
from clusterucb.report.section import COLOURS, GREY, Choice, Figure, Section
from clusterucb.report.selected import main_source

ARROWS = 12
FAINT = "rgba(136,136,136,0.35)"


def why(run: RunData, section: Section) -> None:
    """Write the section."""
    if run.config.method not in ("dynamic", "less"):
        section.say(f"The method {run.config.method} takes no gradients: there are no clusters and no draws.")
        return
    if run.feature_map is None:
        section.say("There are no features yet.")
        return
    drawn = [found for found in run.rounds if found.arms is not None]
    if not run.config.budgeted:
        section.say("Without a bandit the gradients of all rows decide: there are no clusters and no draws.")
    elif run.clusters is not None:
        _clusters(run, section, drawn)
    section.head("The features as a map")
    section.figure("map", _map_figure(run, run.feature_map))
    if drawn:
        section.head("The bandit's draws")
        courses = [_course(found) for found in drawn]
        section.figure("arms", _arms_figure(drawn, courses))
        section.figure("found", _found_figure(drawn, courses))
        _spend(section, drawn, courses)


def _clusters(run: RunData, section: Section, drawn: list[RoundData]) -> None:
    clusters = run.clusters
    assert clusters is not None
    sizes = np.bincount(clusters)
    chosen = np.bincount(np.concatenate([clusters[found.rows] for found in run.rounds] or [clusters[:0]]))
    chosen = np.pad(chosen, (0, len(sizes) - len(chosen)))
    draws = [np.bincount(found.arms, minlength=len(sizes)) for found in drawn if found.arms is not None]
    mean, deviation = _influence(clusters, len(sizes), run.rounds[0]) if run.rounds else (None, None)
    shown = draws if len(draws) <= 4 else [np.sum(draws, axis=0)]
    names = [f"draws, period {found.number}" for found in drawn] if shown is draws else ["draws, all periods"]

    def row(cluster: int) -> list[str]:
        values = [mean, deviation]
        known = [number(None if v is None or np.isnan(v[cluster]) else float(v[cluster])) for v in values]
        spent = [f"{count(d[cluster])} ({d[cluster] / d.sum():.0%})" for d in shown]
        cells = [f"cluster {cluster}", main_source(run, cluster), count(sizes[cluster])]
        return [*cells, *known, *spent, count(chosen[cluster])]

    by_draws = np.sum(draws, axis=0) if draws else sizes
    order = np.lexsort((-by_draws, -chosen))
    order = order[sizes[order] > 0]
    what = "hidden states" if run.hidden else "features"
    section.say(
        f"{len(order)} clusters of rows whose {what} point the same way: the arms of the bandit. "
        "Influence is that of the first selection; the spread is a standard deviation over the rows that "
        "were scored there."
    )
    headings = ["rows", "mean influence", "its spread", *names, "selected"]
    section.table("Clusters", ["cluster", "mostly"], headings, map(row, order.tolist()), limit=12)
    if draws and mean is not None:
        section.figure("promise", _promise_figure(run, sizes, mean, np.sum(draws, axis=0), order))


def _influence(
    clusters: NDArray[np.int64], count_: int, first: RoundData
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and deviation of each cluster's scores in a selection; NaN where no row of it was scored."""
    labels, scores = clusters[first.drawn], first.drawn_scores
    scored = np.bincount(labels, minlength=count_).astype(np.float64)
    scored[scored == 0] = np.nan
    mean = np.bincount(labels, scores, count_) / scored
    spread = np.bincount(labels, (scores - mean[labels]) ** 2, count_) / scored
    return mean, np.sqrt(spread)


def _promise_figure(
    run: RunData,
    sizes: NDArray[np.int64],
    mean: NDArray[np.float64],
    draws: NDArray[np.int64],
    order: NDArray[np.int64],
) -> Figure:
    known = [int(c) for c in order if not np.isnan(mean[c])]
    lift = draws / draws.sum() / (sizes / sizes.sum()).clip(1e-12)
    largest, widest = int(sizes.max()), min(36.0, 160 / float(np.sqrt(len(known) or 1)))
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [round(float(mean[c]), 6) for c in known],
        "y": [round(float(lift[c]), 4) for c in known],
        "text": [plotted(f"cluster {c}, mostly {main_source(run, c)}, {sizes[c]} rows") for c in known],
        "cliponaxis": False,
        "hovertemplate": "%{text}<br>mean influence %{x:.4f}<br>%{y:.1f}× its share<extra></extra>",
        "marker": {
            "size": [round(4 + widest * float(np.sqrt(sizes[c] / largest)), 1) for c in known],
            "color": COLOURS[0],
            "opacity": 0.6,
        },
    }
    even = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1}
    layout = {
        "height": 360,
        "xaxis": {"title": {"text": "mean influence at the first selection"}},
        "yaxis": {"title": {"text": "draws, × its share of rows"}, "rangemode": "tozero"},
        "shapes": [{**even, "line": {"color": GREY, "dash": "dot", "width": 1}}],
    }
    caption = (
        "Each circle is a cluster, its area the cluster's rows. Above the dotted line the bandit has drawn "
        "more of a cluster than a uniform draw would."
    )
    return Figure([trace], layout, "Draws of each cluster against its mean influence", caption)


def _map_figure(run: RunData, found: FeatureMap) -> Figure:
    x, y = _rounded(found.points[:, 0]), _rounded(found.points[:, 1])
    words = [_describe(run, row, score) for row, score in zip(found.rows, found.influence, strict=True)]
    modes: list[tuple[str, list[dict[str, Any]]]] = []

    def points(at: NDArray[np.int64], name: str, colour: Any, **look: Any) -> dict[str, Any]:
        places = at.tolist()
        coordinates = {"x": [x[i] for i in places], "y": [y[i] for i in places]}
        texts = {"text": [words[i] for i in places], "hovertemplate": "%{text}<extra></extra>"}
        marker = {"size": 5, "opacity": 0.75, "color": colour, **look}
        return {**_trace(name), **coordinates, **texts, "marker": marker}

    if run.clusters is not None:
        labels = run.clusters[found.rows]
        modes.append(("cluster", _groups(points, labels, _leading(run), lambda c: _cluster_name(run, c))))
    if run.sources is not None:
        names, codes = run.sources.names, run.sources.codes
        order = np.argsort(-np.bincount(codes, minlength=len(names)), kind="stable").tolist()
        modes.append(("source", _groups(points, codes[found.rows], order, lambda c: names[c])))
    measure = _measure(run)
    scale = {
        "colorscale": "Viridis",
        "showscale": True,
        "colorbar": {"title": {"text": measure}, "len": 0.8},
    }
    everything = np.arange(len(x))
    scores = [float(f"{score:.4g}") for score in found.influence]
    modes.append((measure, [{**points(everything, "rows", scores, **scale), "showlegend": False}]))
    shared = [*_marked(run, found, x, y), *_arrows(run, found)]
    numbers = [] if run.clusters is None else [_numbers(found, run.clusters[found.rows], _leading(run))]
    data = [trace for _, traces in modes for trace in traces] + shared + numbers
    seen = [
        Choice(
            name,
            [m == mode for m, (_, traces) in enumerate(modes) for _ in traces]
            + [True] * len(shared)
            + [name == "cluster" for _ in numbers],
        )
        for mode, (name, _) in enumerate(modes)
    ]
    for trace, shown in zip(data, seen[0].visible, strict=True):
        trace["visible"] = shown
    layout = {
        "height": 620,
        "hovermode": "closest",
        "xaxis": {"title": {"text": f"first component, {found.explained[0]:.0%} of the variance"}},
        "yaxis": {"title": {"text": f"second, {found.explained[1]:.0%}"}, "scaleanchor": "x"},
    }
    whole = (
        "All rows"
        if len(found.rows) == run.rows
        else f"{count(len(found.rows))} rows of {count(run.rows or 0)}"
    )
    features = "centred hidden states" if run.hidden else "features"
    grows = measure if run.hidden else "influence on the target"
    caption = (
        f"{whole} by the two principal components of their {features} at the first checkpoint; rings are "
        f"selected rows. An arrow points where {grows} grows; hover tells how much of the "
        "target's direction lies in this plane. What is far apart here is unlike; what is close may differ "
        "in other dimensions."
    )
    label = "Map of the rows' features, with the selected ones marked"
    return Figure(data, layout, label, caption, seen, "Colour:", square=True)


def _measure(run: RunData) -> str:
    """What the inner product of a stored feature and a direction is."""
    return "likeness to the target" if run.hidden else "influence"


def _trace(name: str) -> dict[str, Any]:
    return {"type": "scatter", "mode": "markers", "name": plotted(name)}


def _rounded(values: NDArray[np.floating]) -> list[float]:
    return [float(f"{value:.4g}") for value in values.tolist()]


def _describe(run: RunData, row: int, score: float) -> str:
    shown = run.examples.get(int(row))
    parts = [shown.id[:80] if shown else f"row {row}", run.source_of(row), f"{_measure(run)} {score:.4f}"]
    if run.clusters is not None:
        parts.append(f"cluster {run.clusters[row]}")
    return "<br>".join(plotted(part) for part in parts if part)


def _leading(run: RunData) -> list[int]:
    """Clusters by the rows selected from them, then by size."""
    assert run.clusters is not None
    sizes = np.bincount(run.clusters)
    chosen = np.zeros(len(sizes), np.int64)
    for found in run.rounds:
        chosen += np.bincount(run.clusters[found.rows], minlength=len(sizes))
    return [int(c) for c in np.lexsort((-sizes, -chosen))]


def _cluster_name(run: RunData, cluster: int) -> str:
    return f"{cluster}, mostly {main_source(run, cluster)}" if run.sources else f"cluster {cluster}"


def _groups(points: Any, labels: NDArray[np.int64], order: Sequence[int], name: Any) -> list[dict[str, Any]]:
    """A trace for each of the first groups, under one for all the others."""
    leading = list(order[: len(COLOURS)])
    rest = np.flatnonzero(~np.isin(labels, leading))
    traces = [points(rest, f"the {len(order) - len(leading)} others", FAINT)] if len(rest) else []
    for group, colour in zip(leading, COLOURS, strict=False):
        traces.append(points(np.flatnonzero(labels == group), name(group), colour))
    return traces


def _numbers(found: FeatureMap, labels: NDArray[np.int64], order: Sequence[int]) -> dict[str, Any]:
    """The numbers of the leading clusters where these are."""
    there = [c for c in order[: len(COLOURS)] if (labels == c).any()]
    middles = [np.median(found.points[labels == c], axis=0) for c in there]
    return {
        **_trace("numbers"),
        "mode": "text",
        "x": [float(middle[0]) for middle in middles],
        "y": [float(middle[1]) for middle in middles],
        "text": [f"<b>{c}</b>" for c in there],
        "textfont": {"size": 16},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _marked(run: RunData, found: FeatureMap, x: list[float], y: list[float]) -> list[dict[str, Any]]:
    if not run.rounds:
        return []
    chosen = np.isin(found.rows, np.concatenate([r.rows for r in run.rounds]))
    places = np.flatnonzero(chosen).tolist()
    few = len(places) < 300
    line = {"width": 1.5 if few else 1}
    ring = {"symbol": "circle-open", "size": 10 if few else 7, "color": GREY, "line": line}
    coordinates = {"x": [x[i] for i in places], "y": [y[i] for i in places]}
    return [{**_trace("selected"), **coordinates, "marker": ring, "hoverinfo": "skip", "meta": "ink"}]


def _arrows(run: RunData, found: FeatureMap) -> list[dict[str, Any]]:
    """From the middle, as long as the cloud is wide, towards the directions that lie in the plane "
    "the most."""
    parts = np.linalg.norm(found.arrows, axis=1)
    reach = float(np.quantile(np.linalg.norm(found.points, axis=1), 0.98)) or 1.0
    traces = []
    for subtask in np.argsort(-parts, kind="stable")[:ARROWS].tolist():
        tip = found.arrows[subtask] / max(parts[subtask], 1e-12) * reach
        name = run.subtasks[subtask] if subtask < len(run.subtasks) else f"subtask {subtask + 1}"
        alone = len(found.arrows) == 1
        traces.append(
            {
                **_trace("towards the target" if alone else f"towards {name}"),
                "mode": "lines+markers",
                "x": [0, float(tip[0])],
                "y": [0, float(tip[1])],
                "text": ["", plotted(f"{name}: {parts[subtask]:.0%} of its direction lies in this plane")],
                "hovertemplate": "%{text}<extra></extra>",
                "line": {"color": COLOURS[2], "width": 2.5},
                "marker": {"symbol": ["circle", "arrow"], "size": [1, 16], "angleref": "previous"},
                "legendgroup": "directions",
            }
        )
    return traces


def _course(found: RoundData) -> Course:
    assert found.arms is not None
    return course(found.arms, found.drawn_scores, found.cold, len(found.rows))


def _choices(drawn: list[RoundData], traces: list[list[dict[str, Any]]]) -> list[Choice]:
    """One period is seen at a time, the last one first."""
    choices = [
        Choice(f"period {found.number}", [i == j for j, many in enumerate(traces) for _ in many])
        for i, found in enumerate(drawn)
    ][::-1]
    for trace, shown in zip((t for many in traces for t in many), choices[0].visible, strict=True):
        trace["visible"] = shown
    return choices


def _arms_figure(drawn: list[RoundData], courses: list[Course]) -> Figure:
    traces = []
    for found in courses:
        names = [f"cluster {arm}" for arm in found.arms] + ["all others"]
        colours = [*COLOURS[: len(found.arms)], FAINT]
        starts = [0, *found.ends[:-1].tolist()]
        place = {
            "x": [(start + end) / 2 for start, end in zip(starts, found.ends.tolist(), strict=True)],
            "width": [0.96 * (end - start) for start, end in zip(starts, found.ends.tolist(), strict=True)],
        }
        traces.append(
            [
                {
                    "type": "bar",
                    "name": name,
                    "marker": {"color": colour},
                    **place,
                    "y": _rounded(shares),
                    "hovertemplate": f"{name}: %{{y:.0%}}<extra></extra>",
                }
                for name, colour, shares in zip(names, colours, found.shares, strict=True)
            ]
        )
    layout = {
        "height": 380,
        "barmode": "stack",
        "xaxis": {"title": {"text": "rows drawn so far"}},
        "yaxis": {"title": {"text": "share of the draws"}, "tickformat": ".0%", "range": [0, 1]},
    }
    caption = (
        "Which clusters the draws went to, in the order of drawing; the first bar is the cold start, in "
        "which every cluster is drawn. Many colours are exploring, few are exploiting."
    )
    data = [trace for many in traces for trace in many]
    return Figure(
        data,
        layout,
        "Share of the draws by cluster over time",
        caption,
        _choices(drawn, traces),
        "Selection of",
    )


def _found_figure(drawn: list[RoundData], courses: list[Course]) -> Figure:
    traces = []
    for found in courses:
        ends = found.ends.tolist()
        threshold = [None if np.isnan(value) else float(f"{value:.5g}") for value in found.threshold]
        line = {"type": "scatter", "x": ends}
        traces.append(
            [
                {
                    **line,
                    "name": "share selected in the end",
                    "y": _rounded(found.kept),
                    "yaxis": "y2",
                    "mode": "lines",
                    "line": {"color": GREY, "width": 1, "shape": "hv"},
                    "fill": "tozeroy",
                    "fillcolor": "rgba(136,136,136,0.18)",
                },
                {
                    **line,
                    "name": "running threshold",
                    "y": threshold,
                    "mode": "lines",
                    "line": {"color": COLOURS[1], "width": 2.5},
                },
                {
                    **line,
                    "name": "mean influence drawn",
                    "y": _rounded(found.mean),
                    "mode": "lines+markers",
                    "line": {"color": COLOURS[0], "width": 2},
                },
            ]
        )
    layout = {
        "height": 380,
        "xaxis": {"title": {"text": "rows drawn so far"}},
        "yaxis": {"title": {"text": "influence"}},
        "yaxis2": {
            "title": {"text": "share selected"},
            "overlaying": "y",
            "side": "right",
            "tickformat": ".0%",
            "rangemode": "tozero",
            "tickmode": "auto",
            "nticks": 6,
            "showgrid": False,
        },
    }
    caption = (
        "What the draws found. The threshold is the lowest score among the rows that would be selected so "
        "far: while it rises, more draws still pay."
    )
    data = [trace for many in traces for trace in many]
    return Figure(
        data, layout, "Influence of drawn rows over time", caption, _choices(drawn, traces), "Selection of"
    )


def _spend(section: Section, drawn: list[RoundData], courses: list[Course]) -> None:
    """How the spend moved from exploring to exploiting, in figures."""
    rows = []
    for found, seen in zip(drawn, courses, strict=True):
        cold, last = found.cold, len(seen.ends) // 4 or 1
        assert found.arms is not None
        arms = found.arms[-max(1, (len(found.arms) - cold) // 4) :]
        rows.append(
            [
                f"period {found.number}",
                count(len(found.drawn)),
                f"{cold / len(found.drawn):.0%}",
                f"{seen.breadth[0]:.1f}",
                f"{float(seen.breadth[-last:].mean()):.1f}",
                f"{len(np.unique(arms))}",
                f"{float(seen.kept[-last:].mean()):.0%}",
            ]
        )
    headings = [
        "rows drawn",
        "cold start",
        "clusters at once, first window",
        "in the last quarter",
        "clusters drawn in the last quarter",
        "selected of the last quarter",
    ]
    section.table("From exploring to exploiting", ["selection"], headings, rows)
