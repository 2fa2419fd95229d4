"""The tables of docs/fidelity.md, in Markdown, from what the other stages left and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fidelity_cost import cheapest, loss_curves, recall_curves, total_cost, write_svg
from fidelity_data import PARTS, StudyData
from fidelity_features import DIRECTIONS, fresh_folder, fresh_periods
from fidelity_recall import MEASURES, STALE_FIRST
from fidelity_rows import MEMORY, ROW_LEVEL

from clusterucb.run.costs import Cost
from clusterucb.run.session import Session
from clusterucb.runtime.files import read_json
from clusterucb.selection.budget import default_k
from clusterucb.selection.policies import POLICIES
from clusterucb.selection.share import share

OURS = "ucb_beta"
WITHOUT_CLUSTERS = ("uniform", STALE_FIRST, *ROW_LEVEL)  # or with those of the default k alone
ON_CURVES = (OURS, "uniform", STALE_FIRST, *(name for name in ROW_LEVEL if name != MEMORY))
PUBLISHED = 0.2  # the paper's budget
SHOWN_POLICIES = (*POLICIES, *WITHOUT_CLUSTERS)
ROUNDING = 5e-4  # what three digits do not show
Runs = Sequence[Mapping[str, Any]]


def report(pool: str, data: StudyData, session: Session, out: Path, targets: Iterable[str]) -> str:
    """All tables that can be made of what is in the study's folder `out`."""
    periods = session.config.training.periods
    parts = [f"# Fidelity: all tables of the pool `{pool}`", *data_tables(data.facts), *cost_table(session)]
    if (out / "recall.json").exists():
        found = read_json(out / "recall.json")
        parts += [*drift_tables(found["drift"]), *recall_tables(found, periods)]
        parts += where_not_most(found)
        parts += recall_by_cost(found, periods, out / "recall.svg")
    for target in targets:
        for path in sorted((out / "downstream").glob(f"{target}*/comparison.json")):
            name, compared = path.parent.name, read_json(path)
            parts += downstream_table(name, compared)
            curves = loss_curves(compared, periods)
            write_svg(out / f"{name}.svg", curves, f"{target}: loss on held-out rows", "loss")
    return "\n\n".join(parts) + "\n"


# ---------------------------------------------------------------- data and costs


def data_tables(facts: Mapping[str, Any]) -> Iterator[str]:
    """Rows and tokens of sources and targets."""
    pool, targets, heldout = (facts[part] for part in PARTS)
    yield "## Data"
    columns = ("rows", "tokens", "usable", "near_copies")
    total = {column: sum(of[column] for of in pool.values()) for column in columns}
    lines = [[name, *(f"{of[c]:,}" for c in columns)] for name, of in {**pool, "all": total}.items()]
    yield table(["pool source", "rows", "tokens", "rows it could give", "left out as near copies"], lines)
    lines = [
        [name, *(f"{side[name][c]:,}" for side in (targets, heldout) for c in ("rows", "tokens"))]
        for name in targets
    ]
    yield table(["target", "rows", "tokens", "rows held out", "tokens held out"], lines)


def cost_table(session: Session) -> Iterator[str]:
    """What the features cost, as it was counted."""
    stores = {"warmup checkpoint": (session.dir.features, session.dir.directions_at(1))}
    for period in fresh_periods(session):
        folder = fresh_folder(session, period)
        stores[f"start of period {period}"] = folder, folder / DIRECTIONS
    costs = {
        name: vars(Cost.recorded(folder / "manifest.json") + Cost.recorded(directions))
        for name, (folder, directions) in stores.items()
        if folder.exists()
    }
    columns = ("pool_gradients", "target_gradients", "tokens", "seconds")
    yield "## Cost of all rows' features"
    lines = [[name, *(f"{cost[column]:,.0f}" for column in columns)] for name, cost in costs.items()]
    yield table(["features at", "pool gradients", "target gradients", "tokens", "seconds"], lines)


def cost_share(budget: float, rows: int, periods: int) -> float:
    """Pool gradients of all periods over those of the full method: all rows once, then the budget."""
    return (rows + (periods - 1) * share(budget, rows)) / (periods * rows)


# ---------------------------------------------------------------- stored features


def drift_tables(found: Runs) -> Iterator[str]:
    """How well scores from before the checkpoint serve there, without a new gradient of the pool."""
    yield "## What is known without a new gradient of the pool"
    kinds = {
        "stale": "stale features, stale target",
        "half_fresh": "stale features, fresh target",
        "hidden": "hidden states",
    }
    columns = ("spearman", *MEASURES)
    lines = [
        [case["target"], str(case["period"]), title, *(_number(case[kind][m]) for m in columns)]
        for case in found
        for kind, title in kinds.items()
    ]
    yield table(["target", "period", "ranked by", "Spearman with fresh", *MEASURES], lines)


def recall_tables(found: Mapping[str, Any], periods: int) -> Iterator[str]:
    """Measures by policy and budget at the default k, by target at each budget, and by k."""
    runs, rows = found["runs"], found["rows"]
    budgets, default = _budgets(runs), default_k_of(runs, rows)
    every = sorted({run["budget"] for run in runs if run["budget"]})
    heads, low = heads_of(every, rows, periods), heads_of(budgets, rows, periods)
    for period in _values(runs, "period"):
        here = _chosen(comparable(found), period=period)
        for measure in MEASURES:
            yield f"## {measure.capitalize()} at the start of period {period}, mean of targets, k {default}"
            yield table(["policy", *heads], by_policy(here, every, measure))
        for budget in budgets:
            at = _chosen(here, budget=budget)
            targets = _values(at, "target")
            yield f"## Recall by target at the start of period {period}, budget {budget:.0%}, k {default}"
            lines = [
                [name, *(_spread([r["recall"] for r in _chosen(at, policy=name, target=t)]) for t in targets)]
                for name in _shown(at)
            ]
            yield table(["policy", *targets], lines)
    yield f"## Recall of {OURS} by number of clusters, mean over targets and checkpoints"
    ours = _chosen(runs, policy=OURS)
    lines = [
        [str(k), *(_over_targets(_chosen(ours, k=k, budget=b), "recall") for b in budgets)]
        for k in sorted(_values(ours, "k"))
    ]
    yield table(["k", *low], lines)
    yield from expectation_table(runs)


def heads_of(budgets: Sequence[float], rows: int, periods: int) -> list[str]:
    """Columns of a table by budget."""
    return [f"{b:.0%} ({cost_share(b, rows, periods):.0%} of the full)" for b in budgets]


def expectation_table(runs: Runs) -> Iterator[str]:
    """The share of the selection that linear_ucb expected to change, against what was not found."""
    runs = [run for run in runs if "expected_change" in run]
    if not runs:
        return
    budgets = sorted(_values(runs, "budget"))
    yield "## What linear_ucb expects to change, and what does, mean over targets and checkpoints"
    lines = [
        [f"{b:.0%}", _number(_mean([r["expected_change"] for r in of])), _number(1 - _recall(of))]
        for b in budgets
        if (of := _chosen(runs, budget=b))
    ]
    yield table(["budget", "expected", "true"], lines)


def by_policy(runs: Runs, budgets: Sequence[float], measure: str) -> list[list[str]]:
    """A line a policy, a cell a budget."""
    return [
        [name, *(_over_targets(_chosen(runs, policy=name, budget=b), measure) for b in budgets)]
        for name in _shown(runs)
    ]


def where_not_most(found: Mapping[str, Any]) -> Iterator[str]:
    """Every case in which the default policy does not find most, at the default k."""
    yield f"## Where {OURS} does not find most"
    drifts = {(case["period"], case["target"]): case for case in found["drift"]}
    lines, here = [], comparable(found)
    for budget in _budgets(here):
        for (period, target), case in drifts.items():
            at = _chosen(here, budget=budget, period=period, target=target)
            recalls = {name: _recall(_chosen(at, policy=name)) for name in _shown(at)}
            recalls |= {"stale alone": case["stale"]["recall"], "half fresh": case["half_fresh"]["recall"]}
            ranked = sorted(recalls, key=lambda name: -recalls[name])
            better = [name for name in ranked if recalls[name] > recalls[OURS] + ROUNDING]
            if better:
                names = ", ".join(f"{name} {recalls[name]:.3f}" for name in better)
                lines.append([f"{budget:.0%}", str(period), target, f"{recalls[OURS]:.3f}", names])
    yield table(["budget", "period", "target", OURS, "found more"], lines) if lines else "Nowhere."


def recall_by_cost(found: Mapping[str, Any], periods: int, plot: Path) -> Iterator[str]:
    """Recall against what is spent in all, and the least that finds what the published setting does."""
    runs, rows = comparable(found), found["rows"]
    policies = [name for name in ON_CURVES if name in _values(runs, "policy")]
    curves = recall_curves(runs, policies, rows, periods)
    write_svg(plot, curves, "Recall, mean of targets and checkpoints", "recall")
    budgets = sorted({run["budget"] for run in runs if run["budget"]})
    yield "## Recall at total cost, mean of targets and checkpoints"
    lines = []
    for name, curve in curves.items():
        cells = {cost: f"{recall:.3f} at {cost:.2f} N" for cost, recall in curve}
        lines.append([name, *(cells.get(total_cost(name, b, rows, periods), "-") for b in budgets)])
    yield table(["policy", *(f"{b:.0%}" for b in budgets)], lines)
    published = dict(curves[OURS]).get(total_cost(OURS, PUBLISHED, rows, periods))
    if published is not None:
        yield f"## The least spent by each that finds {OURS}'s {published:.3f} at budget {PUBLISHED:.0%}"
        reached = cheapest(curves, published)
        lines = [[name, f"{cost:.2f} N", f"{recall:.3f}"] for name, cost, recall in reached]
        yield table(["policy", "total cost", "recall"], lines)


def comparable(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The runs at the default k, and those that need no clusters."""
    runs, default = found["runs"], default_k_of(found["runs"], found["rows"])
    return [run for run in runs if run["k"] == default or run["policy"] in WITHOUT_CLUSTERS]


def default_k_of(runs: Runs, rows: int) -> int:
    """The number of clusters that the simulation took where none was given."""
    return default_k(rows, share(min(_budgets(runs)), rows))


# ---------------------------------------------------------------- downstream


def downstream_table(title: str, compared: Mapping[str, Any]) -> Iterator[str]:
    """Held-out losses and costs of all methods compared, and which have a lower loss than ClusterUCB.

    `compared` is the content of a comparison.json.
    """
    yield f"## Loss on the {compared['rows']} held-out rows: {title}"
    heads = ["method", "runs", "loss", "against base", f"against {compared['reference']}"]
    heads += ["pool gradients", "of the full method's", "pool forwards", "tokens", "seconds"]
    lines = [["base", "", _estimate(compared["base"]["loss"]), *[""] * 7]]
    for name, method in compared["methods"].items():
        states = f"{method['finished']}" + (f" ({method['failed']} failed)" if method["failed"] else "")
        if "loss" not in method:
            lines.append([name, states, *[""] * 8])
            continue
        losses = (method[column] for column in ("loss", "against_base", "against_reference"))
        cost = {column: f"{value:,.0f}" for column, value in method["cost"].items()}
        lines.append(
            [name, states, *map(_estimate, losses), cost["pool_gradients"]]
            + [f"{method['of_full_dynamic']['pool_gradients']:.0%}"]
            + [cost[column] for column in ("pool_forwards", "tokens", "seconds")]
        )
    yield table(heads, lines)
    against = {name: method.get("against_reference") for name, method in compared["methods"].items()}
    better = [name for name, found in against.items() if found and found["mean"] < 0]
    yield f"Lower loss than {compared['reference']}: {', '.join(better) or 'none of these methods'}."


# ---------------------------------------------------------------- cells


def table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _chosen(runs: Runs, **wanted: Any) -> list[Mapping[str, Any]]:
    return [run for run in runs if all(run[name] == value for name, value in wanted.items())]


def _values(runs: Runs, name: str) -> list[Any]:
    """Distinct values in the order in which they come."""
    return list(dict.fromkeys(run[name] for run in runs))


def _shown(runs: Runs) -> list[str]:
    """The policies that there are runs of, in their order."""
    there = set(_values(runs, "policy"))
    return [name for name in SHOWN_POLICIES if name in there]


def _budgets(runs: Runs) -> list[float]:
    return sorted(_values(_chosen(runs, policy=OURS), "budget"))


def _over_targets(runs: Runs, measure: str) -> str:
    """Mean over all cases, with its standard deviation over seeds."""
    seeds = _values(runs, "seed")
    return _spread([_mean([run[measure] for run in _chosen(runs, seed=seed)]) for seed in seeds])


def _recall(runs: Runs) -> float:
    return _mean([run["recall"] for run in runs])


def _mean(values: Sequence[float | None]) -> float:
    return math.nan if None in values or not len(values) else float(np.mean(np.array(values, np.float64)))


def _spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation; the mean alone where they hardly differ, as of one value."""
    mean = _number(_mean(values))
    if len(values) < 2 or mean == "-" or (deviation := np.std(values, ddof=1)) < ROUNDING:
        return mean
    return f"{mean} ± {deviation:.3f}"


def _estimate(found: Mapping[str, Any] | None) -> str:
    """A mean with its error, where there is one."""
    if found is None:
        return ""
    return f"{found['mean']:.4f}" + ("" if found["error"] is None else f" ± {found['error']:.4f}")


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"
