"""What a plan has to know before a run: rows and tokens of its inputs, and the size of its adapter.

The model is made without weights, so a plan for a large one needs no machine that could hold it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from clusterucb.config import Config, reconcile_index
from clusterucb.data.chat import Encoded
from clusterucb.errors import ConfigError, InputError
from clusterucb.features.head import sides
from clusterucb.features.words import width
from clusterucb.gradients.per_sample import trainable_parameters
from clusterucb.run.costs import Work
from clusterucb.run.inputs import job_of
from clusterucb.run.session import Session
from clusterucb.run.sizing import Job
from clusterucb.steps.features import clusters_told
from clusterucb.training.adapter import attach_adapter, read_adapter_shapes
from clusterucb.training.model import empty_model

SAMPLE = 1000
"""Pool rows that are tokenised for a quick plan."""

FLOAT = 4
"""Bytes of a number; an adapter is kept in float32."""

Lengths = NDArray[np.int64]


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model's adapter, and numbers of a token's last hidden state."""

    adapter: int
    hidden: int

    @property
    def checkpoint(self) -> int:
        """Bytes of an adapter on disk with Adam's two moments of it."""
        return 3 * self.adapter


@dataclass(frozen=True, eq=False)
class Facts:
    """Rows and tokens of a run's inputs, and sizes of its model."""

    rows: int  # usable ones of the pool, N
    excluded: int  # rows that cannot be used
    numbers: NDArray[np.int64]  # (n,), usable pool rows that were tokenised; n is N unless a sample was
    gradient_lengths: Lengths  # (n,), tokens that the gradient of each of these sees
    training_lengths: Lengths  # (n,), tokens that training sees
    target_lengths: Lengths  # tokens of each target row
    subtasks: int  # of the target
    evaluated_lengths: Lengths  # tokens of each row that the evaluation takes the loss of
    sizes: Sizes
    job: Job  # what settings are decided by
    repeats: int = 0  # pool rows in use that nearly repeat a row of the task; 0 where nobody looked
    index: Config | None = None  # settings that fit the index that the run begins at, if it does
    clusters: tuple[int, bool] | None = None  # of that index, if it has some: how many, and whether centred

    @property
    def exact(self) -> bool:
        """Whether all rows were tokenised."""
        return len(self.numbers) == self.rows

    def in_index(self, config: Config) -> bool:
        """Whether there is an index with the checkpoints and features of a run with these settings."""
        if self.index is None:
            return False
        try:
            reconcile_index(self.index, config, "")
        except ConfigError:
            return False
        return True

    def work(self, times: int, gradient: float = 1.0) -> Work:
        """What a bill asks, of a method that scores everything so many times, by gradients of this price."""
        every = (self.gradient_lengths, self.training_lengths)
        tokens, training = (expected_tokens(lengths, self.rows) for lengths in every)
        return Work(self.rows, tokens, training, int(self.target_lengths.sum()), times, gradient)

    def stored_dim(self, config: Config) -> int:
        """Dimensions of a stored feature."""
        dim = config.gradients.dim
        others = {"words": width(self.rows), "hidden": self.sizes.hidden, "head": math.prod(sides(dim))}
        return others.get(config.features, dim)


def expected_tokens(lengths: Lengths, rows: int) -> int:
    """Of all rows of these lengths, (n,), or of so many drawn at random."""
    return round(rows * float(lengths.mean()))


def read_facts(session: Session, *, quick: bool = False) -> Facts:
    """Read and tokenise all inputs of a run; nothing is written but into the session's directory.

    What is `auto` in its settings is decided. If it is to be `quick`, `SAMPLE` pool rows, drawn by the seed,
    are tokenised, and rows that nearly repeat what training must not see are not looked for. Raises
    InputError and ConfigError as the run itself would.
    """
    settings, total = session.config, len(session.inputs.pool)
    chosen: Sequence[int] = range(total)
    if quick:
        session.check_plan(total)
        session.check_settings()
        rng = np.random.default_rng(settings.seed)
        chosen = np.sort(rng.choice(total, min(SAMPLE, total), replace=False)).tolist()
    else:
        session.check_settings()
        session.check_plan(total)
        session.inputs.read()
    usable: list[int] = []
    excluded: list[dict[str, object]] = []
    screening = None if quick else session.inputs.screening
    lengths = _lengths(list(session.inputs.usable_rows(chosen, usable, excluded)))
    if not usable:
        raise InputError(f"no row of the pool can be used: {excluded[0]['id']}: {excluded[0]['reason']}")
    rows = max(1, round(total * len(usable) / len(chosen)))
    training = np.minimum(lengths, settings.training.train_length)
    job = job_of(settings, training, rows)
    session.decide(job)
    session.check_plan(rows)
    return Facts(
        rows=rows,
        excluded=total - rows + len(session.inputs.pool.refused),
        numbers=np.array(usable, np.int64),
        gradient_lengths=np.minimum(lengths, settings.gradients.gradient_length),
        training_lengths=training,
        target_lengths=_lengths(session.inputs.targeted.tokens),
        subtasks=len(session.inputs.target.subtasks),
        evaluated_lengths=_lengths(session.inputs.evaluation_tokens),
        sizes=model_sizes(session.config),
        job=job,
        repeats=screening.of_the_task if screening else 0,
        index=session.config if session.config.index else None,
        clusters=clusters_told(session.dir),
    )


def model_sizes(config: Config) -> Sizes:
    """Of the model and adapter that the settings name, unread. Raises as loading them would."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = empty_model(config)
        hidden: int = model.get_output_embeddings().in_features  # type: ignore[operator]
        if config.adapter is not None:
            shapes: list[Sequence[int]] = [*read_adapter_shapes(Path(config.adapter)).values()]
        else:
            adapted = attach_adapter(model, config.lora, config.seed)
            shapes = [parameter.shape for parameter in trainable_parameters(adapted).values()]
    return Sizes(FLOAT * sum(map(math.prod, shapes)), hidden)


def _lengths(rows: Sequence[Encoded]) -> Lengths:
    return np.array([len(row) for row in rows], np.int64)
