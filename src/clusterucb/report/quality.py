"""How good the adapter is: the loss on held-out rows by period, and benchmarks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusterucb.evaluation.scores import standard_error
from clusterucb.report.markup import count, number, with_error
from clusterucb.report.run_data import RunData
from clusterucb.report.section import COLOURS, Figure, Section


def quality(run: RunData, section: Section) -> None:
    """Write the section."""
    if not run.evaluation and not run.periods:
        section.say("Nothing is evaluated yet.")
        return
    _losses(run, section)
    _benchmarks(run, section)


def called(result: dict[str, Any]) -> str:
    """What was evaluated on."""
    own = "of the target itself, as none were held out: training has seen what helps with them"
    return f"{count(result['rows'])} " + ("held-out rows" if result["on"] == "holdout" else f"rows {own}")


def paired(ours: list[float], theirs: list[float]) -> tuple[float, float | None]:
    """Mean over rows of `ours` minus `theirs`, and its standard error where there are two rows."""
    differences: NDArray[np.float64] = np.subtract(ours, theirs)
    return float(differences.mean()), standard_error(differences)


def _losses(run: RunData, section: Section) -> None:
    measured = _measured(run)
    facts = dict(run.evaluation or next(iter(run.periods.values())))
    base = (run.evaluation or {}).get("base")
    section.say(
        f"Loss on {called(facts)}: nats a token, the mean over rows ± its standard error; lower is better."
    )

    def row(name: str, found: dict[str, Any]) -> list[str]:
        loss = with_error(found["loss"], found["standard_error"])
        if not base or found is base:
            return [name, loss, "–"]
        return [name, loss, with_error(*paired(found["losses"], base["losses"]), sign="+")]

    rows = [row(name, found) for name, found in measured.items()]
    section.table("Loss", ["model"], ["loss", "against the base, row by row"], rows)
    if len(measured) > 1:
        section.figure("loss", _loss_figure(measured))
    last = run.config.training.periods
    if run.finished and last > 1 and not run.periods:
        section.say("This run was made before losses were kept period by period.", "note")


def _measured(run: RunData) -> dict[str, Any]:
    """The losses by the name of the model, in time."""
    models = run.evaluation or {}
    found = {"base": models.get("base")}
    found |= {f"after period {n}": loss for n, loss in run.periods.items()}
    found[f"after period {run.config.training.periods}, the adapter"] = models.get("adapter")
    return {name: loss for name, loss in found.items() if loss}


def _loss_figure(measured: dict[str, Any]) -> Figure:
    losses = list(measured.values())
    errors = [found["standard_error"] or 0.0 for found in losses]
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [name.removesuffix(", the adapter") for name in measured],
        "y": [found["loss"] for found in losses],
        "error_y": {"type": "data", "array": errors, "thickness": 1.5, "width": 5},
        "line": {"color": COLOURS[0]},
        "marker": {"size": 9},
        "hovertemplate": "%{x}: %{y:.4f}<extra></extra>",
    }
    layout = {"height": 300, "yaxis": {"title": {"text": "loss"}}}
    label = "Loss on the evaluated rows, before training and after each period"
    caption = (
        "Bars are standard errors over rows. The same rows are asked each time, so differences are surer "
        "than the bars say: see the table."
    )
    return Figure([line], layout, label, caption)


def _benchmarks(run: RunData, section: Section) -> None:
    if not run.benchmarks:
        return

    def percent(found: dict[str, Any], sign: str = "") -> str:
        error = found["standard_error"]
        return with_error(100 * found["value"], None if error is None else 100 * error, 1, sign)

    rows = [
        [name, metric, count(task["questions"])]
        + [percent(values[model]) for model in ("base", "adapter")]
        + [percent(values["difference"], "+")]
        for name, task in run.benchmarks["benchmarks"].items()
        for metric, values in task["metrics"].items()
    ]
    section.table(
        "Benchmarks, in percent",
        ["benchmark", "metric"],
        ["questions", "base", "adapter", "difference"],
        rows,
    )


def loss_line(run: RunData) -> str:
    """The loss before and after in a few words."""
    if not run.evaluation:
        return "–"
    return f"{number(run.evaluation['base']['loss'], 3)} → {number(run.evaluation['adapter']['loss'], 3)}"
