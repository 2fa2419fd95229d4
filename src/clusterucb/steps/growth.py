"""An index of a pool that has changed since: what is known of the rows that stayed is taken over.

A row's feature depends on the checkpoint and on its own tokens alone. So rows with the same tokens keep it,
byte for byte, the new ones alone are gone through, and those that left drop out. The checkpoint stays, and so
does the mean that is taken from hidden states; clusters are made anew.

The index is made beside the old one, and takes its place when it is whole.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clusterucb.config import Config, load, reconcile
from clusterucb.data.chat import Encoded
from clusterucb.data.tokens import FittedTokens, Tokens
from clusterucb.features.store import FeatureStore, FeatureWriter
from clusterucb.run.directory import RunDir
from clusterucb.run.session import Session
from clusterucb.runtime.files import publish, publish_folder, told


def has_other_pool(session: Session) -> bool:
    """Whether the index that is there is of another pool than the session's."""
    there = session.dir.pool
    return there.exists() and told(there)["pool"] != session.inputs.pool.fingerprint


def restore(out: Path) -> None:
    """Put an index back that a kill has left aside."""
    if not out.exists() and _aside(out).exists():
        _aside(out).rename(out)


@contextmanager
def growing(before: Session) -> Iterator[Session]:
    """A session beside the one of an index, in whose place it comes when the block ends well.

    Raises:
        BusyError: another process holds it.
        ConfigError: another setting than the pool has changed too.
    """
    old, given = before.dir, before.config
    saved = load(old.config, {"out": given.out, "pool": given.pool})
    reconcile(saved, given, str(old.config))
    config = given.filled(saved)
    new = config.model_copy(update={"out": f"{config.out}.part"})
    session = Session(new, before.screen, before.world)
    session.inputs.pool, session.grown_from = before.inputs.pool, old
    with ExitStack() as held:
        before.world.lead(lambda: held.enter_context(old.owned()))
        with session.owned():
            before.world.lead(lambda: _copy_checkpoints(session, old))
            yield session
        before.world.lead(lambda: _swap(session.dir, config))


def _copy_checkpoints(session: Session, old: RunDir) -> None:
    """What depends on no new row: the adapter before training, the warmup's checkpoints, a template's day."""
    folders = {old.initial: session.dir.initial}
    folders |= {old.checkpoint(n): session.dir.checkpoint(n) for n in session.method.numbers}
    for there, here in folders.items():
        if not here.exists():
            with publish_folder(here) as part:
                shutil.copytree(there, part, dirs_exist_ok=True)
    if old.began.exists() and not session.dir.began.exists():
        with publish(session.dir.began) as part:
            shutil.copyfile(old.began, part)


def _swap(new: RunDir, config: Config) -> None:
    out = Path(config.out)
    with publish(new.config) as part:
        part.write_text(config.to_yaml(), encoding="utf-8")
    out.rename(_aside(out))
    new.path.rename(out)
    shutil.rmtree(_aside(out))


def _aside(out: Path) -> Path:
    return out.with_name(f"{out.name}.old")


def take_over(session: Session, writer: FeatureWriter, number: int) -> NDArray[np.int64]:
    """The rows whose features are to be computed: all, or those that an index which grows has not stored.

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
