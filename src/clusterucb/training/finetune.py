"""Training an adapter with transformers' Trainer, resumable from its last whole checkpoint.

Each optimizer step is logged to TensorBoard, Weights & Biases or MLflow, if that is wanted. TensorBoard's
files are kept in the run directory, or in TENSORBOARD_LOGGING_DIR; the Trainer would write them into its own
states, which are dropped at the end. The other two are set up as their own documents say.
"""

from __future__ import annotations

import math
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
from clusterucb.runtime.devices import is_gpu, passes_of, room_for, use
from clusterucb.runtime.memory import Room
from clusterucb.runtime.processes import ALONE, World
from clusterucb.runtime.screen import Advance
from clusterucb.runtime.sharding import is_sharded
from clusterucb.training.callbacks import ShowProgress, WholeCheckpoints, last_whole_checkpoint
from clusterucb.training.data import WithPlaces
from clusterucb.training.moments import moments_of
from clusterucb.training.passes import Placed, StepPasses


def optimizer_steps(rows: int, epochs: int, settings: Training) -> int:
    """Optimizer steps of `epochs` passes over `rows`; a pass's last step may have fewer rows."""
    return epochs * math.ceil(rows / settings.batch_size)


def check_batch_size(settings: Training, processes: int) -> None:
    """Raise ConfigError where an optimizer step's rows do not divide among the processes."""
    if settings.batch_size % processes:
        raise ConfigError(
            f"batch_size {settings.batch_size} is not a multiple of {processes} processes; change one of the "
            "two, so that each gets as many rows"
        )


def training_clock(folder: Path, world: World = ALONE) -> WholeCheckpoints:
    """A clock that goes on from the last whole checkpoint in `folder`."""
    return WholeCheckpoints(world.lead(lambda: last_whole_checkpoint(folder)[1]), world)


def finetune(
    model: nn.Module,
    dataset: Dataset[Encoded],
    folder: Path,
    settings: Training,
    *,
    batch_tokens: int = 4096,
    seed: int,
    epochs: int,
    callbacks: tuple[TrainerCallback, ...] = (),
    clock: WholeCheckpoints | None = None,
    advance: Advance = lambda _amount, note="", **_numbers: None,
    describe: Callable[[int], str] = "row {}".format,
    world: World = ALONE,
    room: Room | None = None,
) -> Moments:
    """Train the model's adapter in place, going on from the last whole checkpoint in `folder`.

    Several processes each take a share of the rows of every optimizer step, which are those that one process
    would take; a sharded model trains by FSDP 2.

    Args:
        model: with a trainable adapter at its starting weights, on its device.
        dataset: the rows; a callback may swap them between epochs.
        folder: the trainer's own saved states.
        settings: rates and sizes.
        batch_tokens: padded tokens on the device at once, at most.
        seed: of the order of rows and of dropout.
        epochs: passes over the dataset.
        callbacks: run before the built-in ones.
        clock: counts the seconds; a `training_clock` of `folder`.
        advance: told each optimizer step.
        describe: names the dataset's row i in an error.
        world: processes that train together, each with the same model.
        room: what has fitted into memory so far.

    Returns:
        Adam's moments at the end.

    Raises:
        ConfigError: the batch size does not divide among the processes; a sharded model is on a CPU, or was
            not sharded when training began.
        InputError: a loss is not a finite number, or memory does not suffice for a row alone.
        LostError: another process has ended or does not answer.
    """
    check_batch_size(settings, world.size)
    checkpoint = world.lead(lambda: last_whole_checkpoint(folder)[0])
    _check_states(checkpoint, model)
    report_to, reporting = reporters(settings.report_to, folder)
    steps = optimizer_steps(len(dataset), epochs, settings)  # type: ignore[arg-type]
    device = next(model.parameters()).device
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch_size,  # of which each process takes its share
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
        ddp_find_unused_parameters=False,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=False,
        **_sharding(model),
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process, one device: never DataParallel
    if is_gpu(device) and world.size == 1:  # the trainer takes the first one, whatever the model is on
        vars(arguments)["_setup_devices"] = arguments.distributed_state.device = use(device)
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=WithPlaces(dataset),
        data_collator=list,
        callbacks=[*callbacks, clock or training_clock(folder, world), ShowProgress(advance), *reporting],
    )
    if is_sharded(model) and not trainer.is_fsdp_enabled:
        raise ConfigError(
            f"shard fsdp: accelerate shards over GPUs only, and the device is {arguments.device.type}; leave "
            "--shard out"
        )
    bound = settings.micro_batch
    trainer.passes = StepPasses(trainer.model, batch_tokens, bound, describe, room or Room(), world)
    for talkative in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(talkative)
    advice = "go on with this run directory on another --device, or lower --rank in a new one"
    with room_for("Adam's moments", advice), passes_of(model), world.watching():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    world.gather(None)  # the trainers of all have looked into `folder` for the last time
    moments = moments_of(trainer.optimizer, model)
    model.zero_grad(set_to_none=True)
    return moments


class _Trainer(Trainer):  # type: ignore[misc]
    """A Trainer whose batch, in every process, is one optimizer step's rows, each with its place."""

    passes: StepPasses

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The trainer's own, not sharded: what takes the rows' gradients shares them out."""
        loader: DataLoader[Any] = super().get_train_dataloader()
        if isinstance(shard := loader.batch_sampler, BatchSamplerShard):
            shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
        return loader

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Nothing of a sharded model: its adapter is saved with the optimizer, and its base never changes."""
        if not is_sharded(self.model):
            super().save_model(output_dir, _internal_call)

    def floating_point_ops(self, _inputs: Any) -> int:
        """Not told."""
        return 0

    def training_step(self, _model: nn.Module, inputs: list[Placed], *_: Any, **__: Any) -> torch.Tensor:
        """The step's gradient into the parameters; its loss."""
        self.model.train()
        try:
            return torch.tensor(self.passes(inputs), device=self.args.device)
        except InputError as error:
            raise InputError(f"training step {self.state.global_step + 1}: {error}") from None


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
