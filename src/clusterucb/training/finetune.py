"""Training an adapter with transformers' Trainer, resumable from its last whole checkpoint.

Each optimizer step is logged to TensorBoard, Weights & Biases or MLflow, if that is wanted. TensorBoard's
files are kept in the run directory, or in TENSORBOARD_LOGGING_DIR; the Trainer would write them into its own
states, which are dropped at the end. The other two are set up as their own documents say.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.data_loader import BatchSamplerShard
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from clusterucb.config import Training
from clusterucb.data.chat import Encoded
from clusterucb.errors import ConfigError, InputError
from clusterucb.gradients.adam import Moments
from clusterucb.runtime.processes import ALONE, World
from clusterucb.runtime.screen import Advance
from clusterucb.runtime.sharding import is_sharded
from clusterucb.training.callbacks import ShowProgress, WholeCheckpoints, last_whole_checkpoint
from clusterucb.training.data import IGNORED, EvenBatches, WithIdleRow, collate_for_training
from clusterucb.training.moments import moments_of


def optimizer_steps(rows: int, epochs: int, settings: Training) -> int:
    """Optimizer steps of `epochs` passes over `rows`; a pass's last step may have fewer rows."""
    return epochs * math.ceil(rows / settings.batch_size)


def accumulation_steps(settings: Training, processes: int) -> int:
    """Micro-batches that each process takes in one optimizer step; ConfigError where they are not even."""
    steps, rest = divmod(settings.batch_size, settings.micro_batch * processes)
    if rest:
        raise ConfigError(
            f"batch_size {settings.batch_size} is not a multiple of micro_batch {settings.micro_batch} x "
            f"{processes} processes; change one of the three, so that each gets as many rows"
        )
    return steps


def training_clock(folder: Path, world: World = ALONE) -> WholeCheckpoints:
    """A clock that goes on from the last whole checkpoint in `folder`."""
    return WholeCheckpoints(world.lead(lambda: last_whole_checkpoint(folder)[1]), world)


def finetune(
    model: nn.Module,
    dataset: Dataset[Encoded],
    folder: Path,
    settings: Training,
    *,
    seed: int,
    epochs: int,
    callbacks: tuple[TrainerCallback, ...] = (),
    clock: WholeCheckpoints | None = None,
    advance: Advance = lambda _amount, note="", **_numbers: None,
    describe: Callable[[int], str] = "row {}".format,
    world: World = ALONE,
) -> Moments:
    """Train the model's adapter in place, going on from the last whole checkpoint in `folder`.

    Several processes train by DistributedDataParallel, or by FSDP 2 if the model is sharded: each takes its
    share of the micro-batches of every optimizer step, which are those that one process would take.

    Args:
        model: with a trainable adapter at its starting weights, on its device.
        dataset: the rows; a callback may swap them between epochs.
        folder: the trainer's own saved states.
        settings: rates and sizes.
        seed: of the order of rows and of dropout.
        epochs: passes over the dataset.
        callbacks: run before the built-in ones.
        clock: counts the seconds; a `training_clock` of `folder`.
        advance: told each optimizer step.
        describe: names the dataset's row i in an error.
        world: processes that train together, each with the same model.

    Returns:
        Adam's moments at the end.

    Raises:
        ConfigError: the batch size does not divide among the processes; a sharded model is on a CPU, or was
            not sharded when training began.
        InputError: a loss is not a finite number.
        LostError: another process has ended or does not answer.
    """
    checkpoint = world.lead(lambda: last_whole_checkpoint(folder)[0])
    _check_states(checkpoint, model)
    report_to, reporting = reporters(settings.report_to, folder)
    steps = optimizer_steps(len(dataset), epochs, settings)  # type: ignore[arg-type]
    device = next(model.parameters()).device
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=accumulation_steps(settings, world.size),
        learning_rate=settings.lr,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(settings.lr_warmup * steps),
        weight_decay=settings.weight_decay,
        num_train_epochs=epochs,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=2,
        logging_steps=1,
        report_to=report_to,
        run_name=run_name(folder),
        remove_unused_columns=False,
        disable_tqdm=True,
        seed=seed,
        data_seed=seed,
        average_tokens_across_devices=True,
        ddp_find_unused_parameters=False,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        **_sharding(model),
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process, one device: never DataParallel
    trainer = _FiniteTrainer(
        model=model,
        args=arguments,
        train_dataset=WithIdleRow(dataset),
        data_collator=collate_for_training,
        callbacks=[*callbacks, clock or training_clock(folder, world), ShowProgress(advance), *reporting],
    )
    if is_sharded(model) and not trainer.is_fsdp_enabled:
        raise ConfigError(
            f"shard fsdp: accelerate shards over GPUs only, and the device is {arguments.device.type}; leave "
            "--shard out"
        )
    trainer.describe = describe
    for talkative in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(talkative)
    with warnings.catch_warnings(), world.watching():
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    moments = moments_of(trainer.optimizer, model)
    model.zero_grad(set_to_none=True)
    return moments


class _FiniteTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that ends with the name of the row whose loss is not a number.

    Of several processes none ever gets a row twice, so that the last micro-batches of an epoch may be idle.
    """

    describe: Callable[[int], str]

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The trainer's own, but where it would begin again with the first rows, idle ones stand in."""
        loader: DataLoader[Any] = super().get_train_dataloader()
        shard = loader.batch_sampler
        if isinstance(shard, BatchSamplerShard):
            shard.batch_sampler = EvenBatches(
                shard.batch_sampler, len(self.train_dataset), shard.num_processes
            )
        return loader

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Nothing of a sharded model: its adapter is saved with the optimizer, and its base never changes."""
        if not is_sharded(self.model):
            super().save_model(output_dir, _internal_call)

    def compute_loss(self, model: nn.Module, inputs: dict[str, torch.Tensor], *args: Any, **more: Any) -> Any:
        """The trainer's own loss, looked at; nothing of an idle micro-batch, which has no mean."""
        if not (inputs["labels"] != IGNORED).any():
            idle = {**inputs, "labels": inputs["input_ids"]}
            return super().compute_loss(model, idle, *args, **more) * 0
        loss = super().compute_loss(model, inputs, *args, **more)
        value = loss[0] if isinstance(loss, tuple) else loss
        if not torch.isfinite(value):
            raise InputError(
                f"training step {self.state.global_step + 1}: the loss is {value.item()} on "
                f"{', '.join(self._names(inputs))}; lower --lr, use --dtype float32, or take the row out"
            )
        return loss

    def _names(self, inputs: dict[str, torch.Tensor]) -> list[str]:
        lengths = inputs["attention_mask"].sum(1).tolist()
        wanted = {tuple(ids[:n].tolist()) for ids, n in zip(inputs["input_ids"], lengths, strict=True)}
        dataset = self.train_dataset
        return [self.describe(i) for i in range(len(dataset)) if tuple(dataset[i].ids.tolist()) in wanted]


def _check_states(checkpoint: Path | None, model: nn.Module) -> None:
    """Refuse to go on from states of the other kind: the trainer keeps a sharded optimizer by name."""
    sharded = is_sharded(model)
    if checkpoint and (checkpoint / "optimizer.bin").exists() != sharded:
        raise ConfigError(
            f"{checkpoint}: was saved {'without' if sharded else 'by several processes with'} --shard fsdp; "
            f"go on like this, or remove {checkpoint.parent} to train from the start"
        )


def _sharding(model: nn.Module) -> dict[str, Any]:
    """How the trainer is told that the model is sharded, in the words of transformers 4 and 5."""
    if not is_sharded(model):
        return {}
    new = int(transformers.__version__.split(".")[0]) >= 5
    return {
        "fsdp": True if new else "full_shard",
        "fsdp_config": {"version": 2, "auto_wrap_policy": "NO_WRAP"},  # nothing more is to be sharded
    }


def check_reporter(name: str) -> None:
    """Raise ConfigError where the package of that name is not installed."""
    if name != "none" and find_spec(name) is None:
        raise ConfigError(
            f"report_to {name}: the package {name} is not installed; `pip install {name}`, "
            "or use --report-to none"
        )


def reporters(name: str, states: Path) -> tuple[str, list[TrainerCallback]]:
    """What the Trainer's own `report_to` becomes, and the callbacks that stand for the rest.

    TensorBoard's files of the training with these `states` go to `logs/` beside them.
    """
    check_reporter(name)
    if name != "tensorboard":
        return name, []
    tensorboard = TensorBoardCallback()
    tensorboard.logging_dir = tensorboard.logging_dir or str(states.parent / "logs" / _name(states))
    return "none", [tensorboard]


def run_name(states: Path) -> str:
    """How a training is called where several runs are seen side by side."""
    return f"{states.absolute().parent.name}/{_name(states)}"


def _name(states: Path) -> str:
    return states.name.removesuffix(".states")
