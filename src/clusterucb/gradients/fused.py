"""Adam's map and the CountSketch in one pass over the formed gradients: a Triton kernel.

One program has a row and a run of tiles. It reads a tile's gradients, signs and Adam's map in their order,
permutes the signed directions on the chip, and adds them to d sums that it keeps in registers. The sums of
the runs are written and added in a fixed order: no atomics, so the same result every time.

A device is asked once whether the kernel gives there what the plain operations give; if not, these are used
and that is told, so that a compiler which does not like the kernel costs time and no result.
"""

from __future__ import annotations

import warnings

import torch
import triton
import triton.language as tl

from clusterucb.errors import reason
from clusterucb.gradients.adam import AdamMap, Moments
from clusterucb.gradients.projection import CountSketch, Tables
from clusterucb.runtime.devices import is_out_of_memory

PROGRAMS = 128
"""Programs that keep a large GPU busy, at least, where there are so many tiles."""
SHORTEST_RUN = 4
"""Tiles of a run, at least: each run writes d sums for every row."""
TOLERANCE = 1e-5
"""Of the norm of a sketch, between the kernel's and that of the plain operations."""


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def sketch_kernel(  # type: ignore[no-untyped-def]
    gradients,  # (B, P)
    lift,  # (P,)
    floor,  # (P,)
    steps,  # (tiles,)
    shifts,  # (tiles,)
    signs,  # (tiles, D / 8)
    out,  # (runs, B, D)
    size,  # P
    tiles,
    run,  # tiles of a run
    eps,
    ADAM: tl.constexpr,
    D: tl.constexpr,
):
    """The signed sums of one run of tiles of one row."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    k = tl.arange(0, D)
    total = tl.zeros([D], tl.float32)
    for t in range(part * run, min(part * run + run, tiles)):
        at = t * D + k
        inside = at < size
        x = tl.load(gradients + row * size + at, mask=inside, other=0.0)
        if ADAM:
            low = tl.load(floor + at, mask=inside, other=1.0)
            x = (x + tl.load(lift + at, mask=inside, other=0.0)) / (tl.sqrt(x * x + low * low) + eps)
        bits = tl.load(signs + t * (D // 8) + k // 8)
        x = tl.where(((bits >> (k % 8).to(tl.uint8)) & 1) != 0, x, -x)
        source = (tl.load(steps + t) * k + tl.load(shifts + t)) % D  # below 2^30
        total += tl.gather(x, source, 0)
    tl.store(out + (part * tl.num_programs(0) + row) * D + k, total)


def fused_sketch(
    gradients: torch.Tensor, tables: Tables, adam: AdamMap | None, name: str, dim: int
) -> torch.Tensor:
    """The sketch (B, dim) of float32 gradients (B, P), or of Adam's direction of them; dim a power of two."""
    (rows, size), tiles = gradients.shape, len(tables.steps)
    run = max(SHORTEST_RUN, tiles * rows // PROGRAMS)
    runs = -(-tiles // run)
    sums = gradients.new_empty(runs, rows, dim)
    lift, floor, eps = (adam.lift[name], adam.floor[name], adam.eps) if adam else (gradients, gradients, 0.0)
    with torch.cuda.device_of(gradients):  # type: ignore[no-untyped-call]  # Triton's is the current one
        sketch_kernel[(rows, runs)](
            gradients.contiguous(), lift, floor, *tables, sums, size, tiles, run, eps, adam is not None, dim,
            num_warps=max(1, min(16, dim // 512)),
        )  # fmt: skip
    return sums.sum(0)


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernel, on a CPU (TRITON_INTERPRET=1)."""
    return not isinstance(sketch_kernel, triton.JITFunction)


def trusted(device: torch.device, dim: int) -> bool:
    """Whether the kernel gives on a device what the plain operations give there; told where it does not."""
    generator, size = torch.Generator().manual_seed(0), 9 * dim - 5
    m, v, gradients = (torch.randn(shape, generator=generator) for shape in ((size,), (size,), (3, size)))
    adam = AdamMap.of(Moments({"": m * 1e-4}, {"": v.square() * 1e-8}, step=1), "less", device)
    gradients, plain, sketch = (
        gradients.to(device) * 1e-3,
        torch.zeros(3, dim, device=device),
        CountSketch(0, dim),
    )
    tables = sketch.tables("", size, device)
    try:
        found = fused_sketch(gradients, tables, adam, "", dim)
        sketch.add_plainly(plain, tables, gradients, adam, "")
        off = float((found - plain).norm() / plain.norm())
        why = f"it is off by {off:.1e} of the norm" if not off <= TOLERANCE else ""
    except Exception as error:  # whatever this device's compiler does not like
        if is_out_of_memory(error):
            raise
        why = reason(error)
    if why:
        warnings.warn(
            f"the fused kernel is not used on {device}, where features are slower: {why}", stacklevel=2
        )
    return not why
