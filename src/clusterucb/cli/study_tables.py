"""A comparison, a plan, a simulation and a look at a model as tables on the screen, and what they mean."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.filesize import decimal

from clusterucb.cli.tables import evaluated_on, print_table, say
from clusterucb.report.bill import in_words, instead, taken
from clusterucb.report.section import number, percent, seconds, with_error
from clusterucb.studies.doctor import ENOUGH, Examined
from clusterucb.studies.simulate.outcomes import SETTING, label
from clusterucb.studies.simulate.simulate import MEASURES


def show_comparison(result: dict[str, Any], console: Console | None = None) -> None:
    """Print the content of comparison.json: a line a method."""
    console = console or Console()
    methods = result["methods"].items()
    benchmarks = list(dict.fromkeys(name for _, row in methods for name in row.get("benchmarks", ())))
    headings = ["method", "runs", "loss", "against base", f"against {result['reference']}", *benchmarks]
    headings += ["pool gradients", "pool forwards", "tokens", "seconds", "passes", "of scoring all"]
    full = ((result["bill"] or {}).get("score_all") or {}).get("passes", math.nan)
    rows = [
        [name, _runs(row), *(_cells(row, benchmarks, full) if "loss" in row else ())] for name, row in methods
    ]
    if base := result["base"]:
        scores = [_estimate(base["benchmarks"].get(name), ".1%") for name in benchmarks]
        rows.insert(0, ["base", "", _estimate(base["loss"]), "", "", *scores])
    print_table(console, "Comparison", headings, rows)
    for line in _remarks(result):
        say(console, line)


def _runs(row: dict[str, Any]) -> str:
    parts = [f"{row[state]} {state}" for state in ("failed", "unfinished") if row[state]]
    return ", ".join([*([str(row["finished"])] if row["finished"] or not parts else []), *parts])


def _cells(row: dict[str, Any], benchmarks: list[str], full: float) -> Iterator[str]:
    yield _estimate(row["loss"])
    yield _estimate(row["against_base"], "+.4f")
    yield _estimate(row["against_reference"], "+.4f")
    for name in benchmarks:
        yield _estimate(row["benchmarks"].get(name), ".1%")
    for name in ("pool_gradients", "pool_forwards", "tokens"):
        yield f"{row['cost'][name]:,.0f}"
    yield f"{row['cost']['seconds']:,.1f}"
    taken = row["cost"].get("passes", math.nan)  # of runs of an earlier version
    yield number(taken, ".2f")
    yield percent(taken / full)


def _estimate(found: dict[str, Any] | None, form: str = ".4f") -> str:
    return "-" if found is None else with_error(found["mean"], found["error"], form)


def _remarks(result: dict[str, Any]) -> Iterator[str]:
    for cell in result["cells"]:
        if cell["state"] == "failed":
            yield f"{cell['method']}/{cell['repetition']} failed: {cell['failure']}"
    if not result["base"]:
        return
    alone = [name for name, row in result["methods"].items() if row["finished"] == 1]
    single = f" (where there is one run, {', '.join(alone)}, standard error over rows)" if alone else ""
    yield (
        f"loss on {evaluated_on(result)}, and benchmarks: mean ± standard "
        f"deviation over repetitions{single}. "
        f"Repetitions share adapter, warmup, features and clusters: their spread leaves out that part."
    )
    yield "against: row by row, over the repetitions that both have; ± is the standard error over rows."
    yield "costs: of one run alone, with its warmup, training and losses, in passes over the pool."
    if result["bill"]:
        yield from instead(result["bill"])
    took = result["computed"]
    yield (
        f"As runs shared what they have in common, the finished ones together took "
        f"{took['pool_gradients']:,} pool gradients, {took['pool_forwards']:,} pool forwards, "
        f"{took['tokens']:,} tokens and {took['seconds']:,.0f} s."
    )
    for said, methods in result["remarks"].items():
        yield f"note on {', '.join(methods)}: {said}"


_LONGEST = 80
"""Characters of either end of a long piece of a row's text."""
_COUNTS = ("rows", "tokens", "pool_gradients", "target_gradients", "pool_forwards")


def show_plan(plan: dict[str, Any], console: Console | None = None) -> None:
    """Print what `plan` returned: a line a step, and a line a method."""
    console = console or Console()
    named = plan["method"] if plan["bandit"] == "none" else f"{plan['method']} with {plan['bandit']}"
    excluded = f", {plan['excluded']:,} more cannot be used" if plan["excluded"] else ""
    title = f"Plan: {named}, {plan['rows']:,} usable rows{excluded}"
    if decided := plan["decided"]:
        rows = [[one["setting"], f"{one['value']}", one["reason"]] for one in decided]
        print_table(console, "Decided for this job", ["setting", "value", "why"], rows, words=["why"])
    steps = {**plan["steps"], "total": plan["total"]}
    print_table(console, title, *_spent("step", steps, _COUNTS), total=True)
    print_table(
        console, "The same settings by method", *_spent("method", plan["methods"], (*_COUNTS, "passes"))
    )
    for line in _plan_remarks(plan):
        say(console, line)


def _spent(what: str, costs: dict[str, Any], counts: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows."""
    headings = [what, *(name.replace("_", " ") for name in counts), "time", "disk"]
    return headings, [
        [f"{name}, in the index" if cost.get("in_index") else name, *_cost(cost, counts)]
        for name, cost in costs.items()
    ]


def _cost(cost: dict[str, Any], counts: Sequence[str]) -> Iterator[str]:
    for name in counts:
        form = ",.2f" if name == "passes" else ",.0f"
        yield f"{'~' if name == 'tokens' and cost.get('expected') else ''}{cost[name]:{form}}"
    yield "?" if cost["seconds"] is None else seconds(cost["seconds"])
    yield decimal(cost["disk"])


def _plan_remarks(plan: dict[str, Any]) -> Iterator[str]:
    yield from plan.get("chosen", {}).get("told", ())
    for said in plan["remarks"]:
        yield f"note: {said}"
    yield from in_words(plan["bill"])
    if many := plan.get("targets"):
        yield (
            f"{many['targets']} targets over one index (`clusterucb index`, then --index): "
            f"{taken(many['over_one_index'])}; each with its own: {taken(many['alone'])}."
        )
    speed = plan["speed"]
    if plan["exact"]:
        yield "Counts are exact; tokens marked ~ are those of as many rows drawn at random, on average."
    else:
        yield "The pool was sampled: the number of usable rows, and all tokens, are estimates."
    if speed["measured"]:
        yield (
            f"Times are by the speed measured just now: {speed['gradients']:,.0f} tokens/s of gradients, "
            f"{speed['training']:,.0f} of training, {speed['forward']:,.0f} of forward passes."
        )
    else:
        yield (
            f"Times are by the {speed['gradients']:,.0f} tokens/s given, with forward passes alone three "
            "times as fast; k-means is left out."
        )
    yield (
        "Loading, reading the inputs and benchmarks are left out of the time. While it trains, a run takes "
        f"{decimal(plan['disk']['while training'])} more of the disk."
    )


def show_simulation(spreads: pd.DataFrame, top_p: float, console: Console | None = None) -> None:
    """Print every measure by policy and budget, in percent: the mean over seeds and their deviation."""
    console = console or Console(highlight=False)
    for setting, panel in spreads.groupby(SETTING, sort=False):
        say(console, f"{label(*setting)}, by budget")
        for measure, found in panel.groupby("measure", sort=False):
            budgets = sorted(found["budget"].unique())
            headings = [f"{measure} in %", *(f"{budget:g}" if budget else "no draw" for budget in budgets)]
            print_table(console, "", headings, _policies(found, budgets))
    for measure in spreads["measure"].unique():
        say(console, f"{measure}: {MEASURES[measure]}")
    seeds = spreads["count"].max()
    spread = f"mean ± standard deviation over {seeds} seeds of the draws" if seeds > 1 else "one seed"
    say(
        console,
        f"top {top_p:g} of the pool; {spread}; uniform: rows drawn without clusters, whose expected recall is"
        " the budget; stale: the top rows of the store that the clusters are from, without a new gradient",
    )


def _policies(found: pd.DataFrame, budgets: Sequence[float]) -> Iterator[list[str]]:
    for policy, own in found.groupby("policy", sort=False):
        cells = {row.budget: _percent(row.mean, row.std) for row in own.itertuples()}
        yield [policy, *(cells.get(budget, "") for budget in budgets)]


def _percent(mean: float, deviation: float) -> str:
    return f"{100 * mean:.1f}" + ("" if math.isnan(deviation) else f"±{100 * deviation:.1f}")


def show_examined(found: Examined, console: Console | None = None) -> None:
    """Print what `examine` found, on one screen."""
    console = console or Console()
    rows = [[what, f"{cosine:.4f}", _verdict(cosine)] for what, cosine in found.cosines.items()]
    title = f"Features of a row alone in {found.dtype} on {found.device}, against those of the same row"
    print_table(console, title, ["", "least cosine", ""], rows, words=[""])
    for line in _examined(found):
        say(console, line)


def _verdict(cosine: float) -> str:
    return "" if cosine >= ENOUGH else f"below {ENOUGH}: not to be trusted"


def _examined(found: Examined) -> Iterator[str]:
    pieces = ((_shortened(piece), learnt) for piece, learnt in found.text)
    text = "".join(f"[[{piece}]]" if learnt else piece for piece, learnt in pieces)
    yield f"a row as the model reads it, with what is learnt in [[ ]]: {text!r}"
    twice = "; use --chat tulu, or a chat template without one" if found.begins > 1 else ""
    yield f"begin tokens before a row: {found.begins}{twice}"
    attention, sketch = ", ".join(found.attention), "one kernel" if found.fused else "plain operations"
    yield f"attention: {attention or 'plain operations'}; Adam's map and the sketch: {sketch}"
    if found.memory:
        total, free = found.memory
        yield f"memory: {decimal(total)}" + (f", {decimal(free)} free beside the model" if free else "")
    count, length = found.batch
    yield f"{count} rows of {length} tokens went at once; one of mean length takes {found.a_row:.3g} s"
    if found.gradients:
        yield (
            f"a run takes {found.gradients:,} gradients of the {found.rows:,} rows: "
            f"{seconds(found.gradients * found.a_row)}, without training; clusterucb plan tells more"
        )


def _shortened(text: str) -> str:
    return text if len(text) <= 2 * _LONGEST else f"{text[:_LONGEST]} ... {text[-_LONGEST:]}"
