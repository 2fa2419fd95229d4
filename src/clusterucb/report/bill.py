"""A bill in words: the one place that says what a run costs, before it, after it and beside others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from clusterucb.report.section import commas, percent, seconds
from clusterucb.run.costs import FORWARD_SHARE

Bill = Mapping[str, Any]
"""What `run.costs.bill` makes."""


def in_words(bill: Bill) -> Iterator[str]:
    """What all of it takes and of what parts, and what the honest alternatives would."""
    parts = ", ".join(f"{name} {passes(part)}" for name, part in bill["parts"].items() if part["passes"])
    full = bill["score_all"]
    share = f", {percent(bill['passes'] / full['passes'])} of what scoring all rows takes" if full else ""
    yield f"In all {taken(bill)}{share}: {parts}."
    if index := bill.get("index"):
        yield f"Of that, {taken(index)} are the index's, which is made once for all runs that begin at it."
    yield from instead(bill)


def instead(bill: Bill) -> Iterator[str]:
    """What scoring all rows and what training alone would take, and what a pass is."""
    if full := bill["score_all"]:
        times = f"{full['times']} times" if full["times"] > 1 else "once"
        yield f"Scoring all rows at every selection ({times}) instead: {taken(full, 'about ')}."
    if trained := bill["train_only"]:
        yield f"Training for as many steps on any rows, without selecting: {taken(trained, 'about ')}."
    one = bill["one_pass"]
    yield (
        f"One pass over the pool is the gradients of its {commas(one['rows'])} rows, {commas(one['tokens'])} "
        f"tokens; a token counts the same in training, and as {FORWARD_SHARE:.2f} where it only goes forward."
    )


def passes(spent: Bill | None) -> str:
    """How many, to three figures, or a dash where they are not known."""
    if spent is None:
        return "–"
    found = spent["passes"]
    return f"{found:.2f}" if found < 10 else f"{found:,.1f}"


def taken(spent: Bill, about: str = "") -> str:
    """Passes and, where it is known, time; `about` that where it is an estimate."""
    told = "" if spent["seconds"] is None else f", {about}{seconds(spent['seconds'])}"
    return f"{passes(spent)} passes over the pool{told}"
