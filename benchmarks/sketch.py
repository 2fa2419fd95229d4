"""Adam's map and the sketch of one matrix's gradients, milliseconds: as they are, and as they were.

    python benchmarks/sketch.py [--device cuda] [--threads 2]

    passes     each operation over all of the rows' gradients, buckets and signs from tables (commit 4656ef3)
    at once    the operations of now, over all of the gradients
    now        what a run does: on a CPU so many tiles at a time as stay in its cache, on a GPU one kernel

The ways take turns, and the fastest of each counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from clusterucb.gradients import projection
from clusterucb.gradients.adam import AdamMap, Moments
from clusterucb.gradients.projection import CountSketch

DIM = 8192
SHAPES = {
    "SmolLM2-135M, rank 8": (8, 576),
    "SmolLM2-135M, rank 128": (128, 576),
    "Llama-2-7B, rank 128": (128, 4096),
}


def main() -> None:
    """Time all ways and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rows", type=int, nargs="+", default=(1, 8, 32))
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = Table(title=f"{options.device}, {options.threads} threads", title_justify="left")
    for heading in ("matrix", "rows", "passes, ms", "at once, ms", "now, ms", "passes / now"):
        table.add_column(heading, justify="right")
    for name, shape in SHAPES.items():
        for rows in options.rows:
            of = ways(rows, shape, options.device)
            before, at_once, now = (1e3 * s for s in timed(of, options.device, options.repeats))
            cells = (f"{before:.2f}", f"{at_once:.2f}", f"{now:.2f}", f"{before / now:.2f}")
            table.add_row(name, str(rows), *cells)
    Console(width=120).print(table)


def ways(rows: int, shape: tuple[int, int], device: str) -> list[Callable[[], object]]:
    """Before, at once and now."""
    generator = torch.Generator().manual_seed(0)
    gradients = 1e-3 * torch.randn(rows, *shape, generator=generator).to(device)
    m, v = (torch.randn(shape, generator=generator).to(device) for _ in "mv")
    moments = Moments({"p": 1e-4 * m}, {"p": 1e-8 * v.square()}, step=20)
    adam, sketch, out = (
        AdamMap.of(moments, "less", device),
        CountSketch(0, DIM),
        torch.zeros(rows, DIM, device=device),
    )
    before = Before(moments, sketch, gradients)

    def now() -> None:
        sketch.add_to(out, "p", gradients.clone(), adam)

    def at_once() -> None:
        with (
            mock.patch.object(projection, "IN_CACHE", 2**40),
            mock.patch.object(projection, "kernel", return_value=None),
        ):
            now()

    return [lambda: before.add_to(out, gradients.clone()), at_once, now]


class Before:
    """The passes of commit 4656ef3, with tables of 9 bytes a coordinate."""

    def __init__(self, moments: Moments, sketch: CountSketch, gradients: torch.Tensor) -> None:
        tables = sketch.tables("p", gradients[0].numel(), gradients.device)
        order, of_sources = sketch._laid_out(tables)
        self.moments, self.order = moments, order.long()
        self.signs = of_sources.index_select(0, self.order).view(-1, DIM)

    def add_to(self, out: torch.Tensor, g: torch.Tensor) -> None:
        b1, b2 = self.moments.betas
        m = torch.lerp(g, self.moments.mean["p"], b1)
        v = (b2 * self.moments.square["p"]).addcmul(g, g, value=1 - b2)
        flat = m.mul_(v.add_(self.moments.eps).rsqrt_()).flatten(1)
        padded = torch.nn.functional.pad(flat, (0, len(self.order) - flat.shape[1]))
        out += padded.index_select(1, self.order).view(len(g), -1, DIM).mul_(self.signs).sum(1)


def timed(ways: list[Callable[[], object]], device: str, repeats: int) -> list[float]:
    """Seconds of each way."""
    best = [np.inf] * len(ways)
    for _ in range(repeats):
        for number, way in enumerate(ways):
            started = time.perf_counter()
            way()
            if device != "cpu":
                torch.cuda.synchronize(device)
            best[number] = min(best[number], time.perf_counter() - started)
    return best


if __name__ == "__main__":
    main()
