"""One run: its settings, method, directory, screen and processes, with the inputs that it may share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel

from clusterucb.config import Config, load, reconcile
from clusterucb.errors import ConfigError
from clusterucb.evaluation.benchmarks import check_settings
from clusterucb.features.influence import Subspace
from clusterucb.features.kmeans import require_backend
from clusterucb.features.store import FeatureWriter
from clusterucb.gradients.adam import Moments
from clusterucb.gradients.batches import MOST_ROWS, USUAL_TOKENS
from clusterucb.gradients.featurizer import Featurizer
from clusterucb.gradients.projection import Projection, projection
from clusterucb.run.costs import Cost
from clusterucb.run.directory import RunDir
from clusterucb.run.index import RunIndex, begun_at
from clusterucb.run.inputs import Inputs, Pooled
from clusterucb.run.methods import budget_of, method_of
from clusterucb.run.sizing import DRAWS, Decided, Job, decide, is_open, lines, rows_kept
from clusterucb.runtime.devices import is_gpu
from clusterucb.runtime.files import publish, storage_errors
from clusterucb.runtime.memory import GRADIENTS, Room
from clusterucb.runtime.processes import ALONE, World
from clusterucb.runtime.screen import Advance, Screen
from clusterucb.selection.budget import Budget
from clusterucb.selection.linear_ucb import LinearUCB
from clusterucb.selection.policies import Policy
from clusterucb.selection.selector import RowPolicy, named_policy
from clusterucb.selection.turns import Turns
from clusterucb.training.adapter import fingerprint_base
from clusterucb.training.finetune import check_batch_size, check_reporter
from clusterucb.training.model import check_quantisation, pick_device


@dataclass(frozen=True)
class Step:
    """A piece of work under one name: whose it is, how far it has come (`advance(amount, note)`)."""

    world: World
    advance: Advance
    _started: float = field(default_factory=time.monotonic, repr=False)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._started

    def cost(self, rows: int = 0, tokens: int = 0) -> Cost:
        """What was counted, in the time since the step began."""
        return Cost(rows, tokens, seconds=self.seconds)


class Session:
    """One run.

    Args:
        config: all settings.
        screen: where progress is shown.
        world: the processes that run it together.
        inputs: what it reads, if another run has read the same; its own otherwise.
    """

    def __init__(
        self,
        config: Config,
        screen: Screen | None = None,
        world: World = ALONE,
        inputs: Inputs | None = None,
    ) -> None:
        self.dir, self.config = begun_at(config.with_absolute_paths())
        self.method = method_of(self.config)
        self.screen = screen or Screen(quiet=True)
        sharded = world.size > 1 and self.config.training.shard == "fsdp"
        self.world = world.in_step() if sharded else world
        self.inputs = inputs or Inputs(self.config, self.dir, self.screen, self.world)
        self._shares_inputs = inputs is not None
        self._settled, self._asked = False, self.config
        self.decided: list[Decided] = []  # of what was auto
        self.grown_from: RunDir | None = None  # the index that this one takes over from

    @contextmanager
    def owned(self) -> Iterator[Session]:
        """Hold the run directory; of several processes rank 0 holds it for all.

        Raises BusyError if another process holds it, ConfigError if it was made with other settings.
        """
        self.world.check_device(self.config.device)
        with ExitStack() as held, storage_errors(self.dir.path):
            self.world.lead(lambda: held.enter_context(self.dir.owned()))
            if saved := self._saved():
                reconcile(saved, self.config, str(self.dir.config))
                self._take(self.config.filled(saved))
            yield self

    def _saved(self) -> Config | None:
        """The settings that the run directory was made with."""
        return load(self.dir.config, {"out": self.config.out}) if self.dir.config.exists() else None

    def _take(self, config: Config) -> None:
        self.config = config
        if not self._shares_inputs:
            self.inputs.config = config

    def decide(self, job: Job | None = None) -> None:
        """Decide what is `auto`: as the run directory has it, or for the job, which is then told once.

        Raises ConfigError if what was given contradicts what follows from the rest.
        """
        if is_open(self.config) and (saved := self._saved()):
            self._take(self.config.filled(saved))
        if not is_open(self.config):
            return
        job = job or self.inputs.job
        self._asked = self.config
        config, self.decided = decide(self.config, job)
        self._take(config)
        if not self._shares_inputs:
            for line in lines(config, job, self.decided):
                self.screen.say(line)

    @contextmanager
    def step(self, name: str, total: int, unit: str, *, title: str = "") -> Iterator[Step]:
        """Do `total` units of work under `name`; the bar has the `title`, or the name."""
        with self.screen.track(title or name, total, unit) as advance:
            yield Step(self.world.at(name), advance)

    @contextmanager
    def store(
        self,
        pooled: Pooled,
        part: Path,
        dim: int,
        made_with: Mapping[str, object],
        title: str,
        dtype: str = "",
    ) -> Iterator[tuple[FeatureWriter, Callable[[int, int], None]]]:
        """What fills a folder with vectors (N, dim) of rows, and what shows under a title how far it is.

        A killed command goes on with what is in the folder, if it was `made_with` the same. The vectors are
        kept as the settings say, if no `dtype` is given.
        """
        world, dtype = self.world.at("gradients"), dtype or self.config.gradients.store_dtype
        with FeatureWriter(part, len(pooled), dim, made_with, dtype, world) as writer:
            done = int(writer.done.sum())
            with self.screen.track(title, len(pooled), "rows", done) as advance:
                yield writer, lambda new, row: advance(new, pooled.describe(row))

    def refuse_unless(self, wanted: bool, step: str, reason: str) -> None:
        """Raise ConfigError for a step that the method does not have, with the reason."""
        if not wanted:
            raise ConfigError(
                f"method {self.method.name} has no step {step} with bandit {self.config.bandit}, {reason}: "
                f"go on with `clusterucb select --out {self.dir.path}`"
            )

    def check_inputs(self) -> None:
        """Read pool, target and held-out rows, refuse settings that cannot hold, decide what is `auto`."""
        self.check_pool()
        self.inputs.read()
        self.decide()

    def check_pool(self) -> None:
        """Read the pool, and refuse settings that cannot hold for it."""
        self.check_settings()
        self.check_plan(len(self.inputs.pool))

    def check_settings(self) -> None:
        """Refuse settings that cannot hold whatever the inputs are."""
        budget_of(self._for_rows(1_000_000))
        named_policy_of(self.config)
        require_backend(self.config.clustering.kmeans_backend)
        check_settings(self.config)
        check_reporter(self.config.training.report_to)
        check_quantisation(self.config.load_in, pick_device(self.config.device))
        if self.config.training.batch_size:
            check_batch_size(self.config.training, self.world.size)

    def check_plan(self, rows: int) -> None:
        """Refuse a budget, cold start or number of clusters that `rows` rows cannot satisfy."""
        config = self._for_rows(rows)
        budget = budget_of(config)
        budget.keep(rows)
        budget.spend(rows)
        if self.method.budgeted:
            budget.check_clusters(config.clustering.k, rows)

    def _for_rows(self, rows: int) -> Config:
        """The settings as they would be for so many rows, as far as that is all that they depend on."""
        return decide(self.config, Job.of_rows(rows), (rows_kept, *DRAWS))[0]

    def begin(self) -> None:
        """Load the model and make the settings the run's: all have held for the inputs."""
        self.decide()
        self.check_plan(self.inputs.counts["usable"])
        self.inputs.load_model()
        self._settle()

    def _settle(self) -> None:
        """Publish the settings, at the first use of the model."""

        def keep() -> None:
            self.dir.keep_elsewhere()
            if not self.dir.config.exists():
                with publish(self.dir.config) as part:
                    part.write_text(self.lasting.to_yaml(), encoding="utf-8")

        if not self._settled:
            self.world.once(self.dir.config, keep)
            self._settled = True

    @property
    def lasting(self) -> Config:
        """The settings as they are kept; of an index, what each run decides for itself stays `auto`."""
        return self.config if self.config.target else self._asked.filled(self.config, index=True)

    @property
    def model(self) -> PeftModel:
        """The base model with the adapter, which a step gives the weights that it wants."""
        self.decide()
        model = self.inputs.model
        self._settle()
        return model

    @property
    def index(self) -> RunIndex:
        """What is kept of the pool: checkpoints, features of all rows, clusters."""
        store_dtype = self.config.gradients.store_dtype
        return RunIndex(self.dir, self.planned_with, store_dtype, lambda: self.inputs.pooled)

    @cached_property
    def turns(self) -> Turns | None:
        """Who takes rows in turn, if any do: targets that are kept apart, or every target row."""
        if not self.config.in_turns:
            return None
        if self.config.selection.aim == "round_robin":
            return Turns()
        target = self.inputs.target
        return Turns(target.tasks, target.task_codes, self.config.target_shares)

    @property
    def budget(self) -> Budget:
        """How much of the pool a selection looks at and keeps."""
        self.decide()
        return budget_of(self.config)

    @cached_property
    def policy(self) -> Policy | RowPolicy:
        """The score of an arm, or of a row."""
        return named_policy_of(self.config)

    @cached_property
    def projection(self) -> Projection:
        """One projection for all features and directions of the run."""
        settings = self.config.gradients
        return projection(settings.projection, settings.dim, self.config.seed)

    def featurizer(self, moments: Moments | None = None) -> Featurizer:
        """What takes Adam's directions or, without moments, gradients, at the model as it is now."""
        formula, top = self.config.gradients.formula, self.method.top
        return Featurizer(self.model, self.projection, moments, formula, self.room, top)

    def directions(self, world: World) -> tuple[NDArray[np.float32] | Subspace, Cost]:
        """The target's directions at the model as it is now, and their cost."""
        featurize, aim = self.featurizer(), self.config.selection.aim
        return self.inputs.targeted.directions(featurize, self.batch_tokens, self.screen, world, aim)

    @property
    def room(self) -> Room:
        """What has fitted into memory."""
        return self.inputs.room

    @cached_property
    def batch_tokens(self) -> int:
        """Padded tokens of a micro-batch, at most: as set, or on a GPU as many as fit, found once a run."""
        if given := self.config.gradients.batch_tokens:
            return given
        device = pick_device(self.config.device)
        if not is_gpu(device) or self.inputs.sharded:
            return USUAL_TOKENS
        space, pooled = self.room.at(GRADIENTS, device), self.inputs.every
        if known := self.world.lead(lambda: space.fit.planned):
            return known
        longest = np.argsort(-pooled.lengths, kind="stable")[:MOST_ROWS].tolist()
        most = self.featurizer().most_tokens([pooled.tokens[i] for i in longest])
        return space.plan(min(self.world.gather(most)))

    def release_device(self) -> None:
        """Free the memory of model and projection; each is made again when it is asked for."""
        vars(self).pop("projection", None)
        self.inputs.release_model()

    @property
    def repeat_seed(self) -> int:
        """Seed of what differs between repetitions: the draws, and the order and dropout of training."""
        if not self.config.repeat:
            return self.config.seed
        seeds = np.random.SeedSequence([self.config.seed, self.config.repeat])
        return int(seeds.generate_state(1)[0])

    @property
    def planned_with(self) -> dict[str, object]:
        """What features of pool rows depend on, as far as it is known without loading the model."""
        return {**self.inputs.tokens_made_with, **self.taken_with}

    @property
    def taken_with(self) -> dict[str, object]:
        """The same, whatever the pool."""
        known, gradients, kind = self.inputs.read_with, self.config.gradients, self.method.features
        if self.method.by_likeness:
            return {"features": kind, **known, **({"dim": gradients.dim} if kind == "head" else {})}
        top = {"features": kind} if self.method.top else {}
        return {**top, **known, "projection": str(self.projection), "formula": gradients.formula}

    @property
    def made_with(self) -> dict[str, object]:
        """The same, with the model."""
        return {**self.planned_with, "model": self.made_with_model}

    @property
    def made_with_model(self) -> str:
        """Fingerprint of the base's weights."""
        return fingerprint_base(self.model)

    @property
    def aimed_with(self) -> dict[str, object]:
        """What the target's directions depend on besides."""
        target: dict[str, object] = {"target": self.inputs.target.fingerprint}
        target["rows kept out"] = self.inputs.screening.fingerprint
        if not self.inputs.learns_ends:
            target["target_end"] = "leave"
        if self.config.selection.aim != "mean":
            target["aim"] = self.config.selection.aim
        return {**self.planned_with, **target, "target_length": self.config.gradients.target_length}

    def alone(self) -> Session:
        """This session or, if its model is sharded, another, whose model this process can run by itself."""
        if not self.inputs.sharded:
            return self
        self.inputs.release_model()
        return Session(self.config, self.screen)


def named_policy_of(config: Config) -> Policy | RowPolicy:
    """The policy that the settings name. Raises ConfigError if there is none of its name."""
    chosen = config.selection
    stop = chosen.auto_change if chosen.budget is None and not config.in_turns else 0.0
    rounds = chosen.rounds or LinearUCB.rounds  # any, as long as only the name is looked at
    return named_policy(chosen.policy, beta=chosen.beta, ucb_p=chosen.ucb_p, rounds=rounds, stop=stop)
