"""What the YAML files beside this one call: documents from a file of ours, and the tasks' own scores.

lm-evaluation-harness loads this file by its path. The documents come as JSON lines, prompts included; their
path is the key `documents` of the harness's metadata.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets

from clusterucb.evaluation.sandbox.programs import run_programs
from clusterucb.tasks import bbh, gsm8k, humaneval, tydiqa

__all__ = ["bbh_scores", "documents", "gsm8k_scores", "humaneval_scores", "tydiqa_scores"]


def documents(documents: str, **_: Any) -> dict[str, datasets.Dataset]:
    """The file's documents as the one split that is evaluated."""
    lines = Path(documents).read_text(encoding="utf-8").split("\n")
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines if line])}


def bbh_scores(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Exact match of the final answer."""
    return bbh.score(json.loads(document["gold"]), results[0])


def tydiqa_scores(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """F1 and exact match with the passage's words."""
    return tydiqa.score(json.loads(document["gold"]), results[0])


def gsm8k_scores(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Exact match of the last number."""
    return gsm8k.score(json.loads(document["gold"]), results[0])


def humaneval_scores(document: dict[str, Any], results: list[list[str]]) -> dict[str, float]:
    """pass@1 and pass@10 from all programs written for the problem, each run in the sandbox."""
    gold, (written,) = json.loads(document["gold"]), results
    verdicts = run_programs([humaneval.program(gold, text) for text in written])
    passed = sum(verdict.passed for verdict in verdicts)
    return {
        f"pass@{k}": humaneval.pass_at_k(len(written), passed, k) if k <= len(written) else float("nan")
        for k in (1, 10)
    }
