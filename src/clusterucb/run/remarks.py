"""What a good colleague would say of a run, before it and after it: each remark with what to do.

`remarks` of the facts known then has a sentence for each thing there is to say. What the facts are of, and
where remarks are shown, others know.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clusterucb.features.influence import among_themselves

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
THEY_STAY = (
    "rows of the task itself had better stay when they are learned; try --features words with --keep auto"
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
        reselects: rows are selected in every period anew, whatever the pool has.
    """

    steps: int
    rate: float
    warmup: float
    saved: float | None
    target_rows: int
    held_out: int
    repeats: int
    reselects: bool

    def remarks(self) -> Iterator[str]:
        """What there is to say of it."""
        if self.steps * self.rate < LEAST_WAY:
            yield (
                f"training makes {_counted(self.steps, 'step')} at a learning rate of at most {self.rate:g}, "
                f"too few to learn much: raise --lr, --top-p or --epochs-per-period, or lower --batch-size"
            )
        if self.saved is not None and self.warmup > self.saved:
            yield (
                f"the warmup takes {self.warmup:.1f} passes over the pool, more than the {self.saved:.1f} "
                f"that the budget saves: lower --warmup-steps or --less-warmup, or score all rows with "
                f"--bandit none"
            )
        if not self.held_out:
            yield (
                "no rows are held out, so the loss is of rows that steered the selection: give other rows of "
                "the task with --holdout"
            )
        if self.target_rows < FEW_ROWS:
            rows = _counted(self.target_rows, "row")
            yield f"the target has {rows}, which hardly tell what the task is: give {FEW_ROWS} or more"
        if self.repeats and self.reselects:
            rows = (
                "1 pool row nearly repeats"
                if self.repeats == 1
                else f"{self.repeats:,} pool rows nearly repeat"
            )
            yield f"{rows} rows of the task: {THEY_STAY}"


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

    def remarks(self) -> Iterator[str]:
        """What there is to say of how the loss moved, and of the first selection."""
        yield from self._of_the_loss()
        if self.best is None or self.chance is None or self.selected is None or self.everyone is None:
            return
        if self.whole and self.everyone > 0 and self.selected - self.everyone < ALIKE * self.everyone:
            yield (
                f"all rows are alike to the target (mean influence {self.everyone:.3f}, of the selected "
                f"{self.selected:.3f}): selecting gains little here, so take more rows with --top-p, or "
                f"random ones"
            )
        if self.best < NOISE * self.chance:
            yield (
                f"the target is far from everything in the pool (the highest influence is {self.best:.3f}, "
                f"and chance alone gives {self.chance:.3f}): compare with --method random, and look for rows "
                f"nearer to the task"
            )
        if self.whole and self.reselects and self.own >= TASK_SHARE:
            yield (
                f"about {self.own:.0%} of the pool is as influential as the target's own rows are on each "
                f"other: {THEY_STAY}"
            )

    def _of_the_loss(self) -> Iterator[str]:
        fall, error = self.fall, self.error
        if error is not None and abs(fall) <= SURE * error:
            yield (
                f"the loss moved by {-fall:+.4f} ± {error:.4f}, which may be chance: train longer or with a "
                f"higher --lr, or evaluate on more --holdout rows"
            )
        if fall < 0 and (error is None or -fall > SURE * error):
            yield f"the loss rose by {-fall:.4f}: the learning rate went too high, lower --lr"
        elif self.rise and self.rise[1] is not None and self.rise[0] > SURE * self.rise[1]:
            yield (
                f"the loss ends {self.rise[0]:.4f} ± {self.rise[1]:.4f} above its lowest: lower --lr, or "
                f"train for fewer --periods"
            )
        if error is not None and SURE * error < fall < SLOW * self.base:
            share = f"{fall / self.base:.1%}"
            yield f"the loss fell by {share} only: the learning rate stayed too low, raise --lr"


def _counted(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}s"


def own_influence(directions: NDArray[np.floating], rows: NDArray[np.int64]) -> float:
    """What a row of the task can be expected to have: `OWN` of what the target's have on each other.

    Adam's direction of a row is another than its gradient's: of two jobs' rows of the target's kind, the best
    had 0.68 and 0.71 of that.

    Args:
        directions: of the subtasks, (S, d).
        rows: of each subtask, (S,); infinity if none has two.
    """
    several = rows > 1
    return (
        OWN * float(among_themselves(directions[several], rows[several]).mean())
        if several.any()
        else math.inf
    )


def chance_influence(rows: int, directions: NDArray[np.floating]) -> float:
    """About the highest influence on `directions` (S, d) of so many rows whose features point anywhere.

    An inner product of a random unit vector with one of length l is nearly normal with deviation l / sqrt(d);
    the highest of n such is about sqrt(2 ln n) deviations.
    """
    count, dim = directions.shape
    longest = float(np.linalg.norm(directions, axis=1).max())
    return longest * math.sqrt(2 * math.log(max(2, rows * count)) / dim)
