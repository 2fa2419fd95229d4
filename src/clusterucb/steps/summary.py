"""What a run comes to: what it has cost, against doing without, and what is to be said of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from safetensors.numpy import load_file

from clusterucb.config import Config
from clusterucb.evaluation.scores import standard_error
from clusterucb.run.costs import (
    Cost,
    Work,
    bill,
    gradient_share,
    index_costs,
    recorded_costs,
    selecting_passes,
)
from clusterucb.run.methods import budget_of, method_of
from clusterucb.run.remarks import After, Before, chance_influence, own_influence
from clusterucb.run.rounds import read_round, read_scored
from clusterucb.run.session import Session
from clusterucb.runtime.files import read_json, write_json
from clusterucb.steps.train import warmup_rows
from clusterucb.training.finetune import optimizer_steps


def summarise(session: Session) -> dict[str, Any]:
    """Publish summary.json: what was selected, what each step cost, the bill, and remarks."""
    return session.world.at("summary").lead(lambda: _summarise(session))


def _summarise(session: Session) -> dict[str, Any]:
    run, method, counts = session.dir, session.method, session.inputs.counts
    numbers = [n for n in method.rounds(session.config.training.periods) if run.round(n).exists()]
    steps = recorded_costs(run, method, numbers)
    summary = {
        "method": method.name,
        "bandit": method.bandit,
        "rows": counts["usable"],
        "excluded": counts["excluded"],
        "selected": [read_round(run.round(number)).summary for number in numbers],
        "steps": {name: cost.to_json() for name, cost in steps.items()},
        "total": sum(steps.values(), Cost()).to_json(),
        "bill": bill(steps, _work(session), index_costs(run, method) if session.config.index else None),
        "remarks": [*_before(session).remarks(), *_after(session).remarks()],
    }
    write_json(run.summary, summary)
    session.screen.tell("summary", **summary)
    return summary


def _work(session: Session) -> Work:
    pooled, inputs = session.inputs.pooled, session.inputs
    return Work(
        rows=len(pooled),
        tokens=int(pooled.lengths.sum()),
        training_tokens=int(inputs.training_tokens.lengths.sum()),
        target_tokens=int(inputs.targeted.lengths.sum()),
        times=session.method.full(session.config.training.periods),
        gradient=gradient_share(session.method),
    )


def remark(session: Session) -> None:
    """Say what there is to say before anything is computed."""
    for said in _before(session).remarks():
        session.inputs.say_once(f"note: {said}")


def _before(session: Session) -> Before:
    inputs = session.inputs
    rows, held_out = inputs.counts["usable"], len(inputs.holdout) if inputs.holdout else 0
    return before(session.config, rows, len(inputs.target), held_out, inputs.screening.of_the_task)


def before(config: Config, rows: int, target_rows: int, held_out: int, repeats: int) -> Before:
    """What these settings mean for so many usable rows of the pool, and so many of the task."""
    method, budget, settings = method_of(config), budget_of(config), config.training
    saved = None
    if method.budgeted:
        taken = selecting_passes(method, settings.periods, budget.spend(rows) / rows)
        saved = gradient_share(method) * method.full(settings.periods) - taken
    return Before(
        steps=optimizer_steps(budget.keep(rows), settings.periods * settings.epochs_per_period, settings),
        rate=settings.lr,
        warmup=0.0 if config.index else method.checkpoints * warmup_rows(config, rows) / rows,
        saved=saved,
        target_rows=target_rows,
        held_out=held_out,
        repeats=repeats,
        reselects=not (method.once or (method.by_likeness and config.selection.keep == "auto")),
    )


def _after(session: Session) -> After:
    """The losses row by row, and how the first selection's influence lies."""
    found = read_json(session.dir.evaluation)
    base, adapter = (np.array(found[name]["losses"]) for name in ("base", "adapter"))
    ended = map(session.dir.period, range(1, session.config.training.periods))
    earlier = [np.array(read_json(path)["losses"]) for path in ended if path.exists()]
    lowest = min(earlier, key=np.mean, default=adapter)
    return After(
        base=float(base.mean()),
        fall=float((base - adapter).mean()),
        error=standard_error(base - adapter),
        rise=(float((adapter - lowest).mean()), standard_error(adapter - lowest)),
        **(_influence(session) if session.method.takes_gradients and not session.method.by_likeness else {}),
    )


def _influence(session: Session) -> dict[str, Any]:
    """Of round 1, where features and directions are of gradients."""
    scored, chosen = read_scored(session.dir.round(1)), read_round(session.dir.round(1))
    directions = load_file(session.dir.directions_at(1))["directions"]
    own = own_influence(directions, np.bincount(session.inputs.target.codes))
    return {
        "selected": float(chosen.scores.mean()),
        "everyone": float(scored.scores.mean()),
        "best": float(scored.scores.max()),
        "chance": chance_influence(len(scored.rows), directions),
        "whole": len(scored.rows) == chosen.summary["of"],
        "own": float((scored.scores >= own).mean()),
        "reselects": not session.method.once,
    }
