"""Plain ranking of an index's rows for any number of targets, by what is stored; nothing is trained.

    clusterucb.Index.open("indexes/pool").query("target.jsonl").write("selected.jsonl")

A row's score is its influence, as in the first selection of a run; but rows that nearly repeat the target's
are not kept out. Neither is the pool read, nor the index changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusterucb.config import Config, load_index
from clusterucb.data.chat import Encoded
from clusterucb.data.hub import index_folder
from clusterucb.data.pool import Pool
from clusterucb.features.influence import EndToEnd, Vectors, weighted_directions
from clusterucb.features.ranking import best_first, nearest, scores_of_all
from clusterucb.gradients.batches import USUAL_TOKENS
from clusterucb.run.directory import RunDir
from clusterucb.run.index import RunIndex, check_model
from clusterucb.run.inputs import Inputs
from clusterucb.run.session import Session
from clusterucb.run.sizing import Job
from clusterucb.runtime.files import check_made_with, publish, read_json, told
from clusterucb.runtime.memory import Room
from clusterucb.runtime.screen import Screen
from clusterucb.steps.hidden import hidden_rows
from clusterucb.steps.less import weights
from clusterucb.steps.words import word_rows
from clusterucb.training.adapter import load_adapter

Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True, eq=False)
class Ranking:
    """The best rows of an index for one target.

    Attributes:
        target: its name; "" if it was given none.
        rows: places in the index, by falling score, (n,).
        scores: (n,).
    """

    target: str
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    _index: Index
    _near: tuple[Vectors, Sequence[str], NDArray[np.floating]]

    @cached_property
    def ids(self) -> list[str]:
        """Of the rows, as the pool has them: "file:line"."""
        return self._index.ids(self.rows)

    @cached_property
    def nearest(self) -> list[str]:
        """For each row the id of the target row that it is most like."""
        features, ids, directions = self._near
        return [ids[at] for at in nearest(features, self.rows, directions).tolist()]

    def write(self, path: str | Path) -> None:
        """Publish the pool's lines of the rows, byte for byte, in the pool's order.

        Raises:
            InputError, MismatchError: the pool cannot be read, or is not the one that the index was made of.
        """
        chosen = self._index.pool_rows[self.rows]
        with publish(Path(path)) as part:
            self._index.pool.write(chosen.tolist(), part)


class Index:
    """An index on disk, open for queries. Make one with `Index.open`.

    Args:
        config: the settings that it was made with; its folder is `out`.
        screen: where progress is shown.
    """

    def __init__(self, config: Config, screen: Screen | None = None) -> None:
        self.config, self.dir = config.with_absolute_paths(), RunDir(config.out)
        self._screen = screen or Screen(quiet=True)
        self._loaded: dict[str, Any] = {"room": Room()}

    @classmethod
    def open(cls, path: str | Path, **settings: object) -> Index:
        """The index in a folder (of `clusterucb index`, or of a run), or `hub:org/name`.

        `settings` go over those that it was made with: `model` or `pool` that lie elsewhere by now, `device`.

        Raises:
            ConfigError: there is none.
        """
        return cls(load_index(index_folder(str(path)), settings))

    def query(self, target: Paths, top: int | None = None, *, subtask: str | None = None) -> Ranking:
        """The best rows for one target.

        Args:
            target: files as `--target` takes them, or a benchmark by name.
            top: how many rows; without it the share that the settings select (`top_p`).
            subtask: the column that groups the target's rows into subtasks.

        Raises:
            ClusterUCBError: the target cannot be read, the index is not finished or of another model.
        """
        (found,) = self.rank(_listed(target), top, subtask).values()
        return found

    def queries(
        self, targets: Mapping[str, Paths], top: int | None = None, *, subtask: str | None = None
    ) -> dict[str, Ranking]:
        """The same for many targets by name, in one pass over the store."""
        parts = [f"{name}={path}" for name, paths in targets.items() for path in _listed(paths)]
        return self.rank(parts, top, subtask)

    def rank(self, target: Sequence[str], top: int | None, subtask: str | None) -> dict[str, Ranking]:
        """By the names in a target as `--target` has it."""
        with TemporaryDirectory(prefix="clusterucb-query-") as scratch:
            session = self._session([*target], subtask, Path(scratch))
            aimed, rows = session.inputs.target, self._directions(session)
        index = self._stored(session)
        features = EndToEnd([index.store(number).features.in_one_pass for number in _numbers(session)])
        means = [rows[aimed.codes == code].mean(0) for code in range(len(aimed.subtasks))]
        with self._screen.track("rank", len(features), "rows") as advance:
            scores = scores_of_all(features, np.stack(means), aimed.task_codes, advance)
        count, owners = top or session.budget.keep(len(features)), aimed.task_codes[aimed.codes]
        found = {}
        for number, (name, of_all) in enumerate(zip(aimed.tasks, scores, strict=True)):
            best, own = best_first(of_all, count), np.flatnonzero(owners == number)
            near = (features, [aimed[row].id for row in own.tolist()], rows[own])
            found[name] = Ranking(name, best, of_all[best], self, near)
        return found

    def _session(self, target: list[str], subtask: str | None, scratch: Path) -> Session:
        """A session that leaves what a target leaves on disk in a folder that is gone in a moment."""
        tokens = self.config.gradients.batch_tokens or USUAL_TOKENS
        own = {"target": target, "subtask": subtask, "aim": "mean", "keep": "now", "batch_tokens": tokens}
        config = self.config.with_settings(own).with_absolute_paths()
        inputs = _TargetInputs(config, self.dir.over({"task": scratch}), self._screen)
        vars(inputs).update(self._loaded)
        session = Session(config, self._screen, inputs=inputs)
        session.decide(Job.of_rows(int(read_json(self.dir.pool / "manifest.json")["usable"])))
        self._loaded |= {"model": inputs.model, "tokenizer": inputs.tokenizer}
        return session

    def _stored(self, session: Session) -> RunIndex:
        """What is stored, whatever the pool's files are by now."""
        dtype = self.config.gradients.store_dtype
        return RunIndex(self.dir, session.taken_with, dtype, lambda: session.inputs.every)

    def _directions(self, session: Session) -> NDArray[np.float64]:
        """Of every target row, (n, d), those at several checkpoints end to end."""
        if session.method.words:
            return word_rows(session, self.dir.features)
        found = []
        for number in _numbers(session):
            folder = self._stored(session).checkpoint(number).folder
            check_model(folder, session.made_with_model)
            load_adapter(session.model, folder)
            found.append(self._rows(session, number))
        whole = len(found) == session.method.checkpoints
        return weighted_directions(found, weights(session) if whole else [1.0])

    def _rows(self, session: Session, number: int) -> NDArray[np.float32]:
        if session.method.by_likeness:
            return hidden_rows(session, self.dir.features_at(number))[0].astype(np.float32)
        target = session.inputs.targeted
        each = replace(target, codes=np.arange(len(target.ids)))
        found, _ = each.directions(session.featurizer(), session.batch_tokens, self._screen)
        assert isinstance(found, np.ndarray)
        return found

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """The pool's names of rows of the index."""
        wanted = set(rows.tolist())
        with (self.dir.pool / "ids.jsonl").open(encoding="utf-8") as lines:
            known = {row: json.loads(line)["id"] for row, line in enumerate(lines) if row in wanted}
        return [known[row] for row in rows.tolist()]

    @cached_property
    def pool_rows(self) -> NDArray[np.int64]:
        """The pool row of each row of the index, (N,)."""
        found: NDArray[np.int64] = np.load(self.dir.pool / "rows.npy")
        return found

    @cached_property
    def pool(self) -> Pool:
        """The pool, read when it is first asked for; MismatchError if it is not that of the index."""
        pool = Pool.read(self.config.pool)
        check_made_with(told(self.dir.pool), {"pool": pool.fingerprint}, str(self.dir.pool))
        return pool


class _TargetInputs(Inputs):
    """Those of a query: the pool's rows were looked at when the index was made."""

    @property
    def given(self) -> list[Sequence[Encoded]]:
        """The target's rows, which are all that the model is given."""
        return [self.targeted.tokens]


def _numbers(session: Session) -> range:
    return range(1, session.method.stored + 1)


def _listed(paths: Paths) -> list[str]:
    return [str(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
