"""Keys that a data set brings along, made unique."""

from __future__ import annotations

from array import array
from bisect import bisect_left

from clusterucb.data.rows import digest8

__all__ = ["Seen", "UniqueKeys"]


class Seen:
    """Which strings came before, at 8 bytes each: as sorted 64-bit hashes.

    Two different strings of one hash (one chance in 10^9 among 200,000) count as the same.
    """

    def __init__(self) -> None:
        self._hashes = array("Q")

    def add(self, text: str) -> bool:
        """Note `text`; True if it is new."""
        digest = digest8(text.encode("utf-8", "surrogatepass"))
        at = bisect_left(self._hashes, digest)
        new = at == len(self._hashes) or self._hashes[at] != digest
        if new:
            self._hashes.insert(at, digest)
        return new


class UniqueKeys:
    """Each key once: the first bearer keeps it, a later one gets its row's number after it."""

    def __init__(self) -> None:
        self._seen = Seen()

    def take(self, key: str, row: int) -> str:
        """`key`, or the first of key_row, key_row_row, ... that is free."""
        while not self._seen.add(key):
            key = f"{key}_{row}"
        return key
