"""What a run reads, each part when it is first asked for: pool, target, held-out rows, tokens, the model.

Several runs with the same inputs share one `Inputs`. What is made of the inputs lies in its run directory.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from clusterucb.config import Config
from clusterucb.data.chat import ChatFormat, Encoded, chat_format, encode, fingerprint, fit
from clusterucb.data.pool import Pool
from clusterucb.data.target import Target, TextRows, overlap
from clusterucb.data.tokens import FittedTokens, Tokens
from clusterucb.errors import ConfigError, InputError
from clusterucb.features.influence import Aim, Subspace, aimed
from clusterucb.gradients.anatomy import Anatomy, examine
from clusterucb.gradients.featurizer import Featurizer, target_directions
from clusterucb.gradients.per_sample import adapter_layers, upper_half
from clusterucb.run.costs import Cost
from clusterucb.run.directory import RunDir
from clusterucb.run.methods import method_of
from clusterucb.run.screening import Screening, screened, unchecked
from clusterucb.run.sizing import Job
from clusterucb.runtime.devices import free_memory
from clusterucb.runtime.files import began, check_made_with, made, read_json, told, write_json, write_lines
from clusterucb.runtime.memory import Room
from clusterucb.runtime.processes import ALONE, World
from clusterucb.runtime.screen import Screen
from clusterucb.runtime.sharding import shard
from clusterucb.tasks import TASKS
from clusterucb.tasks.task import Question, held_out
from clusterucb.training.adapter import adapter_size, attach_adapter, load_adapter, save_adapter
from clusterucb.training.model import load_model, load_tokenizer, model_shape, pick_device

T = TypeVar("T")


@dataclass(frozen=True)
class Pooled:
    """The usable rows of a pool as tokens for gradients.

    Attributes:
        pool: where they come from.
        rows: the pool row of each usable row, (N,).
        tokens: of each usable row, cut to the gradient length.
        training: the same, cut for training.
        places: of each in the index, (N,), where rows of it are left out.
    """

    pool: Pool
    rows: NDArray[np.int64]
    tokens: FittedTokens
    training: FittedTokens
    places: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each, as its gradient sees them, (N,)."""
        return self.tokens.lengths

    def without(self, kept_out: Mapping[int, str]) -> Pooled:
        """All of them but these pool rows, in a numbering of their own."""
        places = np.flatnonzero(~np.isin(self.rows, [*kept_out]))
        if len(places) == len(self):
            return self
        return Pooled(self.pool, self.rows[places], self.tokens.at(places), self.training.at(places), places)

    def describe(self, row: int) -> str:
        """The id of a usable row."""
        return self.pool.id(int(self.rows[row]))

    def batch(self, rows: NDArray[np.int64]) -> tuple[list[Encoded], Callable[[int], str]]:
        """Tokens of usable rows, (b,), and what names the b-th of them."""
        numbers = rows.tolist()
        return [self.tokens[row] for row in numbers], lambda b: self.describe(numbers[b])

    def cost(self, seconds: float, *, gradients: int = 0, forwards: int = 0) -> Cost:
        """Of going through all usable rows, with so many gradients or forward passes of each."""
        rows, tokens = len(self.rows), int(self.lengths.sum())
        return Cost(rows, tokens, gradients * rows, seconds=seconds, pool_forwards=forwards * rows)

    def features(self, featurize: Featurizer, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Features (b, d) of one micro-batch of usable rows."""
        return featurize(*self.batch(rows))[0]


@dataclass(frozen=True)
class Targeted:
    """The target's rows as tokens.

    Attributes:
        ids: of the rows.
        tokens: of each row, cut to the target length.
        codes: subtask of each row, (n,).
        apart: there are several tasks, whose directions have norm 1, so that their scores are alike.
    """

    ids: Sequence[str]
    tokens: Sequence[Encoded]
    codes: NDArray[np.int64]
    apart: bool = False

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, (n,)."""
        return np.array([len(row.ids) for row in self.tokens], np.int64)

    def directions(
        self,
        featurize: Featurizer,
        batch_tokens: int,
        screen: Screen,
        world: World = ALONE,
        aim: Aim = "mean",
    ) -> tuple[NDArray[np.float32] | Subspace, Cost]:
        """What the aim compares rows with at the model's current weights, and its cost."""
        started = time.monotonic()
        with screen.track("target directions", len(self.ids), "rows") as advance:
            name = self.ids.__getitem__
            codes = self.codes if aim == "mean" else np.arange(len(self.ids))
            rows = target_directions(featurize, self.tokens, codes, batch_tokens, name, advance, world)
        if self.apart:
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        found = rows if aim == "mean" else aimed(aim, rows, self.codes)
        tokens, seconds = int(self.lengths.sum()), time.monotonic() - started
        return found, Cost(tokens=tokens, target_gradients=len(self.ids), seconds=seconds)


class Inputs:
    """What a run reads.

    Args:
        config: all settings.
        run: the directory where rows of benchmarks, tokens and the initial adapter are kept.
        screen: where progress is shown.
        world: the processes that read it, of which the one that leads writes.
        settled: the file from whose existence on the settings are those of the directory; its config.yaml.
    """

    def __init__(
        self, config: Config, run: RunDir, screen: Screen, world: World = ALONE, settled: Path | None = None
    ) -> None:
        self.config, self.dir, self.screen, self.world = config, run, screen, world
        self.sharded = world.size > 1 and config.training.shard == "fsdp"
        self._settled, self._said = settled or run.config, set[str]()

    @cached_property
    def room(self) -> Room:
        """What has fitted into memory, in this command and those before."""
        return Room(self.dir.memory if self.world.leads else None, self.screen.say)

    @cached_property
    def pool(self) -> Pool:
        """The rows to choose from, checked."""
        return Pool.read(self.config.pool)

    @cached_property
    def target(self) -> Target:
        """The task's rows, checked; none of them may be held out."""
        config = self.config
        if not config.target:
            raise ConfigError("'target' is missing; give --target or set it in the configuration")
        tasks, paths = zip(*config.targets, strict=True)
        names = [path for path in paths if path in TASKS]
        if not names:
            return Target.read(paths, config.subtask, tasks)
        if len(names) < len(paths) or config.subtask:
            raise ConfigError(
                f"target {' '.join(config.target)}: benchmarks have subtasks of their own, so neither "
                "files nor --subtask go with them; make two runs"
            )

        def drawn(name: str) -> Sequence[Question]:
            return TASKS[name].targets(config.data_folder, config.target_rows, config.seed)

        return Target.read([self._drawn(self.dir.target, name, drawn) for name in names], "subtask", tasks)

    @cached_property
    def target_questions(self) -> list[str]:
        """Digests of the benchmark questions in the target, which no evaluation may ask."""
        rows = () if self.config.own_target else (json.loads(row.raw) for row in self.target)
        return [row["digest"] for row in rows]

    @cached_property
    def holdout(self) -> Target | None:
        """The task's rows that only the evaluation sees, if any were given."""
        config = self.config
        if not config.holdout:
            return None

        def drawn(name: str) -> Sequence[Question]:
            unwanted = self.target_questions
            return held_out(TASKS[name], config.data_folder, config.holdout_rows, config.seed, unwanted)

        folder = self.dir.holdout
        paths = [self._drawn(folder, name, drawn) if name in TASKS else name for name in config.holdout]
        holdout = Target.read(paths)
        self._refuse_overlap(holdout, "target", self.target, "")
        if not config.decontaminate:
            self._refuse_overlap(holdout, "pool", self.pool, ", or keep such rows out with --decontaminate")
        return holdout

    def _refuse_overlap(self, holdout: Target, name: str, rows: TextRows, way_out: str) -> None:
        if common := overlap(rows, holdout):
            raise InputError(
                f"{common[0][1]}: this held-out row is also in the {name} ({common[0][0]}, {len(common)} "
                f"such rows in all); evaluate on rows that selection and training never see{way_out}"
            )

    @property
    def evaluated(self) -> tuple[Target, str]:
        """The rows that models are evaluated on, and how these are called."""
        return (self.holdout, "holdout") if self.holdout else (self.target, "target")

    def _drawn(self, folder: Path, name: str, drawn: Callable[[str], Sequence[Question]]) -> Path:
        """A benchmark's rows as a file of the run, which stands by itself from here on."""

        def make(part: Path) -> None:
            write_lines(part, (question.to_row() for question in drawn(name)))

        return self._made(folder / f"{name}.jsonl", make, lambda path: path)

    def _made(
        self,
        path: Path,
        make: Callable[[Path], object],
        read: Callable[[Path], T],
        made_with: Mapping[str, object] | None = None,
    ) -> T:
        """An artifact of the inputs, made by rank 0 whenever it is first asked for.

        Until the run has its settings, what a beginning with others has left is dropped; a run that is warmed
        up or has selected keeps it, though its settings were removed.
        """
        own = self.dir.path
        begun = [sign for sign in (self._settled, self.dir.warmup, self.dir.round(1)) if own in sign.parents]

        def act() -> None:
            kept = any(sign.exists() for sign in begun) or own not in path.parents
            if path.exists() and not kept and (not made_with or told(path) != made_with):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            made(path, make, read)

        self.world.once(path, act)
        if made_with:
            check_made_with(told(path), made_with, str(path), self.dir.remedy(path))
        return read(path)

    @cached_property
    def screening(self) -> Screening:
        """The pool rows that are kept out of the run; the person is told of them once."""
        config, pool, target, holdout = self.config, self.pool, self.target, self.holdout
        made_with = {
            "pool": pool.fingerprint,
            "target": target.fingerprint,
            "holdout": holdout.fingerprint if holdout else None,
            "decontaminate": config.decontaminate,
        }

        def make(part: Path) -> None:
            found = screened(config, pool, target, holdout, self.screen)
            write_json(part, {"made_with": made_with, **found})

        path = self.dir.contamination
        found = Screening(self._made(path, make, read_json, made_with))
        for line in found.report():
            self.screen.say(f"{line}; each is in {path}")
        self.tell_unchecked()
        return found

    def tell_unchecked(self) -> None:
        """Tell the person, once, of benchmarks that the pool was not checked against."""
        if found := unchecked(self.dir, self.config):
            self.say_once(f"the pool was not checked against {', '.join(found)} when this run began")

    def say_once(self, line: str) -> None:
        """Tell the person, however many runs share these inputs."""
        if line not in self._said:
            self._said.add(line)
            self.screen.say(line)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's."""
        return load_tokenizer(self.config)

    @cached_property
    def chat(self) -> ChatFormat:
        """One format for pool, target and evaluation."""
        return chat_format(self.config.chat, self.tokenizer, self._began)

    def _began(self) -> datetime:
        """When the run began: the day that a template writes, though the run goes on after midnight."""
        self.world.once(self.dir.began, lambda: began(self.dir.began))
        return began(self.dir.began)

    def read(self) -> None:
        """Read and check pool, target, held-out rows and chat format, so that what is wrong shows now."""
        for part in (self.pool, self.target, self.holdout, self.screening, self.chat):
            del part

    @cached_property
    def tokens_made_with(self) -> dict[str, object]:
        """What the pool's tokens depend on."""
        return {"pool": self.pool.fingerprint, **self.read_with}

    @cached_property
    def read_with(self) -> dict[str, object]:
        """What the tokens of any row depend on."""
        return {
            "tokenizer and chat": fingerprint(self.tokenizer, self.chat),
            "gradient_length": self.config.gradients.gradient_length,
            "train_length": self.config.training.train_length,
        }

    @property
    def counts(self) -> dict[str, int]:
        """Rows of the pool: `rows` in all, `usable` and `excluded`."""
        usable = len(self.pooled)
        rows = int(read_json(self.dir.pool / "manifest.json")["rows"])
        return {"rows": rows, "usable": usable, "excluded": rows - usable}

    @cached_property
    def every(self) -> Pooled:
        """All rows that can be used, whatever the target."""
        folder, settings = self.dir.pool, self.config
        self._made(folder, self._tokenise, Tokens.open, self.tokens_made_with)
        manifest = read_json(folder / "manifest.json")
        if manifest["excluded"]:
            self.screen.say(
                f"{manifest['excluded']} of {manifest['rows']} pool rows cannot be used; "
                f"each is listed with its reason in {folder / 'excluded.jsonl'}"
            )
        if not manifest["usable"]:
            raise InputError(
                f"no row of the pool can be used; the reasons are in {folder / 'excluded.jsonl'}"
            )
        tokens, rows = Tokens.open(folder), np.load(folder / "rows.npy")
        lengths = (settings.gradients.gradient_length, settings.training.train_length)
        gradient, training = (FittedTokens(tokens, length) for length in lengths)
        return Pooled(self.pool, rows, gradient, training)

    @cached_property
    def pooled(self) -> Pooled:
        """Those that the run chooses from: none that nearly repeats what training must not see."""
        found = self.every.without(self.screening.kept_out) if self.config.target else self.every
        if not len(found):
            raise InputError(f"no row of the pool is left; the reasons are in {self.dir.contamination}")
        return found

    def _tokenise(self, part: Path) -> None:
        """Write the tokens of the usable rows, and the others with their reasons."""
        usable: list[int] = []
        refused = self.pool.refused
        excluded: list[dict[str, object]] = [{"id": row.id, "reason": row.reason} for row in refused]
        Tokens.write(part, self.usable_rows(range(len(self.pool)), usable, excluded))
        np.save(part / "rows.npy", np.array(usable, np.int64))
        write_lines(part / "excluded.jsonl", excluded)
        write_lines(part / "ids.jsonl", ({"id": self.pool.id(number)} for number in usable))
        counts = {"rows": len(usable) + len(excluded), "usable": len(usable), "excluded": len(excluded)}
        write_json(part / "manifest.json", {**counts, "made_with": self.tokens_made_with})

    def usable_rows(
        self,
        rows: Sequence[int],
        usable: list[int],
        excluded: list[dict[str, object]],
    ) -> Iterator[Encoded]:
        """Tokens of those pool `rows` that can be used, one at a time, cut to the longer of both lengths.

        Args:
            rows: by their numbers.
            usable: gets the numbers of the rows that come out.
            excluded: gets the ids of the others, with the reason.
        """
        gradient, training = self.config.gradients.gradient_length, self.config.training.train_length
        with self.screen.track("tokenise the pool", len(rows), "rows") as advance:
            for number in rows:
                row = self.pool[number]
                try:
                    encoded = encode(row.messages, self.tokenizer, self.chat, row.id)
                    short = fit(encoded, min(gradient, training))
                except InputError as error:
                    short = str(error).removeprefix(f"{row.id}: ")
                if isinstance(short, str):
                    excluded.append({"id": row.id, "reason": short})
                else:
                    usable.append(number)
                    longest = fit(encoded, max(gradient, training))
                    yield longest if isinstance(longest, Encoded) else short
                advance(1, row.id)

    @property
    def training_tokens(self) -> FittedTokens:
        """The rows that the run chooses from, cut for training."""
        return self.pooled.training

    @cached_property
    def targeted(self) -> Targeted:
        """The target's rows, cut for gradients; all must be usable."""
        return Targeted(
            [row.id for row in self.target.rows],
            self.encode_all(
                self.target, self.config.gradients.target_length, "--target-length", ends=self.learns_ends
            ),
            self.target.codes,
            len(self.target.tasks) > 1,
        )

    @property
    def learns_ends(self) -> bool:
        """Whether the end tokens of the target's answers are labels."""
        wanted = self.config.gradients.target_end
        return wanted == "learn" or (wanted == "auto" and self.config.own_target)

    @cached_property
    def evaluation_tokens(self) -> Sequence[Encoded]:
        """The rows that models are evaluated on, cut for training; all must be usable."""
        return self.encode_all(self.evaluated[0], self.config.training.train_length, "--train-length")

    def encode_all(self, rows: Target, length: int, option: str, *, ends: bool = True) -> Sequence[Encoded]:
        """Rows cut to `length`, or an error that names the first which does not fit."""
        encoded = []
        for row in rows.rows:
            fitted = fit(encode(row.messages, self.tokenizer, self.chat, row.id, ends=ends), length)
            if isinstance(fitted, str):
                raise InputError(f"{row.id}: {fitted}; raise {option} or take the row out")
            encoded.append(fitted)
        return encoded

    @property
    def job(self) -> Job:
        """What settings are decided by, the same for all targets; all usable rows are tokenised for it."""
        return job_of(self.config, self.every.training.lengths, len(self.every), self.world.size)

    @cached_property
    def model(self) -> PeftModel:
        """The base model with an adapter, kept before any training; each step gives it weights it wants."""
        config = self.config
        self.screen.say(f"load {config.model}")
        with torch.random.fork_rng(devices=[]):
            base = load_model(config, on_host=self.sharded)
            model = attach_adapter(base, config.lora, config.seed, config.adapter, self.screen.say)
        layers = adapter_layers(model)
        if method_of(config).top:
            upper_half(model, layers)
        self._check_model(examine(model, layers))
        self._made(self.dir.initial, lambda part: save_adapter(model, part), lambda path: path)
        if self.sharded:
            shard(model, pick_device(config.device))
        load_adapter(model, self.dir.initial)
        return model

    def _check_model(self, found: Anatomy) -> None:
        """Refuse a model that is not causal, or has no place for some row, before anything is trained."""
        name, gradients, training = self.config.model, self.config.gradients, self.config.training
        if not found.causal:
            raise ConfigError(
                f"{name}: is not causal, as what it says of a token depends on those behind it; take a model "
                "that writes (one of BERT's kind: with is_decoder true in its config.json)"
            )
        allowed = max(gradients.gradient_length, gradients.target_length, training.train_length)
        if found.room and found.room[0] < allowed and found.room[0] < (longest := self._longest()):
            raise ConfigError(
                f"{name}: {found.room[1]}, and there are rows of {longest} tokens; lower --gradient-length, "
                f"--target-length and --train-length to {found.room[0]}"
            )
        if found.vocabulary < len(self.tokenizer) and found.vocabulary <= (largest := self._largest_id()):
            raise ConfigError(
                f"{name}: has embeddings of {found.vocabulary} tokens, its tokenizer {len(self.tokenizer)}, "
                f"and there are rows with token {largest}; give the model the tokenizer that it was made with"
            )

    @property
    def given(self) -> list[Sequence[Encoded]]:
        """All rows that the model is given, each as long as it ever is."""
        task = [self.targeted.tokens, self.evaluation_tokens] if self.config.target else []
        return [self.pooled.tokens, self.training_tokens, *task]

    def _longest(self) -> int:
        """Tokens of the longest of them."""
        known = (rows.lengths if isinstance(rows, FittedTokens) else map(len, rows) for rows in self.given)
        return int(max(map(max, known)))

    def _largest_id(self) -> int:
        """The largest token id in any of them."""
        return max(int(row.ids.max()) for rows in self.given for row in rows)

    def load_model(self) -> PeftModel:
        """Load it now, if that is not done yet."""
        return self.model

    def release_model(self) -> None:
        """Free the model's memory; it is loaded again when it is asked for."""
        vars(self).pop("model", None)
        free_memory()


def job_of(config: Config, lengths: NDArray[np.int64], rows: int, processes: int = 1) -> Job:
    """What settings are decided by: so many usable rows, of which some have these lengths in training, (n,).

    Raises InputError if there is no such model, or no such adapter.
    """
    width, layers, family = model_shape(config)
    adapter = adapter_size(Path(config.adapter)) if config.adapter else None
    return Job(rows, float(lengths.mean()), width, layers, family, processes, adapter)
