"""The fidelity study's pool, targets and held-out rows: short real rows, of what fidelity_pools.py names.

A source gives as many tokens as any other, if it has them, as tokens are what gradients cost; at most 300
rows. They are drawn by the seed from the shortest of twice as many; so are targets and held-out rows. Pool
rows that nearly repeat a target's or a held-out row are left out, by the program's own rule.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fidelity_pools import PoolKind, Sizes

from clusterucb.data.chat import ChatFormat, encode, fingerprint
from clusterucb.data.contamination import COMMON, Probe, ProbeIndex, contaminated
from clusterucb.data.rows import Row, text_digest
from clusterucb.errors import InputError
from clusterucb.runtime.files import check_made_with, publish, read_json, write_json
from clusterucb.runtime.screen import Screen

PARTS = ("pool", "targets", "heldout")
SHORTEST = 16
MOST_ROWS = 300

Length = Callable[[Row], int]


@dataclass(frozen=True)
class StudyData:
    """The files: one a pool source, one a target, one for each target's held-out rows."""

    pool: dict[str, Path]
    targets: dict[str, Path]
    heldout: dict[str, Path]
    facts: Mapping[str, Any]
    """Rows and tokens of each file, and what they were made with."""


def thinned(files: Mapping[str, Path], folder: Path, every: int) -> list[Path]:
    """Files in `folder` with every so-manieth row of these, made where they are not there yet."""
    found = []
    for name, path in files.items():
        found.append(folder / f"{name}.jsonl")
        if not found[-1].exists():
            with publish(found[-1]) as part:
                part.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[::every]))
    return found


def study_data(
    out: Path,
    data_dir: Path | None,
    kind: PoolKind,
    tokenizer: Any,
    chat: ChatFormat,
    sizes: Sizes,
    seed: int,
    screen: Screen,
) -> StudyData:
    """The study's files in the folder `out`, made where they are not there yet.

    Args:
        out: the folder.
        data_dir: with the official files; not needed once made.
        kind: which sources and targets.
        tokenizer, chat: by which tokens are counted.
        sizes: how much is drawn.
        seed: which rows are drawn.
        screen: where progress is shown.

    Raises:
        InputError: a file of `data_dir` or a wheel of the demo is missing.
        MismatchError: the files there were made with other sizes, another seed or tokenizer.
    """
    made_with = {**asdict(sizes), "seed": seed, "tokenizer and chat": fingerprint(tokenizer, chat)}
    made_with["targets"] = ", ".join(kind.targets)
    if not (out / "data.json").exists():
        if data_dir is None or not data_dir.is_dir():
            raise InputError(f"--data-dir {data_dir}: expected the folder with the official data files")

        @cache
        def length(row: Row) -> int:
            return len(encode(row.messages, tokenizer, chat, row.id))

        facts = _make(out, data_dir, kind, length, sizes, seed, screen)
        write_json(out / "data.json", {"made_with": made_with, **facts})
    facts = read_json(out / "data.json")
    check_made_with(facts["made_with"], made_with, str(out))
    files = ({name: out / part / f"{name}.jsonl" for name in facts[part]} for part in PARTS)
    return StudyData(*files, facts)


def _make(
    out: Path, data_dir: Path, kind: PoolKind, length: Length, sizes: Sizes, seed: int, screen: Screen
) -> dict[str, dict[str, dict[str, int]]]:
    """Write all files; rows and tokens of each, by part and name."""
    facts: dict[str, dict[str, dict[str, int]]] = {part: {} for part in PARTS}

    def write(part: str, name: str, rows: Sequence[Row], **more: int) -> None:
        _write(out / part / f"{name}.jsonl", rows)
        facts[part][name] = {"rows": len(rows), "tokens": sum(map(length, rows)), **more}

    targets, sources = kind.sides(data_dir, seed), kind.sources(data_dir)
    unseen: list[list[Row]] = []
    with screen.track("choose rows", len(targets) + len(sources), "sources") as advance:
        for name, sides in targets.items():
            target, heldout = _two_sides(*sides(), length, sizes, seed)
            write("targets", name, target)
            write("heldout", name, heldout)
            unseen += [target, heldout]
            advance(1, name)
        unseen.append([row for target in unseen[::2] for row in target])  # as one run has all targets
        for name, rows in sources.items():
            usable = _within(_distinct(rows()), length, sizes.longest)
            shortest = _first(sorted(usable, key=length), length, 2 * sizes.tokens_of_source, 2 * MOST_ROWS)
            clean = without_near_copies(shortest, unseen)
            chosen = _first(_shuffled(clean, seed), length, sizes.tokens_of_source, MOST_ROWS)
            write("pool", name, chosen, usable=len(usable), near_copies=len(shortest) - len(clean))
            advance(1, name)
    return facts


def _two_sides(
    target: Iterable[Row], heldout: Iterable[Row], length: Length, sizes: Sizes, seed: int
) -> tuple[list[Row], list[Row]]:
    """Target rows, and held-out rows that do not nearly repeat one of them, drawn from short ones."""
    target = _within(_distinct(target), length, sizes.longest_of_target)
    chosen = _sample(target, length, sizes.target, seed)
    others = without_near_copies(_within(_distinct(heldout), length, sizes.longest_of_target), [chosen])
    return chosen, _sample(others, length, sizes.heldout, seed)


def without_near_copies(rows: Sequence[Row], unseen: Iterable[Sequence[Row]]) -> list[Row]:
    """The rows that neither repeat nor nearly repeat a row of any group in `unseen`, in order.

    Each group is looked for as a run looks for its target or held-out rows (screening.py).
    """
    out: set[int] = set()
    for group in unseen:
        texts = {text_digest(row.messages) for row in group}
        out |= {i for i, row in enumerate(rows) if text_digest(row.messages) in texts}
        probes = {probe.text: probe for probe in map(_probe, group)}
        index = ProbeIndex(probes.values(), common=max(1, min(COMMON, len(probes) // 8)))
        out |= {hit.row for hit in contaminated(index, rows)}
    return [row for i, row in enumerate(rows) if i not in out]


def _probe(row: Row) -> Probe:
    return Probe(row.id, json.loads(row.raw).get("core") or row.messages[0].content)


def _distinct(rows: Iterable[Row]) -> list[Row]:
    """The first of all rows that are the same conversation."""
    found: dict[int, Row] = {}
    for row in rows:
        found.setdefault(text_digest(row.messages), row)
    return list(found.values())


def _within(rows: Iterable[Row], length: Length, longest: int) -> list[Row]:
    return [row for row in rows if SHORTEST <= length(row) <= longest]


def _sample(rows: Sequence[Row], length: Length, count: int, seed: int) -> list[Row]:
    """At most `count` rows, drawn from the shortest of twice as many."""
    return _shuffled(sorted(rows, key=length)[: 2 * count], seed)[:count]


def _shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]


def _first(rows: Sequence[Row], length: Length, tokens: int, most: int) -> list[Row]:
    """The first rows, of at most `tokens` tokens in all, and at most so many."""
    fits = np.cumsum([length(row) for row in rows]) <= tokens
    return list(rows[: min(int(fits.sum()), most)])


def _write(path: Path, rows: Iterable[Row]) -> None:
    with publish(path) as part:
        part.write_bytes(b"".join(row.raw + b"\n" for row in rows))
