"""One re-selection at a live model: target directions, then a selection by fresh gradients."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from clusterucb.features.drawn import DrawnWriter
from clusterucb.features.knowledge import Knowledge
from clusterucb.features.scores import LiveInfluence, ScoreLog
from clusterucb.gradients.adam import Formula, Moments
from clusterucb.gradients.featurizer import Featurizer
from clusterucb.gradients.per_sample import trainable_parameters
from clusterucb.gradients.projection import Projection
from clusterucb.run.costs import Cost
from clusterucb.run.inputs import Pooled, Targeted
from clusterucb.run.rounds import Round, read_round, write_round
from clusterucb.runtime.files import publish_folder
from clusterucb.runtime.processes import ALONE, World
from clusterucb.runtime.screen import Screen
from clusterucb.runtime.sharding import alike, whole_tensors
from clusterucb.selection.bandit import Draw
from clusterucb.selection.known import Known
from clusterucb.selection.selector import Selector
from clusterucb.training.adapter import fingerprint_tensors


@dataclass(frozen=True)
class Reselection:
    """Selects the rows of a period with the model as it is then.

    Call it with (period, model, moments): a period whose round is in `folder` already is read, not
    computed; a selection that was killed goes on from the scores it had.

    Attributes:
        pooled: rows to select from.
        targeted: rows to select for.
        selector: `ClusterUCB` or `RowUCB` with its clusters and budget, or `FullScoring`.
        projection: the one that the clusters' features were made with.
        folder: where round n becomes `folder/n`.
        seed: each round draws by one of its own, made of this.
        formula: of the Adam direction.
        batch_tokens: bound of a micro-batch.
        knowledge: of rows before they are drawn, for a selector that asks; it then keeps the features of
            drawn rows for later rounds.
        screen: where progress is shown.
        spent: told the seconds of each selection that was computed here.
        world: processes that select together, each with the same model, or with its part of a sharded one.
    """

    pooled: Pooled
    targeted: Targeted
    selector: Selector
    projection: Projection
    folder: Path
    seed: int = 0
    formula: Formula = "less"
    batch_tokens: int = 4096
    knowledge: Knowledge | None = None
    screen: Screen = field(default_factory=lambda: Screen(quiet=True))
    spent: Callable[[float], None] = lambda _seconds: None
    world: World = ALONE

    def __call__(self, period: int, model: nn.Module, moments: Callable[[], Moments]) -> NDArray[np.int64]:
        """The rows of `period`, ascending, (L,)."""
        return self.round(period, model, moments).rows

    def round(self, period: int, model: nn.Module, moments: Callable[[], Moments]) -> Round:
        """The selection of `period`, computed or read."""
        self.world.check_complete()
        folder = self.folder / str(period)
        if not self.world.has(folder):
            started = time.monotonic()
            with publish_folder(folder, resume=True, world=self.world) as part:
                there = replace(self, world=alike(self.world, model))
                there._select(period, model, moments(), part)
            self.spent(time.monotonic() - started)
        return read_round(folder)

    def known(self, directions: NDArray[np.floating], rounds: Sequence[Path] = ()) -> Known | None:
        """What the selector asks to be told of rows, for directions (S, d) and by these earlier rounds."""
        asks = self.selector.asks
        if self.knowledge is None or asks == "nothing":
            return None
        return self.knowledge.at(directions, rounds, features=asks == "features")

    def _select(self, period: int, model: nn.Module, moments: Moments, part: Path) -> None:
        directions, target_cost = self.targeted.directions(
            model, self.projection, self.batch_tokens, self.screen, self.world
        )
        weights = fingerprint_tensors(whole_tensors(trainable_parameters(model)))
        featurize = Featurizer(model, self.projection, moments, self.formula)
        known = self.known(directions, [self.folder / str(number) for number in range(1, period)])
        with DrawnWriter(part, self.projection.dim, self.world.rank) if known else nullcontext() as kept:

            def features(rows: NDArray[np.int64]) -> NDArray[np.float16]:
                found = self.pooled.features(featurize, rows)[0]
                if kept:
                    kept.add(rows, found)
                return found

            self.write(part, period, features, directions, weights, target_cost, known=known)

    def write(
        self,
        part: Path,
        number: int,
        features: Callable[[NDArray[np.int64]], NDArray[Any]],
        directions: NDArray[np.floating],
        weights: str,
        target_cost: Cost,
        gradients: int = 1,
        known: Known | None = None,
    ) -> None:
        """Select by features that are computed when they are asked for, and write the round into `part`.

        Args:
            part: a folder that the caller publishes; scores of a killed attempt in it are not computed again.
            number: of the round.
            features: of one micro-batch of usable rows, (b,) to (b, d).
            directions: of the subtasks, (S, d).
            weights: fingerprint of the weights that the features are taken at.
            target_cost: of the directions.
            gradients: how many the features of one row take.
            known: of the rows before they are drawn.
        """
        drawn: list[Draw] = []
        with (
            ScoreLog(part / "scores.jsonl", weights, self.world) as log,
            self.screen.track(f"select, round {number}", self.selector.spend, "rows") as advance,
        ):
            mean = 0.0

            def progress(rows: int, _tokens: int) -> None:
                if drawn:
                    note = f"draw {len(drawn)}, cluster {drawn[-1].arm}, mean influence {mean:.3f}"
                    advance(rows, note, mean_influence=mean)
                else:
                    advance(rows)

            def on_draw(draw: Draw) -> None:
                nonlocal mean
                drawn.append(draw)
                mean += (float(draw.scores.mean()) - mean) / len(drawn)
                self._tell(number, draw)

            influence = LiveInfluence(
                features, self.pooled.lengths, directions, self.batch_tokens, log, progress
            )
            selection = self.selector(influence, round_seed(self.seed, number), on_draw, known)
            seconds = log.seconds
        if selection.spent < self.selector.spend:
            self.screen.say(
                f"select, round {number}: ended at {selection.spent} of {self.selector.spend} rows, as "
                f"{selection.expected_change:.1%} of the selection is expected to change by drawing all"
            )
        rows, tokens = selection.spent, int(self.pooled.lengths[selection.drawn].sum())
        cost = Cost(gradients * rows, gradients * tokens, gradients * rows, 0, seconds) + target_cost
        if not self.world.leads:
            return
        summary = write_round(part, number, selection, drawn, self.pooled.pool, self.pooled.rows, cost)
        self.screen.tell("selected", **summary)

    def _tell(self, number: int, draw: Draw) -> None:
        self.screen.tell(
            "draw",
            round=number,
            draw=draw.step,
            cluster=draw.arm,
            cold=draw.cold,
            rows=len(draw.rows),
            mean=float(draw.scores.mean()),
            largest=float(draw.scores.max()),
        )


def round_seed(seed: int, number: int) -> int:
    """An independent seed for each round."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
