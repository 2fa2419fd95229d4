"""Pieces of a file: by the system's cache or, of a large file that is read once, past it.

Past it a byte is copied once less, and what the cache has of other files stays there; but nothing is read
ahead, so several threads should read. Linux has that, on most file systems.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LARGE = 0.5
"""A larger share of the machine's memory than this is not left to the cache."""
PAGE = 4096
"""Bytes: past the cache all is in multiples of it."""
_DIRECT = getattr(os, "O_DIRECT", 0)

Read = Callable[[int, int], NDArray[np.uint8]]
"""`read(start, size)`: so many bytes from a place on, (size,), fewer where the file ends."""


def reader(file: Path, *, once: bool = False) -> Read:
    """What reads pieces of a file, from any thread; `once` if each is wanted a single time."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    large = once and file.stat().st_size > LARGE * memory
    return partial(_past_cache if large and _can_pass_cache(file) else _by_cache, file)


def _by_cache(file: Path, start: int, size: int) -> NDArray[np.uint8]:
    return np.fromfile(file, np.uint8, size, offset=start)


def _past_cache(file: Path, start: int, size: int) -> NDArray[np.uint8]:
    """Whole pages, into memory that begins at one."""
    first, end = start // PAGE * PAGE, start + size
    whole = -(-(end - first) // PAGE) * PAGE
    room = np.empty(whole + PAGE, np.uint8)
    room = room[-room.ctypes.data % PAGE :][:whole]
    descriptor, at = os.open(file, os.O_RDONLY | _DIRECT), first
    try:
        while at < end and (new := os.preadv(descriptor, [room[at - first :].data], at)):
            at += new
    finally:
        os.close(descriptor)
    return room[start - first : min(at, end) - first]


def _can_pass_cache(file: Path) -> bool:
    """Whether the system and the file's file system know how."""
    try:
        os.close(os.open(file, os.O_RDONLY | _DIRECT))
    except OSError:
        return False
    return _DIRECT != 0
