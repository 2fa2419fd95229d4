"""Gradient files that LESS wrote, as rows like those of a store of ours.

LESS (Xia et al., ICML 2024, arXiv 2402.04333) keeps projected gradients of a training file or a task in
`.../NAME-ckptN-TYPE/dimD/all_orig.pt`: a tensor (rows, D), each row divided by its norm, in the order of the
file. `all_unormalized.pt` beside it holds the same rows as they were; as every row is normalised here again,
either can be read. A task's rows are sorted by subtask, with as many rows each.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clusterucb.errors import ConfigError, InputError, reason

FILE = "all_orig.pt"
BLOCK = 1024


def less_file(path: Path) -> Path | None:
    """The gradient file that `path` names: itself, `all_orig.pt` in it or in the one `dimD` in it; else None.

    Raises ConfigError where there are several dimensions to choose from.
    """
    if path.is_file():
        return path
    if (path / FILE).is_file():
        return path / FILE
    found = sorted(path.glob(f"dim*/{FILE}"))
    if len(found) > 1:
        names = ", ".join(file.parent.name for file in found)
        raise ConfigError(f"{path}: holds gradients of several dimensions ({names}); name one of its folders")
    return found[0] if found else None


class LessFeatures:
    """The rows of several files, in their order as one pool, L2-normalised, float32 (N, d), read by runs.

    Files are mapped, not read, where torch can: memory does not grow with them. Raises InputError where one
    is no tensor of gradients, has dimensions of its own, or has a row without a direction.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._tensors = [_load(file) for file in files]
        dims = [tensor.shape[1] for tensor in self._tensors]
        for file, dim in zip(files, dims, strict=True):
            if dim != dims[0]:
                raise InputError(
                    f"{file}: rows of {dim} dimensions, but those of {files[0]} have {dims[0]};"
                    " give files of one dimension"
                )
        self._starts = np.cumsum([0, *(len(tensor) for tensor in self._tensors)])  # of each file, and N
        self._norms = [_norms(tensor, file) for tensor, file in zip(self._tensors, files, strict=True)]
        self.shape = (int(self._starts[-1]), dims[0])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice, /) -> NDArray[np.float32]:
        """A run of rows, (B, d)."""
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise IndexError(f"features[::{step}]: only runs of rows can be read")
        parts = [np.empty((0, self.shape[1]), np.float32)]
        for tensor, norms, first in zip(self._tensors, self._norms, self._starts.tolist(), strict=False):
            run = slice(max(start - first, 0), max(stop - first, 0))
            parts.append((tensor[run].float() / norms[run, None]).numpy())
        return np.concatenate(parts)


def less_directions(file: Path, subtasks: int) -> NDArray[np.float32]:
    """The mean of the normalised rows of each subtask, (S, d): equal runs of consecutive rows of `file`.

    Raises InputError for a file that `LessFeatures` refuses, ConfigError where the rows do not split evenly.
    """
    rows = LessFeatures([file])
    if len(rows) % subtasks:
        raise ConfigError(
            f"{file}: {len(rows)} rows are not {subtasks} subtasks of equal size; give --subtasks as LESS has"
            " it for the task (mmlu 57, tydiqa 9, bbh 27)"
        )
    directions: NDArray[np.float32] = rows[:].reshape(subtasks, -1, rows.shape[1]).mean(1, dtype=np.float64)
    return directions.astype(np.float32)


def _load(file: Path) -> Tensor:
    try:  # only files of the newer format, zip archives, can be mapped
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:
        raise InputError(
            f"{file}: cannot be read as a tensor ({reason(error)[:120]}); expected a file that LESS wrote;"
            " other pickled objects are never loaded, as they could run code"
        ) from error
    if not isinstance(found, Tensor):
        raise InputError(
            f"{file}: holds a {type(found).__name__}; expected a tensor of gradients (rows, dimensions)"
        )
    if found.ndim != 2 or not found.numel() or not found.is_floating_point() or found.layout != torch.strided:
        raise InputError(
            f"{file}: holds a tensor of {found.dtype} and shape {tuple(found.shape)}; expected floating-point"
            " gradients (rows, dimensions), not empty"
        )
    return found


def _norms(tensor: Tensor, file: Path) -> Tensor:
    """Lengths of the rows, float32 (n,)."""
    starts = range(0, len(tensor), BLOCK)
    norms = torch.cat([torch.linalg.vector_norm(tensor[at : at + BLOCK].float(), dim=1) for at in starts])
    sound = norms.isfinite() & (norms > 0)
    if not bool(sound.all()):
        bad = int(sound.int().argmin())
        what = "is all zero" if float(norms[bad]) == 0 else "is not finite"
        raise InputError(
            f"{file}: row {bad}, counted from 0, {what} (rows like that: {int((~sound).sum())}): it has no"
            " direction; take it out of the training file and of these gradients"
        )
    return norms
