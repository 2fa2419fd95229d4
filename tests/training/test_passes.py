"""A step's gradient: that of transformers' own Trainer, and of one row at a time, however rows are split."""

import numpy as np
import pytest
import torch
from training_helpers import ARGUMENTS, adapted, moved, rows
from transformers import Trainer, TrainerCallback, TrainingArguments

from clusterucb.config import Training
from clusterucb.data.chat import Encoded
from clusterucb.errors import InputError
from clusterucb.gradients.per_sample import trainable_parameters
from clusterucb.training.data import SwappableRows, collate_for_training
from clusterucb.training.finetune import finetune
from clusterucb.training.passes import StepPasses

ROWS = rows(8)
SPLITS = [{"batch_rows": 1}, {"batch_tokens": 20}, {"batch_tokens": 41}, {}]


@pytest.fixture(scope="module")
def model():
    return moved(adapted(dropout=0.0), 0.1).train()


def step(model, some, **split):
    """The step's gradient as one vector, and its loss."""
    loss = StepPasses(model, **split)([*enumerate(some)])
    found = torch.cat([p.grad.flatten() for p in trainable_parameters(model).values()])
    model.zero_grad(set_to_none=True)
    return found, loss


class Gradients(TrainerCallback):
    """The gradient and the loss of each step."""

    def __init__(self):
        self.gradients, self.losses = [], []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        parameters = trainable_parameters(model).values()
        self.gradients.append(torch.cat([p.grad.flatten() for p in parameters]).clone())

    def on_log(self, args, state, control, logs, **kwargs):
        self.losses += [logs["loss"]] if "loss" in logs else []


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_a_steps_gradient_is_transformers_own_of_one_row_at_a_time(split, tmp_path, model):
    seen = Gradients()
    settings = {**ARGUMENTS, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    settings |= {"num_train_epochs": 1, "logging_steps": 1, "max_grad_norm": 0, "learning_rate": 0}
    arguments = TrainingArguments(str(tmp_path), remove_unused_columns=False, **settings)
    kept = {name: p.detach().clone() for name, p in trainable_parameters(model).items()}
    dataset = SwappableRows(ROWS, np.arange(8))
    Trainer(model, arguments, collate_for_training, dataset, callbacks=[seen]).train()
    assert all(torch.equal(p, kept[name]) for name, p in trainable_parameters(model).items())
    found, loss = step(model, ROWS, **split)
    (expected,) = seen.gradients
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert loss == pytest.approx(seen.losses[0], rel=1e-5)


def test_it_is_the_mean_over_labels_and_not_over_rows(model):
    """A row of many labels counts as much as they do."""
    counts = np.array([int(row.labels[1:].sum()) for row in ROWS])
    alone, own = zip(*(step(model, [row]) for row in ROWS), strict=True)
    found, loss = step(model, ROWS)
    expected = sum(n * gradient for n, gradient in zip(counts, alone, strict=True)) / counts.sum()
    assert counts.min() < counts.max()
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert loss == pytest.approx(np.average(own, weights=counts), rel=1e-5)


class Beside:
    """A process of three, whose sums show what it adds to them."""

    size = 3

    def __init__(self, rank):
        self.rank = rank

    def total(self, numbers):
        return numbers


@pytest.mark.parametrize("count", [1, 7, 8])
def test_processes_share_out_a_steps_rows(model, count):
    """Also where one of them gets none; a row without a label changes nothing."""
    idle = Encoded(ROWS[0].ids, np.zeros(len(ROWS[0]), bool))
    expected, loss = step(model, ROWS[:count])
    parts, losses = zip(*(step(model, [*ROWS[:count], idle], world=Beside(i)) for i in range(3)), strict=True)
    assert (sum(parts) - expected).norm() <= 1e-5 * expected.norm()
    assert sum(losses) / 3 == pytest.approx(loss, rel=1e-5)


def test_the_very_row_whose_loss_is_nan_is_named(model):
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        kept = embedding[3 + 4].clone()
        embedding[3 + 4] = torch.nan  # the first token of row 4
    with pytest.raises(
        InputError, match=r"^the loss is nan on pool:4; lower --lr, use --dtype float32, or take"
    ):
        step(model, ROWS, describe="pool:{}".format)
    with torch.no_grad():
        embedding[3 + 4] = kept


def test_however_rows_are_split_a_training_ends_the_same_to_rounding(tmp_path):
    def trained(name, **changes):
        tokens, settings = changes.pop("batch_tokens", 4096), Training(lr=1e-2, batch_size=4, **changes)
        model, dataset = adapted(dropout=0.0), SwappableRows(rows(10), np.arange(10))
        finetune(model, dataset, tmp_path / name, settings, batch_tokens=tokens, seed=0, epochs=2)
        return torch.cat([p.detach().flatten() for p in trainable_parameters(model).values()])

    expected = trained("whole")
    for name, changes in {"rows": {"micro_batch": 1}, "tokens": {"batch_tokens": 21}}.items():
        assert (trained(name, **changes) - expected).abs().max() < 1e-4
