"""What benchmarks/kept.py found by whole runs: a table in Markdown, and one plot of it all.

A method's excess on a target is how far its mean loss lies above the lowest of any method's, in per cent of
that. Its cost is of warmup and selecting, in gradients of every row (N), with all that the bill counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from fidelity_cost import write_svg

MOST = 0.8
"""What the default may cost at most, in N."""


def read(path: Path) -> pd.DataFrame:
    """One line a run: target, method, repeat, its losses, and its cost."""
    runs = pd.read_json(path, lines=True)
    runs["cost"] = [cost["warmup"] + cost["selecting"] for cost in runs["cost"]]
    return runs


def excesses(runs: pd.DataFrame) -> pd.DataFrame:
    """Of every method (rows) on every target (columns)."""
    losses = runs.pivot_table("loss", "method", "target")
    return 100 * (losses / losses.min() - 1)


def errors(runs: pd.DataFrame) -> pd.DataFrame:
    """Standard error of an excess, row by row against the best method's losses of the same rows."""
    found = {}
    for target, of_target in runs.groupby("target"):
        rows = of_target.groupby("method")["losses"].apply(lambda each: pd.DataFrame([*each]).mean())
        rows = rows.unstack()
        best = rows.loc[rows.mean(axis=1).idxmin()]
        found[target] = 100 * (rows - best).sem(axis=1) / best.mean()
    return pd.DataFrame(found)


def table(runs: pd.DataFrame) -> Iterator[str]:
    """Markdown: loss and its deviation over the runs, worst excess and cost of every method."""
    excess, targets = excesses(runs), sorted(runs["target"].unique())
    losses = runs.groupby(["method", "target"])["loss"].agg(["mean", "std", "count"])
    order = runs.groupby("method")["cost"].mean().sort_values()
    yield f"| method | cost | {' | '.join(targets)} | worst excess |"
    yield f"|---|---|{'---|' * len(targets)}---|"
    bases = runs.groupby("target")["base"].mean()
    yield f"| the base model |  | {' | '.join(f'{bases[target]:.3f}' for target in targets)} | |"
    for method, cost in order.items():
        cells = []
        for target in targets:
            if (method, target) not in losses.index:
                cells.append("")
                continue
            mean, std, count = losses.loc[(method, target)]
            text = f"{mean:.3f}" + (f" ± {std:.3f}" if count > 1 else "")
            cells.append(f"**{text}**" if excess[target][method] == 0 else text)
        whole = excess.loc[method].notna().all()
        worst = f"{excess.loc[method].max():.1f} % ({excess.loc[method].idxmax()})" if whole else ""
        yield f"| `{method}` | {cost:.2f} N | {' | '.join(cells)} | {worst} |"


def chosen(runs: pd.DataFrame) -> str:
    """What the rule of docs/fidelity.md says, in a sentence."""
    excess = excesses(runs).dropna()
    costs = runs.groupby("method")["cost"].mean()
    worst = excess.max(axis=1)[costs[excess.index] <= MOST].sort_values()
    best, error = worst.index[0], errors(runs)
    near = [m for m in worst.index if worst[m] - worst[best] <= error.loc[m, excess.loc[m].idxmax()]]
    cheapest = min(near, key=lambda method: costs[method])
    return (
        f"Smallest worst excess at no more than {MOST} N: {best} ({worst[best]:.1f} %); within its standard "
        f"error: {', '.join(near)}; the cheapest of these is {cheapest} ({costs[cheapest]:.2f} N)."
    )


def plot(runs: pd.DataFrame, path: Path) -> None:
    """Worst and mean excess against cost, a mark a method that ran on every target."""
    excess = excesses(runs).dropna()
    excess = excess[excess.index != "random"]
    costs = runs.groupby("method")["cost"].mean()
    curves = {
        m: [(float(costs[m]), float(excess.loc[m].max()))] for m in costs[excess.index].sort_values().index
    }
    write_svg(path, curves, "Loss above the lowest of any method, worst of the targets", "per cent")


def report(folder: Path) -> str:
    """All of it; the plot becomes kept.svg in the folder."""
    runs = read(folder / "whole.jsonl")
    plot(runs, folder / "kept.svg")
    return "\n".join([*table(runs), "", chosen(runs)])
