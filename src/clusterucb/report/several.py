"""Several runs side by side: loss, cost, and what each has selected."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clusterucb.report.markup import count, number, plotted, seconds, with_error
from clusterucb.report.quality import paired
from clusterucb.report.run_data import RunData
from clusterucb.report.section import COLOURS, GREY, Figure, Section


def several(runs: Sequence[RunData], section: Section) -> None:
    """Write the section that compares the runs."""
    section.say(
        f"Differences are against the first run, {runs[0].name}, row by row where both were asked the same."
    )
    headings = ["loss", "against its base", "against the first", "pool gradients", "forward passes"]
    headings += ["of the full method's cost", "tokens", "time", "rows selected", "distinct"]
    rows = [_row(run, runs[0]) for run in runs]
    section.table("The runs", ["run", "method"], headings, rows)
    evaluated = [run for run in runs if run.evaluation]
    if evaluated:
        section.figure("loss", _loss_figure(evaluated))
    chosen = [run for run in runs if run.rounds]
    if chosen:
        _sources(chosen, section)
        _overlap(chosen, section)


def _row(run: RunData, first: RunData) -> list[str]:
    loss = base = against = "–"
    if run.evaluation:
        adapter = run.evaluation["adapter"]
        loss = with_error(adapter["loss"], adapter["standard_error"])
        base = with_error(*paired(adapter["losses"], run.evaluation["base"]["losses"]), sign="+")
        if first.evaluation and first is not run and _same_rows(run, first):
            against = with_error(*paired(adapter["losses"], first.evaluation["adapter"]["losses"]), sign="+")
    total = run.total
    share = run.share_of_full
    rows = np.concatenate([np.empty(0, np.int64), *(found.rows for found in run.rounds)])
    return [
        run.name if run.finished else f"{run.name} (unfinished)",
        run.method,
        *(loss, base, against),
        count(total.pool_gradients),
        count(total.pool_forwards),
        "–" if share is None else f"{share:.0%}",
        count(total.tokens),
        seconds(total.seconds),
        count(len(rows)),
        count(len(np.unique(rows))),
    ]


def _same_rows(one: RunData, other: RunData) -> bool:
    """Whether both were evaluated on the same rows, by the fingerprints of what was held out."""
    marks = [
        (run.contamination or {}).get("made_with", {}).get(run.evaluation["on"]) if run.evaluation else None
        for run in (one, other)
    ]
    return marks[0] is not None and marks[0] == marks[1]


def _loss_figure(runs: Sequence[RunData]) -> Figure:
    def bars(name: str, model: str, colour: str) -> dict[str, object]:
        found = [run.evaluation[model] for run in runs if run.evaluation]
        errors = [values["standard_error"] or 0.0 for values in found]
        return {
            "type": "bar",
            "name": name,
            "x": [plotted(run.name) for run in runs],
            "y": [values["loss"] for values in found],
            "error_y": {"type": "data", "array": errors},
            "marker": {"color": colour},
        }

    data = [bars("base", "base", GREY), bars("adapter", "adapter", COLOURS[0])]
    layout = {"height": 340, "barmode": "group", "yaxis": {"title": {"text": "loss"}}}
    caption = "Loss of base and adapter, with standard errors over rows."
    return Figure(data, layout, "Loss of each run's base and adapter, as bars", caption)


def _sources(runs: Sequence[RunData], section: Section) -> None:
    names = list(dict.fromkeys(name for run in runs for name, _ in run.selected_sources.most_common()))

    def cell(run: RunData, name: str) -> str:
        found = run.selected_sources
        return f"{count(found[name])} ({found[name] / sum(found.values()):.0%})"

    rows = [[name, *(cell(run, name) for run in runs)] for name in names]
    section.table("Selected rows by source", ["source"], [run.name for run in runs], rows, 15)


def _overlap(runs: Sequence[RunData], section: Section) -> None:
    """By the rows' ids, so that runs over pools that differ can be told apart as well."""
    chosen = [{identity for found in run.rounds for identity in found.ids} for run in runs]
    rows = [
        [run.name, *(number(len(ours & theirs) / len(ours | theirs), 2) for theirs in chosen)]
        for run, ours in zip(runs, chosen, strict=True)
    ]
    caption = "Rows selected by both, as a share of those selected by either (Jaccard)"
    section.table(caption, ["run"], [run.name for run in runs], rows)
