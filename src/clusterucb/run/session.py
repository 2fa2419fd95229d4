"""What the steps of one run share: settings, directory, screen and, loaded once when first asked for,
pool, target, tokenizer and model.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from clusterucb.config import Config, load, reconcile
from clusterucb.data.chat import ChatFormat, Encoded, chat_format, encode, fingerprint, fit
from clusterucb.data.pool import Pool
from clusterucb.data.target import Target, TextRows, overlap
from clusterucb.data.tokens import FittedTokens, Tokens
from clusterucb.errors import ConfigError, InputError
from clusterucb.evaluation.benchmarks import check_settings
from clusterucb.features.kmeans import require_backend
from clusterucb.gradients.per_sample import adapter_layers
from clusterucb.gradients.projection import Projection, projection
from clusterucb.run.directory import RunDir
from clusterucb.run.inputs import Pooled, Targeted
from clusterucb.run.screening import Screening, screened, unchecked
from clusterucb.runtime.files import (
    check_made_with,
    publish,
    publish_folder,
    read_json,
    storage_errors,
    write_json,
)
from clusterucb.runtime.processes import ALONE, World
from clusterucb.runtime.screen import Screen
from clusterucb.runtime.sharding import shard
from clusterucb.selection.linear_ucb import LinearUCB
from clusterucb.selection.policies import Policy
from clusterucb.selection.selector import named_policy
from clusterucb.selection.share import share
from clusterucb.tasks import TASKS
from clusterucb.tasks.task import Question, held_out
from clusterucb.training.adapter import attach_adapter, fingerprint_base, load_adapter, save_adapter
from clusterucb.training.finetune import accumulation_steps, check_reporter
from clusterucb.training.model import check_quantisation, load_model, load_tokenizer, pick_device

_LASTING = (
    *("pool", "target", "target_questions", "holdout", "screening", "unchecked", "tokenizer", "chat"),
    *("projection", "pooled_tokens", "tokens_made_with", "planned_with", "made_with"),
)
"""What does not depend on the method, its repetition and the run directory."""


class Session:
    """One run's shared parts.

    Args:
        config: all settings.
        screen: where progress is shown.
        world: the processes that run it together.
    """

    def __init__(self, config: Config, screen: Screen | None = None, world: World = ALONE) -> None:
        self.config = config.with_absolute_paths()
        self.screen = screen or Screen(quiet=True)
        self.sharded = world.size > 1 and self.config.training.shard == "fsdp"
        self.world = world.in_step() if self.sharded else world
        self.dir = RunDir(self.config.out)
        self._lent: PeftModel | None = None

    def successor(self, config: Config) -> Session:
        """A session of another method or repetition that takes over what this one has loaded.

        Args:
            config: with the same inputs and model; its run has the initial adapter of this one's.
        """
        successor = Session(config, self.screen, self.world)
        own = vars(self)
        vars(successor).update({name: own.pop(name) for name in _LASTING if name in own})
        successor._lent, self._lent = own.pop("model", self._lent), None
        return successor

    @contextmanager
    def owned(self) -> Iterator[Session]:
        """Hold the run directory; of several processes rank 0 holds it for all.

        Raises:
            BusyError: another process holds it.
            ConfigError: it was made with other settings.
        """
        self.world.check_device(self.config.device)
        with ExitStack() as held, storage_errors(self.dir.path):
            self.world.lead(lambda: held.enter_context(self.dir.owned()))
            if self.dir.config.exists():
                saved = load(self.dir.config, {"out": self.config.out})
                reconcile(saved, self.config, str(self.dir.config))
            yield self

    @cached_property
    def pool(self) -> Pool:
        """The rows to choose from, checked."""
        return Pool.read(self.config.pool)

    @cached_property
    def target(self) -> Target:
        """The task's rows, checked; none of them may be held out."""
        names = [name for name in self.config.target if name in TASKS]
        if not names:
            return Target.read(self.config.target, self.config.subtask)
        if len(names) < len(self.config.target) or self.config.subtask:
            raise ConfigError(
                f"target {' '.join(self.config.target)}: benchmarks have subtasks of their own, so neither "
                "files nor --subtask go with them; make two runs"
            )
        config = self.config

        def drawn(name: str) -> Sequence[Question]:
            return TASKS[name].targets(config.data_folder, config.target_rows, config.seed)

        return Target.read([self._kept(self.dir.target, name, drawn) for name in names], "subtask")

    def _kept(self, folder: Path, name: str, drawn: Callable[[str], Sequence[Question]]) -> Path:
        """A benchmark's rows as a file of the run, which stands by itself from here on."""
        path = folder / f"{name}.jsonl"

        def keep() -> None:
            if path.exists() and self.dir.config.exists():
                return
            questions = drawn(name)
            with publish(path) as part:
                rows = (json.dumps(question.to_row(), ensure_ascii=False) + "\n" for question in questions)
                part.write_text("".join(rows), encoding="utf-8")

        self.world.once(path, keep)
        return path

    @cached_property
    def target_questions(self) -> list[str]:
        """Digests of the benchmark questions in the target, which no evaluation may ask."""
        rows = (json.loads(row.raw) for row in self.target) if self.config.target[0] in TASKS else ()
        return [row["digest"] for row in rows]

    @cached_property
    def holdout(self) -> Target | None:
        """The task's rows that only the evaluation sees, if any were given."""
        if not self.config.holdout:
            return None
        config = self.config

        def drawn(name: str) -> Sequence[Question]:
            unwanted = self.target_questions
            return held_out(TASKS[name], config.data_folder, config.holdout_rows, config.seed, unwanted)

        holdout = Target.read(
            [self._kept(self.dir.holdout, name, drawn) if name in TASKS else name for name in config.holdout]
        )
        seen: dict[str, TextRows] = {"target": self.target}
        if not self.config.decontaminate:
            seen["pool"] = self.pool
        for name, rows in seen.items():
            if common := overlap(rows, holdout):
                way_out = ", or keep such rows out with --decontaminate" if name == "pool" else ""
                raise InputError(
                    f"{common[0][1]}: this held-out row is also in the {name} ({common[0][0]}, {len(common)} "
                    f"such rows in all); evaluate on rows that selection and training never see{way_out}"
                )
        return holdout

    @cached_property
    def screening(self) -> Screening:
        """The pool rows that are kept out of the run."""
        found = screened(self.dir, self.config, self.pool, self.target, self.holdout, self.screen, self.world)
        for line in found.report():
            self.screen.say(f"{line}; each is in {self.dir.contamination}")
        _ = self.unchecked
        return found

    @cached_property
    def unchecked(self) -> list[str]:
        """Benchmarks that the pool was not checked against; the person is told of them once."""
        found = unchecked(self.dir, self.config)
        if found:
            self.screen.say(f"the pool was not checked against {', '.join(found)} when this run began")
        return found

    @cached_property
    def tokenizer(self) -> Any:
        """The model's."""
        return load_tokenizer(self.config)

    @cached_property
    def chat(self) -> ChatFormat:
        """One format for pool, target and evaluation."""
        return chat_format(self.config.chat, self.tokenizer)

    @cached_property
    def policy(self) -> Policy | LinearUCB:
        """The score of an arm, or of a row."""
        chosen = self.config.selection
        stop = chosen.auto_change if chosen.budget is None else 0.0
        return named_policy(
            chosen.policy, beta=chosen.beta, ucb_p=chosen.ucb_p, rounds=chosen.rounds, stop=stop
        )

    def alone(self) -> Session:
        """This session or, if its model is sharded, another, whose model this process can run by itself."""
        if not self.sharded:
            return self
        self.release_model()
        return Session(self.config, self.screen)

    @property
    def repeat_seed(self) -> int:
        """Seed of what differs between repetitions: the draws, and the order and dropout of training."""
        seeds = [self.config.seed, *([self.config.repeat] if self.config.repeat else [])]
        return seeds[0] if len(seeds) == 1 else int(np.random.SeedSequence(seeds).generate_state(1)[0])

    @cached_property
    def projection(self) -> Projection:
        """One projection for all features and directions of the run."""
        settings = self.config.gradients
        return projection(settings.projection, settings.dim, self.config.seed)

    @cached_property
    def model(self) -> PeftModel:
        """The base model with the run's adapter at its initial weights, which every training starts from."""
        lent, self._lent = self._lent, None
        if lent is not None and self.world.has(self.dir.initial):
            load_adapter(lent, self.dir.initial)
            return lent.eval()
        self.screen.say(f"load {self.config.model}")
        with torch.random.fork_rng():
            base = load_model(self.config, on_host=self.sharded)
            model = attach_adapter(base, self.config.lora, self.config.seed, self.config.adapter)
        adapter_layers(model)  # refuses what has no per-row gradient before anything is trained
        self.world.once(self.dir.initial, lambda: self._begin(model))
        if self.sharded:
            shard(model, pick_device(self.config.device))
        load_adapter(model, self.dir.initial)
        return model

    def _begin(self, model: PeftModel) -> None:
        """Publish settings and initial adapter: all settings have held, and from here on are the run's."""
        if self.dir.initial.exists():
            return
        with publish(self.dir.config) as part:
            part.write_text(self.config.to_yaml(), encoding="utf-8")
        with publish_folder(self.dir.initial) as part:
            save_adapter(model, part)

    def release_model(self) -> None:
        """Free the model's memory; it is loaded again when it is asked for."""
        vars(self).pop("model", None)
        self._lent = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @cached_property
    def made_with(self) -> dict[str, object]:
        """What every artifact made from gradients depends on, besides the checkpoint."""
        return {**self.planned_with, "model": fingerprint_base(self.model)}

    @cached_property
    def planned_with(self) -> dict[str, object]:
        """The part of `made_with` that is known without loading the model."""
        settings = self.config.gradients
        return {
            **self.tokens_made_with,
            "target": self.target.fingerprint,
            "target_length": settings.target_length,
            "projection": str(self.projection),
            "formula": settings.formula,
        }

    @cached_property
    def tokens_made_with(self) -> dict[str, object]:
        """What the pool's tokens depend on."""
        return {
            "pool": self.pool.fingerprint,
            "rows kept out": self.screening.fingerprint,
            "tokenizer and chat": fingerprint(self.tokenizer, self.chat),
            "gradient_length": self.config.gradients.gradient_length,
            "train_length": self.config.training.train_length,
        }

    def check_inputs(self) -> None:
        """Read pool, target and held-out rows, and refuse settings that cannot hold for them."""
        _ = self.policy
        require_backend(self.config.clustering.kmeans_backend)
        check_settings(self.config)
        check_reporter(self.config.training.report_to)
        check_quantisation(self.config.load_in, pick_device(self.config.device))
        accumulation_steps(self.config.training, self.world.size)
        self.check_plan(len(self.pool))
        _ = self.target, self.holdout, self.screening, self.chat

    def check_plan(self, rows: int) -> None:
        """Refuse a budget, cold start or number of clusters that `rows` rows cannot satisfy."""
        chosen, k = self.config.selection, self.config.clustering.k
        draws = share(chosen.cap, rows)
        if share(chosen.top_p, rows) < 1:
            raise ConfigError(
                f"top_p is {chosen.top_p}: selects none of {rows} rows; raise it to {1 / rows:.2g}"
            )
        if not self.config.budgeted:
            return
        if k is not None and k > rows:
            raise ConfigError(f"k is {k}, but the pool has {rows} usable rows; lower --k")
        if draws < 1:
            raise ConfigError(f"budget {chosen.cap} of {rows} rows is no row; raise it to {1 / rows:.2g}")
        if k is not None and k > draws and not chosen.by_row:
            raise ConfigError(
                f"k is {k}, but budget {chosen.cap} of {rows} rows is {draws} gradients, and the cold "
                f"start takes one of every cluster; lower --k or raise --budget"
            )

    @cached_property
    def pooled_tokens(self) -> tuple[Tokens, NDArray[np.int64]]:
        """Tokens of the usable rows, and the pool row of each; made at the first use."""
        folder = self.dir.pool
        self.world.once(folder, lambda: self._tokenise(folder))
        manifest = read_json(folder / "manifest.json")
        check_made_with(manifest["made_with"], self.tokens_made_with, str(folder))
        if manifest["excluded"]:
            self.screen.say(
                f"{manifest['excluded']} of {manifest['rows']} pool rows cannot be used; "
                f"each is listed with its reason in {folder / 'excluded.jsonl'}"
            )
        if not manifest["usable"]:
            raise InputError(
                f"no row of the pool can be used; the reasons are in {folder / 'excluded.jsonl'}"
            )
        self.check_plan(manifest["usable"])
        return Tokens.open(folder), np.load(folder / "rows.npy")

    def _tokenise(self, folder: Path) -> None:
        """Publish the tokens of the usable rows, unless they are there."""
        if folder.exists() and not self.dir.config.exists():
            self._drop_stale(folder)
        if folder.exists():
            return
        with publish_folder(folder) as part:
            usable: list[int] = []
            excluded: list[dict[str, object]] = []
            every = range(len(self.pool))
            Tokens.write(part, self.usable_rows(every, self.screening.kept_out, usable, excluded))
            np.save(part / "rows.npy", np.array(usable, np.int64))
            with (part / "excluded.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in excluded)
            counts = {"rows": len(self.pool), "usable": len(usable), "excluded": len(excluded)}
            write_json(part / "manifest.json", {**counts, "made_with": self.tokens_made_with})

    def _drop_stale(self, folder: Path) -> None:
        """Drop tokens that a beginning with other settings left, before the settings were the run's."""
        if read_json(folder / "manifest.json")["made_with"] != self.tokens_made_with:
            shutil.rmtree(folder)

    def usable_rows(
        self,
        rows: Sequence[int],
        kept_out: Mapping[int, str],
        usable: list[int],
        excluded: list[dict[str, object]],
    ) -> Iterator[Encoded]:
        """Tokens of those pool `rows` that can be used, one at a time, cut to the longer of both lengths.

        Args:
            rows: by their numbers.
            kept_out: rows that are not used for another reason, which is given.
            usable: gets the numbers of the rows that come out.
            excluded: gets the ids of the others, with the reason.
        """
        gradient, training = self.config.gradients.gradient_length, self.config.training.train_length
        with self.screen.track("tokenise the pool", len(rows), "rows") as advance:
            for number in rows:
                row = self.pool[number]
                encoded = encode(row.messages, self.tokenizer, self.chat, row.id)
                short = kept_out.get(number) or fit(encoded, min(gradient, training))
                if isinstance(short, str):
                    excluded.append({"id": row.id, "reason": short})
                else:
                    usable.append(number)
                    longest = fit(encoded, max(gradient, training))
                    yield longest if isinstance(longest, Encoded) else short
                advance(1, row.id)

    @cached_property
    def pooled(self) -> Pooled:
        """The usable rows, cut for gradients."""
        tokens, rows = self.pooled_tokens
        fitted = FittedTokens(tokens, self.config.gradients.gradient_length)
        return Pooled(self.pool, rows, fitted, fitted.lengths)

    @cached_property
    def training_tokens(self) -> FittedTokens:
        """The usable rows, cut for training."""
        return FittedTokens(self.pooled_tokens[0], self.config.training.train_length)

    @cached_property
    def targeted(self) -> Targeted:
        """The target's rows, cut for gradients; all must be usable."""
        return Targeted(
            [row.id for row in self.target.rows],
            self.encode_all(self.target, self.config.gradients.target_length, "--target-length"),
            self.target.codes,
        )

    def encode_all(self, rows: Target, length: int, option: str) -> Sequence[Encoded]:
        """Rows cut to `length`, or an error that names the first which does not fit."""
        encoded = []
        for row in rows.rows:
            fitted = fit(encode(row.messages, self.tokenizer, self.chat, row.id), length)
            if isinstance(fitted, str):
                raise InputError(f"{row.id}: {fitted}; raise {option} or take the row out")
            encoded.append(fitted)
        return encoded
