"""Token rows as a Trainer takes them: a dataset whose rows can be swapped, and its collator."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from clusterucb.data.chat import Encoded
from clusterucb.gradients.batches import padded

if TYPE_CHECKING:
    import datasets

IGNORED = -100  # what transformers' losses leave out


class SwappableRows(Dataset[Encoded]):
    """The rows that are being trained on, `rows` of `tokens`; their number never changes."""

    def __init__(self, tokens: Sequence[Encoded], rows: NDArray[np.int64]) -> None:
        self._tokens, self._rows = tokens, rows

    def swap(self, rows: NDArray[np.int64]) -> None:
        """Train on other rows from the next epoch on."""
        if len(rows) != len(self._rows):
            raise ValueError(f"{len(rows)} rows instead of {len(self._rows)}: the schedule would not hold")
        self._rows = rows

    def row(self, place: int) -> int:
        """The row at a place of the dataset."""
        return int(self._rows[place])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Encoded:
        return self._tokens[self.row(index)]

    def __deepcopy__(self, _: dict[int, Any]) -> SwappableRows:
        return self  # whoever copies a dataset that looks into this one sees the swaps, too

    def columns(self, places: Mapping[str, Sequence[int]]) -> dict[str, list[list[int]]]:
        """Tokens and labels of the rows at some places, as columns."""
        rows = [self[place] for place in places["input_ids"]]
        labels = [np.where(row.labels, row.ids, IGNORED) for row in rows]
        return {"input_ids": [row.ids.tolist() for row in rows], "labels": [ids.tolist() for ids in labels]}

    def as_datasets(self) -> datasets.Dataset:
        """The same rows for the library `datasets`: `input_ids`, and `labels` with -100 outside answers.

        It holds places only, in a column whose name trainers leave alone, and looks the rows up when asked.
        """
        import datasets

        places = datasets.Dataset.from_dict({"input_ids": range(len(self))})
        return places.with_transform(self.columns)

    def serves(self, dataset: object) -> bool:
        """Whether `dataset` is this one, looks into it, or is wrapped around one that does."""
        look_up = (getattr(dataset, "format", None) or {}).get("format_kwargs", {}).get("transform")
        if dataset is self or look_up == self.columns:
            return True
        library = sys.modules.get("datasets")
        kinds = (Dataset, library.Dataset) if library else (Dataset,)
        parts = getattr(dataset, "__dict__", {}).values()
        return any(self.serves(part) for part in parts if isinstance(part, kinds))


class WithPlaces(Dataset[tuple[int, Encoded]]):
    """A dataset's rows with their places."""

    def __init__(self, rows: Dataset[Encoded]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[int, Encoded]:
        return index, self.rows[index]


def collate_for_training(rows: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    """Rows padded on the right, with labels -100 outside the assistant's text."""
    ids, attention, labels = map(torch.from_numpy, padded(rows))
    return {"input_ids": ids, "attention_mask": attention, "labels": ids.where(labels, IGNORED)}
