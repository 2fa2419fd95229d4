"""What was selected: by source, and the rows themselves, to be read.

The rows that carry text are the best of the selected ones, and the most and least influential of all that
were scored, so that a page stays small whatever the size of the pool.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from clusterucb.data.rows import Row
from clusterucb.report.run_data import RoundData, RunData
from clusterucb.report.section import Section, script_json, visible

BEST = 300
"""Selected rows of one selection at most, the most influential."""
ENDS = 50
"""Rows with the highest and with the lowest scores of one selection."""
ROWS = 1600
"""Rows of all selections together, about."""
CHARACTERS = 2000
"""Of one row's text."""
BYTES = 5 << 20
"""Of all texts of a page, as JSON."""


def selected(run: RunData, allowed: int = BYTES) -> Section:
    """The section; texts of rows may take `allowed` bytes."""
    if not run.rounds:
        return Section()
    facts = {"distinct": len(np.unique(run.selected)), "sources": _by_source(run)}
    return Section(facts, examples=_examples(run, allowed))


def _by_source(run: RunData) -> list[dict[str, Any]]:
    """A line a source: rows in the pool, of each selection and of all, and its share against the pool's."""
    total, pool = run.selected_sources, Counter[str]()
    if run.sources:
        names, codes = run.sources
        pool.update(dict(zip(names, np.bincount(codes, minlength=len(names)).tolist(), strict=True)))
    per_round = [Counter(found.sources) for found in run.rounds]

    def line(name: str) -> dict[str, Any]:
        share, rows = total[name] / total.total(), [found[name] for found in per_round]
        own = {"name": name, "rows": rows, "selected": total[name], "share": share}
        fair = pool[name] / pool.total() if pool else 0
        return {**own, "pool": pool[name] if pool else None, "lift": share / fair if fair else None}

    return [line(name) for name in dict.fromkeys([*total, *pool])]


def shown_rows(found: RoundData, rounds: int) -> dict[int, float]:
    """Rows and scores that are shown of one of so many selections, the most influential first."""
    room = max(1, min(BEST + 2 * ENDS, ROWS // max(1, rounds)))
    ends = max(1, min(ENDS, room // 4))
    best = np.argsort(-found.scores, kind="stable")[: max(1, min(BEST, room - 2 * ends))]
    order = np.argsort(-found.scored.scores, kind="stable")
    outer = order if len(order) <= 2 * ends else np.concatenate([order[:ends], order[-ends:]])
    rows = np.concatenate([found.scored.rows[outer], found.rows[best]])
    scores = np.concatenate([found.scored.scores[outer], found.scores[best]])
    shown = dict(zip(rows.tolist(), scores.tolist(), strict=True))
    return dict(sorted(shown.items(), key=lambda pair: (-pair[1], pair[0])))


def _examples(run: RunData, allowed: int) -> dict[str, Any]:
    """What the page's script shows: texts, each once, and the scores of their rows in each selection."""
    shown = [shown_rows(found, len(run.rounds)) for found in run.rounds]
    texts = run.read(dict.fromkeys(row for scores in shown for row in scores))
    places = {row: place for place, row in enumerate(texts)}
    rows = []
    for found, scores in zip(run.rounds, shown, strict=True):
        kept = set(found.rows.tolist())
        for row in filter(places.__contains__, scores):
            cluster = -1 if run.clusters is None else int(run.clusters[row])
            score = float(f"{scores[row]:.6g}")
            rows.append((places[row], score, cluster, found.number, int(row in kept)))
    return {"rows": rows, **cut_texts([*texts.values()], allowed)}


def cut_texts(rows: list[Row], allowed: int) -> dict[str, Any]:
    """The rows' turns, cut to so many characters each that all are at most `allowed` bytes of JSON."""
    characters = CHARACTERS
    while True:
        texts = [_text(row, characters) for row in rows]
        if characters < 50 or len(script_json(texts).encode()) <= allowed:
            return {"texts": texts, "characters": characters}
        characters //= 2


def _text(row: Row, characters: int) -> dict[str, Any]:
    turns, left = [], characters
    for message in row.messages:
        if left > 0:
            turns.append((message.role, visible(message.content[:left])))
        left -= len(message.content)
    return {"id": visible(row.id), "source": visible(row.source), "turns": turns, "left_out": max(0, -left)}
