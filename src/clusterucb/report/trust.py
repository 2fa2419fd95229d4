"""Whether to trust it: rows left out, contamination, saturation, stability, and how to make it again."""

from __future__ import annotations

import platform
import re
import shlex
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from numpy.typing import NDArray

from clusterucb.report.markup import count, escape
from clusterucb.report.run_data import RoundData, RunData
from clusterucb.report.section import Section
from clusterucb.version import __version__

SHOWN = 50
PACKAGES = ("torch", "transformers", "peft", "numpy", "safetensors", "datasets", "lm-eval", "plotly")


def trust(run: RunData, section: Section) -> None:
    """Write the section."""
    _excluded(run, section)
    _contamination(run, section)
    _saturation(run, section)
    _stability(run, section)
    _again(run, section)


def _excluded(run: RunData, section: Section) -> None:
    section.head("Rows that were left out")
    if run.rows is None:
        section.say("The pool is not read yet.")
        return
    whole = run.rows + (run.excluded or 0)
    if not run.excluded_rows:
        section.say(f"None: all {count(whole)} rows of the pool could be used.")
        return
    section.say(f"{count(len(run.excluded_rows))} of {count(whole)} rows cannot be used, or must not be.")
    kinds = Counter(re.sub(r"\d[\d.,]*", "…", entry["reason"].split(":")[0]) for entry in run.excluded_rows)
    section.table(
        "By reason", ["reason"], ["rows"], [[kind, count(n)] for kind, n in kinds.most_common(SHOWN)], 10
    )
    rows = [[entry["id"], entry["reason"]] for entry in run.excluded_rows[:SHOWN]]
    all_of = f"the first {SHOWN}; all are in pool/excluded.jsonl" if len(run.excluded_rows) > SHOWN else "all"
    section.table(f"Rows left out ({all_of})", ["row", "reason"], [], rows, 5)


def _contamination(run: RunData, section: Section) -> None:
    section.head("Contamination")
    if run.contamination is None:
        section.say("The pool is not checked yet.")
        return
    hits, checked = run.contamination["hits"], run.contamination["checked_against"]
    against = ", ".join(f"{count(n)} of {_called(name)}" for name, n in checked.items())
    kept_out = sum(hit["kept_out"] for hit in hits)
    section.say(
        f"Every row of the pool was compared with what training must not see ({against}). "
        + (
            f"{count(len(hits))} nearly repeat one of these; {count(kept_out)} are kept out, "
            f"{count(len(hits) - kept_out)} are in use."
            if hits
            else "None nearly repeats one of these."
        )
    )
    if hits:
        rows = [
            [
                *(hit["id"], hit["probe"], _called(hit["whose"])),
                "kept out" if hit["kept_out"] else "in use",
                f"{hit['share']:.0%}",
            ]
            for hit in sorted(hits, key=lambda hit: hit["kept_out"])[:SHOWN]
        ]
        words = ["row", "nearly repeats", "of", "is"]
        section.table(f"Near repetitions (at most {SHOWN})", words, ["of its words, in order"], rows, 5)


def _called(name: str) -> str:
    return {"target": "the target", "holdout": "the held-out rows"}.get(name, name)


def _saturation(run: RunData, section: Section) -> None:
    """Clusters without an unseen row: there the bandit could not have drawn more."""
    drawn = [found for found in run.rounds if found.arms is not None]
    if run.clusters is None or not drawn:
        return
    sizes = np.bincount(run.clusters)
    rows = []
    for found in drawn:
        draws = np.bincount(run.clusters[found.drawn], minlength=len(sizes))
        empty = (draws == sizes) & (sizes > 0)
        inside = float(np.mean(empty[run.clusters[found.rows]]))
        rows.append(
            [f"period {found.number}", f"{empty.sum()} of {np.count_nonzero(sizes)}", f"{inside:.0%}"]
        )
    section.head("Clusters drawn to the last row")
    section.say(
        "Where a cluster is drawn empty, all its best rows are found, and what it could still give is "
        "nothing. Many such clusters among the selected rows say that the budget has reached the end of "
        "what is promising."
    )
    headings = ["clusters drawn empty", "selected rows from these"]
    section.table("Saturation", ["selection"], headings, rows)


def _stability(run: RunData, section: Section) -> None:
    if len(run.rounds) < 2:
        return
    section.head("Stability between periods")
    section.say(
        "How many of a period's rows another period has selected, too, and how alike the two rank the rows "
        "that both have scored (Spearman's rank correlation). A change is no fault: it is what selecting "
        "anew is for."
    )
    rows = [
        [f"period {found.number}"]
        + [
            _shared(found, other) if other is not found else f"{count(len(found.rows))} rows"
            for other in run.rounds
        ]
        for found in run.rounds
    ]
    headings = [f"period {found.number}" for found in run.rounds]
    section.table("Rows selected in both, and rank correlation", ["period"], headings, rows)


def _shared(one: RoundData, other: RoundData) -> str:
    both = len(np.intersect1d(one.rows, other.rows))
    _, ours, theirs = np.intersect1d(one.drawn, other.drawn, return_indices=True)
    alike = rank_correlation(one.drawn_scores[ours], other.drawn_scores[theirs])
    return f"{count(both)} ({both / len(one.rows):.0%})" + ("" if alike is None else f", {alike:+.2f}")


def rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Spearman's, equal values sharing their mean rank; None for fewer than three rows or equal scores."""
    if len(a) < 3:
        return None
    ranks = [_ranks(a), _ranks(b)]
    if any(np.ptp(found) == 0 for found in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, places, equal = np.unique(values, return_inverse=True, return_counts=True)
    found: NDArray[np.float64] = (np.cumsum(equal) - (equal - 1) / 2)[places]
    return found


def _again(run: RunData, section: Section) -> None:
    section.head("To make it again")
    command = f"clusterucb run {shlex.quote(str(run.path / 'config.yaml'))} --out ANOTHER"
    section.parts.append(f"<p>The same settings elsewhere: <code>{escape(command)}</code></p>")
    section.parts.append(f"<details><summary>Settings</summary><pre>{escape(run.settings)}</pre></details>")
    versions = {"clusterucb": __version__, "Python": platform.python_version(), **dict(_versions(PACKAGES))}
    on = f"Versions where this page was made ({platform.system()}, {platform.machine()})"
    section.table(on, ["package", "version"], [], [[name, found] for name, found in versions.items()], 5)
    if run.made_with:
        rows = [[name, str(value)] for name, value in run.made_with.items()]
        section.table("What the features were made with", ["of", "fingerprint or value"], [], rows, 5)


def _versions(names: Iterable[str]) -> Iterable[tuple[str, str]]:
    for name in names:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
