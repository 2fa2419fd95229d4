"""Our own training: killed at any step and resumed it ends with the same bits."""

import json

import numpy as np
import pytest
import torch
from training_helpers import adapted, rows, same, weights
from transformers import TrainerCallback

from clusterucb.config import Training
from clusterucb.errors import InputError
from clusterucb.training.callbacks import DynamicSelection, PartEnds, WholeCheckpoints, last_whole_checkpoint
from clusterucb.training.data import SwappableRows
from clusterucb.training.finetune import finetune, optimizer_steps, training_clock

SETTINGS = {"lr": 1e-2, "lr_warmup": 0.1, "batch_size": 4, "micro_batch": 2, "save_steps": 1}


class Killed(BaseException):
    """Stands for whatever ends a process."""


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


class Rates(TrainerCallback):
    """Learning rate of each optimizer step."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.seen.append(kwargs["optimizer"].param_groups[0]["lr"])


def chosen_by(model, count):
    """Rows that depend on every bit of the weights, as a real selection's do."""
    total = sum(float(w.double().sum()) for w in weights(model).values())
    return np.sort(np.random.default_rng(abs(hash(total)) % 2**32).choice(40, count, replace=False))


def train(folder, rounds, *more, dropout=0.3, **changes):
    """Three periods of 3 steps over 10 of 40 rows; `rounds` stands for the rounds on disk."""

    def reselect(period, model, moments):
        moments()
        if period not in rounds:
            rounds[period] = chosen_by(model, 10)
        return rounds[period]

    model = adapted(dropout=dropout)
    dynamic = DynamicSelection(rows(40), np.arange(10), reselect)
    settings = Training(**(SETTINGS | changes))
    moments = finetune(model, dynamic.dataset, folder, settings, seed=5, epochs=3, callbacks=(dynamic, *more))
    return weights(model), moments


def killed(folder, rounds, at, **changes):
    with pytest.raises(Killed):
        train(folder, rounds, KillAt(at), **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights, moments and rounds of an uninterrupted training."""
    rounds = {}
    return *train(tmp_path_factory.mktemp("whole"), rounds), rounds


@pytest.mark.whole
class TestResumed:
    @pytest.mark.parametrize("at", [1, 3, 5, 8])
    def test_killed_at_any_step_and_resumed_the_adapter_has_the_same_bits(self, tmp_path, whole, at):
        expected, moments, expected_rounds = whole
        rounds = {}
        killed(tmp_path, rounds, at)
        found, again = train(tmp_path, rounds)
        assert same(found, expected)
        assert same(again.mean, moments.mean)
        assert again.step == moments.step == 9
        assert rounds.keys() == expected_rounds.keys()
        assert all(rounds[period].tolist() == found.tolist() for period, found in expected_rounds.items())

    def test_killed_twice_and_with_few_saved_states(self, tmp_path, whole):
        """Between saved states steps are made again; at a period's end a state is saved in any case."""
        rounds = {}
        for at in (2, 5):
            killed(tmp_path, rounds, at, save_steps=50)
        assert last_whole_checkpoint(tmp_path)[0].name == "checkpoint-3"
        assert same(train(tmp_path, rounds, save_steps=50)[0], whole[0])

    def test_a_torn_checkpoint_is_not_resumed_from(self, tmp_path, whole):
        rounds = {}
        killed(tmp_path, rounds, 5)
        (tmp_path / "checkpoint-5" / "whole.json").unlink()
        (tmp_path / "checkpoint-5" / "optimizer.pt").write_bytes(b"torn")
        assert last_whole_checkpoint(tmp_path)[0].name == "checkpoint-4"
        assert not (tmp_path / "checkpoint-5").exists()
        rates = Rates()
        assert same(train(tmp_path, rounds, rates)[0], whole[0])
        assert len(rates.seen) == 5
        assert same(train(tmp_path, rounds, rates)[0], whole[0])  # finished, it is not done again
        assert len(rates.seen) == 5


@pytest.mark.whole
def test_dropout_is_on(tmp_path, whole):
    assert not same(train(tmp_path, dict(whole[2]), dropout=0.0)[0], whole[0])


@pytest.mark.whole
def test_rates_rise_over_the_warmup_and_fall_to_the_end_of_all_periods(tmp_path):
    rates = Rates()
    train(tmp_path, {}, rates, lr_warmup=0.3)  # 3 of 9 steps
    rising, falling = [step / 3 for step in range(3)], [(9 - step) / 6 for step in range(3, 9)]
    np.testing.assert_allclose(rates.seen, 1e-2 * np.array(rising + falling))
    assert optimizer_steps(10, 3, Training(**SETTINGS)) == 9


def test_every_step_is_told_and_no_gradient_is_left(tmp_path):
    model, told, dataset = adapted(), [], SwappableRows(rows(10), np.arange(10))

    def advance(amount, note="", **_numbers):
        told.append(amount)

    moments = finetune(model, dataset, tmp_path, Training(**SETTINGS), seed=0, epochs=1, advance=advance)
    assert moments.step == sum(told) == optimizer_steps(10, 1, Training(**SETTINGS))
    assert all(bool((square != 0).any()) for square in moments.square.values())
    assert all(p.grad is None for p in model.parameters())


def test_a_loss_that_is_nan_names_the_row(tmp_path):
    model, dataset = adapted(), SwappableRows(rows(6), np.arange(6))
    with torch.no_grad():
        model.get_input_embeddings().weight[3 + 4] = torch.nan  # the first token of row 4
    settings, describe = Training(**(SETTINGS | {"micro_batch": 1})), "pool.jsonl:{}".format
    with pytest.raises(InputError, match=r"^training step .* the loss is nan on pool\.jsonl:4; lower --lr"):
        finetune(model, dataset, tmp_path, settings, seed=0, epochs=1, describe=describe)


def test_seconds_add_up_over_attempts_without_pauses(tmp_path):
    clock = WholeCheckpoints(100.0)
    clock.pause(40.0)
    assert 60 <= clock.seconds < 70
    for step, content in ((7, json.dumps({"seconds": 12.5})), (10, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if content:
            (folder / "whole.json").write_text(content)
    assert last_whole_checkpoint(tmp_path) == (tmp_path / "checkpoint-7", 12.5)
    assert 12.5 <= training_clock(tmp_path).seconds < 20
    assert last_whole_checkpoint(tmp_path / "nowhere") == (None, 0.0)


def test_no_state_is_saved_twice(tmp_path, monkeypatch):
    """A step's state and its epoch's are one: written again, it could be torn and look whole."""
    written = []
    real = torch.save

    def save(content, file, *more, **options):
        written.append(str(file))
        return real(content, file, *more, **options)

    monkeypatch.setattr(torch, "save", save)
    train(tmp_path, {}, PartEnds(3, lambda *_: None))
    assert len(written) == len(set(written))
    assert any("optimizer.pt" in name for name in written)
