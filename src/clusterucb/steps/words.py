"""Features by the words of pool and target: no model is asked, so no checkpoint is either."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clusterucb.data.chat import Encoded
from clusterucb.errors import InputError
from clusterucb.features.influence import Subspace, aimed, means, own_rows
from clusterucb.features.words import BLOCK, NEAR, SEVERAL, Words
from clusterucb.gradients.featurizer import Found
from clusterucb.run.costs import Cost
from clusterucb.run.session import Session
from clusterucb.runtime.files import made
from clusterucb.selection.share import top
from clusterucb.steps.growth import take_over

WORDS = "words.npz"
"""What is known of the pool's words, beside the features, for targets to come."""


def take_words(session: Session, part: Path, made_with: Mapping[str, object]) -> None:
    """Write a feature of every usable row's words, (N, width); an index that grows keeps the axes it had."""
    session.begin()
    every, old, world = session.inputs.every, session.grown_from, session.world.at("gradients")

    def know(path: Path) -> None:
        if world.leads:
            words = Words.load(old.features / WORDS) if old else Words.of(every.tokens)
            words.save(path)

    words = made(part / WORDS, know, Words.load, world=world)

    def compute(batches: Sequence[NDArray[np.int64]]) -> Iterator[Found]:
        for rows in batches:
            found = _found(words, *every.batch(rows))
            yield found.astype(np.float16), np.full(len(rows), np.nan)

    with session.store(every, part, words.axes.shape[1], made_with, "words of the pool") as (writer, advance):
        rows = take_over(session, writer, 1)
        writer.fill(np.split(rows, range(BLOCK, len(rows), BLOCK)), compute, advance)
        writer.finish({"cost": Cost(len(every), seconds=writer.seconds).to_json()})


def word_directions(session: Session, features: Path) -> tuple[NDArray[np.float32] | Subspace, Cost]:
    """The target's directions, (S, width), beside these `features`, by the aim; they cost nothing."""
    found = word_rows(session, features)
    return aimed(session.config.selection.aim, found, session.inputs.targeted.codes), Cost()


def word_rows(session: Session, features: Path) -> NDArray[np.float64]:
    """The same for each target row, (n, width)."""
    target = session.inputs.targeted
    return _found(Words.load(features / WORDS), target.tokens, target.ids.__getitem__)


def near_by_words(session: Session, likeness: NDArray[np.float64]) -> bool:
    """Whether any row of the pool is near the task, of those that are so most along the axes, (N,).

    It is if it has half of what the task's rows have among themselves; also where that cannot be told.
    """
    pooled, target = session.inputs.pooled, session.inputs.targeted
    nearest = top(likeness, min(SEVERAL, len(likeness)))
    words = Words.load(session.dir.features_at(1) / WORDS)
    directions = means(words.whole(target.tokens), target.codes)
    rows, counts = words.whole(pooled.batch(nearest)[0]), np.bincount(target.codes)
    return own_rows(rows, directions, counts, share=NEAR)[1]


def _found(words: Words, rows: Sequence[Encoded], describe: Callable[[int], str]) -> NDArray[np.float64]:
    """Features of these rows, (n, width); InputError for one that has none."""
    found = words(rows)
    if not (usable := found.any(1)).all():
        raise InputError(
            f"{describe(int(usable.argmin()))}: its words are those of all rows, or of none; take it out of "
            "the file, or use --features hidden"
        )
    return found
