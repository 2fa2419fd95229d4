"""Callbacks of transformers' Trainer: re-selection at each period's start, whole checkpoints, progress.

`DynamicSelection` works in any Trainer whose train_dataset is its `dataset`, and refuses settings under which
the rows that it selects would not be trained on.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from clusterucb.data.chat import Encoded
from clusterucb.errors import ConfigError
from clusterucb.gradients.adam import Moments
from clusterucb.runtime.processes import ALONE, World
from clusterucb.runtime.screen import Advance
from clusterucb.runtime.sharding import refuse_other_shards, refuse_several_devices
from clusterucb.training.data import SwappableRows, collate_for_training
from clusterucb.training.moments import moments_of

if TYPE_CHECKING:
    import datasets

_WHOLE = "whole.json"
_REFUSED = {
    "dataloader_persistent_workers": "such workers never see the swapped rows; leave it False",
    "auto_find_batch_size": "a second attempt would go on with what was selected in the first; "
    "leave it False, and set per_device_train_batch_size",
    "packing": "packed sequences are made once, of the first period's rows; leave it False",
    "group_by_length": "lengths are taken once, of the first period's rows; leave it False",
    "deepspeed": "a row's gradient needs whole weights and Adam's moments; use FSDP 2",
}
_ORDERS = ("group_by_length", "batch_rebalance")


class DynamicSelection(TrainerCallback):  # type: ignore[misc]
    """Swaps the rows of a Trainer at the start of each training period.

    Args:
        tokens: all rows that can be selected.
        first: the rows of period 1, (L,); every later selection has as many.
        reselect: `reselect(period, model, moments)` returns the rows of `period`, (L,), from 2 on. It is
            called again with the same period when training is resumed in it, and must then return the
            same rows (a `Reselection` with a folder reads what it has written).
        epochs_per_period: passes over the rows in one period.

    Use: `Trainer(model, args, train_dataset=dynamic.dataset, data_collator=dynamic.collate,
    callbacks=[dynamic])` with `remove_unused_columns=False` and as many epochs as all periods have. A trainer
    that wants a data set of the library `datasets`, as trl's SFTTrainer does, takes `dynamic.as_datasets()`
    with its own collator and `dataset_kwargs={"skip_prepare_dataset": True}`.
    """

    def __init__(
        self,
        tokens: Sequence[Encoded],
        first: NDArray[np.int64],
        reselect: Callable[[int, nn.Module, Callable[[], Moments]], NDArray[np.int64]],
        *,
        epochs_per_period: int = 1,
    ) -> None:
        self.dataset = SwappableRows(tokens, first)
        self.collate = collate_for_training
        self._first = first
        self._reselect, self._epochs = reselect, epochs_per_period
        self._resumed = False

    def as_datasets(self) -> datasets.Dataset:
        """The rows being trained on as `datasets` has them, with `input_ids` and `labels`."""
        return self.dataset.as_datasets()

    def on_init_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Raise ConfigError for an argument under which the trainer would not see the swaps."""
        _refuse_arguments(args)

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Begin with period 1's rows, or notice a resumed training, whose rows have to be restored.

        Raises ConfigError where the trainer would not see the swaps.
        """
        _refuse_arguments(args)
        if not self.dataset.serves(getattr(kwargs["train_dataloader"], "dataset", self.dataset)):
            raise ConfigError(
                "train_dataset: is not the one of this DynamicSelection, so what it selects would not be "
                "trained on; give the trainer train_dataset=dynamic.dataset, or dynamic.as_datasets()"
            )
        refuse_several_devices(kwargs["model"])
        refuse_other_shards(kwargs["model"])
        self.dataset.swap(self._first)
        self._resumed = state.global_step > 0

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Select for the period that starts here, or that training is resumed in."""
        steps_per_epoch = math.ceil(len(kwargs["train_dataloader"]) / args.gradient_accumulation_steps)
        epoch = state.global_step // steps_per_epoch
        period = epoch // self._epochs + 1
        starts = epoch % self._epochs == 0 or state.global_step % steps_per_epoch or self._resumed
        self._resumed = False
        if period > 1 and starts:
            model, optimizer = kwargs["model"], kwargs["optimizer"]
            self.dataset.swap(self._reselect(period, model, lambda: moments_of(optimizer, model)))

    def on_epoch_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """Have the state saved from which the next period's selection is made."""
        control.should_save = True


def _refuse_arguments(arguments: Any) -> None:
    """Refuse training arguments, of transformers or trl, under which a swap does nothing or harm."""
    for name, reason in _REFUSED.items():
        if value := getattr(arguments, name, None):
            raise ConfigError(f"{name}={value}: {reason}")
    order = getattr(arguments, "train_sampling_strategy", None)
    if order in _ORDERS:
        raise ConfigError(
            f"train_sampling_strategy={order}: lengths are taken once, of the first period's rows; use random"
        )


class PartEnds(TrainerCallback):  # type: ignore[misc]
    """Tells of the end of each part of training, before the trainer saves its state there.

    Killed in between, training goes on from an earlier state and tells of the same end again, the same to the
    bit. The trainer logs every step (`logging_steps=1`).

    Args:
        steps: optimizer steps of one part, as an epoch or a period.
        ended: `ended(part, moments, rate)`, with the part from 1, what gives Adam's moments, and the mean of
            the learning rates that the trainer logged for the part's steps.
    """

    def __init__(self, steps: int, ended: Callable[[int, Callable[[], Moments], float], None]) -> None:
        self._steps, self._ended = steps, ended

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """When the part's last step is logged; by `on_epoch_end` the trainer's state may be saved."""
        part, more = divmod(state.global_step, self._steps)
        if more or "learning_rate" not in kwargs["logs"]:
            return
        rates = [entry["learning_rate"] for entry in state.log_history if "learning_rate" in entry]
        mean = float(np.mean(rates[-self._steps :]))
        self._ended(part, lambda: moments_of(kwargs["optimizer"], kwargs["model"]), mean)
        control.should_save = True


class WholeCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Marks a checkpoint as whole once all processes have written it, with the seconds spent so far."""

    def __init__(self, before: float, world: World = ALONE) -> None:
        self._started, self._world = time.monotonic() - before, world
        self._saved = 0  # at this step

    @property
    def seconds(self) -> float:
        """Training time so far, earlier attempts included, without the pauses."""
        return time.monotonic() - self._started

    def pause(self, seconds: float) -> None:
        """Leave out the last `seconds`, which went into something else."""
        self._started += seconds

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save no state twice: the second time its files would be torn under the first one's mark."""
        if self._saved == state.global_step:
            control.should_save = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """The trainer has written all files of checkpoint-<step>."""
        self._saved = state.global_step
        self._world.gather(None)
        if not self._world.leads:
            return
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        part = folder / f"{_WHOLE}.part"
        part.write_text(json.dumps({"seconds": self.seconds}))
        part.replace(folder / _WHOLE)


def last_whole_checkpoint(folder: Path) -> tuple[Path | None, float]:
    """The newest whole checkpoint in `folder` and the seconds spent until then; torn ones are removed."""
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / _WHOLE).exists():
            whole.append((int(checkpoint.name.removeprefix("checkpoint-")), checkpoint))
        else:
            shutil.rmtree(checkpoint)
    if not whole:
        return None, 0.0
    newest = max(whole)[1]
    return newest, float(json.loads((newest / _WHOLE).read_text())["seconds"])


class ShowProgress(TrainerCallback):  # type: ignore[misc]
    """Passes optimizer steps and the loss on to a progress bar."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._loss = ""
        self._shown = 0

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the loss for the next step's note."""
        logs = kwargs.get("logs") or {}
        if "loss" in logs:
            self._loss = f"loss {float(logs['loss']):.3f}"
            told = ("loss", "learning_rate", "grad_norm")
            self._advance(0, self._loss, **{name: float(logs[name]) for name in told if name in logs})

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """One step more, or all steps of a resumed checkpoint."""
        self._advance(state.global_step - self._shown, self._loss)
        self._shown = state.global_step
