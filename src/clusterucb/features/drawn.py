"""Features of the rows that a selection drew, kept so that later selections know these rows better.

Two files grow side by side: row numbers, and their features in float16. A row counts once both are there;
what a kill has torn is dropped. A row that is there twice was computed twice, to the same values. Each of
several processes has files of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FEATURES, ROWS = ".f16", ".i64"


class DrawnWriter:
    """Appends to the files in a folder, after what an earlier attempt has left there whole.

    Args:
        folder: existing.
        dim: d.
        rank: of this process.
    """

    def __init__(self, folder: Path, dim: int, rank: int = 0) -> None:
        self._width = 2 * dim
        name = f"drawn-{rank}" if rank else "drawn"
        self._features, self._rows = ((folder / f"{name}{kind}").open("ab") for kind in (FEATURES, ROWS))
        whole = min(self._features.tell() // self._width, self._rows.tell() // 8)
        self._features.truncate(whole * self._width)
        self._rows.truncate(whole * 8)

    def __enter__(self) -> DrawnWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._features.close()
        self._rows.close()

    def add(self, rows: NDArray[np.int64], features: NDArray[np.float16]) -> None:
        """Append `features` (b, d) of `rows` (b,)."""
        for file, array in ((self._features, features), (self._rows, rows)):
            file.write(np.ascontiguousarray(array).tobytes())
            file.flush()


class DrawnFeatures:
    """What was written into a folder; nothing where no such file is there."""

    def __init__(self, folder: Path) -> None:
        self._rows = sorted(folder.glob(f"drawn*{ROWS}"))

    def blocks(self, block: int = 1024) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
        """Rows (b,) and their features (b, d), file by file in the order in which they were written."""
        for file in self._rows:
            rows, features = np.fromfile(file, np.int64), file.with_suffix(FEATURES)
            dim = features.stat().st_size // max(len(rows), 1) // 2
            for start in range(0, len(rows), block):
                part = rows[start : start + block]
                stored = np.fromfile(features, np.float16, len(part) * dim, offset=2 * start * dim)
                yield part, stored.reshape(len(part), dim)
