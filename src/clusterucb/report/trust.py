"""Whether to trust it: rows left out, contamination, stability, and how to make it again."""

from __future__ import annotations

import math
import platform
import re
import shlex
from collections import Counter
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from numpy.typing import NDArray

from clusterucb.report.run_data import RoundData, RunData
from clusterucb.report.section import Section, commas
from clusterucb.version import __version__

SHOWN = 50
PACKAGES = ("torch", "transformers", "peft", "numpy", "safetensors", "datasets", "lm-eval", "plotly")


def trust(run: RunData) -> Section:
    """The section."""
    reasons = Counter(re.sub(r"\d[\d.,]*", "…", entry["reason"].split(":")[0]) for entry in run.excluded)
    hits = (run.contamination or {}).get("hits", [])
    return Section(
        {
            "most": SHOWN,
            "reasons": reasons.most_common(SHOWN),
            "kept_out": sum(hit["kept_out"] for hit in hits),
            "hits": sorted(hits, key=lambda hit: hit["kept_out"]),
            "shared": [[_shared(one, other) for other in run.rounds] for one in run.rounds],
            "command": f"clusterucb run {shlex.quote(str(run.path / 'config.yaml'))} --out ANOTHER",
            "machine": f"{platform.system()}, {platform.machine()}",
            "versions": {"clusterucb": __version__, "Python": platform.python_version(), **_versions()},
        }
    )


def _shared(one: RoundData, other: RoundData) -> str:
    """Rows that both have selected, and the rank correlation of those that both have scored."""
    if one is other:
        return f"{commas(len(one.rows))} rows"
    both = len(np.intersect1d(one.rows, other.rows))
    _, ours, theirs = np.intersect1d(one.scored.rows, other.scored.rows, return_indices=True)
    alike = rank_correlation(one.scored.scores[ours], other.scored.scores[theirs])
    return f"{commas(both)} ({both / len(one.rows):.0%})" + ("" if alike is None else f", {alike:+.2f}")


def rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Spearman's, equal values sharing their mean rank; None for fewer than three rows or equal scores."""
    import pandas as pd  # a run without a report needs none

    found = float(pd.DataFrame({"a": a, "b": b}).corr("spearman", min_periods=3).loc["a", "b"])
    return None if math.isnan(found) else found


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # of an extra that is not installed
            found[name] = version(name)
    return found
