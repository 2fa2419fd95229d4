"""Features of the rows that a selection drew, kept so that later selections know these rows better.

Two files grow side by side: row numbers, and their features in float16. A row counts once both are there;
what a kill has torn is dropped. A row that is there twice was computed twice, to the same values.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

__all__ = ["DrawnFeatures", "DrawnWriter"]

FEATURES, ROWS = "drawn.f16", "drawn.i64"


class DrawnWriter:
    """Appends to the files in a folder, after what an earlier attempt has left there whole.

    Args:
        folder: existing.
        dim: d.
    """

    def __init__(self, folder: Path, dim: int) -> None:
        self._width = 2 * dim
        self._features, self._rows = (folder / FEATURES).open("ab"), (folder / ROWS).open("ab")
        whole = min(self._features.tell() // self._width, self._rows.tell() // 8)
        self._features.truncate(whole * self._width)
        self._rows.truncate(whole * 8)

    def __enter__(self) -> DrawnWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        self._features, self._rows = folder / FEATURES, folder / ROWS

    def blocks(self, block: int = 1024) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
        """Rows (b,) and their features (b, d), in the order in which they were written."""
        if not self._rows.exists():
            return
        rows = np.fromfile(self._rows, np.int64)
        if not len(rows):
            return
        dim = self._features.stat().st_size // len(rows) // 2
        for start in range(0, len(rows), block):
            part = rows[start : start + block]
            stored = np.fromfile(self._features, np.float16, len(part) * dim, offset=2 * start * dim)
            yield part, stored.reshape(len(part), dim)
