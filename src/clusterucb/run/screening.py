"""Which pool rows are kept out of a run, and why: texts that training must not see.

Checked before anything is computed, by equal text and by the n-grams shared (see data/contamination.py):

    target rows of a benchmark       always kept out, as they come from the data that the pool may hold
    own target rows, held-out rows   reported; kept out with `decontaminate`
    evaluation questions             reported; kept out with `decontaminate`
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from clusterucb.config import Config
from clusterucb.data.contamination import COMMON, Hit, Probe, ProbeIndex, contaminated
from clusterucb.data.pool import Pool
from clusterucb.data.rows import Row
from clusterucb.data.target import Target
from clusterucb.errors import InputError
from clusterucb.run.directory import RunDir
from clusterucb.runtime.files import read_json
from clusterucb.runtime.screen import Advance, Screen
from clusterucb.tasks import chosen
from clusterucb.tasks.task import Task

_CALLED = {"target": "the target", "holdout": "the held-out rows"}


@dataclass(frozen=True)
class Screening:
    """What contamination.json says."""

    content: Mapping[str, Any]

    @property
    def kept_out(self) -> dict[int, str]:
        """The reason for each pool row that is kept out."""
        return {hit["row"]: _reason(hit) for hit in self.content["hits"] if hit["kept_out"]}

    @property
    def of_the_task(self) -> int:
        """Rows in use that nearly repeat one of the task's."""
        return sum(not hit["kept_out"] for hit in self.content["hits"])

    @property
    def excluded(self) -> list[dict[str, str]]:
        """Id and reason of each that is kept out."""
        return [{"id": hit["id"], "reason": _reason(hit)} for hit in self.content["hits"] if hit["kept_out"]]

    @property
    def fingerprint(self) -> str:
        """A hash of the rows that are kept out."""
        return hashlib.sha256(json.dumps(sorted(self.kept_out)).encode()).hexdigest()[:16]

    def report(self) -> Iterator[str]:
        """Lines for the person: one for the rows kept out, one for those that were only noticed."""
        for kept, said in ((True, "are kept out"), (False, "are in use; --decontaminate keeps them out")):
            whose = Counter(hit["whose"] for hit in self.content["hits"] if hit["kept_out"] == kept)
            if whose:
                parts = ", ".join(f"{name} {count}" for name, count in whose.most_common())
                yield f"pool rows that nearly repeat what training must not see ({parts}) {said}"


def screened(
    config: Config, pool: Pool, target: Target, holdout: Target | None, screen: Screen
) -> dict[str, Any]:
    """Look through the pool: the content of contamination.json.

    Raises InputError if a target row of the person's own is a question of the evaluation.
    """
    unseen = [_unseen("target", target, config.decontaminate or not config.own_target)]
    if holdout is not None:
        unseen.append(_unseen("holdout", holdout, config.decontaminate))
    questions = {
        name: [Probe(question.id, question.core) for question in task.questions(config.data_folder, shots)]
        for name, (task, shots) in _asked(config).items()
    }
    if questions:
        index = ProbeIndex(chain.from_iterable(questions.values()))
        unseen.append(_Unseen("evaluation", index, {}, config.decontaminate))
        if config.own_target:
            _refuse_asked(target, index)
    rows = {"target": len(target), **({"holdout": len(holdout)} if holdout else {})}
    return {
        "checked_against": {**rows, **{name: len(found) for name, found in questions.items()}},
        "too_short_or_common": {texts.name: texts.index.skipped for texts in unseen},
        "hits": [{**hit, "id": pool.id(row)} for row, hit in sorted(_hits(pool, unseen, screen).items())],
    }


def unchecked(run: RunDir, config: Config) -> list[str]:
    """Benchmarks to evaluate on that the run's pool was not checked against when it began."""
    checked = read_json(run.contamination)["checked_against"] if run.contamination.exists() else {}
    return [name for name in _asked(config) if name not in checked]


def _asked(config: Config) -> dict[str, tuple[Task, int]]:
    """Each benchmark to evaluate on, with the most shots: so that all files it needs are read now."""
    found = sorted(chosen(config.evaluation.tasks).values(), key=lambda pair: pair[1].shots)
    return {task.name: (task, variant.shots) for task, variant in found}


def _refuse_asked(target: Target, questions: ProbeIndex) -> None:
    """Raise InputError for a target row that holds a whole question of the evaluation."""
    for hit in contaminated(questions, target, 1.0):
        raise InputError(
            f"{target[hit.row].id}: this target row holds {hit.probe}, a question of the evaluation; "
            f"take it out of the target, or evaluate on something else than {_benchmark(hit.probe)}"
        )


@dataclass(frozen=True)
class _Unseen:
    """Texts of one kind that training must not see."""

    name: str
    index: ProbeIndex
    rows: Mapping[int, str]
    """The id of each whole row by the digest of its text; none for questions."""
    keeps_out: bool

    def hits(self, pool: Pool, progress: Advance) -> Iterator[Hit]:
        """The pool rows that repeat a row, however short; then those that nearly repeat one."""
        digests = pool.text_digests()
        for row in np.flatnonzero(np.isin(digests, np.array([*self.rows], np.uint64))).tolist():
            yield Hit(row, self.rows[int(digests[row])], 1.0)
        yield from contaminated(self.index, pool, progress=progress)


def _hits(pool: Pool, unseen: Iterable[_Unseen], screen: Screen) -> dict[int, dict[str, Any]]:
    """For each pool row that nearly repeats a text, the first such, and whether it keeps the row out."""
    found: dict[int, dict[str, Any]] = {}
    for texts in unseen:
        with screen.track(f"check against {texts.name}", len(pool), "rows") as advance:
            for hit in texts.hits(pool, advance):
                whose = texts.name if texts.name in _CALLED else _benchmark(hit.probe)
                said = {"row": hit.row, "whose": whose, "probe": hit.probe, "share": hit.share}
                found.setdefault(hit.row, {**said, "kept_out": texts.keeps_out})
    return found


def _unseen(name: str, rows: Target, keeps_out: bool) -> _Unseen:
    """A few rows: what two of them share is their task's instruction, which says nothing."""
    probes = [_probe(row) for row in rows]
    distinct = {probe.text: probe for probe in reversed(probes)}  # a question may have two rows
    index = ProbeIndex(distinct.values(), common=max(1, min(COMMON, len(distinct) // 8)))
    ids = (probe.id for probe in probes)
    return _Unseen(name, index, dict(zip(rows.text_digests().tolist(), ids, strict=True)), keeps_out)


def _probe(row: Row) -> Probe:
    """A row by its questions; a benchmark's row by its core, without header and shots."""
    record = json.loads(row.raw)
    own = [record.get(key) for key in ("id", "core", "digest")]
    if all(isinstance(value, str) for value in own):
        return Probe(own[0], own[1])
    return Probe(row.id, "\n".join(message.content for message in row.messages if message.role == "user"))


def _benchmark(question: str) -> str:
    """The name that a question's id begins with."""
    return question.split("/", 1)[0]


def _reason(hit: Mapping[str, Any]) -> str:
    whose = _CALLED.get(hit["whose"], hit["whose"])
    return f"nearly repeats {hit['probe']} of {whose}: {hit['share']:.0%} of its words in order"
