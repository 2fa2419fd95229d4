"""What the runs of a comparison have in common is made once, by the run that needs it first.

A later run gets it before it starts, under the names that it would give it: as hard links, which take no
room, or as copies where the disk has none. A published file is never changed, so links are safe.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clusterucb.config import Config
from clusterucb.run.costs import Cost
from clusterucb.run.methods import Method
from clusterucb.runtime.files import publish, read_json, write_json
from clusterucb.studies.compare.cells import Cell

Group = tuple[str, ...]
"""Artifacts that only go together."""

_ALWAYS: tuple[Group, ...] = (("target",), ("holdout",), ("contamination.json",), ("pool",), ("initial",))
_FIRST_ROUND: Group = ("rounds/1",)
_CLUSTERS: Group = ("clusters.json", "clusters.safetensors")


def adopt(cell: Cell, others: Sequence[Cell], config: Config) -> None:
    """Give `cell` what one of `others` has and it would make the same, and then its own settings.

    Args:
        cell: whose directory this process holds.
        others: of the same comparison.
        config: the cell's settings.
    """
    found = dict(_found(cell, others, config))
    record = cell.run.path / "shared.json"
    known = read_json(record) if record.exists() else {}
    shared = {name: facts for name, facts in known.items() if (cell.run.path / name).exists()}
    shared |= {name: {"from": other.name, "cost": _cost(other, name)} for name, other in found.items()}
    if shared != known:
        write_json(record, shared)  # before the links: a kill in between must not leave some untold
    for name, source in found.items():
        _link(source.run.path / name, cell.run.path / name)
    if cell.run.initial.exists() and not cell.run.config.exists():
        with publish(cell.run.config) as part:
            part.write_text(config.to_yaml(), encoding="utf-8")


def shared_cost(cell: Cell) -> Cost:
    """What other cells, and not this one, spent on what it has from them."""
    record = cell.run.path / "shared.json"
    facts = read_json(record).values() if record.exists() else ()
    return sum((Cost.from_json(fact["cost"]) for fact in facts if fact["cost"]), Cost())


def _found(cell: Cell, others: Sequence[Cell], config: Config) -> Iterator[tuple[str, Cell]]:
    """Each artifact that is missing in `cell`, with the first cell to have its whole group."""
    taken = set()
    for other in others:
        for group in (*_in_common(cell.method, other.method, config), *_base_answers(other)):
            missing = [name for name in group if not (cell.run.path / name).exists()]
            there = all((other.run.path / name).exists() for name in group)
            if other != cell and there and group not in taken:
                taken.add(group)
                yield from ((name, other) for name in missing)


def _in_common(one: Method, other: Method, config: Config) -> Iterator[Group]:
    """The groups that runs of both methods make alike, in the order in which they are made."""
    yield from _ALWAYS
    if one.method == other.method:
        yield from _checkpoints(one, config)
    if (one.method, one.features) == (other.method, other.features):
        theirs = _feature_groups(other, config)
        if one.budget != other.budget:  # the number of clusters goes by it
            theirs = [group for group in theirs if group != _CLUSTERS]
        yield from (group for group in _feature_groups(one, config) if group in theirs)
    if one == other and not one.draws:
        yield _FIRST_ROUND


def _checkpoints(method: Method, config: Config) -> list[Group]:
    """All checkpoints of a method's warmup."""
    count = {"dynamic": 1, "less": config.less.less_checkpoints}.get(method.method)
    return [_numbered("warmup", count)] if count else []


def _feature_groups(method: Method, config: Config) -> list[Group]:
    """The features at the checkpoints of a method, and the clusters of these."""
    if method.method not in ("dynamic", "less"):
        return []
    stores = config.less.less_checkpoints if method.method == "less" and not method.budgeted else 1
    clusters = [_CLUSTERS] if method.budgeted else []
    return [*((name,) for name in _numbered("features", stores)), *clusters]


def _numbered(name: str, count: int) -> Group:
    return (name, *(f"{name}-{number}" for number in range(2, count + 1)))


def _base_answers(cell: Cell) -> Iterator[Group]:
    """What the base model answered in a benchmark; the name stands for all that it depends on."""
    for folder in sorted(cell.run.benchmarks.glob("*-base-*")):
        if folder.suffix != ".part":
            yield (f"{cell.run.benchmarks.name}/{folder.name}",)


def _cost(cell: Cell, name: str) -> dict[str, Any] | None:
    """The cost that was written down with an artifact, if there is one."""
    path = cell.run.path / name
    notes = (
        [path]
        if path.suffix == ".json"
        else [path / f"{n}.json" for n in ("checkpoint", "manifest", "summary")]
    )
    costs = (read_json(note).get("cost") for note in notes if note.exists())
    return next((cost for cost in costs if cost), None)


def _link(source: Path, destination: Path) -> None:
    # Not a `.part`, which a step might go on writing: this may hold links to another run's files.
    new = destination.with_name(f"{destination.name}.link")
    new.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(source, new, copy_function=_link_file)
    else:
        new.unlink(missing_ok=True)
        _link_file(source, new)
    new.replace(destination)


def _link_file(source: str | Path, destination: str | Path) -> None:
    try:
        os.link(source, destination)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, destination)
        with Path(destination).open("rb") as copy:
            os.fsync(copy.fileno())
