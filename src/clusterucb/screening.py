"""Which pool rows are kept out of a run, and why: texts that training must not see.

Checked before anything is computed, by the n-grams shared (see data/contamination.py):

    target rows of a benchmark       always kept out, as they come from the data that the pool may hold
    own target rows, held-out rows   reported; kept out with `decontaminate`
    evaluation questions             reported; kept out with `decontaminate`
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clusterucb.config import Config
from clusterucb.data.contamination import COMMON, Hit, Probe, ProbeIndex, contaminated
from clusterucb.data.pool import Pool
from clusterucb.data.target import Target
from clusterucb.errors import InputError
from clusterucb.progress import Screen
from clusterucb.rundir import RunDir, check_made_with, read_json, write_json
from clusterucb.tasks import TASKS, Task, Variant
from clusterucb.tasks.chosen import chosen

__all__ = ["Screening", "screened"]


@dataclass(frozen=True)
class Screening:
    """What contamination.json says."""

    content: Mapping[str, Any]

    @property
    def kept_out(self) -> dict[int, str]:
        """The reason for each pool row that is kept out."""
        return {hit["row"]: _reason(hit) for hit in self.content["hits"] if hit["kept_out"]}

    @property
    def fingerprint(self) -> str:
        """A hash of the rows that are kept out."""
        return hashlib.sha256(json.dumps(sorted(self.kept_out)).encode()).hexdigest()[:16]

    def report(self) -> Iterator[str]:
        """Lines for the person: one for the rows kept out, one for those that were only noticed."""
        for kept, said in ((True, "are kept out"), (False, "are in use; --decontaminate keeps them out")):
            hits = [hit for hit in self.content["hits"] if hit["kept_out"] == kept]
            if hits:
                whose = Counter(hit["whose"] for hit in hits)
                parts = ", ".join(f"{name} {count}" for name, count in whose.most_common())
                yield f"{len(hits)} pool rows nearly repeat what training must not see ({parts}): they {said}"


def screened(
    run: RunDir, config: Config, pool: Pool, target: Target, holdout: Target | None, screen: Screen
) -> Screening:
    """The run's screening, made if it is not there.

    Raises:
        MismatchError: it is there, but pool, target or held-out rows have changed since.
        InputError: a target row of the person's own is a question of the evaluation.
    """
    path = run.contamination
    tasks = {task.name: (task, variant) for task, variant in chosen(config.evaluation.tasks).values()}
    made_with = {
        "pool": pool.fingerprint,
        "target": target.fingerprint,
        "holdout": holdout.fingerprint if holdout else None,
        "decontaminate": config.decontaminate,
    }
    if path.exists() and run.config.exists():
        found = read_json(path)
        check_made_with(found["made_with"], made_with, str(path))
        if unchecked := [task for task in tasks if task not in found["checked_against"]]:
            screen.say(f"the pool was not checked against {', '.join(unchecked)} when this run began")
        return Screening(found)
    probes = {"target": _rows(target), "holdout": _rows(holdout) if holdout else []}
    probes |= {name: _questions(*asked, config.data_dir) for name, asked in tasks.items()}
    own_target = not set(config.target) <= set(TASKS)
    if own_target:
        _refuse_asked(target, {name: probes[name] for name in tasks})
    hits = _hits(pool, probes, config.decontaminate, always=() if own_target else ("target",), screen=screen)
    if holdout is not None:
        hits |= _repeated(pool, holdout, config.decontaminate)
    content = {
        "made_with": made_with,
        "checked_against": {name: len(found) for name, found in probes.items()},
        "hits": [{**hit, "id": pool.id(hit["row"])} for _, hit in sorted(hits.items())],
    }
    write_json(path, content)
    return Screening(content)


def _refuse_asked(target: Target, probes: Mapping[str, list[Probe]]) -> None:
    """Raise InputError for a target row that holds a whole question of the evaluation."""
    for name, questions in probes.items():
        for hit in contaminated(ProbeIndex(questions), target, 1.0):
            raise InputError(
                f"{target[hit.row].id}: this target row holds {hit.probe}, a question of the evaluation; "
                f"take it out of the target, or evaluate on something else than {name}"
            )


def _hits(
    pool: Pool,
    probes: Mapping[str, list[Probe]],
    decontaminate: bool,
    *,
    always: Collection[str],
    screen: Screen,
) -> dict[int, dict[str, Any]]:
    """For each pool row that nearly repeats a probe, the first such, and whether it keeps the row out."""
    found: dict[int, dict[str, Any]] = {}
    for name, own in probes.items():
        if not own:
            continue
        with screen.track(f"check against {name}", len(pool), "rows") as advance:
            for hit in contaminated(_index(own), pool, progress=advance):
                found.setdefault(hit.row, _hit(hit, name, decontaminate or name in always))
    return found


def _index(probes: list[Probe]) -> ProbeIndex:
    """An index to which what two of a few rows share is their task's instruction, which says nothing."""
    return ProbeIndex(probes, common=max(1, min(COMMON, len(probes) // 8)))


def _hit(hit: Hit, whose: str, kept_out: bool) -> dict[str, Any]:
    return {"row": hit.row, "whose": whose, "probe": hit.probe, "share": hit.share, "kept_out": kept_out}


def _repeated(pool: Pool, holdout: Target, kept_out: bool) -> dict[int, dict[str, Any]]:
    """Pool rows with the very text of a held-out row, however short."""
    names = dict(zip(holdout.text_digests().tolist(), (row.id for row in holdout), strict=True))
    same = np.flatnonzero(np.isin(pool.text_digests(), holdout.text_digests()))
    digests = pool.text_digests()
    return {int(row): _hit(Hit(int(row), names[int(digests[row])], 1.0), "holdout", kept_out) for row in same}


def _rows(rows: Target) -> list[Probe]:
    """A row by its questions; a benchmark's row by its core, without header and shots."""
    found = []
    for row in rows:
        core = json.loads(row.raw).get("core")
        asked = "\n".join(message.content for message in row.messages if message.role == "user")
        found.append(Probe(row.id, core if isinstance(core, str) else asked))
    return found


def _questions(task: Task, variant: Variant, data_dir: str | None) -> list[Probe]:
    questions = task.questions(Path(data_dir) if data_dir else None, variant.shots)
    return [Probe(question.id, question.core) for question in questions]


def _reason(hit: Mapping[str, Any]) -> str:
    return f"nearly repeats {hit['probe']} of the {hit['whose']}: {hit['share']:.0%} of its words in order"
