"""Rows that the page shows with their text: the selected ones, and the most and least influential scored.

Only these carry text, so that a page stays small whatever the size of the pool.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusterucb.data.rows import parse_messages
from clusterucb.report.markup import script_json, visible

SELECTED = 300
"""Rows of one selection at most, the most influential."""
ENDS = 50
"""Rows with the highest and with the lowest scores of one selection."""
ROWS = 1600
"""Rows of all selections together, about."""
CHARACTERS = 2000
"""Of one row's text."""
BYTES = 5 << 20
"""Of all texts of a page, as JSON."""

Scored = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]
"""A selection: rows chosen and their scores, rows scored and their scores."""


@dataclass(frozen=True)
class Example:
    """A row to be read: its turns as (role, text)."""

    id: str
    source: str
    turns: tuple[tuple[str, str], ...]

    def cut(self, characters: int) -> tuple[list[tuple[str, str]], int]:
        """The first characters of the conversation, made visible, and how many are left out."""
        kept, left = [], characters
        for role, text in self.turns:
            if left > 0:
                kept.append((role, visible(text[:left])))
            left -= len(text)
        return kept, max(0, -left)


def example(identity: str, source: str, record: Mapping[str, Any]) -> Example:
    """A row of the pool, in any of its shapes."""
    turns = tuple((message.role, message.content) for message in parse_messages(record, identity))
    return Example(identity, source, turns)


def chosen_rows(rounds: Sequence[Scored]) -> set[int]:
    """The rows that are shown of some selections."""
    return {row for found in rounds for row, _ in shown_rows(found, len(rounds))}


def shown_rows(found: Scored, rounds: int) -> list[tuple[int, float]]:
    """Rows and scores that are shown of one of so many selections, the most influential first."""
    rows, scores, drawn, drawn_scores = found
    room = max(1, min(SELECTED + 2 * ENDS, ROWS // max(1, rounds)))
    ends = max(1, min(ENDS, room // 4))
    best = np.argsort(-scores, kind="stable")[: max(1, min(SELECTED, room - 2 * ends))]
    order = np.argsort(-drawn_scores, kind="stable")
    outer = order if len(order) <= 2 * ends else np.concatenate([order[:ends], order[-ends:]])
    shown = {int(row): float(score) for row, score in zip(drawn[outer], drawn_scores[outer], strict=True)}
    shown |= {int(row): float(score) for row, score in zip(rows[best], scores[best], strict=True)}
    return sorted(shown.items(), key=lambda pair: (-pair[1], pair[0]))


def explored(
    periods: Iterable[tuple[int, Scored]],
    examples: Mapping[int, Example],
    clusters: NDArray[np.int64] | None,
    allowed: int = BYTES,
) -> dict[str, Any]:
    """What the page's script shows: texts, each once, and the scores of their rows in each selection.

    Args:
        periods: number of each selection, with it.
        examples: by usable row.
        clusters: of each usable row, (N,), or None.
        allowed: bytes of all texts; where they are more, each is cut shorter.
    """
    periods = list(periods)
    rows: list[tuple[int, float, int, int, int]] = []
    used: dict[int, int] = {}
    for number, found in periods:
        kept = set(found[0].tolist())
        for row, score in shown_rows(found, len(periods)):
            if row not in examples:
                continue
            place = used.setdefault(row, len(used))
            cluster = -1 if clusters is None else int(clusters[row])
            rows.append((place, float(f"{score:.6g}"), cluster, number, int(row in kept)))
    characters = CHARACTERS
    while True:
        texts = [_text(examples[row], characters) for row in used]
        if characters < 50 or len(script_json(texts).encode()) <= allowed:
            return {"rows": rows, "texts": texts, "characters": characters}
        characters //= 2


def _text(row: Example, characters: int) -> dict[str, Any]:
    turns, left_out = row.cut(characters)
    return {"id": visible(row.id), "source": visible(row.source), "turns": turns, "left_out": left_out}
