"""One ClusterUCB re-selection at a live model: target directions, then the bandit over fresh gradients."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from clusterucb.costs import Cost
from clusterucb.data.chat import Encoded
from clusterucb.data.pool import Pool
from clusterucb.gradients.adam import Formula, Moments
from clusterucb.gradients.features import Featurizer, target_directions
from clusterucb.gradients.influence import LiveInfluence, ScoreLog
from clusterucb.gradients.per_sample import trainable_parameters
from clusterucb.gradients.projection import Projection
from clusterucb.profiling import stage
from clusterucb.progress import Screen
from clusterucb.rounds import Round, read_round, write_round
from clusterucb.rundir import publish_folder
from clusterucb.selection.bandit import Draw, DrawBatchArms, select
from clusterucb.selection.policies import Policy, UCBBeta
from clusterucb.selection.share import share
from clusterucb.training.model import fingerprint_tensors

__all__ = ["Pooled", "Reselection", "Targeted", "round_seed"]


@dataclass(frozen=True)
class Pooled:
    """The usable rows of a pool as tokens for gradients.

    Attributes:
        pool: where they come from.
        rows: the pool row of each usable row, (N,).
        tokens: of each usable row, cut to the gradient length.
        lengths: tokens of each, (N,).
    """

    pool: Pool
    rows: NDArray[np.int64]
    tokens: Sequence[Encoded]
    lengths: NDArray[np.int64]

    def describe(self, row: int) -> str:
        """The id of a usable row."""
        return self.pool.id(int(self.rows[row]))


@dataclass(frozen=True)
class Targeted:
    """The target's rows as tokens.

    Attributes:
        ids: of the rows.
        tokens: of each row, cut to the target length.
        codes: subtask of each row, (n,).
    """

    ids: Sequence[str]
    tokens: Sequence[Encoded]
    codes: NDArray[np.int64]

    def cost(self, seconds: float) -> Cost:
        """Of one gradient of every row."""
        tokens = sum(len(row.ids) for row in self.tokens)
        return Cost(tokens=tokens, target_gradients=len(self.ids), seconds=seconds)


@dataclass(frozen=True)
class Reselection:
    """Selects the rows of a period with the model as it is then.

    Call it with (period, model, moments): a period whose round is in `folder` already is read, not
    computed; a selection that was killed goes on from the scores it had.

    Attributes:
        pooled: rows to select from.
        targeted: rows to select for.
        clusters: label of each row, (N,).
        projection: the one that the clusters' features were made with.
        folder: where round n becomes `folder/n`.
        policy, budget, cold_start, top_p, draw_batch, draw_batch_arms, seed: as in `select`.
        formula: of the Adam direction.
        batch_tokens: bound of a micro-batch.
        screen: where progress is shown.
        spent: told the seconds of each selection that was computed here.
    """

    pooled: Pooled
    targeted: Targeted
    clusters: NDArray[np.int64]
    projection: Projection
    folder: Path
    policy: Policy = field(default_factory=UCBBeta)
    budget: float = 0.2
    cold_start: float = 0.02
    top_p: float = 0.05
    draw_batch: int = 8
    draw_batch_arms: DrawBatchArms = "one"
    seed: int = 0
    formula: Formula = "less"
    batch_tokens: int = 4096
    screen: Screen = field(default_factory=lambda: Screen(quiet=True))
    spent: Callable[[float], None] = lambda _seconds: None

    def __call__(self, period: int, model: nn.Module, moments: Callable[[], Moments]) -> NDArray[np.int64]:
        """The rows of `period`, ascending, (L,)."""
        return self.round(period, model, moments).rows

    def round(self, period: int, model: nn.Module, moments: Callable[[], Moments]) -> Round:
        """The selection of `period`, computed or read."""
        folder = self.folder / str(period)
        if not folder.exists():
            started = time.monotonic()
            with publish_folder(folder, resume=True) as part:
                self._select(period, model, moments(), part)
            self.spent(time.monotonic() - started)
        return read_round(folder)

    def _select(self, period: int, model: nn.Module, moments: Moments, part: Path) -> None:
        directions, target_cost = self.directions(model)
        weights = fingerprint_tensors(trainable_parameters(model))
        drawn: list[Draw] = []
        total = share(self.budget, len(self.clusters))
        with (
            stage("decide"),
            ScoreLog(part / "scores.jsonl", weights) as log,
            self.screen.track(f"select for period {period}", total, "rows") as advance,
        ):
            mean = 0.0

            def progress(rows: int, _tokens: int) -> None:
                advance(rows, f"draw {len(drawn)}, mean influence {mean:.3f}")

            def on_draw(draw: Draw) -> None:
                nonlocal mean
                drawn.append(draw)
                mean += (float(draw.scores.mean()) - mean) / len(drawn)

            selection = select(
                self.clusters,
                LiveInfluence(
                    Featurizer(model, self.projection, moments, self.formula),
                    self.pooled.tokens,
                    self.pooled.lengths,
                    directions,
                    self.batch_tokens,
                    log,
                    self.pooled.describe,
                    progress,
                ),
                self.policy,
                budget=self.budget,
                cold_start=self.cold_start,
                top_p=self.top_p,
                draw_batch=self.draw_batch,
                draw_batch_arms=self.draw_batch_arms,
                seed=round_seed(self.seed, period),
                on_draw=on_draw,
            )
            seconds = log.seconds
        tokens = int(self.pooled.lengths[selection.drawn].sum())
        cost = Cost(selection.spent, tokens, selection.spent, 0, seconds) + target_cost
        write_round(part, period, selection, drawn, self.pooled.pool, self.pooled.rows, cost)

    def directions(self, model: nn.Module) -> tuple[NDArray[np.float32], Cost]:
        """Directions of the subtasks at the model's current weights, (S, d), and their cost."""
        started = time.monotonic()
        target = self.targeted
        with self.screen.track("target directions", len(target.ids), "rows") as advance:
            directions = target_directions(
                Featurizer(model, self.projection),
                target.tokens,
                target.codes,
                self.batch_tokens,
                lambda i: target.ids[i],
                advance,
            )
        return directions, target.cost(time.monotonic() - started)


def round_seed(seed: int, number: int) -> int:
    """An independent seed for each round."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
