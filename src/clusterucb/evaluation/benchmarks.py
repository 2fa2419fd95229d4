"""Base and adapter side by side on benchmarks: the same questions, the same prompts, answered in chunks.

Every chunk of answers is on disk before the next is asked, so an evaluation that was killed goes on where it
was. A folder of answers has a name that depends on all that they depend on.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clusterucb.config import Common
from clusterucb.data.chat import ChatFormat, fingerprint
from clusterucb.errors import ConfigError
from clusterucb.evaluation.harness import (
    Answered,
    Document,
    Engine,
    ask,
    documents,
    harness_version,
    require_harness,
    stops,
)
from clusterucb.evaluation.sandbox.programs import protections
from clusterucb.evaluation.scores import by_subtask, mean
from clusterucb.runtime.files import publish, publish_folder, read_json, write_json
from clusterucb.runtime.screen import Screen
from clusterucb.tasks.chosen import chosen as chosen_variants
from clusterucb.tasks.task import Task, Variant

MODELS = ("base", "adapter")
MadeWith = Mapping[str, Mapping[str, object]]
"""What the answers of each of `MODELS` depend on."""

_BATCH_TOKENS = 16384
_LARGEST_BATCH = 64
_CHUNK_BATCHES = 4
_SMALLEST_CHUNK = 16


def check_settings(config: Common) -> None:
    """Refuse what cannot be evaluated before anything is computed.

    Raises:
        ConfigError: an unknown benchmark, a missing package, HumanEval without leave to run programs.
    """
    settings = config.evaluation
    variants = chosen_variants(settings.tasks)
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
    needed = max((variant.k for _, variant in variants.values()), default=1)
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
    folders: Mapping[str, Path]
    """Where the answers of each model go."""
    chunks: Sequence[tuple[NDArray[np.int64], int]]
    """Places of the documents that are asked together, and how many at once."""


@dataclass
class Benchmarks:
    """An evaluation of one adapter and its base.

    Args:
        config: which benchmarks, and how.
        engine: made when the first question is asked.
        made_with: called once the questions are read.
        tokenizer: the model's.
        chat: its format, the target's too.
        folder: where answers and results go.
        leave_out: digests of questions that the adapter was selected for.
        screen: where progress is shown.
    """

    config: Common
    engine: Callable[[], Engine]
    made_with: Callable[[], MadeWith]
    tokenizer: Any
    chat: ChatFormat
    folder: Path
    leave_out: frozenset[str] = frozenset()
    screen: Screen = field(default_factory=lambda: Screen(quiet=True))

    def run(self) -> dict[str, Any]:
        """Ask what has not been answered yet; publish and return results.json.

        Raises:
            ConfigError: see `check_settings`; no question is left, or the model cannot answer one.
            InputError: the benchmark's files are missing or not what was expected.
        """
        check_settings(self.config)
        started = time.monotonic()
        questions = {name: self._questions(name) for name in self._variants}
        made_with = self.made_with()
        sheets = [self._sheet(name, *found, made_with) for name, found in questions.items()]
        answers: dict[str, dict[str, list[Answered]]] = {sheet.name: {} for sheet in sheets}
        for who in MODELS:
            for sheet in sheets:
                answers[sheet.name][who] = self._answers(sheet, who)
        results = {
            "benchmarks": {sheet.name: _compared(sheet, answers[sheet.name]) for sheet in sheets},
            "made_with": {**made_with, **self._settings()},
            "seconds": time.monotonic() - started,
        }
        write_json(self.folder / "results.json", results)
        return results

    @cached_property
    def _engine(self) -> Engine:
        return self.engine()

    @cached_property
    def _variants(self) -> dict[str, tuple[Task, Variant]]:
        settings = self.config.evaluation
        return {
            name: (task, replace(variant, samples=settings.samples) if variant.samples > 1 else variant)
            for name, (task, variant) in chosen_variants(settings.tasks).items()
        }

    def _settings(self) -> dict[str, object]:
        """What the results depend on besides models and questions."""
        settings = self.config.evaluation
        return {
            "chat": self.chat.name,
            "engine": settings.engine,
            "seed": self.config.seed,
            "limit": settings.limit,
            "samples": settings.samples,
            "lm_eval": harness_version(),
        }

    def _questions(self, name: str) -> tuple[list[Document], list[str]]:
        task, variant = self._variants[name]
        found, left_out = documents(
            task,
            variant,
            self.chat,
            self.config.data_folder,
            leave_out=self.leave_out,
            limit=self.config.evaluation.limit,
            seed=self.config.seed,
        )
        if not found:
            raise ConfigError(
                f"{name}: no question is left to evaluate on, as the target took all of them; "
                "lower --target-rows"
            )
        return found, left_out

    def _sheet(
        self, name: str, found: Sequence[Document], left_out: Sequence[str], made_with: MadeWith
    ) -> _Sheet:
        task, variant = self._variants[name]
        contexts = [document["context"] for document in found]
        ids = self.tokenizer(contexts, add_special_tokens=False, verbose=False)["input_ids"]
        lengths = np.array([len(prompt) for prompt in ids], np.int64)
        chunks = list(_chunks(lengths, variant, self.config.evaluation.eval_batch))
        facts = {
            "documents": [[document["context"], document["choices"]] for document in found],
            "variant": repr(variant),
            "until": stops(variant, self.chat),
            "chunks": [[len(places), batch] for places, batch in chunks],
            "seed": self.config.seed,
            "engine": self.config.evaluation.engine,
            "lm_eval": harness_version(),
            "tokenizer": fingerprint(self.tokenizer, self.chat),
        }
        folders = {who: self.folder / f"{name}-{who}-{_key({**facts, **made_with[who]})}" for who in MODELS}
        return _Sheet(name, task, variant, found, left_out, lengths, folders, chunks)

    def _answers(self, sheet: _Sheet, who: str) -> list[Answered]:
        """One model's answers, in the documents' order."""
        folder = sheet.folders[who]
        path = folder / "samples.jsonl"
        if not path.exists():
            with publish_folder(folder, resume=True) as part:
                cut = self._cut(sheet)
                samples = self._asked(sheet, who, part)
                write_json(part / "asked.json", {"cut": cut, "window": self._engine.window})
                _write_lines(part / "documents.jsonl", sheet.documents)
                _write_lines(part / path.name, samples)
                for chunk in part.glob("chunk-*.jsonl"):
                    chunk.unlink()
        return _read_lines(path)

    def _cut(self, sheet: _Sheet) -> int:
        """Prompts that are too long for the model; the harness drops their beginning."""
        window, room = self._engine.window, sheet.variant.max_new_tokens
        if room >= window:
            raise ConfigError(
                f"{sheet.name}: an answer may have {room} tokens, but the model holds {window}, prompt "
                "included; use a model with a longer window"
            )
        return int((sheet.lengths + room > window).sum())

    def _asked(self, sheet: _Sheet, who: str, part: Path) -> list[Answered]:
        samples: dict[int, Answered] = {}
        shrunk, shown = 1, sheet.variant.metrics[0]
        with self.screen.track(f"{sheet.name}, {who}", len(sheet.documents), "questions") as advance:
            for number, (places, planned) in enumerate(sheet.chunks):
                path = part / f"chunk-{number:05d}.jsonl"
                if not path.exists():
                    found, batch = self._chunk(sheet, who, number, max(1, planned // shrunk))
                    shrunk = max(shrunk, planned // batch)
                    with publish(path) as unfinished:
                        _write_lines(unfinished, found)
                samples |= zip(places.tolist(), _read_lines(path), strict=True)
                so_far = np.mean([answered[shown] for answered in samples.values()])
                advance(len(places), f"{shown} {so_far:.3f}")
        return [samples[place] for place in range(len(sheet.documents))]

    def _chunk(self, sheet: _Sheet, who: str, number: int, batch: int) -> tuple[list[Answered], int]:
        """Answers to one chunk, and the batch that fitted into memory."""
        chunk = [sheet.documents[place] for place in sheet.chunks[number][0]]
        seed = int(np.random.SeedSequence([self.config.seed, number]).generate_state(1)[0])
        until = stops(sheet.variant, self.chat)
        while True:
            try:
                with self._engine.asked(who, batch) as lm:
                    return ask(lm, sheet.task.name, sheet.variant, chunk, until, seed), batch
            except torch.OutOfMemoryError:
                if batch == 1:
                    raise ConfigError(
                        f"{chunk[0]['id']}: out of memory with a single question; use a smaller model or "
                        "--dtype bfloat16"
                    ) from None
            torch.cuda.empty_cache()  # here, as the error holds what was computed
            batch //= 2


def _compared(sheet: _Sheet, answers: Mapping[str, Sequence[Answered]]) -> dict[str, Any]:
    """Every metric for both models, and their difference question by question."""
    subtasks = [document["subtask"] for document in sheet.documents]
    result: dict[str, Any] = {
        "questions": len(sheet.documents),
        "shots": sheet.variant.shots,
        "left_out": list(sheet.left_out),
        "cut": read_json(sheet.folders[MODELS[0]] / "asked.json")["cut"],
        "metrics": {},
        "by_subtask": {},
        "answers": {who: folder.name for who, folder in sheet.folders.items()},
    }
    if sheet.task.name == "humaneval":
        result["sandbox"] = protections()
    for metric in sheet.variant.metrics:
        values = {who: np.array([a[metric] for a in answers[who]], np.float64) for who in MODELS}
        values["difference"] = values["adapter"] - values["base"]
        result["metrics"][metric] = {
            what: mean(v, subtasks, macro=sheet.variant.macro).to_json() for what, v in values.items()
        }
        result["by_subtask"][metric] = {
            what: {s: m.to_json() for s, m in by_subtask(v, subtasks).items()} for what, v in values.items()
        }
    return result


def _chunks(
    lengths: NDArray[np.int64], variant: Variant, eval_batch: int | None
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """The longest prompts first, so that memory and time are known early."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        batch = eval_batch or _batch(int(lengths[order[start]]) + variant.max_new_tokens)
        size = max(_SMALLEST_CHUNK, _CHUNK_BATCHES * batch) // variant.samples or 1
        yield order[start : start + size], batch
        start += size


def _batch(longest: int) -> int:
    return max(1, min(_LARGEST_BATCH, _BATCH_TOKENS // longest))


def _key(facts: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
