"""What a run has cost, against the method without a budget."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clusterucb.run.costs import Cost
from clusterucb.run.directory import RunDir, numbered
from clusterucb.run.methods import Method
from clusterucb.run.rounds import read_round
from clusterucb.run.session import Session
from clusterucb.runtime.files import write_json


def summarise(session: Session) -> dict[str, Any]:
    """Publish summary.json: what each step cost, and the total against the method without a budget."""
    return session.world.at("summary").lead(lambda: _summarise(session))


def _summarise(session: Session) -> dict[str, Any]:
    run, method, counts = session.dir, session.method, session.inputs.counts
    numbers = method.rounds(session.config.training.periods)
    steps = recorded_costs(run, method, numbers)
    total = sum(steps.values(), Cost())
    summary = {
        "method": method.name,
        "bandit": method.bandit,
        "rows": counts["usable"],
        "excluded": counts["excluded"],
        "selected": [read_round(run.round(number)).summary for number in numbers],
        "steps": {name: cost.to_json() for name, cost in steps.items()},
        "total": total.to_json(),
        "gradient_equivalents": total.gradient_equivalents,
        **_against_full(session, total),
    }
    write_json(run.summary, summary)
    session.screen.tell("summary", **summary)
    return summary


def _against_full(session: Session, total: Cost) -> dict[str, Any]:
    """The gradients of all rows whenever the method takes any, and the share of them that was computed.

    `share_of_cost` has forward passes in it, in gradients.
    """
    times = session.method.full(session.config.training.periods)
    if not times:
        return {}
    pooled = session.inputs.pooled
    full = times * len(pooled)
    return {
        "full": {
            "method": session.method.name,
            "pool_gradients": full,
            "pool_tokens": times * int(pooled.lengths.sum()),
            "share_of_pool_gradients": total.pool_gradients / full,
            "share_of_cost": total.gradient_equivalents / full,
        }
    }


def recorded_costs(run: RunDir, method: Method, rounds: Iterable[int]) -> dict[str, Cost]:
    """What each finished step of a run has cost, in their order; `rounds` numbers its selections."""
    files = recorded_files(run, method, rounds)
    return {step: sum(map(Cost.recorded, found), Cost()) for step, found in files.items()}


def recorded_files(run: RunDir, method: Method, rounds: Iterable[int]) -> dict[str, list[Path]]:
    """The files in which that is written down, by step."""
    found: dict[str, list[Path]] = {}
    for number in method.numbers:
        found[numbered("warmup", number, " ")] = [run.checkpoint(number) / "checkpoint.json"]
    for number in range(1, method.stored + 1):
        files = [run.features_at(number) / "manifest.json", run.directions_at(number)]
        found[numbered("gradients", number, " ")] = files
    found["cluster"] = [run.clusters.with_suffix(".json")] if method.budgeted else []
    for number in rounds:
        found[f"select {number}"] = [run.round(number) / "summary.json"]
    found["train"] = [run.adapter / "checkpoint.json"]
    found["evaluate"] = [*sorted(run.period(1).parent.glob("*.json")), run.evaluation]
    there = {step: [file for file in files if file.exists()] for step, files in found.items()}
    return {step: files for step, files in there.items() if files}
