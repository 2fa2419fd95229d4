"""BIG-Bench Hard: 27 tasks, answered in steps (Suzgun et al. 2022, https://arxiv.org/abs/2210.09261).

Each task comes with three worked questions: the shots of its evaluation, and the rows of the target.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clusterucb.data.files import Lines
from clusterucb.errors import ConfigError, InputError
from clusterucb.tasks import files
from clusterucb.tasks.task import Question, Task, Variant, check_shots, draw

_FILES = files.Official(
    "bbh",
    expects="bbh/cot-prompts/<task>.txt and, for the evaluation, bbh/<task>.json",
    url="https://github.com/suzgunmirac/BIG-Bench-Hard",
)
_PROMPTS = "cot-prompts/*.txt"
_HUB = "SaylorTwift/bbh"
"""What lm-eval reads, with the columns and names of lukaemon/bbh, which is a script: datasets 4 runs none."""
_OPENING = "A:"
_THINK = " Let's think step by step"
_STOP = ("\n\nQ:",)  # a model that goes on to make up the next question has given its answer
_MOST_SHOTS = 3
# A period within a number or a name (3.5, a.b) does not end the answer.
_FINAL = re.compile(r"[Tt]he answer is (.*?)\.(?!\w)")
# Open-instruct drops all punctuation, and -5 is 5 then; a minus before a digit stays here.
_PUNCTUATION = re.compile(rf"(?!-\d)[{re.escape(string.punctuation)}]")


@dataclass(frozen=True)
class _Prompt:
    """A task's description and worked questions, each with what follows "A:"."""

    description: str
    shots: tuple[tuple[str, str], ...]

    def ask(self, shots: Sequence[tuple[str, str]], question: str) -> str:
        worked = [f"Q: {asked}\n{_OPENING}{answer}" for asked, answer in shots]
        return "\n\n".join([self.description, *worked, f"Q: {question}"]).strip()


def targets(data_dir: Path | None, rows: int | None, seed: int) -> list[Question]:
    """Each worked question once, the others of its task as its shots, in the file's order."""
    found = []
    for task, prompt in _prompts(data_dir).items():
        for i, (question, answer) in enumerate(prompt.shots):
            ask = prompt.ask(prompt.shots[:i] + prompt.shots[i + 1 :], question)
            found.append(_question(f"{task}/shots/{i}", ask, question, final_answer(answer), answer))
    return [found[i] for i in draw("bbh", len(found), rows, seed)]


def questions(data_dir: Path | None, shots: int) -> Iterator[Question]:
    """The questions of all tasks, task by task, after the task's first worked questions."""
    check_shots("bbh", shots, _MOST_SHOTS)
    prompts = _prompts(data_dir)
    sources = _official(data_dir, prompts) if data_dir is not None else dict.fromkeys(prompts)
    return (
        _question(f"{task}/test/{i}", prompts[task].ask(prompts[task].shots[:shots], text), text, answer)
        for task, path in sources.items()
        for i, (text, answer) in enumerate(_examples(task, path))
    )


def final_answer(output: str) -> str:
    """What the output gives after "the answer is", up to a period; where it does not, its first paragraph."""
    found = _FINAL.search(output)
    return found.group(1).strip() if found else output.strip().split("\n\n")[0].strip()


def score(gold: Mapping[str, Any], output: str) -> dict[str, float]:
    """Whether the final answer is the target; neither case nor punctuation counts.

    Where an answer is nothing but punctuation (dyck_languages), it must be the same without its spaces:
    to leave punctuation out, as open-instruct does, would make any brackets right.
    """
    return {"exact_match": float(_plain(final_answer(output)) == _plain(gold["target"]))}


def _plain(answer: str) -> str:
    if not any(character.isalnum() for character in answer):
        return "".join(answer.split())
    return _PUNCTUATION.sub("", answer).lower()


def _question(place: str, ask: str, core: str, target: str, answer: str = "") -> Question:
    return Question(
        id=f"bbh/{place}",
        subtask=place.split("/")[0],
        ask=ask,
        opening=_OPENING,
        answer=answer,
        core=core.strip(),
        gold={"target": target},
    )


def _prompts(data_dir: Path | None) -> dict[str, _Prompt]:
    """The prompt of each task, by its name, sorted."""
    if data_dir is None:
        return {path.stem: _harness_prompt(path) for path in files.harness_files("bbh/cot_fewshot")}
    return {path.stem: _parse(files.read_text(path), str(path)) for path in _FILES.files(data_dir, _PROMPTS)}


def _parse(text: str, where: str) -> _Prompt:
    """An official prompt file: a canary, a line of dashes, the description, and questions with answers."""
    description, *blocks = text.split("-----\n", 1)[-1].strip().split("\n\nQ: ")
    shots = []
    for number, block in enumerate(blocks, 1):
        question, found, answer = block.partition(f"\n{_OPENING}{_THINK}")
        if not found:
            raise InputError(
                f"{where}: question {number} has no line that begins {_OPENING}{_THINK}; fetch it again"
            )
        shots.append((question.strip(), f"{_THINK}{answer}".rstrip()))
    if len(shots) != _MOST_SHOTS:
        raise InputError(f"{where}: {len(shots)} worked questions, expected {_MOST_SHOTS}; fetch it again")
    return _Prompt(description, tuple(shots))


def _harness_prompt(path: Path) -> _Prompt:
    shots = files.samples(path, "input")
    if len(shots) != _MOST_SHOTS:
        raise ConfigError(f"{path}: {len(shots)} samples, expected {_MOST_SHOTS}; install another lm-eval")
    # lm-eval leaves out the first sentence of each answer, and asks with it.
    worked = tuple((question.strip(), f"{_THINK}.\n{answer}".rstrip()) for question, answer in shots)
    return _Prompt(files.text_field(files.read_config(path), "description", str(path)).strip(), worked)


def _official(data_dir: Path, prompts: Mapping[str, _Prompt]) -> dict[str, Path]:
    """The file of each task's questions; a task with questions or a prompt alone is an error."""
    base = _FILES.files(data_dir, _PROMPTS)[0].parents[1]
    paths = {path.stem: path for path in sorted(base.glob("bbh/*.json")) or sorted(base.glob("*.json"))}
    if not paths:
        raise _FILES.missing(data_dir, "<task>.json")
    for task in sorted(prompts.keys() ^ paths.keys()):
        there, lacking = f"{task}.json", f"cot-prompts/{task}.txt"
        if task in prompts:
            there, lacking = lacking, there
        raise InputError(f"{base}: {there} without {lacking}; fetch both from {_FILES.url}, or drop it")
    return paths


def _examples(task: str, path: Path | None) -> Iterator[tuple[str, str]]:
    """(input, target) of each question; from the hub if there is no file."""
    records: Iterable[tuple[Any, str]]
    if path is None:
        records = Lines.open(f"hub:{_HUB}:{task}:test").records()
    else:
        examples = files.list_field(files.read_json(path), "examples", str(path))
        records = ((record, f"{path}, example {i}") for i, record in enumerate(examples, 1))
    for record, where in records:
        yield files.text_field(record, "input", where), files.text_field(record, "target", where)


TASK = Task(
    name="bbh",
    targets=targets,
    questions=questions,
    variants={"bbh": Variant(shots=3, metrics=("exact_match",), macro=True, max_new_tokens=512, stop=_STOP)},
    score=score,
)
