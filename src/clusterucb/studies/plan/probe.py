"""How fast this machine is with this model, measured in a moment.

Micro-batches of the run's own rows go through the code of the run: per-row gradients, forward passes and
training. On a slow machine they are made smaller, so that a few fit into the time.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from clusterucb.config import Config
from clusterucb.data.chat import Encoded, encode, fit
from clusterucb.evaluation.loss import losses
from clusterucb.features.kmeans import spherical_kmeans
from clusterucb.gradients.adam import Moments
from clusterucb.gradients.batches import USUAL_TOKENS, micro_batches
from clusterucb.gradients.featurizer import Featurizer
from clusterucb.gradients.per_sample import trainable_parameters
from clusterucb.run.costs import FORWARD_SHARE
from clusterucb.run.session import Session
from clusterucb.runtime.devices import is_gpu, passes_of, wait_for
from clusterucb.studies.plan.facts import Facts
from clusterucb.training.adapter import attach_adapter
from clusterucb.training.model import load_model, pick_device
from clusterucb.training.passes import StepPasses

ROWS = 256
"""Rows of the pool that the micro-batches are made of."""

FIRST_TOKENS = 256
"""Tokens of the first micro-batches, by which the size of the others is chosen."""

Rows = Sequence[Encoded]
Batches = list[NDArray[np.int64]]


@dataclass(frozen=True)
class Speed:
    """Tokens a second, and for k-means pairs of a row and a cluster; None where it is not known."""

    gradients: float  # of rows whose gradient is taken and projected
    training: float  # of rows in training, both passes
    forward: float  # of rows that only go forward
    clustering: float | None  # pairs a second, of one iteration
    measured: bool  # here and now, with this model

    @classmethod
    def given(cls, tokens_per_second: float) -> Speed:
        """By one number: of gradients and of training alike, as both go forward and backward once."""
        forward = tokens_per_second / FORWARD_SHARE
        return cls(tokens_per_second, tokens_per_second, forward, None, measured=False)

    def by(self, processes: int) -> Speed:
        """Of so many such machines together; k-means, too, is shared."""
        rates = {name: rate and processes * rate for name, rate in asdict(self).items() if name != "measured"}
        return Speed(**rates, measured=self.measured)


def probe(session: Session, facts: Facts, seconds: float) -> Speed:
    """Measure for about `seconds`, without the time in which the model is loaded."""
    config = session.config
    with torch.random.fork_rng(devices=[]):
        model = attach_adapter(load_model(config), config.lora, config.seed, config.adapter)
        rows, found = list(_encoded(session, facts)), {}
        with session.screen.track("measure the speed", 4, "measurements") as advance:
            for name, measure in _measurements(model, session).items():
                found[name] = measure(rows, seconds / 4)
                advance(1, name)
            pairs = _clustering(config, facts) if session.method.budgeted else None
            advance(1, "k-means")
    return Speed(**found, clustering=pairs, measured=True)


def _measurements(model: PeftModel, session: Session) -> dict[str, Callable[[Rows, float], float]]:
    """By name: what gives tokens a second, of rows and for so many seconds."""
    config = session.config
    usual = config.gradients.batch_tokens or USUAL_TOKENS
    parameters = trainable_parameters(model)
    zeros = {name: torch.zeros_like(parameter, device="cpu") for name, parameter in parameters.items()}
    moments = Moments(zeros, zeros, step=1)
    featurize = Featurizer(model, session.projection, moments, config.gradients.formula)

    def forward(rows: Rows) -> None:
        losses(model, rows, usual)

    def training(rows: Rows) -> None:
        model.train()
        with passes_of(model):
            StepPasses(model, usual)([*enumerate(rows)])
        model.zero_grad(set_to_none=True)
        model.eval()

    length, measure = config.gradients.gradient_length, partial(_measure, featurize.device, usual)
    return {
        "gradients": partial(measure, featurize, length, None),
        "training": partial(measure, training, config.training.train_length, config.training.micro_batch),
        "forward": partial(measure, forward, length, None),
    }


def _measure(
    device: torch.device,
    usual: int,
    work: Callable[[Rows], object],
    length: int,
    most: int | None,
    rows: Rows,
    seconds: float,
) -> float:
    """Tokens a second of `work` on `device`, on one micro-batch after the other, of `usual` tokens or fewer.

    The first one only warms up, unless it has taken all of the time. Rows are cut to `length`.
    """
    rows = [fitted for row in rows if isinstance(fitted := fit(row, length), Encoded)]
    lengths = np.array([len(row) for row in rows], np.int64)

    def run(batch: NDArray[np.int64]) -> int:
        work([rows[i] for i in batch.tolist()])
        wait_for(device)
        return int(lengths[batch].sum())

    def batches(tokens: int) -> Batches:
        return _mixed(micro_batches(lengths, min(tokens, usual), most))

    started = time.monotonic()
    tokens = run(batches(FIRST_TOKENS)[0])  # makes tables, caches and kernels
    spent = time.monotonic() - started
    if spent < seconds:
        fitting = max(FIRST_TOKENS, int(tokens / spent * seconds / 4))
        started, tokens = time.monotonic(), 0
        for batch in itertools.cycle(batches(fitting)):
            tokens += run(batch)
            if (spent := time.monotonic() - started) >= seconds:
                break
    return tokens / spent


def _mixed(batches: Batches) -> Batches:
    """The batches in an order whose beginning has long and short rows: the middle first, then the rest."""
    middle = len(batches) // 2
    others = np.random.default_rng(0).permutation([i for i in range(len(batches)) if i != middle])
    return [batches[i] for i in [middle, *others.tolist()]]


def _encoded(session: Session, facts: Facts) -> Iterator[Encoded]:
    """Some usable rows, evenly spread over the pool."""
    places = np.unique(np.linspace(0, len(facts.numbers) - 1, ROWS).astype(np.int64))
    for number in facts.numbers[places].tolist():
        row = session.inputs.pool[number]
        yield encode(row.messages, session.inputs.tokenizer, session.inputs.chat, row.id)


def _clustering(config: Config, facts: Facts) -> float:
    """Pairs of a row and a cluster a second, by k-means with the run's k on a few random features."""
    k = config.clustering.k
    rows = min(facts.rows, max(k, ROWS))
    features = np.random.default_rng(0).standard_normal((rows, facts.stored_dim(config)), np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    device = pick_device(config.device)
    passes: list[int] = []
    started = time.monotonic()
    spherical_kmeans(
        features.astype(np.float16),
        k,
        iterations=1,
        device=device if is_gpu(device) else "cpu",
        backend=config.clustering.kmeans_backend,
        progress=lambda done, _of, _mean: passes.append(done),
    )
    return len(passes) * rows * k / (time.monotonic() - started)
