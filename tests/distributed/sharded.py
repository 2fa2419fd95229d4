"""What ranks do with a model that FSDP 2 shards over them.

accelerate shards over GPUs only; here it is told that a CPU is one.
"""

import json
from pathlib import Path

import numpy as np
import torch
from accelerate import state as accelerate_state
from accelerate.utils import DistributedType
from safetensors.numpy import save_file
from tiny_adapters import adapter, rows
from training_helpers import own_trainer, same

from builders import build_model
from clusterucb.cli.main import main
from clusterucb.config import load
from clusterucb.gradients.adam import Moments
from clusterucb.gradients.batches import collate, micro_batches
from clusterucb.gradients.featurizer import Featurizer, target_directions
from clusterucb.gradients.per_sample import row_losses, trainable_parameters
from clusterucb.gradients.projection import projection
from clusterucb.run.session import Session
from clusterucb.runtime.processes import ALONE, joined
from clusterucb.runtime.sharding import alike, is_sharded, shard, whole_tensors
from clusterucb.steps.select import reselection
from clusterucb.training.adapter import fingerprint_base, set_adapter
from clusterucb.training.callbacks import DynamicSelection
from clusterucb.training.moments import save_moments

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


def command(arguments):
    """`clusterucb ARGUMENT...`"""
    shard_on_cpus()
    main(arguments)


def adapted(dtype="float32"):
    """A model whose adapter is not at its start, where half of the gradients are 0."""
    return adapter(model=build_model().to(getattr(torch, dtype)).requires_grad_(False), dropout=0.1)


def moments_for(model):
    torch.manual_seed(3)
    shapes = {name: parameter.shape for name, parameter in trainable_parameters(model).items()}
    mean = {name: 1e-3 * torch.randn(shape) for name, shape in shapes.items()}
    return Moments(mean, {name: m.square() for name, m in mean.items()}, 5)


def computed(model, world=ALONE, count=17):
    """Features of rows with losses, and directions of a target."""
    lengths = np.random.default_rng(2).integers(5, 21, count)
    pool, sketch, world = rows(lengths), projection("countsketch", 64, 0), alike(world, model)
    batches = micro_batches(lengths, BATCH_TOKENS)
    featurize = Featurizer(model, sketch, moments_for(model))

    def compute(items):
        return (featurize([pool[i] for i in batch.tolist()]) for batch in items)

    found = list(world.share(batches, compute))
    codes = np.arange(count) % 2
    return {
        "features": np.concatenate([features for _, (features, _) in found]),
        "losses": np.concatenate([losses for _, (_, losses) in found]),
        "directions": target_directions(Featurizer(model, sketch), pool, codes, BATCH_TOKENS, world=world),
        "batches": np.array([len(batches)]),
    }


def features(arguments):
    """`features FILE DTYPE PIECES`: what each rank computes with a sharded model, which stays as it is.

    In one piece the whole model is gathered at once, and kept after a pass without gradients.
    """
    with joined() as world:
        model = adapted(arguments[1])
        base = fingerprint_base(model)
        weights = {name: parameter.clone() for name, parameter in trainable_parameters(model).items()}
        if arguments[2] == "one":
            for module in model.modules():
                module._no_split_modules = None
        shard(model, torch.device("cpu"))
        found = computed(model, world)
        parameters = trainable_parameters(model)
        assert is_sharded(model)
        assert all(p.to_local().numel() < p.numel() for p in model.parameters())
        assert all(p.requires_grad and p.grad is None for p in parameters.values())
        assert same(whole_tensors(parameters), weights)
        assert fingerprint_base(model) == base
        row_losses(model, collate(rows([9, 5])))
        other = {name: -weight for name, weight in weights.items()}
        set_adapter(model, other, Path("another"))
        model.reshard()  # as at a training pass's end
        assert same(whole_tensors(trainable_parameters(model)), other)
        save_file(found, f"{arguments[0]}.{world.rank}")


def alone(arguments):
    """`alone SETTINGS`: rank 0 runs by itself a model that all have shards of."""
    with joined() as world:
        session = Session(load(None, json.loads(arguments[0])), world=world)
        assert is_sharded(session.model)
        batch = session.inputs.targeted.tokens[0].ids[None].astype(np.int64)
        with torch.no_grad():
            sharded = session.model(input_ids=torch.from_numpy(batch)).logits
            by_itself = session.alone()
            if world.leads:
                assert torch.equal(by_itself.model(input_ids=torch.from_numpy(batch)).logits, sharded)


def train(arguments):
    """`train STATES SETTINGS`: a person's own Trainer under FSDP 2, which evaluates after each epoch."""
    shard_on_cpus()
    with joined() as world:
        session = Session(load(None, json.loads(arguments[1])), world=world)
        trainer = trained(
            session,
            Path(arguments[0]),
            gradient_accumulation_steps=2,
            save_strategy="epoch",
            eval_strategy="epoch",
            fsdp=True,
            fsdp_config={"version": 2},
        )
        assert is_sharded(trainer.model)


def trained(session, states, **arguments):
    """Two periods of three optimizer steps of four rows; `states` has rounds, and moments before period 2."""
    select = reselection(session, states / "rounds")
    path = states / f"moments-{session.world.rank}.safetensors"

    def reselect(period, model, moments):
        found = moments()
        save_moments(found, path)
        return select(period, model, lambda: found)

    dynamic = DynamicSelection(session.inputs.training_tokens, np.arange(10), reselect)
    settings = {"per_device_train_batch_size": 1, "num_train_epochs": 2, "learning_rate": 1e-3}
    settings |= {"lr_scheduler_type": "constant", "eval_dataset": dynamic.dataset}
    trainer = own_trainer(states, dynamic, model=session.model, **settings, **arguments)
    trainer.train()
    return trainer
