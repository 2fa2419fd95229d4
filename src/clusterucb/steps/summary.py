"""What a run has cost, against the method without a budget."""

from __future__ import annotations

from typing import Any

from clusterucb.run.costs import Cost, recorded_costs
from clusterucb.run.rounds import read_round
from clusterucb.run.session import Session
from clusterucb.runtime.files import read_json, write_json


def summarise(session: Session) -> dict[str, Any]:
    """Publish summary.json: what each step cost, and the total against the method without a budget."""
    return session.world.at("summary").lead(lambda: _summarise(session))


def _summarise(session: Session) -> dict[str, Any]:
    run, pool = session.dir, read_json(session.dir.pool / "manifest.json")
    last = session.config.training.periods if session.config.method == "dynamic" else 1
    rounds = [read_round(run.round(n + 1)) for n in range(last)]
    steps = recorded_costs(run, session.config.checkpoints, range(1, last + 1))
    total = sum(steps.values(), Cost())
    summary = {
        "method": session.config.method,
        "bandit": session.config.bandit if session.config.budgeted else "none",
        "rows": pool["usable"],
        "excluded": pool["excluded"],
        "selected": [r.summary for r in rounds],
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
    config = session.config
    times = {"dynamic": config.training.periods, "less": len(config.checkpoints)}.get(config.method)
    if times is None:
        return {}
    full = times * len(session.pooled.rows)
    return {
        "full": {
            "method": config.method,
            "pool_gradients": full,
            "pool_tokens": times * int(session.pooled.lengths.sum()),
            "share_of_pool_gradients": total.pool_gradients / full,
            "share_of_cost": total.gradient_equivalents / full,
        }
    }
