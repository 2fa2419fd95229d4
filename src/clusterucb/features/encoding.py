"""How one feature becomes bytes: float16, int8 with a scale a row, or one bit a dimension with a scale a row.

Rows have one fixed width, so a store can be written in any order and read from anywhere. What is decoded
is an estimate of the feature: its inner product with any direction estimates the feature's own. Knows
arrays and bytes; nothing of files.

int8 is QLESS's quantisation by the row's largest value (Ananta et al., 2025, arXiv 2502.01703). 1bit keeps
signs, and scales them so that <decoded, feature> is <feature, feature>: RaBitQ's estimator (Gao and Long,
SIGMOD 2024, arXiv 2405.12497), unbiased over random rotations, for which the random projection stands here.
The direction keeps its full precision. Signs on both sides, or signs scaled to the feature's length, would
shrink scores by a factor that differs between rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
SCALE = 4  # bytes of the float32 that begins a row of int8 and 1bit


@dataclass(frozen=True)
class Encoding:
    """One way to keep features.

    Attributes:
        name: as in the setting `store_dtype`.
        suffix: of the file of rows.
        width: bytes of a row of d dimensions.
        encode: float16 (B, d) to bytes (B, width).
        decode: bytes (B, width) and d to float16 or float32 (B, d).
    """

    name: str
    suffix: str
    width: Callable[[int], int]
    encode: Callable[[NDArray[np.float16]], Bytes]
    decode: Callable[[Bytes, int], NDArray[Any]]


def _encode_float16(features: NDArray[np.float16]) -> Bytes:
    return np.ascontiguousarray(features, np.float16).view(np.uint8)


def _decode_float16(rows: Bytes, dim: int) -> NDArray[np.float16]:
    return rows.view(np.float16).reshape(len(rows), dim)


def _encode_int8(features: NDArray[np.float16]) -> Bytes:
    values = features.astype(np.float32)  # (B, d)
    scales = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)  # (B, 1)
    levels = np.rint(values / _nonzero(scales)).astype(np.int8)
    return np.hstack([scales.view(np.uint8), levels.view(np.uint8)])


def _decode_int8(rows: Bytes, dim: int) -> NDArray[np.float32]:
    values = rows[:, SCALE : SCALE + dim].view(np.int8).astype(np.float32)  # (B, d)
    values *= _scales(rows)
    return values


def _encode_1bit(features: NDArray[np.float16]) -> Bytes:
    values = features.astype(np.float32)  # (B, d)
    squares = np.square(values).sum(axis=1, keepdims=True)  # (B, 1)
    scales = squares / _nonzero(np.abs(values).sum(axis=1, keepdims=True))
    return np.hstack([scales.view(np.uint8), np.packbits(values >= 0, axis=1)])


def _decode_1bit(rows: Bytes, dim: int) -> NDArray[np.float32]:
    signs = np.unpackbits(rows[:, SCALE:], axis=1, count=dim).astype(np.float32)  # (B, d) of 0 and 1
    scales = _scales(rows)
    signs *= 2 * scales
    signs -= scales
    return signs


def _scales(rows: Bytes) -> NDArray[np.float32]:
    scales: NDArray[np.float32] = np.ascontiguousarray(rows[:, :SCALE]).view(np.float32)  # (B, 1)
    return scales


def _nonzero(divisors: NDArray[np.float32]) -> NDArray[np.float32]:
    """A row that is all zero stays so."""
    safe: NDArray[np.float32] = np.maximum(divisors, np.finfo(np.float32).tiny)
    return safe


ENCODINGS = {
    encoding.name: encoding
    for encoding in (
        Encoding("float16", "f16", lambda dim: 2 * dim, _encode_float16, _decode_float16),
        Encoding("int8", "i8", lambda dim: SCALE + dim, _encode_int8, _decode_int8),
        Encoding("1bit", "b1", lambda dim: SCALE + -(-dim // 8), _encode_1bit, _decode_1bit),
    )
}
"""Every encoding by its name."""
