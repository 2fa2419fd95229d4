"""Features to the store, rows a second, against the model's own forward and backward passes.

    python benchmarks/features.py --model HuggingFaceTB/SmolLM2-135M-Instruct [--rank 8] [--device cuda]
    python benchmarks/features.py --random llama-2-7b --rank 128 --lengths 512 512 --device cuda

Everything is timed in this one process, on the same padded micro-batches, the ways in turn so that what
else the machine does meets all of them:

    plain      forward and backward of the batch's mean loss, as any training does; no per-row work
    labels     the same with vocabulary logits at label positions only
    features   per-row gradients, Adam directions, CountSketch to 8192, normalised, written to a store
    losses     forward alone, logits at label positions: each row's loss
    states     forward through two thirds of the layers: hidden states, a vector a row
    published  one row at a time, dense Rademacher signs made anew for every 8 rows (--published N rows), as
               LESS and ClusterUCB do where there is no CUDA projector: signs from torch's generator
    philox     the same with our own dense signs (gradients/philox.py)

Also the speed of a large matrix product in the model's type, to see what share of it the passes reach.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from clusterucb.config import Config, Lora
from clusterucb.data.chat import Encoded
from clusterucb.features.hidden import representations
from clusterucb.features.store import FeatureWriter
from clusterucb.gradients.adam import AdamMap, Moments
from clusterucb.gradients.batches import Batch, collate, micro_batches
from clusterucb.gradients.featurizer import Featurizer
from clusterucb.gradients.per_sample import _labels_only, adapter_layers, row_gradients, row_losses
from clusterucb.gradients.projection import CountSketch, Projection, Rademacher
from clusterucb.runtime.devices import passes_of, wait_for
from clusterucb.steps.hidden import DEPTH
from clusterucb.training.adapter import attach_adapter
from clusterucb.training.model import load_model, pick_device, pick_dtype

PUBLISHED_BLOCK = 8
SHAPES = {
    "llama-2-7b": LlamaConfig(),
    "tiny": LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4),
}
"""Shapes for --random: transformers' default Llama is Llama-2-7B's."""


def main() -> None:
    """Time all ways and print the table."""
    options = _options()
    device = pick_device(options.device)
    model = _model(options, device)
    rows = made_up_rows(options.rows, *options.lengths, vocabulary=model.config.vocab_size, seed=0)
    lengths = np.array([len(row) for row in rows], np.int64)
    batches = micro_batches(lengths, options.batch_tokens)
    featurize = Featurizer(model, CountSketch(0, options.dim), made_up_moments(model))
    with tempfile.TemporaryDirectory() as folder:
        writer = FeatureWriter(Path(folder), len(rows), options.dim, {"model": "benchmark"})
        ways: dict[str, Callable[[NDArray[np.int64]], object]] = {
            "plain": lambda batch: both_passes(model, collate([rows[i] for i in batch], device), False),
            "labels": lambda batch: both_passes(model, collate([rows[i] for i in batch], device), True),
            "features": lambda batch: writer.write(batch, *featurize([rows[i] for i in batch])),
            "losses": lambda batch: row_losses(model, collate([rows[i] for i in batch], device)),
            "states": lambda batch: representations(model, collate([rows[i] for i in batch], device), DEPTH),
        }
        seconds = timed(ways, batches, device, options.repeats)
    tokens = int(lengths.sum())
    table = Table(title=_title(options, model, device, len(rows), tokens), title_justify="left")
    for heading in ("way", "rows/s", "tokens/s", "of plain", "of labels", "of features"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for name, spent in seconds.items():
        cells = [seconds[other] / spent for other in ("plain", "labels", "features")]
        table.add_row(name, f"{len(rows) / spent:.2f}", f"{tokens / spent:.0f}", *(f"{c:.2f}" for c in cells))
    for name in options.signs if options.published else ():
        some, dense = rows[: options.published], DENSE[name](0, options.dim)
        share = (_one_by_one(model, some, dense, device) / len(some)) / (seconds["features"] / len(rows))
        table.add_row(
            name, f"{len(rows) / seconds['features'] / share:.3f}", "", f"features: {share:.1f}x", "", ""
        )
    console = Console(width=140)
    console.print(table)
    _say_share_of_peak(console, model, device, tokens, seconds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", help="folder, GGUF file or hub id")
    parser.add_argument("--random", choices=sorted(SHAPES), help="a shape, with random weights")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--lengths", type=int, nargs=2, default=(32, 512), metavar=("FROM", "TO"))
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--published", type=int, default=0, help="rows for the published way; it is slow")
    parser.add_argument("--signs", nargs="+", choices=sorted(DENSE), default=sorted(DENSE, reverse=True))
    return parser.parse_args()


def _model(options: argparse.Namespace, device: torch.device) -> PeftModel:
    lora = Lora(rank=options.rank, alpha=4 * options.rank)
    if options.random:
        return random_model(SHAPES[options.random], lora, device, pick_dtype(options.dtype, device))
    config = Config(
        model=options.model, pool=["-"], target=["-"], out="-", device=str(device), dtype=options.dtype
    )
    return attach_adapter(load_model(config), lora, seed=0)


def random_model(shape: LlamaConfig, lora: Lora, device: torch.device, dtype: torch.dtype) -> PeftModel:
    """A model with random weights and an adapter, on its device, with what a run sets when it loads one."""
    with torch.device(device):
        base: nn.Module = AutoModelForCausalLM.from_config(shape, dtype=dtype)
    return attach_adapter(base.requires_grad_(False), lora, seed=0)


def made_up_rows(count: int, shortest: int, longest: int, vocabulary: int, seed: int) -> list[Encoded]:
    """Random tokens of lengths uniform in a range; the second half of each row is the answer."""
    rng = np.random.default_rng(seed)
    rows = []
    for length in rng.integers(shortest, longest + 1, count):
        ids = rng.integers(3, vocabulary, length).astype(np.int32)
        rows.append(Encoded(ids, np.arange(length) >= length // 2))
    return rows


def made_up_moments(model: nn.Module) -> Moments:
    """Moments of the size that a warmup leaves."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: layer.weight.shape for name, layer in adapter_layers(model).items()}
    mean = {name: 1e-4 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    square = {name: 1e-8 * torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    return Moments(mean, square, step=20)


def both_passes(model: nn.Module, batch: Batch, labels_only: bool) -> None:
    """Forward and backward of the mean loss, the adapter's gradients included."""
    model.eval()
    model.zero_grad(set_to_none=True)
    with passes_of(model), _labels_only(model, batch) if labels_only else nullcontext():
        logits = model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits
        chosen = logits[0] if labels_only else logits.flatten(0, 1)[batch.predictors]
        nn.functional.cross_entropy(chosen.float(), batch.answers).backward()


def timed(
    ways: dict[str, Callable[[NDArray[np.int64]], object]],
    batches: list[NDArray[np.int64]],
    device: torch.device,
    repeats: int,
) -> dict[str, float]:
    """Seconds of each way over all batches: the sum of every batch's best time of `repeats`."""
    for way in ways.values():
        way(batches[0])  # warms up
    best = {name: np.full(len(batches), np.inf) for name in ways}
    for _ in range(repeats):
        for number, batch in enumerate(batches):
            for name, way in ways.items():
                wait_for(device)
                started = time.perf_counter()
                way(batch)
                wait_for(device)
                best[name][number] = min(best[name][number], time.perf_counter() - started)
    return {name: float(times.sum()) for name, times in best.items()}


@dataclass(frozen=True)
class GeneratedSigns:
    """A dense Rademacher projection whose signs come from torch's generator, 512 coordinates at a time."""

    seed: int
    dim: int

    def add_to(
        self, out: torch.Tensor, name: str, gradients: torch.Tensor, adam: AdamMap | None = None
    ) -> None:
        flat = gradients.flatten(1)
        flat = adam.apply(name, flat) if adam else flat
        generator = torch.Generator(out.device).manual_seed(self.seed + zlib.crc32(name.encode()))
        for columns in flat.split(512, dim=1):
            signs = torch.empty(columns.shape[1], self.dim, device=out.device)
            out += columns @ signs.bernoulli_(0.5, generator=generator).mul_(2).sub_(1) / math.sqrt(self.dim)


DENSE = {"published": GeneratedSigns, "philox": Rademacher}


def _one_by_one(model: PeftModel, rows: list[Encoded], projection: Projection, device: torch.device) -> float:
    """Seconds of one row at a time, with the projection's signs generated again for every 8 rows."""
    layers, adam = adapter_layers(model), AdamMap.of(made_up_moments(model), "less", device)
    started = time.perf_counter()
    for start in range(0, len(rows), PUBLISHED_BLOCK):
        found: dict[str, list[torch.Tensor]] = {name: [] for name in layers}

        def keep(name: str, gradients: torch.Tensor, kept: dict[str, list[torch.Tensor]] = found) -> None:
            kept[name].append(gradients)

        block = rows[start : start + PUBLISHED_BLOCK]
        for row in block:
            row_gradients(model, layers, collate([row], device), keep)
        sketch = torch.zeros(len(block), projection.dim, device=device)
        for name, gradients in found.items():
            projection.add_to(sketch, name, torch.cat(gradients), adam)
        (sketch / sketch.norm(dim=1, keepdim=True)).half().cpu()
    wait_for(device)
    return time.perf_counter() - started


def product_speed(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Operations a second of a product of two square matrices, the best of five."""
    left, times = torch.randn(size, size, device=device, dtype=dtype), []
    for _ in range(5):
        wait_for(device)
        started = time.perf_counter()
        left @ left
        wait_for(device)
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times)


def operations(model: nn.Module, tokens: int) -> int:
    """Of both passes: 4 a base weight and token, without head and embedding."""
    frozen = (p.numel() for n, p in model.named_parameters() if "embed" not in n and "lm_head" not in n)
    return 4 * tokens * sum(frozen)


def _say_share_of_peak(
    console: Console, model: nn.Module, device: torch.device, tokens: int, seconds: dict[str, float]
) -> None:
    dtype, size = next(model.parameters()).dtype, 8192 if device.type == "cuda" else 2048
    peak = product_speed(device, dtype, size)
    both = {name: seconds[name] for name in ("plain", "labels", "features")}
    shares = (f"{name} {operations(model, tokens) / spent / peak:.0%}" for name, spent in both.items())
    console.print(
        f"a product of {size} x {size} {dtype}: {peak / 1e12:.2f} TFLOP/s; of it reach: {', '.join(shares)}"
    )


def _title(
    options: argparse.Namespace, model: nn.Module, device: torch.device, rows: int, tokens: int
) -> str:
    name = options.random or Path(str(options.model)).name
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    shortest, longest = options.lengths
    what = f"{rows} rows of {shortest}-{longest} tokens, {tokens} in all"
    return f"{name}, {dtype}, {device}, rank {options.rank}: {what}"


if __name__ == "__main__":
    main()
