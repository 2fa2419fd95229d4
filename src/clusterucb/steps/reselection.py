"""Selecting by fresh features: whose are computed, a selector decides; the round they make is kept.

`Drawing` is the one way to draw. `Reselection` draws at a live model at the start of a training period.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from clusterucb.features.drawn import DrawnFeatures, DrawnWriter
from clusterucb.features.influence import Aim, Aimed, similarities
from clusterucb.features.knowledge import Knowledge
from clusterucb.features.scores import LiveInfluence, ScoreLog
from clusterucb.gradients.adam import Formula, Moments
from clusterucb.gradients.featurizer import Featurizer
from clusterucb.gradients.per_sample import trainable_parameters
from clusterucb.gradients.projection import Projection
from clusterucb.run.costs import Cost
from clusterucb.run.inputs import Pooled, Targeted
from clusterucb.run.rounds import Round, read_earlier, read_round, write_round
from clusterucb.runtime.files import made
from clusterucb.runtime.memory import Room
from clusterucb.runtime.processes import ALONE, World
from clusterucb.runtime.screen import Advance, Screen
from clusterucb.runtime.sharding import alike, whole_tensors
from clusterucb.selection.bandit import Draw, Selection
from clusterucb.selection.keep import Apart, Keep, kept
from clusterucb.selection.known import Known
from clusterucb.selection.selector import Selector
from clusterucb.selection.turns import Turns
from clusterucb.training.adapter import fingerprint_tensors


@dataclass(frozen=True)
class Fresh:
    """Features that are computed when they are asked for, and what they are compared with.

    Attributes:
        features: of one micro-batch of usable rows, (b,) to (b, d).
        aim: what they are compared with.
        weights: fingerprint of the weights that the features are taken at.
        cost: of the aim.
        gradients: how many the features of one row take.
    """

    features: Callable[[NDArray[np.int64]], NDArray[Any]]
    aim: Aimed
    weights: str
    cost: Cost
    gradients: int = 1


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Draws by fresh features, and writes the round.

    Attributes:
        pooled: rows to select from.
        selector: `ClusterUCB` or `RowUCB` with its clusters and budget, or `FullScoring`.
        batch_tokens: bound of a micro-batch.
        seed: each round draws by one of its own, made of this.
        screen: where progress is shown.
        world: processes that draw together, each with the same model, or with its part of a sharded one.
        keep: the keep rule, over the rounds that are there.
        apart: by what near duplicates give way, if they do.
        own: rows of the task itself, (N,), if half of a selection is for these.
        turns: who takes drawn rows in turn, if any do; the features of these are then in the round's folder.
    """

    pooled: Pooled
    selector: Selector
    batch_tokens: int = 4096
    seed: int = 0
    screen: Screen = field(default_factory=lambda: Screen(quiet=True))
    world: World = ALONE
    keep: Keep = "now"
    apart: Apart | None = None
    own: NDArray[np.bool_] | None = None
    turns: Turns | None = None

    def draw(
        self,
        part: Path,
        number: int,
        fresh: Fresh,
        known: Known | None = None,
        earlier: Sequence[Path] = (),
    ) -> None:
        """Select, and write round `number` into `part`, where scores of a killed attempt are looked up first.

        `known` is what is known of the rows before they are drawn, `earlier` the folders of earlier rounds.
        """
        draws: list[Draw] = []
        spend, title = self.selector.spend, f"select, round {number}"
        with (
            ScoreLog(part / "scores.jsonl", fresh.weights, self.world) as log,
            self.screen.track(title, spend, "rows") as advance,
        ):
            shown = _Shown(self.screen, number, draws, advance)
            influence = LiveInfluence(
                fresh.features, self.pooled.lengths, fresh.aim, self.batch_tokens, log, shown.scored
            )
            selection = self.selector(influence, round_seed(self.seed, number), shown.drawn, known)
            seconds = log.seconds
        if selection.spent < spend:
            self.screen.say(
                f"{title}: ended at {selection.spent} of {spend} rows, as "
                f"{selection.expected_change:.1%} of the selection is expected to change by drawing all"
            )
        rows, tokens = selection.spent, int(self.pooled.lengths[selection.drawn].sum())
        times = fresh.gradients
        cost = Cost(times * rows, times * tokens, times * rows, seconds=seconds) + fresh.cost
        if self.turns:
            selection = self._in_turns(self.turns, part, selection, fresh.aim)
        before = [] if self.keep == "now" else [*map(read_earlier, earlier)]
        selection = kept(self.keep, selection, self.selector.clusters, before, self.apart, self.own)
        keep_round(part, number, selection, cost, self.pooled, self.screen, self.world, draws)

    def _in_turns(self, turns: Turns, part: Path, selection: Selection, aim: Aimed) -> Selection:
        """The rows that are taken in turn of those that were drawn, whose features are in `part`."""
        self.world.gather(None)  # all have written theirs
        drawn = np.sort(selection.drawn)
        found = np.empty((aim.shape[0], len(drawn)), np.float32)
        for rows, features in DrawnFeatures(part).blocks():
            found[:, np.searchsorted(drawn, rows)] = similarities(features, aim)
        return turns.select(selection, drawn, [found], self.selector.clusters)


@dataclass
class _Shown:
    """Tells of a selection while it is made."""

    screen: Screen
    number: int
    draws: list[Draw]
    advance: Advance
    mean: float = 0.0

    def scored(self, rows: int) -> None:
        """So many rows more have a score."""
        if not self.draws:
            self.advance(rows)
            return
        note = f"draw {len(self.draws)}, cluster {self.draws[-1].arm}, mean influence {self.mean:.3f}"
        self.advance(rows, note, mean_influence=self.mean)

    def drawn(self, draw: Draw) -> None:
        """The selector has decided on a draw, and knows its scores."""
        self.draws.append(draw)
        self.mean += (float(draw.scores.mean()) - self.mean) / len(self.draws)
        self.screen.tell(
            "draw",
            round=self.number,
            draw=draw.step,
            cluster=draw.arm,
            cold=draw.cold,
            rows=len(draw.rows),
            mean=float(draw.scores.mean()),
            largest=float(draw.scores.max()),
        )


@dataclass(frozen=True, kw_only=True)
class Reselection(Drawing):
    """Draws the rows of a period with the model as it is then.

    Call it with (period, model, moments): a period whose round is in `folder` already is read, not
    computed; a selection that was killed goes on from the scores it had.

    Attributes:
        targeted: rows to select for.
        projection: the one that the clusters' features were made with.
        folder: where round n becomes `folder/n`.
        formula: of the Adam direction.
        top: gradients are of the upper half of the layers.
        knowledge: of rows before they are drawn, for a selector that asks; it then keeps the features of
            drawn rows for later rounds.
        aim: what rows are compared with of the target.
        first: the folder of round 1, where it is another than `folder/1`.
        spent: told the seconds of each selection that was computed here.
        room: what has fitted into memory so far.
    """

    targeted: Targeted
    projection: Projection
    folder: Path
    formula: Formula = "less"
    top: bool = False
    knowledge: Knowledge | None = None
    aim: Aim = "mean"
    first: Path | None = None
    spent: Callable[[float], None] = lambda _seconds: None
    room: Room = field(default_factory=Room)

    def __call__(self, period: int, model: nn.Module, moments: Callable[[], Moments]) -> NDArray[np.int64]:
        """The rows of `period`, ascending, (L,)."""
        return self.round(period, model, moments).rows

    def round(self, period: int, model: nn.Module, moments: Callable[[], Moments]) -> Round:
        """The selection of `period`, computed or read."""
        self.world.check_complete()

        def select(part: Path) -> None:
            started = time.monotonic()
            self._select(period, model, moments(), part, alike(self.world, model))
            self.spent(time.monotonic() - started)

        return made(self.folder / str(period), select, read_round, resume=True, world=self.world)

    def _select(self, period: int, model: nn.Module, moments: Moments, part: Path, world: World) -> None:
        settings: dict[str, Any] = {"formula": self.formula, "room": self.room, "top": self.top}
        plain = Featurizer(model, self.projection, **settings)
        aim, cost = self.targeted.directions(plain, self.batch_tokens, self.screen, world, self.aim)
        weights = fingerprint_tensors(whole_tensors(trainable_parameters(model)))
        featurize = Featurizer(model, self.projection, moments, **settings)
        first = self.first or self.folder / "1"
        rounds = [first, *(self.folder / str(number) for number in range(2, period))] if period > 1 else []
        earlier = [folder for folder in rounds if folder.exists()]
        known = known_to(self.selector, self.knowledge, aim, earlier)
        live = Fresh(partial(self.pooled.features, featurize), aim, weights, cost)
        remember = known is not None or self.turns is not None
        with remembered(live, part, world) if remember else nullcontext(live) as fresh:
            replace(self, world=world).draw(part, period, fresh, known, earlier)


@contextmanager
def remembered(fresh: Fresh, part: Path, world: World) -> Iterator[Fresh]:
    """The same features, which are kept in a round's folder as they are computed."""
    with DrawnWriter(part, fresh.aim.shape[1], world.rank) as writer:

        def features(rows: NDArray[np.int64]) -> NDArray[Any]:
            found = fresh.features(rows)
            writer.add(rows, found.astype(np.float16, copy=False))
            return found

        yield replace(fresh, features=features)


def known_to(
    selector: Selector,
    knowledge: Knowledge | None,
    aim: Aimed,
    rounds: Sequence[Path] = (),
) -> Known | None:
    """What a selector asks to be told of rows, for a target and by these earlier rounds."""
    if knowledge is None or selector.asks == "nothing":
        return None
    return knowledge.at(aim, rounds, features=selector.asks == "features")


def keep_round(
    part: Path,
    number: int,
    selection: Selection,
    cost: Cost,
    pooled: Pooled,
    screen: Screen,
    world: World,
    draws: Sequence[Draw] = (),
) -> None:
    """Write round `number` into `part`, by the process that leads, and tell the log of it."""
    if world.leads:
        screen.tell("selected", **write_round(part, number, selection, draws, pooled.pool, pooled.rows, cost))


def round_seed(seed: int, number: int) -> int:
    """An independent seed for each round."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
