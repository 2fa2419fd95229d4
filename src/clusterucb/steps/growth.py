"""An index of a pool that is not that of another: what is known there of the same rows is taken over.

A row's feature depends on the checkpoint and on its own tokens alone. So rows with the same tokens keep it,
byte for byte, the new ones alone are gone through, and those that left drop out. The checkpoint stays, and so
does the mean that is taken from hidden states; clusters are made anew.

The index is made beside its place, which it takes when it is whole: from an index that was there before, or
from one elsewhere, which stays as it is.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clusterucb.config import Config, load, reconcile
from clusterucb.data.chat import Encoded
from clusterucb.data.tokens import FittedTokens, Tokens
from clusterucb.features.store import FeatureStore, FeatureWriter
from clusterucb.run.directory import RunDir
from clusterucb.run.index import begun_at
from clusterucb.run.session import Session
from clusterucb.runtime.files import made, publish, told
from clusterucb.runtime.processes import World
from clusterucb.runtime.screen import Screen


@contextmanager
def indexing(config: Config, old: Path | None, screen: Screen | None, world: World) -> Iterator[Session]:
    """A session that makes an index of the settings' pool, which grows where there is one to grow from.

    That is the one of another pool at its place or, if there is none, the one in the folder `old`.

    Raises:
        BusyError: another process holds the place.
        ConfigError: either was made with other settings, or the one to grow from is not finished.
    """
    place = Path(config.out)
    world.lead(lambda: _tidy(place))
    session = Session(config, screen, world)
    if (source := _source(session, old)) is None:
        with session.owned():
            yield session
        return
    there, config = begun_at(session.config.with_settings({"index": str(source)}))
    beside = Session(config.with_settings({"index": None, "out": f"{place}.part"}), screen, world)
    beside.inputs.pool, beside.grown_from = session.inputs.pool, there
    with ExitStack() as held:
        world.lead(lambda: held.enter_context(session.dir.owned()))
        with beside.owned():
            world.lead(lambda: _copy_checkpoints(beside, there))
            yield beside
        world.lead(lambda: _move(beside, place))


def _source(session: Session, old: Path | None) -> Path | None:
    """The folder of the index to grow from, if there is one."""
    here, given = session.dir, session.config
    if not here.pool.exists():
        return old if old and RunDir(old).pool.exists() else None
    if told(here.pool)["pool"] == session.inputs.pool.fingerprint:
        return None
    reconcile(load(here.config, {"out": given.out, "pool": given.pool}), given, str(here.config))
    return here.path


def _tidy(place: Path) -> None:
    """What a kill has left aside becomes the index again, unless the new one is there."""
    if _aside(place).exists():
        shutil.rmtree(_aside(place)) if place.exists() else _aside(place).rename(place)


def _copy_checkpoints(session: Session, old: RunDir) -> None:
    """What depends on no new row: the adapter before training, the warmup's checkpoints, a template's day."""
    folders = {old.initial: session.dir.initial}
    folders |= {old.checkpoint(n): session.dir.checkpoint(n) for n in session.method.numbers}
    for there, here in folders.items():
        made(here, partial(shutil.copytree, there, dirs_exist_ok=True), Path.exists)
    if old.began.exists():
        made(session.dir.began, partial(shutil.copyfile, old.began), Path.exists)


def _move(session: Session, place: Path) -> None:
    """Give an index that is whole its place."""
    with publish(session.dir.config) as part:
        part.write_text(session.lasting.with_settings({"out": str(place)}).to_yaml(), encoding="utf-8")
    place.rename(_aside(place))
    session.dir.path.rename(place)
    shutil.rmtree(_aside(place))


def _aside(place: Path) -> Path:
    return place.with_name(f"{place.name}.old")


def take_over(session: Session, writer: FeatureWriter, number: int) -> NDArray[np.int64]:
    """The rows whose features are to be computed: all, or those that the index it grows from has not stored.

    What it has stored of the others, at warmup checkpoint `number`, is written.
    """
    tokens, old = session.inputs.every.tokens, session.grown_from
    if old is None:
        return np.arange(len(tokens))
    before = FittedTokens(Tokens.open(old.pool), session.config.gradients.gradient_length)
    places = {_digest(row): place for place, row in enumerate(before)}
    there = np.array([places.get(_digest(row), -1) for row in tokens], np.int64)
    known = np.flatnonzero(there >= 0)
    session.screen.say(f"{len(known)} of {len(there)} rows were in the index before")
    writer.adopt(FeatureStore(old.features_at(number)), known, there[known])
    return np.flatnonzero(there < 0)


def _digest(row: Encoded) -> bytes:
    return hashlib.blake2b(row.ids.tobytes() + row.labels.tobytes(), digest_size=16).digest()
