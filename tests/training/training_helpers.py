"""A tiny Llama with a LoRA adapter, rows to train it on, and Trainers such as a person writes."""

from __future__ import annotations

from itertools import chain

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from builders import build_model
from clusterucb.config import Config, Lora
from clusterucb.data.chat import Encoded
from clusterucb.gradients.per_sample import trainable_parameters
from clusterucb.training.adapter import attach_adapter

VOCABULARY = 320


def settings_of(folder, **changes):
    """A whole configuration around the model in `folder`."""
    required = {"model": str(folder), "pool": ["pool.jsonl"], "target": ["target.jsonl"], "out": "run"}
    return Config(**required, **({"device": "cpu", "dtype": "float32"} | changes))


def base():
    return build_model().train().requires_grad_(False)


def adapted(seed=0, dropout=0.2, **lora):
    """A model with an adapter whose weights depend on `seed`."""
    settings = {"rank": 4, "alpha": 8, "dropout": dropout, "target_modules": ["q_proj", "v_proj"]} | lora
    return attach_adapter(base(), Lora(**settings), seed)


def moved(model, std=1.0, part="lora_"):
    """The model with random weights in (a part of) its adapter, whose half is 0 at first."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in trainable_parameters(model).items():
            if part in name:
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return model


def rows(count, seed=0):
    """Random rows of 4 to 20 tokens; the first token of row i is 3 + i, by which a test knows it again."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        ids = rng.integers(100, VOCABULARY, rng.integers(4, 21)).astype(np.int32)
        ids[0] = 3 + i
        made.append(Encoded(ids, np.arange(len(ids)) >= len(ids) // 2))
    return made


def weights(model):
    """A copy of what training changes."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def same(one, other):
    """Whether two dicts of tensors are equal in every bit."""
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


class Batches(TrainerCallback):
    """The rows of each micro-batch that a model is given in training."""

    def __init__(self):
        self.seen = []

    def on_train_begin(self, args, state, control, model, **kwargs):
        embeddings = model.get_input_embeddings()
        embeddings.register_forward_pre_hook(lambda _, given: self.note(model, given[0]))

    def note(self, model, ids):
        if model.training:
            self.seen.append([int(first) - 3 for first in ids[:, 0]])

    def parts(self, count):
        """The rows that each of so many equal parts of the training saw, sorted."""
        size = len(self.seen) // count
        return [sorted(chain(*self.seen[i * size : (i + 1) * size])) for i in range(count)]


ARGUMENTS = {
    "per_device_train_batch_size": 2,
    "num_train_epochs": 3,
    "learning_rate": 1e-2,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
}


def own_trainer(folder, dynamic, *callbacks, model=None, **changes):
    """A plain Trainer around a DynamicSelection."""
    given = {"train_dataset": dynamic.dataset, "data_collator": dynamic.collate}
    given |= {name: changes.pop(name) for name in ("train_dataset", "eval_dataset") if name in changes}
    return Trainer(
        adapted() if model is None else model,
        TrainingArguments(str(folder), **({"remove_unused_columns": False} | ARGUMENTS | changes)),
        callbacks=[dynamic, *callbacks],
        **given,
    )
