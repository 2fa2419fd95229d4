"""What a run over 10^5 to 10^8 rows takes on 1, 8 and 64 GPUs, stage by stage, and how well that is known.

    python benchmarks/scale.py                              # the tables of docs/scale.md: no GPU, seconds
    python benchmarks/scale.py --rows 3000000 --gpus 4 16 --tokens 500 --gpu-share 0.3
    python benchmarks/scale.py --check [--model SMOLLM2]    # against what is counted and measured here

The model is scale_model.py; each of its assumptions is an option. `--check` counts the operations of real
passes with torch's own counter, and predicts the seconds of one size from those of a smaller one: seconds of
the process, on one thread, both sizes in turn, the fastest of three.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import synthetic
import torch
from scale_counts import (
    counted_forward,
    counted_gradients,
    counted_traffic,
    counted_training,
    made_up,
    moments,
)
from scale_model import TRAFFIC, Assumptions, Passes, host_memory, llama_2_7b, stages

from clusterucb.config import Config, Lora
from clusterucb.data.chat import Tulu, encode
from clusterucb.data.contamination import Probe, ProbeIndex, contaminated
from clusterucb.data.pool import Pool
from clusterucb.data.rows import Message
from clusterucb.features.influence import stored_influence
from clusterucb.features.kmeans import spherical_kmeans
from clusterucb.gradients.featurizer import Featurizer
from clusterucb.gradients.projection import CountSketch
from clusterucb.selection.bandit import select
from clusterucb.training.adapter import attach_adapter
from clusterucb.training.model import load_model, load_tokenizer

ROWS = (100_000, 1_000_000, 10_000_000, 100_000_000)
GPUS = (1, 8, 64)


def table(rows: int, gpus: list[int], model: Any, given: Assumptions) -> Iterator[str]:
    """Counts, which are the same on any number of GPUs but for the network's, and hours on each number."""
    found = [stages(rows, count, model, given) for count in gpus]
    heads = " | ".join(f"{count} GPU{'s' * (count > 1)}" for count in gpus)
    yield f"| {rows:,} rows | rows | tokens | FLOPs | disk | network, {gpus[-1]} GPUs | {heads} |"
    yield "|---" * (6 + len(gpus)) + "|"
    for same in zip(*found, strict=True):
        last = same[-1]
        counts = [_number(last.rows), _number(last.tokens), _number(last.flops), _bytes(last.disk)]
        seconds = [_time(stage.seconds) for stage in same]
        yield f"| {' | '.join([last.name, *counts, _bytes(last.network), *seconds])} |"
    for left_out, name in (("or ", "all, by the defaults"), ("select 2", "all, in batches of many")):
        sums = [sum(s.seconds for s in run if not s.name.startswith(left_out)) for run in found]
        yield f"| {name} | | | | | | {' | '.join(map(_time, sums))} |"


def memory_table(rows: list[int], config: Config) -> Iterator[str]:
    """Of one process on the host, by part."""
    found = [host_memory(count, config) for count in rows]
    yield f"| a process's memory | {' | '.join(f'{count:,} rows' for count in rows)} |"
    yield "|---" * (1 + len(rows)) + "|"
    for part in found[0]:
        yield f"| {part} | {' | '.join(_bytes(parts[part]) for parts in found)} |"


def plain(value: float) -> str:
    """An assumption as the page writes it."""
    return f"{value:g}".replace("e+", "e").replace("e-0", "e-")


def _number(value: float) -> str:
    return f"{value:.1e}".replace("e+0", "e").replace("e+", "e") if value else ""


def _bytes(value: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return ""


def _time(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def check_counts(folder: str | None) -> Iterator[str]:
    """The formulas against torch's counter."""
    yield "| operations | formula | counted | formula / counted |\n|---|---|---|---|"
    for name, model in _models(folder):
        passes, size = Passes.of(model), model.config.vocab_size
        for count, length in ((3, 64), (2, 192)):
            rows, tokens, labels = (
                made_up(count, length, size),
                count * length,
                count * (length - length // 2),
            )
            for what, formula, counted in (
                ("features", passes.gradients(tokens, length, labels), counted_gradients),
                ("forward", passes.forward(tokens, length, labels), counted_forward),
                ("training", passes.gradients(tokens, length, labels), counted_training),
            ):
                real = counted(model, rows).flops
                label = f"{name}, {what}, {count} rows of {length}"
                yield f"| {label} | {formula:.4g} | {real:.4g} | {formula / real:.3f} |"
    real = counted_traffic((128, 4096), 13, 300)
    what = "a gradient's ways through memory, without the fused kernel"
    yield f"| {what} | {TRAFFIC} | {real:.2f} | {TRAFFIC / real:.3f} |"


def check_seconds(folder: str | None) -> Iterator[str]:
    """Seconds of a size from those of a smaller one."""
    yield "| seconds of one core | by | smaller | larger | predicted | measured | predicted / measured |"
    yield "|---" * 7 + "|"
    with tempfile.TemporaryDirectory() as scratch:
        for name, unit, (less, work), (more, larger) in _pairs(folder, Path(scratch)):
            small, large = _fastest(work, larger)
            predicted = small * more / less
            cells = [
                f"{less:.3g}",
                f"{more:.3g}",
                f"{predicted:.3f}",
                f"{large:.3f}",
                f"{predicted / large:.2f}",
            ]
            yield f"| {name} | {unit}, {small / less:.3g} s each | {' | '.join(cells)} |"


Sized = tuple[float, Callable[[], object]]


def _pairs(folder: str | None, scratch: Path) -> Iterator[tuple[str, str, Sized, Sized]]:
    """Each kind of work with its unit, in two sizes."""
    rng = np.random.default_rng(0)
    x = np.concatenate(list(synthetic.features(12_000, 2048)))

    def kmeans(rows: int, k: int) -> Sized:
        return 3.0 * rows * k * 2048, lambda: spherical_kmeans(x[:rows], k, iterations=2)

    yield "k-means", "row, cluster and dimension", kmeans(6_000, 256), kmeans(12_000, 384)

    def ranking(rows: int) -> Sized:
        directions = synthetic.directions(57, 2048)
        return rows * 2048, lambda: stored_influence(x[:rows], directions)

    yield "rank stored rows", "number", ranking(3_000), ranking(9_000)

    def bandit(rows: int, arms: str) -> Sized:
        labels = rng.integers(0, round(rows**0.5), rows)
        scores = rng.standard_normal(rows)
        options = {"draw_batch": 8 if arms == "one" else 512, "draw_batch_arms": arms}
        return 0.2 * rows, lambda: select(labels, lambda drawn: scores[drawn], **options)

    for arms in ("one", "many"):
        yield f"bandit, {arms}", "draw", bandit(200_000, arms), bandit(600_000, arms)

    words = [f"{a}{b}{c}" for a in "bcdfglmnprst" for b in "aeiou" for c in ("n", "r", "st", "ck")]

    def texts(rows: int, length: int) -> list[str]:
        return [" ".join(rng.choice(words, length)) for _ in range(rows)]

    def reading(rows: int) -> Sized:
        file = scratch / f"{rows}.jsonl"
        lines = [
            json.dumps({"id": i, "prompt": text[:300], "completion": text[300:]})
            for i, text in enumerate(texts(rows, 160))
        ]
        file.write_text("\n".join(lines))
        return rows, lambda: Pool.read(file)

    yield "read the pool", "row", reading(3_000), reading(9_000)
    index = ProbeIndex([Probe(str(i), text) for i, text in enumerate(texts(500, 60))])

    def screening(rows: int) -> Sized:
        pool = Pool.read(scratch / "9000.jsonl")
        return rows, lambda: [*contaminated(index, (pool[i] for i in range(rows)))]

    yield "screen the pool", "row", screening(1_500), screening(4_500)
    if folder is None:
        return
    config = Config(model=folder, pool=["-"], target=["-"], out="-", device="cpu", dtype="float32")
    tokenizer, chat = load_tokenizer(config), Tulu("</s>")

    def tokenising(rows: int, length: int) -> Sized:
        conversations = [
            [Message("user", text[:300]), Message("assistant", text[300:])] for text in texts(rows, length)
        ]

        def work() -> list[int]:
            return [len(encode(row, tokenizer, chat, "")) for row in conversations]

        return sum(work()), work

    yield "tokenise", "token", tokenising(300, 120), tokenising(900, 160)
    model = attach_adapter(load_model(config), Lora(rank=8, alpha=32), 0)
    featurize, passes = Featurizer(model, CountSketch(0, 8192), moments(model)), Passes.of(model)

    def features(rows: int, length: int) -> Sized:
        encoded = made_up(rows, length, model.config.vocab_size)
        flops = passes.gradients(rows * length, length, rows * (length - length // 2))
        return flops, lambda: featurize(encoded)

    yield "features", "operation", features(2, 96), features(3, 192)


def _fastest(*works: Callable[[], object], repeat: int = 3) -> list[float]:
    """Seconds of the process for each, the works in turn."""
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(repeat):
        for seconds, work in zip(taken, works, strict=True):
            started = time.process_time()
            work()
            seconds.append(time.process_time() - started)
    return [min(seconds) for seconds in taken]


def _models(folder: str | None) -> Iterator[tuple[str, Any]]:
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from builders import build_model

    yield "tiny", attach_adapter(build_model().requires_grad_(False), Lora(rank=4, alpha=16), 0)
    if folder:
        config = Config(model=folder, pool=["-"], target=["-"], out="-", device="cpu", dtype="float32")
        yield Path(folder).stem, attach_adapter(load_model(config), Lora(rank=8, alpha=32), 0)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--gpus", type=int, nargs="+", default=GPUS)
    parser.add_argument("--check", action="store_true", help="count and measure here instead")
    parser.add_argument(
        "--model", help="for --check: a folder or GGUF file of a small model, besides the tiny one"
    )
    for field in fields(Assumptions):
        kind = type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    options = parser.parse_args(arguments)
    if options.check:
        torch.set_num_threads(1)
        for checked in (check_counts, check_seconds):
            for line in checked(options.model):
                print(line, flush=True)
            print()
        return
    given = Assumptions(**{field.name: getattr(options, field.name) for field in fields(Assumptions)})
    model = llama_2_7b()
    for rows in options.rows:
        print("\n".join(table(rows, options.gpus, model, given)), end="\n\n")
    print("\n".join(memory_table(options.rows, model[0])))


if __name__ == "__main__":
    main()
