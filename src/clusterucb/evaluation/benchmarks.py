"""Base and adapter side by side on benchmarks: the same questions, the same prompts, answered in chunks.

Every chunk of answers is on disk before the next is asked, so an evaluation that was killed goes on where it
was. A folder of answers has a name that depends on all that they depend on, so several evaluations may share
the base's.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from clusterucb.config import Common, Evaluation
from clusterucb.data.chat import ChatFormat, fingerprint
from clusterucb.errors import ConfigError, InputError
from clusterucb.evaluation.documents import Document, documents
from clusterucb.evaluation.harness import Engine, ask, require_harness, stops
from clusterucb.evaluation.sandbox.programs import protections
from clusterucb.evaluation.scores import by_subtask, mean, score
from clusterucb.runtime.devices import free_memory, is_out_of_memory
from clusterucb.runtime.files import (
    publish,
    publish_folder,
    read_json,
    read_lines,
    storage_errors,
    write_json,
    write_lines,
)
from clusterucb.runtime.memory import BENCHMARKS, Room
from clusterucb.runtime.screen import Screen
from clusterucb.tasks import chosen
from clusterucb.tasks.task import Task, Variant
from clusterucb.training.model import pick_device

MODELS = ("base", "adapter")
Answered = dict[str, Any]
"""id, subtask, responses (texts, or log-likelihoods of the choices), and each metric's value."""

_SAMPLES = "samples.jsonl"
_BATCH_TOKENS = 16384
_LARGEST_BATCH = 64
_VLLM_BATCH = 512  # it makes its batches by itself, from all that it is given
_CHUNK_BATCHES = 4
_SMALLEST_CHUNK = 16
_CHOICE_TOKENS = 8  # a letter's, and the one that vLLM always writes


def check_settings(config: Common) -> None:
    """Refuse what cannot be evaluated before anything is computed.

    Raises:
        ConfigError: an unknown benchmark, a missing package, HumanEval without leave to run programs.
    """
    settings = config.evaluation
    variants = chosen(settings.tasks)
    if not variants:
        return
    require_harness(settings.engine)
    if settings.engine == "vllm" and config.load_in != "dtype":
        raise ConfigError(
            f"engine vllm runs the base in --dtype, not in {config.load_in}: use --engine hf, or evaluate "
            "the adapter on the base as it is (clusterucb evaluate --adapter)"
        )
    runs_code = [name for name, (task, _) in variants.items() if task.name == "humaneval"]
    if runs_code and not settings.allow_code_execution:
        raise ConfigError(
            f"{runs_code[0]} runs programs that the model writes, in a sandbox; "
            "if you agree to that, give --allow-code-execution"
        )
    needed = max(variant.k for _, variant in variants.values())
    if runs_code and settings.samples < needed:
        raise ConfigError(
            f"samples is {settings.samples}: pass@{needed} needs at least {needed}; raise --samples"
        )


@dataclass(frozen=True)
class _Sheet:
    """One benchmark, ready to be asked."""

    name: str
    task: Task
    variant: Variant
    documents: Sequence[Document]
    left_out: Sequence[str]
    """Ids of the questions that the adapter was selected for."""
    lengths: NDArray[np.int64]
    """Tokens of each prompt, (n,)."""
    chunks: Sequence[tuple[NDArray[np.int64], int]]
    """Places of the documents that are asked together, and how many at once."""

    def longest(self, places: NDArray[np.int64] | slice = slice(None)) -> int:
        """Tokens of the longest of some prompts, or of all, and its answer."""
        return int(self.lengths[places].max()) + (self.variant.max_new_tokens or _CHOICE_TOKENS)


@dataclass
class Benchmarks:
    """An evaluation of one adapter and its base."""

    config: Common
    engine: Engine
    adapter: str  # what the adapter's answers depend on, besides the base
    tokenizer: Any
    chat: ChatFormat  # the target's too
    folder: Path  # where the adapter's answers and the results go
    base_answers: Path  # where the base's answers go; other evaluations may have the same
    leave_out: frozenset[str]  # digests of questions that the adapter was selected for
    screen: Screen
    room: Room = field(default_factory=Room)

    def run(self) -> dict[str, Any]:
        """Ask what has not been answered yet; publish and return results.json.

        Raises:
            ConfigError: see `check_settings`; no question is left, or the model cannot answer one.
            InputError: the benchmark's files are missing or not what was expected.
        """
        check_settings(self.config)
        started = time.monotonic()
        sheets = [self._sheet(name, *found) for name, found in chosen(self.config.evaluation.tasks).items()]
        with self.engine.ready(max(sheet.longest() for sheet in sheets)):
            folders = [[self._answers(sheet, who) for sheet in sheets] for who in MODELS]
        results = {
            "benchmarks": {
                sheet.name: self._result(sheet, dict(zip(MODELS, pair, strict=True)))
                for sheet, *pair in zip(sheets, *folders, strict=True)
            },
            "made_with": self._made_with(),
            "seconds": time.monotonic() - started,
        }
        write_json(self.folder / "results.json", results)
        return results

    def _made_with(self) -> dict[str, object]:
        settings = self.config.evaluation
        return {
            "base": self.engine.base,
            "adapter": {**self.engine.base, "adapter": self.adapter},
            "chat": self.chat.name,
            "engine": settings.engine,
            "seed": self.config.seed,
            "limit": settings.limit,
            "samples": settings.samples,
            "lm_eval": version("lm_eval"),
        }

    def _sheet(self, name: str, task: Task, variant: Variant) -> _Sheet:
        settings = self.config.evaluation
        if variant.samples > 1:
            variant = replace(variant, samples=settings.samples)
        found, left_out = documents(task, variant, self.chat, self.config, self.leave_out)
        if not found:
            raise ConfigError(
                f"{name}: no question is left to evaluate on, as the target took all of them; "
                "lower --target-rows"
            )
        prompts = [document["context"] for document in found]
        ids = self.tokenizer(prompts, add_special_tokens=False, verbose=False)["input_ids"]
        lengths = np.array([len(prompt) for prompt in ids], np.int64)
        chunks = list(_chunks(lengths, variant, settings))
        return _Sheet(name, task, variant, found, left_out, lengths, chunks)

    def _answers(self, sheet: _Sheet, who: str) -> Path:
        """The folder of one model's answers, which are asked for if they are not there."""
        facts = json.dumps(self._facts(sheet, who), sort_keys=True)
        key = hashlib.sha256(facts.encode()).hexdigest()[:8]
        folder = (self.base_answers if who == "base" else self.folder) / f"{sheet.name}-{who}-{key}"
        with storage_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.parent / ".lock"):  # another evaluation may be asking the base
                if not folder.exists():
                    self._ask(sheet, who, folder)
                for chunk in folder.glob("chunk-*.jsonl"):  # only now: without them all would be asked again
                    chunk.unlink()
        return folder

    def _facts(self, sheet: _Sheet, who: str) -> dict[str, object]:
        """All that a model's answers depend on."""
        return {
            "documents": [[document["context"], document["choices"]] for document in sheet.documents],
            "variant": repr(sheet.variant),
            "until": stops(sheet.variant, self.chat),
            "chunks": [[len(places), batch] for places, batch in sheet.chunks],
            "seed": self.config.seed,
            "engine": self.config.evaluation.engine,
            "lm_eval": version("lm_eval"),
            "tokenizer": fingerprint(self.tokenizer, self.chat),
            **self.engine.base,
            **({"adapter": self.adapter} if who == "adapter" else {}),
        }

    def _ask(self, sheet: _Sheet, who: str, folder: Path) -> None:
        with publish_folder(folder, resume=True) as part:
            cut = self._cut(sheet)
            write_lines(part / _SAMPLES, self._asked(sheet, who, part), ascii=True)
            write_lines(part / "documents.jsonl", sheet.documents, ascii=True)
            write_json(part / "asked.json", {"cut": cut, "window": self.engine.window})
            seconds = sum([*read_lines(chunk)][-1]["seconds"] for chunk in part.glob("chunk-*.jsonl"))
            cost = {"rows": len(sheet.documents), "tokens": int(sheet.lengths.sum()), "seconds": seconds}
            write_json(part / "cost.json", {"cost": cost})

    def _cut(self, sheet: _Sheet) -> int:
        """Prompts that are too long for the model; the harness drops their beginning."""
        window, room = self.engine.window, sheet.variant.max_new_tokens
        if room >= window:
            raise ConfigError(
                f"{sheet.name}: an answer may have {room} tokens, but the model holds {window}, prompt "
                "included; use a model with a longer window"
            )
        return int((sheet.lengths + room > window).sum())

    def _asked(self, sheet: _Sheet, who: str, part: Path) -> list[Answered]:
        samples: dict[int, Answered] = {}
        shown = sheet.variant.metrics[0]
        with self.screen.track(f"{sheet.name}, {who}", len(sheet.documents), "questions") as advance:
            for number, (places, _) in enumerate(sheet.chunks):
                path = part / f"chunk-{number:05d}.jsonl"
                if not path.exists():
                    started = time.monotonic()
                    found = self._chunk(sheet, who, number)
                    took = {"seconds": round(time.monotonic() - started, 3)}
                    with publish(path) as unfinished:
                        write_lines(unfinished, [*found, took], ascii=True)
                answers = (line for line in read_lines(path) if "id" in line)  # all but the last
                samples |= zip(places.tolist(), answers, strict=True)
                so_far = np.mean([answered[shown] for answered in samples.values()])
                advance(len(places), f"{shown} {so_far:.3f}")
        return [samples[place] for place in range(len(sheet.documents))]

    def _chunk(self, sheet: _Sheet, who: str, number: int) -> list[Answered]:
        """Answers to one chunk, in batches that fit into memory; vLLM sees to its own."""
        places, planned = sheet.chunks[number]
        chunk, longest = [sheet.documents[place] for place in places], sheet.longest(places)
        space = self.room.at(BENCHMARKS, pick_device(self.config.device))
        prompts = [document["context"] for document in chunk]
        seed = int(np.random.SeedSequence([self.config.seed, number]).generate_state(1)[0])
        until = stops(sheet.variant, self.chat)
        while True:
            batch = space.rows(longest, planned)
            try:
                with self.engine.asked(who, batch) as lm:
                    found = ask(lm, sheet.variant, prompts, until, seed)
                space.told()
                return [_answered(sheet, *pair) for pair in zip(chunk, found, strict=True)]
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            try:
                space.lower(batch, longest)
            except InputError as error:
                raise InputError(f"{chunk[0]['id']}: {error}") from None
            free_memory()  # here, as the error held what was computed

    def _result(self, sheet: _Sheet, folders: Mapping[str, Path]) -> dict[str, Any]:
        """Every metric for both models by their folders, and their difference question by question."""
        answers = {who: [*read_lines(folder / _SAMPLES)] for who, folder in folders.items()}
        subtasks = [document["subtask"] for document in sheet.documents]
        macro, metrics, parts = sheet.variant.macro, {}, {}
        for metric in sheet.variant.metrics:
            values = {who: np.array([answered[metric] for answered in answers[who]]) for who in MODELS}
            values["difference"] = values["adapter"] - values["base"]
            metrics[metric] = {what: mean(v, subtasks, macro=macro) for what, v in values.items()}
            parts[metric] = {what: by_subtask(v, subtasks) for what, v in values.items()}
        return {
            "questions": len(sheet.documents),
            "shots": sheet.variant.shots,
            "left_out": list(sheet.left_out),
            "cut": read_json(folders["base"] / "asked.json")["cut"],
            "metrics": metrics,
            "by_subtask": parts,
            "answers": {who: os.path.relpath(folder, self.folder) for who, folder in folders.items()},
            **({"sandbox": protections()} if sheet.task.name == "humaneval" else {}),
        }


def _answered(sheet: _Sheet, document: Document, responses: Sequence[Any]) -> Answered:
    scores = score(sheet.task, sheet.variant, document, responses)
    return {"id": document["id"], "subtask": document["subtask"], "responses": responses, **scores}


def _chunks(
    lengths: NDArray[np.int64], variant: Variant, settings: Evaluation
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """The longest prompts first, so that memory and time are known early."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]]) + variant.max_new_tokens
        fitting = max(1, min(_LARGEST_BATCH, _BATCH_TOKENS // longest))
        batch = settings.eval_batch or (_VLLM_BATCH if settings.engine == "vllm" else fitting)
        size = max(_SMALLEST_CHUNK, _CHUNK_BATCHES * batch) // variant.samples or 1
        yield order[start : start + size], batch
        start += size
