"""What was selected: by source and by cluster, and the rows themselves, to be read."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from clusterucb.report.examples import explored
from clusterucb.report.markup import count, plotted
from clusterucb.report.run_data import RunData
from clusterucb.report.section import COLOURS, GREY, Figure, Section


def selected(run: RunData, section: Section, allowed: int) -> None:
    """Write the section; texts of rows may take `allowed` bytes."""
    if not run.rounds:
        section.say("Nothing is selected yet.")
        return
    rows = np.concatenate([found.rows for found in run.rounds])
    distinct, several = len(np.unique(rows)), len(run.rounds) > 1
    times = f" in {len(run.rounds)} periods, {count(distinct)} of them distinct," if several else ""
    section.say(f"{count(len(rows))} rows were selected{times} out of {count(run.rows or 0)} usable ones.")
    if not several and run.config.training.periods > 1 and run.config.method != "dynamic":
        section.say(f"They serve all {run.config.training.periods} training periods.")
    _by_source(run, section)
    _by_cluster(run, section)
    section.head("The rows")
    section.say(
        "The most influential rows selected in each period, and the most and least influential of all that "
        "were scored. A row's score is its influence on the target at the checkpoint of that period, so "
        "scores of two periods are not on one scale."
        if run.config.method in ("dynamic", "less")
        else f"The best rows selected, and the best and worst of all scored ones, by {run.config.method}."
    )
    if run.pool_missing:
        section.say(f"Rows that were not selected cannot be shown: {run.pool_missing}", "note")
    periods = [(r.number, (r.rows, r.scores, r.drawn, r.drawn_scores)) for r in run.rounds]
    section.explorer(explored(periods, run.examples, run.clusters, allowed))


def _by_source(run: RunData, section: Section) -> None:
    per_round = [Counter(found.sources) for found in run.rounds]
    total = run.selected_sources
    pool: Counter[str] = Counter()
    if run.sources:
        sizes = np.bincount(run.sources.codes, minlength=len(run.sources.names))
        pool = Counter(dict(zip(run.sources.names, sizes.tolist(), strict=True)))
    names = [name for name, _ in total.most_common()] + [name for name in pool if name not in total]
    everything, whole = sum(total.values()), sum(pool.values())

    def row(name: str) -> list[str]:
        share = total[name] / everything
        fair = pool[name] / whole if whole else 0
        times = f"{share / fair:.1f}×" if fair else "–"
        periods = [count(found[name]) for found in per_round] if len(per_round) > 1 else []
        return [
            name,
            count(pool[name]) if whole else "–",
            *periods,
            count(total[name]),
            f"{share:.0%}",
            times,
        ]

    periods = [f"period {found.number}" for found in run.rounds] if len(run.rounds) > 1 else []
    headings = ["in the pool", *periods, "selected", "share", "against its share of the pool"]
    section.table("Selected rows by source", ["source"], headings, map(row, names), limit=15)
    if len(per_round) > 1:
        section.figure("sources", _source_figure(names, per_round))


def _source_figure(names: list[str], per_round: list[Counter[str]]) -> Figure:
    periods = [f"period {n + 1}" for n in range(len(per_round))]
    leading, others = names[: len(COLOURS)], names[len(COLOURS) :]

    def bars(name: str, colour: str, numbers: list[int]) -> dict[str, Any]:
        look = {"type": "bar", "name": plotted(name), "marker": {"color": colour}}
        return {**look, "x": periods, "y": numbers}

    data = [
        bars(name, colour, [found[name] for found in per_round])
        for name, colour in zip(leading, COLOURS, strict=False)
        if any(found[name] for found in per_round)
    ]
    if rest := [sum(found[name] for name in others) for found in per_round]:
        data += [bars(f"{len(others)} other sources", GREY, rest)] if any(rest) else []
    return Figure(
        data,
        {"barmode": "stack", "height": 320, "yaxis": {"title": {"text": "rows selected"}}},
        label="Selected rows of each source, period by period, as stacked bars",
        caption="Where the rows of each period come from. What helps changes while the model trains.",
    )


def _by_cluster(run: RunData, section: Section) -> None:
    if run.clusters is None:
        return
    sizes = np.bincount(run.clusters)
    per_round = [np.bincount(run.clusters[found.rows], minlength=len(sizes)) for found in run.rounds]
    total = np.sum(per_round, axis=0)
    order = [c for c in np.argsort(-total, kind="stable").tolist() if total[c]]

    def row(cluster: int) -> list[str]:
        periods = [count(found[cluster]) for found in per_round] if len(per_round) > 1 else []
        share = count(total[cluster])
        return [f"cluster {cluster}", main_source(run, cluster), count(sizes[cluster]), *periods, share]

    periods = [f"period {found.number}" for found in run.rounds] if len(per_round) > 1 else []
    headings = ["rows in it", *periods, "selected"]
    caption = f"Selected rows by cluster ({len(order)} of {np.count_nonzero(sizes)} clusters have any)"
    section.table(caption, ["cluster", "mostly"], headings, map(row, order), limit=10)


def main_source(run: RunData, cluster: int) -> str:
    """The source that most rows of a cluster have, with its share; a dash if sources are not known."""
    if run.sources is None or run.clusters is None:
        return "–"
    sizes = np.bincount(run.sources.codes[run.clusters == cluster], minlength=len(run.sources.names))
    return f"{run.sources.names[int(sizes.argmax())]} ({sizes.max() / sizes.sum():.0%})"
