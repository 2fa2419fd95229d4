"""Why these rows: the clusters and their influence, the map of features, the draws in their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clusterucb.report.feature_map import map_features, map_figure
from clusterucb.report.run_data import RoundData, RunData
from clusterucb.report.section import COLOURS, FAINT, GREY, Figure, Section, Trace, axis, commas, rounded

WINDOWS = 24
ROWS = 4
"""Rows of a window, at least."""
COLUMNS = 4
"""Selections whose draws are told one by one in the table of clusters, at most."""


def why(run: RunData) -> Section:
    """The section."""
    if not run.method.takes_gradients or run.features is None or run.directions is None:
        return Section()
    found = map_features(run.features, run.directions, run.selected)
    figures = {"map": map_figure(run, found)}
    drawn = [found for found in run.rounds if len(found.scored.arms) and run.clusters is not None]
    if drawn:
        leading = run.leading[: len(COLOURS)]
        courses = {found.period: course(found, leading) for found in drawn}
        figures |= {"arms": _arms_figure(courses, leading), "found": _found_figure(courses)}
    draws = {f"draws, {found.period}": run.in_clusters(found.scored.rows) for found in drawn}
    if len(draws) > COLUMNS:
        draws = {"draws, all periods": np.sum([*draws.values()], axis=0)}
    facts = {"clusters": _clusters(run, [*draws.values()]), "draws": [*draws]}
    return Section({**facts, "on_map": len(found.rows)}, figures)


def _clusters(run: RunData, draws: list[NDArray[np.int64]]) -> list[dict[str, Any]]:
    """A line a cluster: rows, influence in the first selection that drew, draws, and what was selected."""
    import pandas as pd  # a run without a report needs none

    if run.clusters is None:
        return []
    facts = pd.DataFrame({"rows": run.sizes, "selected": run.in_clusters(run.selected)})  # by cluster
    scored = [found.scored for found in run.rounds if len(found.scored.rows)]
    if scored:
        first = scored[0]
        scores = pd.Series(first.scores).groupby(run.clusters[first.rows])
        facts["mean"], facts["spread"] = scores.mean(), scores.std(ddof=0)
    else:
        facts["mean"] = facts["spread"] = np.nan

    def line(cluster: int) -> dict[str, Any]:
        spent = [f"{commas(found[cluster])} ({found[cluster] / found.sum():.0%})" for found in draws]
        return {"cluster": cluster, "draws": spent, **facts.loc[cluster]}

    return [line(cluster) for cluster in run.leading]


class Course(NamedTuple):
    """The draws of a selection in w windows of equal length, the first of which is the cold start."""

    ends: NDArray[np.int64]  # (w,), rows drawn at the end of each
    shares: NDArray[np.float64]  # (a + 1, w), of its draws: each leading cluster's, and all others'
    mean: NDArray[np.float64]  # (w,), influence of its rows
    threshold: NDArray[np.float64]  # (w,), lowest of the best rows so far; NaN before as many as are selected
    kept: NDArray[np.float64]  # (w,), share of its draws that were selected in the end


def course(found: RoundData, leading: Sequence[int]) -> Course:
    """Follow the draws of a selection in their order, with the clusters told apart that are `leading`."""
    scores, apart = found.scored.scores, np.array(leading)[:, None]
    ends = _ends(len(scores), found.cold)

    def windows(values: NDArray[Any]) -> list[NDArray[Any]]:
        return np.split(values, ends[:-1])

    shares = np.array([(arms == apart).mean(1) for arms in windows(found.scored.arms)]).T
    return Course(
        ends=ends,
        shares=np.vstack([shares, np.maximum(0, 1 - shares.sum(0))]),
        mean=np.array([part.mean() for part in windows(scores)]),
        threshold=np.array([_threshold(scores[:end], len(found.rows)) for end in ends]),
        kept=np.array([part.mean() for part in windows(found.kept)]),
    )


def _ends(drawn: int, cold: int) -> NDArray[np.int64]:
    """The cold start's end, if it is any, and equal steps from there on."""
    windows = max(1, min(WINDOWS, (drawn - cold) // ROWS))
    ends = np.linspace(cold, drawn, windows + 1).astype(np.int64)
    return np.unique(ends[ends > 0])


def _threshold(scores: NDArray[np.float64], keep: int) -> float:
    """The lowest of the `keep` highest scores; NaN if there are fewer."""
    return float(np.partition(scores, -keep)[-keep]) if len(scores) >= keep else np.nan


def _arms_figure(courses: dict[str, Course], leading: list[int]) -> Figure:
    layout = {
        "height": 380,
        "barmode": "stack",
        "xaxis": axis("rows drawn so far"),
        "yaxis": axis("share of the draws", tickformat=".0%", range=[0, 1]),
    }
    choices = {period: _bars(found, leading) for period, found in reversed(courses.items())}
    return Figure("Share of the draws by cluster over time", (), choices, "Selection of", layout)


def _bars(found: Course, leading: list[int]) -> list[Trace]:
    names = [f"cluster {arm}" for arm in leading] + ["all others"]
    colours = [*COLOURS[: len(leading)], FAINT]
    starts = np.concatenate([[0], found.ends[:-1]])
    place = {"x": ((starts + found.ends) / 2).tolist(), "width": (0.96 * (found.ends - starts)).tolist()}

    def bars(name: str, colour: str, shares: NDArray[np.float64]) -> Trace:
        look = {"name": name, "marker": {"color": colour}}
        hover = {"hovertemplate": f"{name}: %{{y:.0%}}<extra></extra>"}
        return {"type": "bar", **look, **place, "y": rounded(shares), **hover}

    return [*map(bars, names, colours, found.shares)]


def _found_figure(courses: dict[str, Course]) -> Figure:
    share = {"side": "right", "overlaying": "y", "showgrid": False, "tickmode": "auto", "nticks": 6}
    layout = {
        "height": 380,
        "xaxis": axis("rows drawn so far"),
        "yaxis": axis("influence"),
        "yaxis2": axis("share selected", tickformat=".0%", rangemode="tozero", **share),
    }
    choices = {period: _lines(found) for period, found in reversed(courses.items())}
    return Figure("Influence of drawn rows over time", (), choices, "Selection of", layout)


def _lines(found: Course) -> list[Trace]:
    ends = found.ends.tolist()

    def line(name: str, values: NDArray[np.float64], mode: str, look: Trace, **more: Any) -> Trace:
        y = [None if np.isnan(value) else value for value in rounded(values)]
        return {"type": "scatter", "x": ends, "name": name, "y": y, "mode": mode, "line": look, **more}

    area = {"yaxis": "y2", "fill": "tozeroy", "fillcolor": "rgba(136,136,136,0.18)"}
    steps = {"color": GREY, "width": 1, "shape": "vh"}
    return [
        line("share selected in the end", found.kept, "lines", steps, **area),
        line("running threshold", found.threshold, "lines", {"color": COLOURS[1], "width": 2.5}),
        line("mean influence drawn", found.mean, "lines+markers", {"color": COLOURS[0], "width": 2}),
    ]
