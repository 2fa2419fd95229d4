"""Seeded random projections to d dimensions that keep inner products: E<Px, Py> = <x, y>.

`CountSketch` (the default; Charikar et al. 2002, Weinberger et al. 2009 for inner products): every
coordinate goes to one of d buckets with a random sign. Here each run of d coordinates (a tile) is laid over
the buckets by its own affine map k -> (a k + b) mod d, a coprime to d, so that bucket k of the sketch is a
sum of one signed coordinate a tile: a gather, without atomics, the same on every device. Independent signs
alone make it unbiased; the affine maps keep the outlier channels, which recur at a fixed stride, from
meeting in the same buckets tile after tile.

`Rademacher`: a dense matrix of independent signs over sqrt(d), made anew block by block on the device itself
(philox.py). Far slower; the reference.

Both are a function of (seed, dim, parameter name, position) alone: no device, no batch, no order of calls.
Features on disk say which they were made with: str(projection), which changes whenever the map does.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from clusterucb.errors import ConfigError
from clusterucb.gradients import philox


class Projection(Protocol):
    """A linear map of named parameters' gradients into `dim` dimensions."""

    @property
    def dim(self) -> int:
        """Dimensions of what comes out."""

    def add_to(self, out: torch.Tensor, name: str, gradients: torch.Tensor) -> None:
        """Add the projection of `gradients` (B, ...) of the parameter `name` to `out` (B, dim), in place."""


def projection(name: str, dim: int = 8192, seed: int = 0) -> Projection:
    """The projection called `countsketch` or `rademacher`."""
    if name == "countsketch":
        return CountSketch(seed=seed, dim=dim)
    if name == "rademacher":
        return Rademacher(seed=seed, dim=dim)
    raise ConfigError(f"projection {name!r}: expected countsketch or rademacher")


@dataclass(frozen=True)
class CountSketch:
    """One signed bucket a coordinate, laid out tile by tile; the tables are kept on the device."""

    seed: int = 0
    dim: int = 8192
    _tables: dict[tuple[str, torch.device], tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        _check_dim(self)

    def __str__(self) -> str:
        return f"countsketch to {self.dim} with seed {self.seed}"

    def add_to(self, out: torch.Tensor, name: str, gradients: torch.Tensor) -> None:
        """Add the sketch of `gradients` (B, ...) to `out` (B, dim)."""
        flat = gradients.flatten(1).float()  # (B, P)
        order, signs = self._table(name, flat.shape[1], flat.device)
        tiles = len(signs)
        padded = torch.nn.functional.pad(flat, (0, tiles * self.dim - flat.shape[1]))
        gathered = padded.index_select(1, order.reshape(-1)).view(-1, tiles, self.dim)  # (B, tiles, dim)
        out += gathered.mul_(signs).sum(1)

    def _table(self, name: str, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Source position and sign of each bucket in each tile, both (tiles, dim)."""
        if (name, device) not in self._tables:
            tiles = -(-size // self.dim)
            stream = _stream(self.seed, "countsketch", name)
            steps = _units(stream.random_raw(tiles), self.dim)
            shifts = stream.random_raw(tiles) % np.uint64(self.dim)
            buckets = np.arange(self.dim, dtype=np.uint64)
            order = (steps[:, None] * buckets + shifts[:, None]) % np.uint64(self.dim)
            order += np.arange(tiles, dtype=np.uint64)[:, None] * np.uint64(self.dim)
            signs = _signs(stream, tiles * self.dim).reshape(tiles, self.dim)
            self._tables[name, device] = (
                torch.from_numpy(order.astype(np.int64)).to(device),
                torch.from_numpy(signs).to(device),
            )
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

    def add_to(self, out: torch.Tensor, name: str, gradients: torch.Tensor) -> None:
        """Add the projection of `gradients` (B, ...) to `out` (B, dim)."""
        flat = gradients.flatten(1).float()
        key, counters = _key(self.seed, "rademacher", name), -(-self.dim // philox.SIGNS_A_COUNTER)
        for start in range(0, flat.shape[1], self.block):
            columns = flat[:, start : start + self.block]
            made = philox.signs(key, start * counters, columns.shape[1] * counters, flat.device)
            matrix = made.view(columns.shape[1], -1)[:, : self.dim]  # a coordinate's signs: whole counters
            out += (columns @ matrix) / math.sqrt(self.dim)


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


def _signs(stream: np.random.Philox, count: int) -> NDArray[np.int8]:
    words = stream.random_raw(-(-count // 64)).astype("<u8")
    signs = np.unpackbits(words.view(np.uint8), count=count, bitorder="little").astype(np.int8)
    signs <<= 1
    signs -= 1
    return signs


def _units(raw: NDArray[np.uint64], modulus: int) -> NDArray[np.uint64]:
    """Map raw words onto numbers coprime to `modulus`: steps that visit every bucket once."""
    steps: NDArray[np.uint64] = raw % np.uint64(modulus)
    while (shared := np.gcd(steps, np.uint64(modulus)) != 1).any():
        steps[shared] = (steps[shared] + np.uint64(1)) % np.uint64(modulus)
    return steps
