"""How good the adapter is, by the loss on held-out rows, and what it cost; several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusterucb.evaluation.scores import standard_error
from clusterucb.report.bill import in_words
from clusterucb.report.run_data import Json, RunData
from clusterucb.report.section import COLOURS, GREY, Figure, Section, axis, plotted, with_error


def quality(run: RunData) -> Section:
    """The section of the losses."""
    losses = _losses(run)
    base = losses.get("base")
    against = {name: paired(loss, base) for name, loss in losses.items() if base and loss is not base}
    asked = run.evaluation or next(iter(run.periods.values()), None)
    figures = {"loss": _loss_figure(losses)} if len(losses) > 1 else {}
    return Section({"losses": losses, "against": against, "asked": asked}, figures)


def paired(ours: Json, theirs: Json) -> tuple[float, float | None]:
    """The mean over rows of the losses of `ours` minus those of `theirs`, and its standard error."""
    differences: NDArray[np.float64] = np.subtract(ours["losses"], theirs["losses"])
    return float(differences.mean()), standard_error(differences)


def _losses(run: RunData) -> dict[str, Json]:
    """By the name of the model, in time."""
    models = run.evaluation or {}
    found = {"base": models.get("base")}
    found |= {f"after period {n}": loss for n, loss in run.periods.items()}
    found[f"after period {run.config.training.periods}, the adapter"] = models.get("adapter")
    return {name: loss for name, loss in found.items() if loss}


def _error_bars(losses: list[Json], **look: Any) -> dict[str, Any]:
    """Losses with their standard errors, up and down."""
    errors = [found["standard_error"] or 0.0 for found in losses]
    return {"y": [found["loss"] for found in losses], "error_y": {"type": "data", "array": errors, **look}}


def _loss_figure(losses: Mapping[str, Json]) -> Figure:
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [name.removesuffix(", the adapter") for name in losses],
        **_error_bars([*losses.values()], thickness=1.5, width=5),
        "line": {"color": COLOURS[0]},
        "marker": {"size": 9},
        "hovertemplate": "%{x}: %{y:.4f}<extra></extra>",
    }
    label = "Loss on the evaluated rows, before training and after each period"
    return Figure(label, [line], layout={"height": 300, "yaxis": axis("loss")})


def cost(run: RunData) -> Section:
    """The section of what the run has cost, step by step."""
    return Section({"told": [*in_words(run.bill)] if run.bill else []})


def side_by_side(runs: Sequence[RunData]) -> Section:
    """The section that compares the runs."""
    evaluated, chosen = [run for run in runs if run.evaluation], [run for run in runs if run.rounds]
    facts = {
        "losses": [_against(run, runs[0]) for run in runs],
        "distinct": [len(np.unique(run.selected)) for run in runs],
        "chosen": chosen,
        "sources": _sources(chosen),
        "overlap": _overlap(chosen),
    }
    return Section(facts, {"loss": _loss_bars(evaluated)} if evaluated else {})


def _against(run: RunData, first: RunData) -> list[str]:
    """A run's loss, and how far it is, row by row, from its base's and from the first run's."""
    if not run.evaluation:
        return ["–", "–", "–"]
    adapter, against = run.evaluation["adapter"], "–"
    if first.evaluation and first is not run and _asked(run) is not None and _asked(run) == _asked(first):
        against = with_error(*paired(adapter, first.evaluation["adapter"]), "+.4f")
    base = with_error(*paired(adapter, run.evaluation["base"]), "+.4f")
    return [with_error(adapter["loss"], adapter["standard_error"]), base, against]


def _asked(run: RunData) -> str | None:
    """The fingerprint of the rows that a run was evaluated on."""
    made_with = (run.contamination or {}).get("made_with", {})
    return made_with.get(run.evaluation["on"]) if run.evaluation else None


def _sources(runs: Sequence[RunData]) -> dict[str, list[str]]:
    """Rows that each run has selected of a source, and their share."""
    found = [run.selected_sources for run in runs]
    names = dict.fromkeys(chain(*found))
    return {name: [f"{r[name]:,} ({r[name] / r.total():.0%})" for r in found] for name in names}


def _overlap(runs: Sequence[RunData]) -> list[list[str]]:
    """Rows that two runs both selected, as a share of those that either did.

    By the rows' ids, so that runs over pools that differ can be told apart as well.
    """
    chosen = [{identity for found in run.rounds for identity in found.ids} for run in runs]
    return [[f"{len(ours & theirs) / len(ours | theirs):.2f}" for theirs in chosen] for ours in chosen]


def _loss_bars(runs: Sequence[RunData]) -> Figure:
    def bars(model: str, colour: str) -> dict[str, Any]:
        losses = [run.evaluation[model] for run in runs if run.evaluation]
        look = {"type": "bar", "name": model, "marker": {"color": colour}}
        return {**look, "x": [plotted(run.name) for run in runs], **_error_bars(losses)}

    traces = [bars("base", GREY), bars("adapter", COLOURS[0])]
    layout = {"height": 340, "barmode": "group", "yaxis": axis("loss")}
    return Figure("Loss of each run's base and adapter, as bars", traces, layout=layout)
