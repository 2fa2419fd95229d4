"""What a good colleague would say of a run, before it and after it: each remark with what to do.

Each is a function from plain facts to a sentence, or None where there is nothing to say. What the facts are
of, and where remarks are shown, others know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

LEAST_WAY = 1e-3
"""Steps times learning rate: Adam moves a weight by about the rate at each step (Kingma & Ba, 2015)."""
FEW_ROWS = 8
SURE = 2.0
"""Standard errors that a difference must be away from 0."""
ALIKE = 0.1
"""Of all rows' mean influence: what selected rows must be above it, to be told apart."""
NOISE = 2.0
"""Times the best influence that chance gives: what the best row must have."""
OWN, TASK_SHARE = 2 / 3, 0.01
"""See `own_influence`; and the share of the pool from which on there is something to say."""
ONE_SELECTION = (
    "where the pool has the task itself, one selection was better than one a period; try --method less"
)
SLOW = 0.02
"""Of the base's loss: a fall that is sure but smaller says that training has hardly begun."""


@dataclass(frozen=True)
class Before:
    """What is known of a run before it computes anything.

    Attributes:
        steps, rate: optimizer steps of all training, and its highest learning rate.
        warmup: passes over the pool that the warmup takes, by rows.
        saved: that the budget saves against scoring everything; None for a method without one.
        target_rows, held_out: rows of the task to select for, and those to evaluate on.
        repeats: pool rows in use that nearly repeat a row of the task.
        reselects: rows are selected in every period anew.
    """

    steps: int
    rate: float
    warmup: float
    saved: float | None
    target_rows: int
    held_out: int
    repeats: int
    reselects: bool


def too_few_steps(of: Before) -> str | None:
    """Where the steps are too few, and the rate too low, to move a weight by anything that matters."""
    if of.steps * of.rate >= LEAST_WAY:
        return None
    steps = "1 step" if of.steps == 1 else f"{of.steps} steps"
    return (
        f"training makes {steps} at a learning rate of at most {of.rate:g}, too few to learn much: raise "
        f"--lr, --top-p or --epochs-per-period, or lower --batch-size"
    )


def warmup_dearer_than_saving(of: Before) -> str | None:
    """Where the warmup takes more than the budget saves."""
    if of.saved is None or of.warmup <= of.saved:
        return None
    return (
        f"the warmup takes {of.warmup:.1f} passes over the pool, more than the {of.saved:.1f} that the "
        f"budget saves: lower --warmup-steps or --less-warmup, or score all rows with --bandit none"
    )


def nothing_held_out(of: Before) -> str | None:
    """Where the loss is of the rows that were selected for."""
    if of.held_out:
        return None
    return (
        "no rows are held out, so the loss is of rows that steered the selection: give other rows of the "
        "task with --holdout"
    )


def small_target(of: Before) -> str | None:
    """Where few rows stand for the task."""
    if of.target_rows >= FEW_ROWS:
        return None
    rows = "1 row" if of.target_rows == 1 else f"{of.target_rows} rows"
    return f"the target has {rows}, which hardly tell what the task is: give {FEW_ROWS} or more"


def task_in_pool(of: Before) -> str | None:
    """Where selecting anew finds again what one selection has found (docs/fidelity.md)."""
    if not (of.repeats and of.reselects):
        return None
    rows = "1 pool row nearly repeats" if of.repeats == 1 else f"{of.repeats:,} pool rows nearly repeat"
    return f"{rows} rows of the task: {ONE_SELECTION}"


@dataclass(frozen=True)
class After:
    """What is known at a run's end.

    Attributes:
        base, fall: the base's loss, and how far the adapter's is below it, the mean over rows.
        error: of the fall, over rows; None for one row.
        rise: of the adapter's loss above the lowest after an earlier period, with its error; None without.
        selected, everyone: mean influence of the first selection's rows, and of all that it scored.
        best: the highest influence there.
        chance: the highest that as many random directions would have.
        whole: all rows were scored there.
        own: share of these that are about as influential as the target's rows are on each other.
        reselects: rows are selected in every period anew.
    """

    base: float
    fall: float
    error: float | None
    rise: tuple[float, float | None] | None = None
    selected: float | None = None
    everyone: float | None = None
    best: float | None = None
    chance: float | None = None
    whole: bool = False
    own: float = 0.0
    reselects: bool = False


def unsure_fall(of: After) -> str | None:
    """Where the loss has not moved by more than its error."""
    if of.error is None or abs(of.fall) > SURE * of.error:
        return None
    return (
        f"the loss moved by {-of.fall:+.4f} ± {of.error:.4f}, which may be chance: train longer or with a "
        f"higher --lr, or evaluate on more --holdout rows"
    )


def rate_too_high(of: After) -> str | None:
    """Where the loss ends above the base's, or above where it was before."""
    if of.fall < 0 and (of.error is None or -of.fall > SURE * of.error):
        return f"the loss rose by {-of.fall:.4f}: the learning rate went too high, lower --lr"
    if of.rise is None or of.rise[1] is None or of.rise[0] <= SURE * of.rise[1]:
        return None
    return (
        f"the loss ends {of.rise[0]:.4f} ± {of.rise[1]:.4f} above its lowest: lower --lr, or train for fewer "
        f"--periods"
    )


def rate_too_low(of: After) -> str | None:
    """Where the loss surely fell, and by next to nothing."""
    if of.error is None or not SURE * of.error < of.fall < SLOW * of.base:
        return None
    return f"the loss fell by {of.fall / of.base:.1%} only: the learning rate stayed too low, raise --lr"


def all_alike(of: After) -> str | None:
    """Where the selected rows help the target hardly more than any row."""
    if not of.whole or of.selected is None or of.everyone is None:
        return None
    if of.everyone <= 0 or of.selected - of.everyone >= ALIKE * of.everyone:
        return None
    return (
        f"all rows are alike to the target (mean influence {of.everyone:.3f}, of the selected "
        f"{of.selected:.3f}): selecting gains little here, so take more rows with --top-p, or random ones"
    )


def target_far(of: After) -> str | None:
    """Where no row points to the target more than a random direction would."""
    if of.best is None or of.chance is None or of.best >= NOISE * of.chance:
        return None
    return (
        f"the target is far from everything in the pool (the highest influence is {of.best:.3f}, and chance "
        f"alone gives {of.chance:.3f}): compare with --method random, and look for rows nearer to the task"
    )


def task_found(of: After) -> str | None:
    """Where the first selection has found what a later one would look for again (docs/fidelity.md)."""
    if not (of.whole and of.reselects and of.own >= TASK_SHARE):
        return None
    return (
        f"about {of.own:.0%} of the pool is as influential as the target's own rows are on each other: "
        f"{ONE_SELECTION}"
    )


def own_influence(directions: NDArray[np.floating], rows: NDArray[np.int64]) -> float:
    """What a row of the task can be expected to have: `OWN` of what the target's have on each other.

    A direction d of n unit vectors has |d|² = (1 + (n - 1) c) / n, if c is their mean inner product with one
    another. Adam's direction of a row is another than its gradient's: of two jobs' rows of the target's kind,
    the best had 0.68 and 0.71 of c.

    Args:
        directions: of the subtasks, (S, d).
        rows: of each subtask, (S,); infinity if none has two.
    """
    squares = (directions.astype(np.float64) ** 2).sum(1)[rows > 1]
    n = rows[rows > 1]
    return OWN * float(np.mean((n * squares - 1) / (n - 1))) if len(n) else math.inf


def chance_influence(rows: int, directions: NDArray[np.floating]) -> float:
    """About the highest influence on `directions` (S, d) of so many rows whose features point anywhere.

    An inner product of a random unit vector with one of length l is nearly normal with deviation l / sqrt(d);
    the highest of n such is about sqrt(2 ln n) deviations.
    """
    count, dim = directions.shape
    longest = float(np.linalg.norm(directions, axis=1).max())
    return longest * math.sqrt(2 * math.log(max(2, rows * count)) / dim)


BEFORE: Sequence[Callable[[Before], str | None]] = (
    too_few_steps,
    warmup_dearer_than_saving,
    nothing_held_out,
    small_target,
    task_in_pool,
)
AFTER: Sequence[Callable[[After], str | None]] = (
    unsure_fall,
    rate_too_high,
    rate_too_low,
    all_alike,
    target_far,
    task_found,
)

Of = TypeVar("Of", Before, After)


def remarks(of: Of, known: Iterable[Callable[[Of], str | None]]) -> list[str]:
    """What there is to say, in order: `remarks(facts, BEFORE)`."""
    return [said for remark in known if (said := remark(of))]
