"""What a run has cost, against the method without a budget."""

from __future__ import annotations

from typing import Any

from clusterucb.run.costs import Cost, recorded_costs
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
