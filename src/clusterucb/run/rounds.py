"""What one selection leaves behind: a folder a round.

selected.jsonl         the chosen input lines, byte for byte, in pool order
selected.ids.jsonl     id, score, cluster, source and round of each, in the same order; `drawn: false` where
                       the score is what was expected of a row that was not drawn; `target` is the task that
                       it is for, where several are kept apart
draws.jsonl            every draw of the bandit: step, arm, rows, scores
scores.jsonl           influence as it was computed, by which a killed selection goes on
selection.safetensors  the same as exact arrays, by which a resumed run goes on
summary.json           counts, threshold, cost
directions-*           the target's at LESS's later checkpoints, where they were computed for this selection
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from clusterucb.data.pool import Pool
from clusterucb.errors import MismatchError
from clusterucb.run.costs import Cost
from clusterucb.runtime.files import read_json, read_lines, write_json, write_lines
from clusterucb.selection.bandit import Draw, Selection
from clusterucb.selection.keep import Earlier


@dataclass(frozen=True)
class Round:
    """A selection as it was published.

    Attributes:
        number: from 1.
        rows: chosen rows, by their place among the usable rows, ascending, (L,).
        scores: their influence, (L,).
        cost: what the selection cost.
        summary: the content of summary.json.
    """

    number: int
    rows: NDArray[np.int64]
    scores: NDArray[np.float64]
    cost: Cost
    summary: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Scored:
    """Every row that a selection scored.

    Attributes:
        rows, scores: in the order of drawing or by falling score, (n,).
        arms: the cluster that each was drawn from, (n,); none where all rows were scored, (0,).
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float64]
    arms: NDArray[np.int64]


def write_round(
    folder: Path,
    number: int,
    selection: Selection,
    draws: Sequence[Draw],
    pool: Pool,
    pool_rows: NDArray[np.int64],
    cost: Cost,
) -> dict[str, Any]:
    """Write all files of a round into `folder`, which the caller publishes; the content of summary.json.

    The selection is over usable rows, whose pool rows are `pool_rows`, (N,). There are no draws where all
    stored scores were ranked.
    """
    chosen = pool_rows[selection.rows]
    sources = [pool.source(row) for row in chosen.tolist()]
    pool.write(chosen.tolist(), folder / "selected.jsonl")
    drawn = np.isin(selection.rows, selection.drawn).tolist()
    targets = [{"target": name} for name in selection.targets] or [{}] * len(chosen)
    sidecar = zip(
        *(chosen.tolist(), selection.scores.tolist(), selection.clusters.tolist(), sources, drawn, targets),
        strict=True,
    )
    write_lines(
        folder / "selected.ids.jsonl",
        (
            {"id": pool.id(row), "score": score, "cluster": cluster, "source": source, "round": number}
            | ({} if known else {"drawn": False})
            | target
            for row, score, cluster, source, known, target in sidecar
        ),
    )
    write_lines(
        folder / "draws.jsonl",
        (
            {
                "step": draw.step,
                "arm": draw.arm,
                "cold": draw.cold,
                "ids": [pool.id(row) for row in pool_rows[draw.rows].tolist()],
                "scores": draw.scores.tolist(),
            }
            for draw in draws
        ),
    )
    arrays = {"rows": selection.rows, "scores": selection.scores, "clusters": selection.clusters}
    arrays |= {"drawn": selection.drawn, "drawn_scores": selection.drawn_scores}
    arrays |= {} if selection.learned is None else {"learned": selection.learned}
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, folder / "selection.safetensors")
    expected: dict[str, Any] = {}
    if selection.expected_change is not None:
        expected = {"undrawn": drawn.count(False), "expected_change": selection.expected_change}
    summary = {
        "round": number,
        "selected": len(selection.rows),
        "of": len(pool_rows),
        "drawn": selection.spent,
        "cold_start": selection.cold,
        "threshold": selection.threshold,
        "mean_influence": float(selection.scores.mean()),
        "sources": dict(Counter(sources).most_common()),
        **({"targets": dict(Counter(selection.targets))} if selection.targets else {}),
        **expected,
        "cost": cost.to_json(),
    }
    write_json(folder / "summary.json", summary)
    return summary


def read_round(folder: Path) -> Round:
    """What `write_round` wrote, once published."""
    arrays = load_file(folder / "selection.safetensors")
    summary = read_json(folder / "summary.json")
    cost = Cost.from_json(summary["cost"])
    return Round(summary["round"], arrays["rows"], arrays["scores"], cost, summary)


def read_earlier(folder: Path) -> Earlier:
    """What a published round has left for the keep rule of later ones.

    One that drew no row has learned nothing. Raises MismatchError if another has left nothing, as of one
    selected when its keep rule remembered nothing.
    """
    arrays = load_file(folder / "selection.safetensors")
    if "learned" not in arrays and len(arrays["drawn"]):
        raise MismatchError(
            f"{folder}: an earlier version selected it, and kept nothing of what the periods to come need by "
            "now; use another --out"
        )
    return Earlier(arrays["rows"], arrays["drawn"], arrays["drawn_scores"], arrays.get("learned"))


def read_scored(folder: Path) -> Scored:
    """What a published round has scored."""
    arrays = load_file(folder / "selection.safetensors")
    draws = [(draw["arm"], len(draw["ids"])) for draw in read_lines(folder / "draws.jsonl")]
    arms, rows = np.array(draws, np.int64).reshape(-1, 2).T
    return Scored(arrays["drawn"], arrays["drawn_scores"], np.repeat(arms, rows))


def read_sidecar(folder: Path) -> Iterator[dict[str, Any]]:
    """What selected.ids.jsonl of a published round tells of each chosen row."""
    return read_lines(folder / "selected.ids.jsonl")
