"""Whether a model's features can be trusted on a machine, and what they take there: `examine(config)`.

A row's feature must not depend on what stands beside it, nor much on the type that the model computes in.
So a few real rows are taken alone, with padding and beside a row twenty times longer, and alone in float32:
their cosines with the rows alone are what padding, attention's kernel and rounding leave of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch.utils._python_dispatch import TorchDispatchMode

from clusterucb.config import Config
from clusterucb.data.chat import ChatFormat, Encoded, chat_format, encode, fit
from clusterucb.data.pool import Pool
from clusterucb.data.rows import Message
from clusterucb.errors import ConfigError, InputError
from clusterucb.gradients.batches import USUAL_TOKENS
from clusterucb.gradients.featurizer import Featurizer
from clusterucb.gradients.per_sample import trainable_parameters
from clusterucb.gradients.projection import kernel, projection
from clusterucb.run.inputs import job_of
from clusterucb.run.methods import budget_of, method_of
from clusterucb.run.sizing import decide
from clusterucb.runtime.screen import Screen
from clusterucb.training.adapter import attach_adapter
from clusterucb.training.model import load_model, load_tokenizer

ENOUGH = 0.99
"""Least cosine of a row's features; a miscomputed mask or gradient leaves far less."""
ROWS, TOKENS, LONGER = 3, 32, 20
"""Rows that are looked at, tokens left of each, and how many times longer the row beside them is."""
SAMPLE = 256
"""Rows of the pool whose lengths speak for all."""
SECONDS = 10.0
"""About how long the speed is measured on a device whose memory never runs out, as a CPU's."""
NO_POOL = ["-"]
"""In the place of a pool's files."""
EXAMPLES = (
    ("What is the capital of Norway?", "The capital of Norway is Oslo."),
    ("Add 17 and 25.", "17 + 25 = 42"),
    ("Say good morning in French, in German and in Spanish.", "Bonjour, guten Morgen, buenos días."),
    ("Why is the sky blue?", "Air scatters short waves of light, which are blue, more than long ones."),
)
"""Rows where there is no pool."""

Rows = list[Encoded]


@dataclass(frozen=True)
class Examined:
    """What was found."""

    cosines: dict[str, float]  # least one of a row's feature with that of the row alone, by what was changed
    text: list[tuple[str, bool]]  # one row as the model reads it, in pieces, each with whether it is learnt
    begins: int  # begin tokens at the beginning of each row, at most
    attention: list[str]  # names of the operations that attention ran by; empty where it is plain products
    device: str
    dtype: str
    fused: bool  # whether one kernel maps and sketches
    memory: tuple[int, int | None] | None  # bytes of the device, and of a GPU the free ones; None if unknown
    batch: tuple[int, int]  # rows of a micro-batch that fitted, and tokens of each
    a_row: float  # seconds of a row of mean length
    rows: int | None  # of the pool; None without one
    gradients: int | None  # of pool rows, that a run of these settings takes in all

    @property
    def sound(self) -> bool:
        """Whether every cosine is high enough; one that is no number is not."""
        return all(cosine >= ENOUGH for cosine in self.cosines.values())


def examine(config: Config, screen: Screen | None = None) -> Examined:
    """Look at the features of a few rows. A pool of `NO_POOL` is made of examples.

    Raises:
        ClusterUCBError: what a run would refuse of model, pool and rows.
    """
    screen = screen or Screen(quiet=True)
    tokenizer = load_tokenizer(config)
    chat = chat_format(config.chat, tokenizer)
    rows, named = _conversations(config)
    encoded = [*_encoded(named, tokenizer, chat)]
    sample, some = _fitted(encoded, config.gradients.gradient_length), _fitted(encoded, TOKENS)[:ROWS]
    if not some:
        others = f", nor any other of the {len(named)} looked at" if named[1:] else ""
        raise InputError(f"{named[0][0]}: cannot be used{others}; expected answers to learn from")
    lengths = np.array([min(len(row), config.training.train_length) for row in sample])
    config, _ = decide(config, job_of(config, lengths, rows or len(sample)))
    screen.say(f"load {config.model}")
    alone, found = _looked_at(config, sample, some)
    if found["dtype"] != "float32":
        screen.say(f"load {config.model} in float32")
        try:
            exact = _featurizer(config.model_copy(update={"dtype": "float32"}))
            found["cosines"]["in float32"] = _cosine(alone, _alone(exact, some))
        except InputError as error:
            screen.say(f"its features are not compared in float32: {error}")
    begins = max(_begins(row, tokenizer.bos_token_id) for row in sample)
    text = _pieces(tokenizer, sample[0])
    return Examined(**found, text=text, begins=begins, rows=rows, gradients=rows and _gradients(config, rows))


def _conversations(config: Config) -> tuple[int | None, list[tuple[str, Sequence[Message]]]]:
    """Rows of the pool, and some of them, evenly spread, with their names."""
    if config.pool == NO_POOL:
        turns = [(Message("user", asked), Message("assistant", said)) for asked, said in EXAMPLES]
        return None, [(f"example {number}", turn) for number, turn in enumerate(turns, 1)]
    pool = Pool.read(config.pool)
    places = np.unique(np.linspace(0, len(pool) - 1, SAMPLE).astype(np.int64)).tolist()
    return len(pool), [(pool.id(place), pool[place].messages) for place in places]


def _encoded(
    named: Sequence[tuple[str, Sequence[Message]]], tokenizer: Any, chat: ChatFormat
) -> Iterator[Encoded]:
    """Tokens of the rows that the chat format takes."""
    for name, messages in named:
        with suppress(InputError):  # a run lists such a row and goes on
            yield encode(messages, tokenizer, chat, name)


def _fitted(encoded: Rows, length: int) -> Rows:
    return [row for each in encoded if isinstance(row := fit(each, length), Encoded)]


def _looked_at(config: Config, sample: Rows, some: Rows) -> tuple[NDArray[np.float16], dict[str, Any]]:
    """Features of some rows alone, and what the model in the run's type shows; it is freed at the end."""
    featurize = _featurizer(config)
    device, dtype = featurize.device, next(featurize.model.parameters()).dtype
    with _Attention() as attention:
        alone = _alone(featurize, some)
    cosines = {
        what: _cosine(alone, _beside(featurize, some, longer))
        for what, longer in (("padded", 2), (f"beside a row {LONGER} times longer", LONGER))
    }
    memory = _memory(device)
    a_row, batch = _speed(featurize, sample, config.gradients.batch_tokens or USUAL_TOKENS)
    return alone, {
        "cosines": cosines,
        "attention": sorted(attention.names),
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "fused": kernel(device, config.gradients.dim) is not None,
        "memory": memory,
        "batch": batch,
        "a_row": a_row,
    }


def _featurizer(config: Config) -> Featurizer:
    """With an adapter as a warmup leaves it: no matrix of it is zero, so each has a gradient."""
    model: PeftModel = attach_adapter(load_model(config), config.lora, config.seed, config.adapter)
    generator = torch.Generator().manual_seed(config.seed)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            if not parameter.any():
                parameter.copy_(1e-3 * torch.randn(parameter.shape, generator=generator))
    gradients = config.gradients
    sketch = projection(gradients.projection, gradients.dim, config.seed)
    return Featurizer(model, sketch, top=method_of(config).top)


def _alone(featurize: Featurizer, some: Rows) -> NDArray[np.float16]:
    return np.concatenate([featurize([row])[0] for row in some])


def _beside(featurize: Featurizer, some: Rows, longer: int) -> NDArray[np.float16]:
    """Features of rows in one micro-batch with one that is so many times longer than the longest of them."""
    length = longer * max(len(row) for row in some)
    length = min(length, getattr(featurize.model.config, "max_position_embeddings", length))
    ids, labels = (np.concatenate([getattr(row, part) for row in some]) for part in ("ids", "labels"))
    return featurize([*some, Encoded(np.resize(ids, length), np.resize(labels, length))])[0][: len(some)]


def _cosine(features: NDArray[np.float16], others: NDArray[np.float16]) -> float:
    """The least of a row with its like."""
    a, b = features.astype(np.float64), others.astype(np.float64)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


class _Attention(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the attention kernels that run while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "attention" in (name := func.overloadpacket.__name__) and "backward" not in name:
            self.names.add(name.strip("_"))
        return func(*args, **(kwargs or {}))


def _memory(device: torch.device) -> tuple[int, int | None] | None:
    """Bytes of the device, and the free ones."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, free
    if device.type == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
    return None


def _speed(featurize: Featurizer, sample: Rows, most: int) -> tuple[float, tuple[int, int]]:
    """Seconds of a row of mean length, and the largest micro-batch that fitted: its rows, and their tokens.

    A GPU gets a full one of the longest rows, twice, as the first makes its kernels; else one is made of as
    many tokens as take `SECONDS`, by the time of a row.
    """
    lengths, longest = [len(row) for row in sample], max(sample, key=len)

    def timed(rows: int) -> float:
        started = time.monotonic()
        featurize([longest] * rows)
        return (time.monotonic() - started) / rows

    sizes: list[int] = []  # of the micro-batches, halves where memory ran out; the last one fitted

    def note(_: Any, __: Any, given: dict[str, torch.Tensor]) -> None:
        sizes.append(len(given["input_ids"]))

    featurize.model.register_forward_pre_hook(note, with_kwargs=True)
    a_row, full = timed(1), max(1, most // len(longest))
    rows = full if featurize.device.type == "cuda" else max(1, min(full, int(SECONDS / a_row)))
    spent = min(timed(rows), timed(rows)) if featurize.device.type == "cuda" else timed(rows)
    return spent * float(np.mean(lengths)) / len(longest), (sizes[-1], len(longest))


def _begins(row: Encoded, begin: int | None) -> int:
    """Begin tokens that a row begins with."""
    others = np.flatnonzero(row.ids != begin)
    return 0 if begin is None else int(others[0]) if len(others) else len(row)


def _pieces(tokenizer: Any, row: Encoded) -> list[tuple[str, bool]]:
    """A row's text in pieces, each with whether it is learnt."""
    edges = [0, *(np.flatnonzero(np.diff(row.labels)) + 1).tolist(), len(row)]
    return [(tokenizer.decode(row.ids[a:b]), bool(row.labels[a])) for a, b in pairwise(edges)]


def _gradients(config: Config, rows: int) -> int | None:
    """Of the pool, that a run takes; None where it would refuse so few rows."""
    method = method_of(config)
    fresh = 0 if method.ranks_stored else max(1, method.checkpoints - method.stored)
    fresh += len(method.rounds(config.training.periods)) - 1
    try:
        drawn = budget_of(config).spend(rows)
    except ConfigError:
        return None
    return method.takes_gradients * (fresh * drawn + (not method.by_likeness) * method.stored * rows)
