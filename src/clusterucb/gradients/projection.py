"""Seeded random projections to d dimensions that keep inner products: E<Px, Py> = <x, y>.

`CountSketch` (the default; Charikar et al. 2002, Weinberger et al. 2009 for inner products): every
coordinate goes to one of d buckets with a random sign. Here each run of d coordinates (a tile) is laid over
the buckets by its own affine map k -> (a k + b) mod d, a coprime to d, so that bucket k of the sketch is a
sum of one signed coordinate a tile: a gather, without atomics, the same on every device. Independent signs
alone make it unbiased; the affine maps keep the outlier channels, which recur at a fixed stride, from
meeting in the same buckets tile after tile. Kept are a, b and a bit a coordinate; on a CUDA device one
kernel (fused.py) does Adam's map and the sketch in one pass.

`Rademacher`: a dense matrix of independent signs over sqrt(d), made anew block by block on the device itself
(philox.py). Far slower; the reference.

Both are a function of (seed, dim, parameter name, position) alone: no device, no batch, no order of calls.
Features on disk say which they were made with: str(projection), which changes whenever the map does.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from clusterucb.errors import ConfigError
from clusterucb.gradients import philox
from clusterucb.gradients.adam import AdamMap

IN_CACHE = 2**18
"""Numbers of a gradient that a CPU maps and sketches at once: a megabyte."""


class Projection(Protocol):
    """A linear map of named parameters' gradients into `dim` dimensions."""

    @property
    def dim(self) -> int:
        """Dimensions of what comes out."""

    def add_to(
        self, out: torch.Tensor, name: str, gradients: torch.Tensor, adam: AdamMap | None = None
    ) -> None:
        """Add the projection of `gradients` (B, ...) of the parameter `name` to `out` (B, dim), in place.

        With `adam` that of Adam's direction of them, which is formed in their place.
        """


def projection(name: str, dim: int = 8192, seed: int = 0) -> Projection:
    """The projection called `countsketch` or `rademacher`."""
    if name == "countsketch":
        return CountSketch(seed=seed, dim=dim)
    if name == "rademacher":
        return Rademacher(seed=seed, dim=dim)
    raise ConfigError(f"projection {name!r}: expected countsketch or rademacher")


class Tables(NamedTuple):
    """How one parameter's tiles are laid over the buckets.

    Attributes:
        steps: a of each tile, (tiles, 1).
        shifts: b of each tile, (tiles, 1).
        signs: eight to a byte, in the coordinates' order, (tiles, dim / 8) rounded up.
    """

    steps: torch.Tensor
    shifts: torch.Tensor
    signs: torch.Tensor


@dataclass(frozen=True)
class CountSketch:
    """One signed bucket a coordinate, laid out tile by tile; the tables are kept on the device."""

    seed: int = 0
    dim: int = 8192
    _tables: dict[tuple[str, torch.device], Tables] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_dim(self)

    def __str__(self) -> str:
        return f"countsketch to {self.dim} with seed {self.seed}"

    def add_to(
        self, out: torch.Tensor, name: str, gradients: torch.Tensor, adam: AdamMap | None = None
    ) -> None:
        """Add the sketch of `gradients` (B, ...) to `out` (B, dim)."""
        flat = gradients.flatten(1).float()  # (B, P)
        tables = self.tables(name, flat.shape[1], flat.device)
        if sketch := kernel(flat.device, self.dim):
            out += sketch(flat, tables, adam, name, self.dim)
        else:
            self.add_plainly(out, tables, flat, adam, name)

    def add_plainly(
        self, out: torch.Tensor, tables: Tables, flat: torch.Tensor, adam: AdamMap | None, name: str
    ) -> None:
        """The same by torch's operations, some tiles at a time."""
        tiles = self._at_once(flat)
        for first in range(0, len(tables.steps), tiles):
            start = first * self.dim
            part = flat[:, start : start + tiles * self.dim]
            order, signs = self._laid_out(Tables(*(table[first : first + tiles] for table in tables)))
            signs = signs[: part.shape[1]]
            part = adam.apply(name, part, start).mul_(signs) if adam else part * signs
            if short := len(order) - part.shape[1]:
                part = torch.nn.functional.pad(part, (0, short))
            out += part.index_select(1, order).view(len(flat), -1, self.dim).sum(1)

    def _at_once(self, flat: torch.Tensor) -> int:
        """Tiles of a pass: on a CPU so many that they stay in its cache, elsewhere all."""
        wanted = IN_CACHE // len(flat) if flat.device.type == "cpu" else flat.shape[1]
        return max(1, -(-wanted // self.dim))

    def _laid_out(self, tables: Tables) -> tuple[torch.Tensor, torch.Tensor]:
        """Source position of each bucket in each tile, and the sign of each source, both (tiles * dim,)."""
        device, tiles = tables.steps.device, len(tables.steps)
        buckets = torch.arange(self.dim, dtype=tables.steps.dtype, device=device)
        order = torch.addcmul(tables.shifts, tables.steps, buckets)
        even = self.dim.bit_count() == 1  # a power of two, by which a processor need not divide
        order = order.bitwise_and_(self.dim - 1) if even else order.remainder_(self.dim)
        order += torch.arange(0, tiles * self.dim, self.dim, dtype=order.dtype, device=device)[:, None]
        signs = philox.signs_of_bytes(device).index_select(0, tables.signs.flatten().int())
        return order.flatten(), signs.view(tiles, -1)[:, : self.dim].flatten()

    def tables(self, name: str, size: int, device: torch.device) -> Tables:
        """Those of a parameter of so many coordinates, made at the first use."""
        if (name, device) not in self._tables:
            tiles = -(-size // self.dim)
            stream = _stream(self.seed, "countsketch", name)
            steps = _units(stream.random_raw(tiles), self.dim)[:, None]
            shifts = (stream.random_raw(tiles) % np.uint64(self.dim))[:, None]
            order = (steps * np.arange(self.dim, dtype=np.uint64) + shifts) % np.uint64(self.dim)
            of_buckets = _bits(stream, tiles * self.dim).reshape(tiles, self.dim)
            of_sources = np.empty_like(of_buckets)
            np.put_along_axis(of_sources, order.astype(np.int64), of_buckets, 1)
            whole = np.int32 if self.dim < 2**15 else np.int64  # holds a k + b
            packed = np.packbits(of_sources, axis=1, bitorder="little")
            arrays = steps.astype(whole), shifts.astype(whole), packed
            self._tables[name, device] = Tables(*(torch.from_numpy(array).to(device) for array in arrays))
        return self._tables[name, device]


@dataclass(frozen=True)
class Rademacher:
    """Independent signs over sqrt(dim), generated for `block` coordinates at a time and thrown away."""

    seed: int = 0
    dim: int = 8192
    block: int = 256

    def __post_init__(self) -> None:
        _check_dim(self)

    def __str__(self) -> str:
        return f"rademacher (philox4x32) to {self.dim} with seed {self.seed}"

    def add_to(
        self, out: torch.Tensor, name: str, gradients: torch.Tensor, adam: AdamMap | None = None
    ) -> None:
        """Add the projection of `gradients` (B, ...) to `out` (B, dim)."""
        flat = gradients.flatten(1).float()
        if adam:
            flat = adam.apply(name, flat)
        block = self.block if flat.device.type == "cpu" else 32 * self.block  # elsewhere a call costs more
        key, counters = _key(self.seed, "rademacher", name), -(-self.dim // philox.SIGNS_A_COUNTER)
        for start in range(0, flat.shape[1], block):
            columns = flat[:, start : start + block]
            made = philox.signs(key, start * counters, columns.shape[1] * counters, flat.device)
            matrix = made.view(columns.shape[1], -1)[:, : self.dim]  # a coordinate's signs: whole counters
            out += (columns @ matrix) / math.sqrt(self.dim)


@cache
def kernel(device: torch.device, dim: int) -> Callable[..., torch.Tensor] | None:
    """`fused_sketch`, where it serves: on CUDA devices with Triton, for a power of two."""
    if device.type != "cuda" or dim.bit_count() != 1 or not 64 <= dim <= 2**14 or not find_spec("triton"):
        return None
    from clusterucb.gradients.fused import fused_sketch, trusted

    return fused_sketch if trusted(device, dim) else None


def _check_dim(projection: CountSketch | Rademacher) -> None:
    if projection.dim < 1:
        raise ConfigError(f"{type(projection).__name__}(dim={projection.dim}): must be at least 1")


def _stream(seed: int, kind: str, name: str) -> np.random.Philox:
    """The counter-based bit stream of one parameter (numpy keeps Philox's raw stream stable)."""
    return np.random.Philox(key=_key(seed, kind, name))


def _key(seed: int, kind: str, name: str) -> int:
    """128 bits for one parameter."""
    digest = hashlib.sha256(f"{kind}\0{seed}\0{name}".encode()).digest()
    return int.from_bytes(digest[:16], "little")


def _bits(stream: np.random.Philox, count: int) -> NDArray[np.uint8]:
    words = stream.random_raw(-(-count // 64)).astype("<u8")
    return np.unpackbits(words.view(np.uint8), count=count, bitorder="little")


def _units(raw: NDArray[np.uint64], modulus: int) -> NDArray[np.uint64]:
    """Map raw words onto numbers coprime to `modulus`: steps that visit every bucket once."""
    steps: NDArray[np.uint64] = raw % np.uint64(modulus)
    while (shared := np.gcd(steps, np.uint64(modulus)) != 1).any():
        steps[shared] = (steps[shared] + np.uint64(1)) % np.uint64(modulus)
    return steps
