"""What a run of any size spends on any number of GPUs, from shapes: tokens, operations, bytes, seconds.

Rows, tokens, gradients and disk are those of `clusterucb plan` (src/clusterucb/studies/plan), so what is
counted is what the program does by its settings. Here is added what one machine's probe cannot tell:
operations of the passes, traffic of GPU memory, disk and network, and how they divide among GPUs. Everything
taken for granted is a field of `Assumptions`. Docs: docs/scale.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig

from clusterucb.config import Config
from clusterucb.features.encoding import ENCODINGS
from clusterucb.gradients.batches import USUAL_TOKENS
from clusterucb.gradients.per_sample import adapter_layers
from clusterucb.run.presets import PROCEDURES
from clusterucb.run.sizing import Job, decide
from clusterucb.studies.plan.facts import Facts, Sizes, model_sizes
from clusterucb.studies.plan.spending import Planned, planned_steps
from clusterucb.training.adapter import attach_adapter
from clusterucb.training.model import empty_model

__all__ = ["TRAFFIC", "Assumptions", "Passes", "Stage", "host_memory", "llama_2_7b", "stages"]

TRAFFIC = 17.5
"""Times that a row's gradient goes through memory: made, mapped by Adam's moments, sketched. Counted."""


@dataclass(frozen=True)
class Assumptions:
    """The rows, the machine and its host; seconds and bytes a second."""

    tokens: int = 300
    """Of a row, prompt and answer."""
    labels: int = 150
    """Tokens of a row that the loss is on."""
    padded: float = 1.05
    """Tokens of a micro-batch with its padding, over those without: rows are batched by length."""
    target_rows: int = 300
    subtasks: int = 57
    holdout_rows: int = 1000
    screened: int = 2
    """Kinds of text that each row of the pool is compared with: target, held-out rows."""

    gpu: float = 989e12
    """An H100's product in bfloat16, operations a second."""
    gpu_share: float = 0.35
    """Of that, what forward and backward passes reach. Not measured: no GPU could be had."""
    gpu_float32: float = 67e12
    """k-means multiplies in float32."""
    gpu_float32_share: float = 0.7
    gpu_memory: float = 3.35e12
    gpu_memory_share: float = 0.7
    launch: float = 8e-6
    """Of the host, for one operation: a pass takes at least so long times its operations."""
    operations: int = 231
    """Of a pass with per-row gradients, a layer. Counted on the tiny model."""
    training_operations: int = 163
    """Of a training pass, a layer. Counted."""

    gpus_a_node: int = 8
    node_memory: float = 1e12
    """For the store to be kept in, by the operating system."""
    disk_read: float = 6e9
    """A node."""
    disk_write: float = 3e9
    """A node."""
    feed: float = 5e9
    """From the host's memory to one GPU, decoding included."""
    network: float = 50e9
    """To and from each GPU."""
    gather: float = 1e-4
    """To exchange the scores of one batch of draws."""

    read_row: float = 28e-6
    """Seconds of one core: a row of 160 words read, parsed and hashed. Measured."""
    screen_row: float = 140e-6
    """Such a row compared with 500 texts of one kind. Measured."""
    tokenise_token: float = 3e-6
    """Measured."""
    rank_number: float = 6e-9
    """One stored number in the ranking of all rows for 57 subtasks. Measured."""
    draw: float = 4e-6
    """Of the bandit, a row drawn from one arm at a time. Measured."""
    draw_of_many: float = 16e-6
    """A row drawn with `--draw-batch-arms many`. Measured."""


@dataclass(frozen=True)
class Passes:
    """Operations of forward and backward passes of a LoRA model, two a multiplication with addition.

    A frozen layer of W weights takes 2 W forward and 2 W backward for a token; an adapter's, 2 W more for its
    own gradient. The vocabulary's head sees label positions only. Attention takes two products of (context,
    context) a head and token forward, and five backward, of which one is made again (Dao, 2023, arXiv
    2307.08691); a causal mask spares none in this count.

    Attributes:
        body: weights of frozen linear layers, the head left out.
        head: of the vocabulary's head.
        adapter: of the adapter.
        attention: heads times their size, over all layers.
        layers: how many.
    """

    body: int
    head: int
    adapter: int
    attention: int
    layers: int

    @classmethod
    def of(cls, model: nn.Module) -> Passes:
        """Of a model with its adapter, whose tensors may be without content."""
        head = model.get_output_embeddings()
        own = {id(layer) for layer in adapter_layers(model).values()}
        linears = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
        config = model.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            body=sum(m.weight.numel() for m in linears if id(m) not in own),
            head=head.weight.numel(),
            adapter=sum(m.weight.numel() for m in linears if id(m) in own),
            attention=config.num_hidden_layers * config.num_attention_heads * size,
            layers=config.num_hidden_layers,
        )

    def forward(self, tokens: float, context: float, labels: float) -> float:
        """Of rows with `tokens` in all, padding included, in rows of `context`, and `labels` in all."""
        products = 2 * (self.body + self.adapter) * tokens + 2 * self.head * labels
        return products + 4 * self.attention * context * tokens

    def gradients(self, tokens: float, context: float, labels: float) -> float:
        """Forward and backward, with the adapter's gradients: of each row, or summed."""
        products = (4 * self.body + 6 * self.adapter) * tokens + 4 * self.head * labels
        return products + (4 + 10) * self.attention * context * tokens


@dataclass(frozen=True)
class Stage:
    """A part of a run on so many GPUs: counts over all of them, seconds by the clock.

    Attributes:
        network: bytes that each GPU sends.
    """

    name: str
    rows: int = 0
    tokens: float = 0
    flops: float = 0
    disk: float = 0
    network: float = 0
    seconds: float = 0


def llama_2_7b() -> tuple[Config, Sizes, Passes]:
    """The paper's model and settings: transformers' default Llama has the shapes of Llama-2-7B."""
    with TemporaryDirectory() as folder:
        LlamaConfig().save_pretrained(folder)
        config = Config(model=folder, pool=["-"], target=["-"], out="-", dtype="bfloat16")
        config = config.with_settings(PROCEDURES["paper"])
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            passes = Passes.of(attach_adapter(empty_model(config), config.lora, 0))
        return config, model_sizes(config), passes


@dataclass(frozen=True)
class _Machine:
    """Seconds of the parts of a stage on `gpus` GPUs."""

    config: Config
    sizes: Sizes
    passes: Passes
    given: Assumptions
    gpus: int

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.given.gpus_a_node)

    @property
    def micro_batch(self) -> int:
        """Rows of a full micro-batch of gradients."""
        return max(1, (self.config.gradients.batch_tokens or USUAL_TOKENS) // self.given.tokens)

    def flops(self, rows: float, *, backward: bool = True) -> float:
        given = self.given
        tokens = rows * given.tokens * given.padded
        count = self.passes.gradients if backward else self.passes.forward
        return count(tokens, given.tokens * given.padded, rows * given.labels)

    def gradients(self, rows: int) -> float:
        """One micro-batch of rows on one GPU, to their features."""
        given = self.given
        computed = self.flops(rows) / (given.gpu * given.gpu_share)
        moved = TRAFFIC * self.sizes.adapter * rows / (given.gpu_memory * given.gpu_memory_share)
        return max(computed + moved, given.launch * given.operations * self.passes.layers)

    def batches(self, rows: int) -> float:
        """Any number of rows on one GPU, in full micro-batches and a rest."""
        full, rest = divmod(rows, self.micro_batch)
        return full * self.gradients(self.micro_batch) + (self.gradients(rest) if rest else 0)

    def all_reduced(self, size: float) -> float:
        """Bytes that each GPU sends for the sum of arrays of so many bytes, around a ring."""
        return 2 * (self.gpus - 1) / self.gpus * size


def stages(
    rows: int,
    gpus: int,
    model: tuple[Config, Sizes, Passes],
    given: Assumptions = Assumptions(),
) -> list[Stage]:
    """All stages of a run over `rows` rows, in order."""
    config, sizes, passes = model
    job = Job(rows, given.tokens, sizes.hidden, passes.layers, "llama")
    config, _ = decide(config, job)
    lengths = np.array([given.tokens])
    facts = Facts(
        rows=rows,
        excluded=0,
        numbers=np.arange(1),
        gradient_lengths=lengths,
        training_lengths=lengths,
        target_lengths=np.full(given.target_rows, given.tokens),
        subtasks=given.subtasks,
        evaluated_lengths=np.full(given.holdout_rows, given.tokens),
        sizes=sizes,
        job=job,
    )
    planned = planned_steps(config, facts)
    machine = _Machine(config, sizes, passes, given, gpus)
    later = [planned[name] for name in planned if name.startswith("select") and name != "select 1"]
    return [
        *_inputs(rows, given),
        _training("warmup", planned["warmup"], machine),
        _gradients(planned["gradients"], machine),
        _cluster(rows, machine),
        _rank(rows, machine),
        *_selections(later, machine),
        _training("train", planned["train"], machine),
        _evaluate(planned["evaluate"], machine),
    ]


def _inputs(rows: int, given: Assumptions) -> Iterator[Stage]:
    """One core of the host, however many GPUs there are."""
    seconds = rows * (given.read_row + given.screened * given.screen_row)
    yield Stage("read and check", rows, seconds=seconds)
    tokens = rows * given.tokens
    yield Stage("tokenise", rows, tokens, disk=5 * tokens, seconds=tokens * given.tokenise_token)


def _training(name: str, planned: Planned, machine: _Machine) -> Stage:
    """A GPU's rows of a step in micro-batches, and a sum of the adapter's gradients over all GPUs."""
    given, settings = machine.given, machine.config.training
    rows, steps = planned.cost.rows, -(-planned.cost.rows // settings.batch_size)
    own = -(-settings.batch_size // machine.gpus)
    passes = -(-own // min(own, settings.micro_batch or machine.micro_batch))
    launched = given.launch * given.training_operations * machine.passes.layers
    computed = machine.flops(own / passes) / (given.gpu * given.gpu_share)
    sent = machine.all_reduced(machine.sizes.adapter)
    seconds = steps * (passes * max(computed, launched) + sent / given.network)
    flops = machine.flops(rows)
    return Stage(name, rows, planned.cost.tokens, flops, planned.disk, steps * sent, seconds)


def _gradients(planned: Planned, machine: _Machine) -> Stage:
    """Each GPU takes its rows and writes them; no exchange."""
    rows = planned.cost.pool_gradients + planned.cost.target_gradients
    computed = machine.batches(-(-rows // machine.gpus))
    written = planned.disk / (machine.nodes * machine.given.disk_write)
    seconds = max(computed, written)
    return Stage("gradients", rows, planned.cost.tokens, machine.flops(rows), planned.disk, 0, seconds)


def _cluster(rows: int, machine: _Machine) -> Stage:
    """Every pass reads the store; sums of (k, d) int64 are added over all GPUs in each but the last."""
    given, dim, k = machine.given, machine.config.gradients.dim, machine.config.clustering.k
    iterations = machine.config.clustering.iterations
    store = rows * ENCODINGS[machine.config.gradients.store_dtype].width(dim)
    kept = store <= machine.nodes * given.node_memory
    read = store * (1 if kept else iterations + 1)
    flops = 2 * rows * k * dim * (iterations + 1)
    sent = iterations * machine.all_reduced(8 * k * dim)
    seconds = (
        flops / (machine.gpus * given.gpu_float32 * given.gpu_float32_share)
        + (iterations + 1) * store / (machine.gpus * given.feed)
        + read / (machine.nodes * given.disk_read)
        + sent / given.network
    )
    return Stage("cluster", rows, 0, flops, read, sent, seconds)


def _rank(rows: int, machine: _Machine) -> Stage:
    """Scores of all stored rows by one process, in float64."""
    dim = machine.config.gradients.dim
    read = rows * ENCODINGS[machine.config.gradients.store_dtype].width(dim)
    flops = 2 * rows * dim * machine.given.subtasks
    seconds = rows * dim * machine.given.rank_number
    return Stage("select 1", rows, 0, flops, read, 0, seconds)


def _selections(later: list[Planned], machine: _Machine) -> Iterator[Stage]:
    """The bandit's selections, with the settings' batches, and with one micro-batch for each GPU of many."""
    draw_batch = machine.config.selection.draw_batch
    full = machine.micro_batch * machine.gpus
    for size, draw, name in (
        (draw_batch, machine.given.draw, f"select 2-{1 + len(later)}, draw_batch {draw_batch}"),
        (full, machine.given.draw_of_many, f"or draw_batch {machine.micro_batch} x GPUs, many"),
    ):
        yield _selected(name, later, machine, size, draw)


def _selected(name: str, later: list[Planned], machine: _Machine, draw_batch: int, draw: float) -> Stage:
    """After each batch all GPUs wait for its scores; the bandit runs on each of them alike."""
    rows = sum(planned.cost.pool_gradients for planned in later)
    targets = sum(planned.cost.target_gradients for planned in later)
    batches = math.ceil(rows / draw_batch)
    each = machine.batches(-(-draw_batch // machine.gpus)) + (machine.given.gather if machine.gpus > 1 else 0)
    seconds = batches * each + rows * draw + machine.batches(-(-targets // machine.gpus))
    tokens, flops = sum(planned.cost.tokens for planned in later), machine.flops(rows + targets)
    sent = (machine.gpus - 1) / machine.gpus * 8 * rows
    return Stage(name, rows + targets, tokens, flops, 0, sent, seconds)


def _evaluate(planned: Planned, machine: _Machine) -> Stage:
    rows, given = planned.cost.rows, machine.given
    flops = machine.flops(rows, backward=False)
    seconds = flops / (given.gpu * given.gpu_share * machine.gpus)
    return Stage("evaluate", rows, planned.cost.tokens, flops, 0, 0, seconds)


def host_memory(rows: int, config: Config) -> dict[str, float]:
    """Bytes of one process, by part, that grow with the rows, as they were counted for 10^5 and 10^6."""
    drawn = config.selection.budget * rows
    return {
        "pool, while it is read": 56 * rows,
        "pool, from then on": 30 * rows,
        "tokens: numbers of the rows, while they are made": 40 * rows,
        "tokens: offsets, lengths, numbers": 32 * rows,
        "k-means: labels, cosines, lengths": 24 * rows,
        "bandit: labels, decks while they are dealt": 34 * rows,
        "bandit: the budget's draws": 100 * drawn,
        "bandit: scores as they are logged": 9 * rows,
    }
