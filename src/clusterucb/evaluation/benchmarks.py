"""Base and adapter side by side on benchmarks: the same questions, the same prompts, answered in chunks.

Every chunk of answers is on disk before the next is asked, so an evaluation that was killed goes on where it
was. A folder of answers has a name that depends on all that they depend on.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
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
from clusterucb.evaluation.documents import Document, documents
from clusterucb.evaluation.harness import Answered, Engine, ask, require_harness, stops
from clusterucb.evaluation.sandbox import protections
from clusterucb.evaluation.scores import by_subtask, mean
from clusterucb.progress import Screen
from clusterucb.rundir import publish, publish_folder, read_json, write_json
from clusterucb.tasks import Task, Variant
from clusterucb.tasks.chosen import chosen as chosen_variants

__all__ = ["MODELS", "Benchmarks", "check_settings"]

MODELS = ("base", "adapter")
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


@dataclass
class Benchmarks:
    """An evaluation of one adapter and its base.

    Args:
        config: which benchmarks, and how.
        engine: made when the first question is asked.
        made_with: what the answers of each model depend on, by `MODELS`.
        tokenizer: the model's.
        chat: its format, the target's too.
        folder: where answers and results go.
        leave_out: digests of questions that the adapter was selected for.
        screen: where progress is shown.
    """

    config: Common
    engine: Callable[[], Engine]
    made_with: Mapping[str, Mapping[str, object]]
    tokenizer: Any
    chat: ChatFormat
    folder: Path
    leave_out: frozenset[str] = frozenset()
    screen: Screen = field(default_factory=lambda: Screen(quiet=True))
    _left_out: dict[str, list[str]] = field(default_factory=dict, init=False)

    def run(self) -> dict[str, Any]:
        """Ask what has not been answered yet; publish and return results.json."""
        check_settings(self.config)
        started = time.monotonic()
        asked = {name: self._documents(name) for name in self._variants}
        answers: dict[str, dict[str, list[Answered]]] = {name: {} for name in asked}
        for who in MODELS:
            for name, found in asked.items():
                answers[name][who] = self._answers(name, who, found)
        results = {
            "benchmarks": {name: self._compared(name, asked[name], answers[name]) for name in asked},
            "made_with": {**self.made_with, "chat": self.chat.name, "engine": self.config.evaluation.engine},
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

    def _documents(self, name: str) -> list[Document]:
        task, variant = self._variants[name]
        data_dir = self.config.data_dir
        found, self._left_out[name] = documents(
            task,
            variant,
            self.chat,
            Path(data_dir) if data_dir else None,
            leave_out=self.leave_out,
            limit=self.config.evaluation.limit,
            seed=self.config.seed,
        )
        if not found:
            raise ConfigError(f"{task.name}: no question is left to evaluate on; the target took all of them")
        return found

    def _answers(self, name: str, who: str, asked: Sequence[Document]) -> list[Answered]:
        """One model's answers, in the documents' order."""
        folder = self._answers_folder(name, who, asked)
        path = folder / "samples.jsonl"
        if not path.exists():
            with publish_folder(folder, resume=True) as part:
                samples = self._asked(name, who, asked, part)
                write_json(
                    part / "asked.json", {"cut": self._cut(name, asked), "window": self._engine.window}
                )
                _write_lines(part / "documents.jsonl", asked)
                _write_lines(part / path.name, samples)
                for chunk in part.glob("chunk-*.jsonl"):
                    chunk.unlink()
        return _read_lines(path)

    def _asked(self, name: str, who: str, asked: Sequence[Document], part: Path) -> list[Answered]:
        task, variant = self._variants[name]
        lengths = self._lengths(asked)
        order = np.argsort(-lengths, kind="stable")  # the longest first: memory and time are known early
        batch = self.config.evaluation.eval_batch or _batch(int(lengths.max()) + variant.max_new_tokens)
        size = max(_SMALLEST_CHUNK, _CHUNK_BATCHES * batch) // variant.samples or 1
        until = stops(variant, self.chat)
        samples: dict[str, Answered] = {}
        with self.screen.track(f"{name}, {who}", len(asked), "questions") as advance:
            for number, start in enumerate(range(0, len(order), size)):
                path = part / f"chunk-{number:05d}.jsonl"
                chunk = [asked[i] for i in order[start : start + size]]
                if not path.exists():
                    found, batch = self._chunk(who, task, variant, chunk, until, number, batch)
                    with publish(path) as unfinished:
                        _write_lines(unfinished, found)
                samples |= {answered["id"]: answered for answered in _read_lines(path)}
                shown = variant.metrics[0]
                so_far = np.mean([answered[shown] for answered in samples.values()])
                advance(len(chunk), f"{shown} {so_far:.3f}")
        return [samples[document["id"]] for document in asked]

    def _chunk(
        self,
        who: str,
        task: Task,
        variant: Variant,
        chunk: Sequence[Document],
        until: Sequence[str],
        number: int,
        batch: int,
    ) -> tuple[list[Answered], int]:
        """Answers to one chunk, and the batch that fitted into memory."""
        seed = self.config.seed + number
        while True:
            try:
                with self._engine.asked(who, batch) as lm:
                    return ask(lm, task.name, variant, chunk, until, seed), batch
            except torch.OutOfMemoryError:
                if batch == 1:
                    raise ConfigError(
                        f"{chunk[0]['id']}: out of memory with a single question; use a smaller model or "
                        "--dtype bfloat16"
                    ) from None
                torch.cuda.empty_cache()
                batch //= 2

    def _answers_folder(self, name: str, who: str, asked: Sequence[Document]) -> Path:
        _, variant = self._variants[name]
        facts = {
            "documents": [[d["context"], d["choices"]] for d in asked],
            "variant": repr(variant),
            "until": stops(variant, self.chat),
            "seed": self.config.seed,
            "eval_batch": self.config.evaluation.eval_batch,
            "engine": self.config.evaluation.engine,
            "tokenizer": fingerprint(self.tokenizer, self.chat),
            **self.made_with[who],
        }
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
        return self.folder / f"{name}-{who}-{key}"

    def _lengths(self, asked: Sequence[Document]) -> NDArray[np.int64]:
        """Tokens of each prompt, (n,)."""
        contexts = [document["context"] for document in asked]
        found = self.tokenizer(contexts, add_special_tokens=False, verbose=False)["input_ids"]
        return np.array([len(ids) for ids in found], np.int64)

    def _cut(self, name: str, asked: Sequence[Document]) -> int:
        """Prompts that are too long for the model; the harness drops their beginning."""
        _, variant = self._variants[name]
        return int((self._lengths(asked) + variant.max_new_tokens > self._engine.window).sum())

    def _compared(
        self, name: str, asked: Sequence[Document], answers: Mapping[str, Sequence[Answered]]
    ) -> dict[str, Any]:
        """Every metric for both models, and their difference question by question."""
        task, variant = self._variants[name]
        subtasks = [document["subtask"] for document in asked]
        values = {
            metric: {who: np.array([a[metric] for a in answers[who]], np.float64) for who in MODELS}
            for metric in variant.metrics
        }
        result: dict[str, Any] = {
            "questions": len(asked),
            "shots": variant.shots,
            "left_out": self._left_out[name],
            "cut": read_json(self._answers_folder(name, MODELS[0], asked) / "asked.json")["cut"],
            "metrics": {},
            "by_subtask": {},
            "answers": {who: self._answers_folder(name, who, asked).name for who in MODELS},
        }
        if task.name == "humaneval":
            result["sandbox"] = protections()
        for metric, found in values.items():
            found["difference"] = found["adapter"] - found["base"]
            result["metrics"][metric] = {
                who: mean(v, subtasks, macro=variant.macro).to_json() for who, v in found.items()
            }
            result["by_subtask"][metric] = {
                who: {s: m.to_json() for s, m in by_subtask(v, subtasks).items()} for who, v in found.items()
            }
        return result


def _batch(longest: int) -> int:
    return max(1, min(_LARGEST_BATCH, _BATCH_TOKENS // longest))


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
