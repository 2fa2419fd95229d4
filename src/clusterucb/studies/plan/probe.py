"""How fast this machine is with this model, and what a token takes of its memory, measured in a moment.

Micro-batches of the run's own rows go through the code of the run: per-row gradients, forward passes and
training. On a slow machine they are made smaller, so that a few fit into the time.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch.autograd.graph import saved_tensors_hooks

from clusterucb.config import Config
from clusterucb.data.chat import Encoded, encode, fit
from clusterucb.features.kmeans import spherical_kmeans
from clusterucb.gradients.adam import Moments
from clusterucb.gradients.batches import collate, micro_batches
from clusterucb.gradients.featurizer import Featurizer
from clusterucb.gradients.per_sample import row_losses, trainable_parameters
from clusterucb.run.costs import FORWARD_SHARE
from clusterucb.run.session import Session, number_of_clusters
from clusterucb.studies.plan.facts import Facts
from clusterucb.studies.plan.sizes import hidden_size
from clusterucb.studies.plan.spending import stored_dim
from clusterucb.training.adapter import attach_adapter
from clusterucb.training.data import collate_for_training
from clusterucb.training.model import load_model, pick_device

ROWS = 256
"""Rows of the pool that the micro-batches are made of."""

FIRST_TOKENS = 256
"""Tokens of the first micro-batches, by which the size of the others is chosen."""

Rows = Sequence[Encoded]


@dataclass(frozen=True)
class Speed:
    """Tokens a second, and for k-means pairs of a row and a cluster; None where it is not known.

    Attributes:
        gradients: of rows whose gradient is taken and projected.
        training: of rows in training, both passes.
        forward: of rows that only go forward.
        clustering: pairs a second, of one iteration.
        measured: here and now, with this model.
    """

    gradients: float
    training: float
    forward: float
    clustering: float | None
    measured: bool


@dataclass(frozen=True)
class Activations:
    """Bytes a token that autograd keeps between the passes, while gradients are taken and in training."""

    gradients: float
    training: float


def given_speed(tokens_per_second: float) -> Speed:
    """By one number: of gradients and of training alike, as both go forward and backward once."""
    forward = tokens_per_second / FORWARD_SHARE
    return Speed(tokens_per_second, tokens_per_second, forward, None, measured=False)


def probe(session: Session, facts: Facts, seconds: float) -> tuple[Speed, Activations]:
    """Measure for about `seconds`, without the time in which the model is loaded."""
    config = session.config
    with torch.random.fork_rng():
        model = attach_adapter(load_model(config), config.lora, config.seed, config.adapter)
        rows = list(_encoded(session, facts))
        gradients, training, forward = _works(model, session)
        chunks = _Chunks(config)
        with session.screen.track("measure the speed", 4, "measurements") as advance:
            found = []
            for name, work, cut, batches in (
                ("gradients", gradients, config.gradients.gradient_length, chunks.by_tokens),
                ("training", training, config.training.train_length, chunks.by_rows),
                ("forward", forward, config.gradients.gradient_length, chunks.by_tokens),
            ):
                found.append(_measure(work, _fitted(rows, cut), batches, seconds / 4, model))
                advance(1, name)
            pairs = _clustering(config, facts, hidden_size(model)) if config.budgeted else None
            advance(1, "k-means")
    (gradient_speed, gradient_bytes), (training_speed, training_bytes), (forward_speed, _) = found
    speed = Speed(gradient_speed, training_speed, forward_speed, pairs, measured=True)
    return speed, Activations(gradient_bytes, training_bytes)


def _works(model: PeftModel, session: Session) -> list[Callable[[Rows], None]]:
    """What is measured, each a function of one micro-batch."""
    parameters = trainable_parameters(model)
    zeros = {name: torch.zeros_like(parameter, device="cpu") for name, parameter in parameters.items()}
    featurize = Featurizer(
        model, session.projection, Moments(zeros, zeros, step=1), session.config.gradients.formula
    )

    def gradients(rows: Rows) -> None:
        featurize(rows)

    def forward(rows: Rows) -> None:
        row_losses(model, collate(rows, featurize.device))

    def training(rows: Rows) -> None:
        model.train()
        batch = {name: tensor.to(featurize.device) for name, tensor in collate_for_training(rows).items()}
        model(**batch).loss.backward()
        model.zero_grad(set_to_none=True)
        model.eval()

    return [gradients, training, forward]


@dataclass(frozen=True)
class _Chunks:
    """Ways to split rows of these lengths into micro-batches, of so many tokens where that can be chosen."""

    config: Config

    def by_tokens(self, lengths: NDArray[np.int64], tokens: int) -> list[NDArray[np.int64]]:
        return micro_batches(lengths, min(tokens, self.config.gradients.batch_tokens))

    def by_rows(self, lengths: NDArray[np.int64], _tokens: int) -> list[NDArray[np.int64]]:
        size = self.config.training.micro_batch
        return np.split(np.arange(len(lengths)), range(size, len(lengths), size))


def _measure(
    work: Callable[[Rows], None],
    rows: Rows,
    batches: Callable[[NDArray[np.int64], int], list[NDArray[np.int64]]],
    seconds: float,
    model: PeftModel,
) -> tuple[float, float]:
    """Tokens a second, and bytes a padded token that autograd keeps. The first micro-batch only warms up,
    unless it has taken all of the time.
    """
    lengths = np.array([len(row) for row in rows], np.int64)

    def run(batch: NDArray[np.int64]) -> int:
        work([rows[i] for i in batch.tolist()])
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return int(lengths[batch].sum())

    first = _spread(batches(lengths, FIRST_TOKENS))[0]
    started = time.monotonic()
    with _kept(model) as kept:  # and makes tables, caches and kernels
        tokens = run(first)
    spent = time.monotonic() - started
    memory = sum(kept.values()) / (len(first) * int(lengths[first].max()))
    if spent < seconds:
        sized = _spread(batches(lengths, max(FIRST_TOKENS, int(tokens / spent * seconds / 4))))
        started, tokens = time.monotonic(), 0
        for batch in itertools.cycle(sized):
            tokens += run(batch)
            if (spent := time.monotonic() - started) >= seconds:
                break
    return tokens / spent, memory


def _spread(batches: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """The batches in an order whose beginning has long and short rows: the middle first, then the rest."""
    middle = len(batches) // 2
    others = np.random.default_rng(0).permutation([i for i in range(len(batches)) if i != middle])
    return [batches[i] for i in [middle, *others.tolist()]]


@contextmanager
def _kept(model: PeftModel) -> Iterator[dict[int, int]]:
    """Bytes by address of all storages that autograd keeps in the block, but the model's weights."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def _encoded(session: Session, facts: Facts) -> Iterator[Encoded]:
    """Some usable rows, evenly spread over the pool."""
    places = np.unique(np.linspace(0, len(facts.numbers) - 1, ROWS).astype(np.int64))
    for number in facts.numbers[places].tolist():
        row = session.inputs.pool[number]
        yield encode(row.messages, session.inputs.tokenizer, session.inputs.chat, row.id)


def _fitted(rows: Rows, length: int) -> list[Encoded]:
    return [found for row in rows if isinstance(found := fit(row, length), Encoded)]


def _clustering(config: Config, facts: Facts, hidden: int) -> float:
    """Pairs of a row and a cluster a second, by k-means with the run's k on a few random features."""
    k, dim = number_of_clusters(config, facts.rows), stored_dim(config, hidden)
    rows = min(facts.rows, max(k, ROWS))
    features = np.random.default_rng(0).standard_normal((rows, dim), np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    device = pick_device(config.device)
    passes = 0

    def count(_iteration: int, _of: int, _mean: float) -> None:
        nonlocal passes
        passes += 1

    started = time.monotonic()
    spherical_kmeans(
        features.astype(np.float16),
        k,
        iterations=1,
        device=device if device.type == "cuda" else "cpu",
        backend=config.clustering.kmeans_backend,
        progress=count,
    )
    return passes * rows * k / (time.monotonic() - started)
