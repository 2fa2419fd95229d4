"""What ranks do with a model that FSDP 2 shards over them.

accelerate shards on GPUs only; here it is told that a CPU is one.
"""

import json
from pathlib import Path

import numpy as np
import torch
from accelerate import state as accelerate_state
from accelerate.utils import DistributedType
from safetensors.numpy import save_file
from transformers import Trainer, TrainingArguments

from builders import build_model
from clusterucb.cli import main
from clusterucb.config import Lora, load
from clusterucb.data.chat import Encoded
from clusterucb.gradients.adam import Moments
from clusterucb.gradients.batches import plan
from clusterucb.gradients.features import Featurizer, target_directions
from clusterucb.gradients.per_sample import trainable_parameters
from clusterucb.gradients.projection import projection
from clusterucb.processes import ALONE, joined
from clusterucb.session import Session
from clusterucb.sharding import alike, is_sharded, shard, whole_tensors
from clusterucb.steps import reselection
from clusterucb.training.callbacks import DynamicSelection
from clusterucb.training.model import attach_adapter

BATCH_TOKENS = 40


def shard_on_cpus():
    """Have accelerate take CPUs for what FSDP can be on."""
    State = accelerate_state.AcceleratorState  # noqa: N806
    begin = State.__init__

    def begin_with_fsdp(self, *args, fsdp_plugin=None, **more):
        begin(self, *args, fsdp_plugin=fsdp_plugin, **more)
        if fsdp_plugin and self.distributed_type == DistributedType.MULTI_CPU:
            self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
            accelerate_state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    State.__init__ = begin_with_fsdp


def adapted(**lora):
    """A model whose adapter is not at its start, where half of the gradients are 0."""
    settings = {"rank": 4, "alpha": 8, "dropout": 0.1, "target_modules": ["q_proj", "v_proj", "o_proj"]}
    model = attach_adapter(build_model().requires_grad_(False), Lora(**(settings | lora)), 0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def rows(count):
    rng = np.random.default_rng(2)
    made = [rng.integers(0, 320, rng.integers(5, 21)).astype(np.int32) for _ in range(count)]
    return [Encoded(ids, np.arange(len(ids)) >= len(ids) // 2) for ids in made]


def moments(model):
    torch.manual_seed(3)
    shapes = {name: parameter.shape for name, parameter in trainable_parameters(model).items()}
    mean = {name: 1e-3 * torch.randn(shape) for name, shape in shapes.items()}
    return Moments(mean, {name: m.square() for name, m in mean.items()}, 5)


def computed(model, world=ALONE, count=15):
    """Features of rows, losses, and directions of a target."""
    pool, sketch = rows(count), projection("countsketch", 64, 0)
    batches = plan(np.array([len(row.ids) for row in pool]), BATCH_TOKENS)
    featurize = Featurizer(model, sketch, moments(model))

    def compute(items):
        return (featurize([pool[i] for i in batch.tolist()]) for batch in items)

    found = list(alike(world, model).share(batches, compute))
    codes = np.arange(count) % 2
    directions = target_directions(
        Featurizer(model, sketch), pool, codes, BATCH_TOKENS, world=alike(world, model)
    )
    return {
        "features": np.concatenate([features for _, (features, _) in found]),
        "losses": np.concatenate([losses for _, (_, losses) in found]),
        "directions": directions,
        "batches": np.array([len(batches)]),
    }


def features(arguments):
    """`features FILE`: what each rank has computed with a sharded model, and that it is as it was."""
    with joined() as world:
        model = adapted()
        shard(model, torch.device("cpu"))
        before = whole_tensors(trainable_parameters(model))
        found = computed(model, world)
        parameters = trainable_parameters(model)
        assert is_sharded(model)
        assert all(p.requires_grad and p.grad is None for p in parameters.values())
        after = whole_tensors(parameters)
        assert all(torch.equal(after[name], weight) for name, weight in before.items())
        save_file(found, f"{arguments[0]}.{world.rank}")


def command(arguments):
    """`clusterucb ARGUMENT...`, where CPUs are sharded over."""
    shard_on_cpus()
    main(arguments)


def train(arguments):
    """`train STATES OPTION...`: two periods in a person's own Trainer; its rounds are in STATES/rounds."""
    shard_on_cpus()
    with joined() as world:
        trained(Session(load(None, options_of(arguments[1:])), world=world), Path(arguments[0]))


def trained(session, states, **changes):
    """The same; `changes` of the Trainer's arguments. Returns the Trainer."""
    dynamic = DynamicSelection(
        session.training_tokens, np.arange(10), reselection(session, states / "rounds"), epochs_per_period=1
    )
    settings = {"save_strategy": "epoch", "fsdp": "full_shard", "fsdp_config": {"version": 2}}
    trainer = Trainer(
        session.model,
        TrainingArguments(
            str(states),
            per_device_train_batch_size=1,
            gradient_accumulation_steps=2,
            num_train_epochs=2,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            remove_unused_columns=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            report_to="none",
            disable_tqdm=True,
            **(settings | changes),
        ),
        train_dataset=dynamic.dataset,
        data_collator=dynamic.collate,
        callbacks=[dynamic],
    )
    trainer.train()
    return trainer


def options_of(arguments):
    """Options of the command line as a dict."""
    return json.loads(arguments[0])
