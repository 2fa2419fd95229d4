"""Training with re-selection: in a person's own Trainer, and resumed at any step to the same bits."""

import json
from itertools import chain

import numpy as np
import pytest
import torch
from training_helpers import adapted, numbers, rows, same, weights
from transformers import Trainer, TrainerCallback, TrainingArguments

from clusterucb.config import Training
from clusterucb.errors import ConfigError, InputError
from clusterucb.training.callbacks import DynamicSelection, WholeCheckpoints, last_whole_checkpoint
from clusterucb.training.data import SwappableRows
from clusterucb.training.finetune import finetune, optimizer_steps, training_clock
from clusterucb.training.moments import moments_of

PERIODS = {1: np.arange(6), 2: np.array([6, 8, 9, 12, 13, 17]), 3: np.array([2, 3, 5, 7, 11, 13])}


class Killed(BaseException):
    """Stands for whatever ends a process."""


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


class Watch(TrainerCallback):
    """Learning rate of each optimizer step."""

    def __init__(self):
        self.rates = []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])


def own_trainer(folder, dynamic, *more, batch=2, accumulate=2, **changes):
    """A plain Trainer such as a person writes; also the list in which its batches are recorded."""
    seen = []

    def collate(some):
        batch = dynamic.collate(some)
        seen.append(numbers(batch))
        return batch

    arguments = {
        "output_dir": str(folder),
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulate,
        "num_train_epochs": 3,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "linear",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    trainer = Trainer(
        adapted(),
        TrainingArguments(**(arguments | changes)),
        train_dataset=dynamic.dataset,
        data_collator=collate,
        callbacks=[dynamic, *more],
    )
    return trainer, seen


class TestInAPersonsOwnTrainer:
    def test_rows_are_swapped_at_each_periods_start_by_live_moments(self, tmp_path):
        asked = []

        def reselect(period, model, moments):
            now = moments()
            live = moments_of(trainer.optimizer, trainer.model)
            assert model is trainer.model
            assert same(now.mean, live.mean)
            assert same(now.square, live.square)
            asked.append((period, now.step))
            return PERIODS[period]

        dynamic = DynamicSelection(rows(20), PERIODS[1], reselect)
        trainer, seen = own_trainer(tmp_path, dynamic)
        trainer.train()
        assert asked == [
            (2, 2),
            (3, 4),
        ]  # 6 rows are 3 batches, and those 2 optimizer steps, the second short
        assert [len(batch) for batch in seen] == [2] * 9
        for period, rows_of_period in PERIODS.items():
            batches = seen[3 * period - 3 : 3 * period]
            assert sorted(chain(*batches)) == rows_of_period.tolist()

    def test_periods_of_several_epochs_select_once_each(self, tmp_path):
        asked = []
        dynamic = DynamicSelection(
            rows(20), PERIODS[1], lambda p, _m, _o: asked.append(p) or PERIODS[p], epochs_per_period=2
        )
        trainer, seen = own_trainer(tmp_path, dynamic, num_train_epochs=6)
        trainer.train()
        assert asked == [2, 3]
        epochs = [sorted(chain(*seen[3 * e : 3 * e + 3])) for e in range(6)]
        assert epochs == [PERIODS[1 + e // 2].tolist() for e in range(6)]

    @pytest.mark.parametrize("max_steps", [5, 6])
    def test_a_number_of_steps_in_the_place_of_epochs(self, tmp_path, max_steps):
        asked = []
        dynamic = DynamicSelection(rows(20), PERIODS[1], lambda p, _m, _o: asked.append(p) or PERIODS[p])
        trainer, seen = own_trainer(tmp_path, dynamic, max_steps=max_steps)
        trainer.train()
        assert asked == [2, 3]
        assert sorted(chain(*seen[3:6])) == PERIODS[2].tolist()

    def test_workers_that_would_keep_the_first_rows_are_refused(self, tmp_path):
        """They hold a copy of the dataset from before the swap, and would go on training on it."""
        dynamic = DynamicSelection(rows(20), PERIODS[1], lambda p, _m, _o: PERIODS[p])
        more = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
        with pytest.raises(ConfigError, match="dataloader_persistent_workers=True"):
            own_trainer(tmp_path, dynamic, **more)

    def test_one_schedule_of_rates_over_all_periods(self, tmp_path):
        dynamic = DynamicSelection(rows(20), PERIODS[1], lambda p, _m, _o: PERIODS[p])
        watch = Watch()
        trainer, _ = own_trainer(tmp_path, dynamic, watch)
        trainer.train()
        np.testing.assert_allclose(watch.rates, [1e-2 * (6 - step) / 6 for step in range(6)])

    def test_another_number_of_rows_is_refused(self, tmp_path):
        dynamic = DynamicSelection(rows(20), PERIODS[1], lambda p, _m, _o: PERIODS[p][:5])
        trainer, _ = own_trainer(tmp_path, dynamic)
        with pytest.raises(ValueError, match="5 rows instead of 6: the schedule would not hold"):
            trainer.train()

    @pytest.mark.parametrize(("epochs", "at", "batches_before"), [(1, 1, 2), (1, 4, 6), (1, 5, 8), (2, 6, 9)])
    def test_resumed_from_the_trainers_checkpoint_it_ends_with_the_same_bits(
        self, tmp_path, epochs, at, batches_before
    ):
        """Within an epoch, at a period's start, and at the start of a period's second epoch."""

        def run(folder, *more, resume=None):
            dynamic = DynamicSelection(
                rows(20), PERIODS[1], lambda p, _m, _o: PERIODS[p], epochs_per_period=epochs
            )
            saving = {"save_strategy": "steps", "save_steps": at, "num_train_epochs": 3 * epochs}
            trainer, seen = own_trainer(folder, dynamic, *more, **saving)
            trainer.train(resume_from_checkpoint=resume)
            return weights(trainer.model), seen

        expected, batches = run(tmp_path / "whole")
        with pytest.raises(Killed):
            run(tmp_path / "cut", KillAt(at))
        found, rest = run(tmp_path / "cut", resume=str(tmp_path / "cut" / f"checkpoint-{at}"))
        assert same(found, expected)
        after = batches[batches_before:]
        assert rest[-len(after) :] == after


def chosen_by(model, tokens, count):
    """Rows that depend on every bit of the weights, as a real selection's do."""
    total = sum(float(w.double().sum()) for w in weights(model).values())
    return np.sort(np.random.default_rng(abs(hash(total)) % 2**32).choice(len(tokens), count, replace=False))


SETTINGS = {"lr": 1e-2, "lr_warmup": 0.1, "batch_size": 4, "micro_batch": 2, "save_steps": 1}


def train(folder, rounds, *more, **changes):
    """Three periods of 3 steps over 10 rows with dropout; `rounds` stands for the rounds on disk."""
    tokens = rows(40)

    def reselect(period, model, moments):
        moments()
        if period not in rounds:
            rounds[period] = chosen_by(model, tokens, 10)
        return rounds[period]

    model = adapted(dropout=0.3)
    dynamic = DynamicSelection(tokens, np.arange(10), reselect)
    settings = Training(**(SETTINGS | changes))
    moments = finetune(model, dynamic.dataset, folder, settings, seed=5, epochs=3, callbacks=(dynamic, *more))
    return weights(model), moments


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights, moments and rounds of an uninterrupted training."""
    rounds = {}
    return *train(tmp_path_factory.mktemp("whole"), rounds), rounds


class TestFinetune:
    @pytest.mark.parametrize("at", [1, 3, 5, 8])
    def test_killed_at_any_step_and_resumed_the_adapter_has_the_same_bits(self, tmp_path, whole, at):
        expected, moments, expected_rounds = whole
        rounds = {}
        with pytest.raises(Killed):
            train(tmp_path, rounds, KillAt(at))
        found, again = train(tmp_path, rounds)
        assert same(found, expected)
        assert same(again.mean, moments.mean)
        assert again.step == 9
        assert {p: r.tolist() for p, r in rounds.items()} == {
            p: r.tolist() for p, r in expected_rounds.items()
        }

    def test_killed_twice_and_with_few_saved_states(self, tmp_path, whole):
        """Between saved states steps are made again; at a period's end a state is saved in any case."""
        rounds = {}
        for at in (2, 5):
            with pytest.raises(Killed):
                train(tmp_path, rounds, KillAt(at), save_steps=50)
        assert last_whole_checkpoint(tmp_path)[0].name == "checkpoint-3"
        assert same(train(tmp_path, rounds, save_steps=50)[0], whole[0])

    def test_a_torn_checkpoint_is_not_resumed_from(self, tmp_path, whole):
        rounds = {}
        with pytest.raises(Killed):
            train(tmp_path, rounds, KillAt(5))
        (tmp_path / "checkpoint-5" / "whole.json").unlink()
        (tmp_path / "checkpoint-5" / "optimizer.pt").write_bytes(b"torn")
        assert last_whole_checkpoint(tmp_path)[0].name == "checkpoint-4"
        assert not (tmp_path / "checkpoint-5").exists()
        assert same(train(tmp_path, rounds)[0], whole[0])

    def test_dropout_was_on(self, tmp_path, whole):
        model = adapted(dropout=0.0)
        dynamic = DynamicSelection(rows(40), np.arange(10), lambda p, _m, _o: whole[2][p])
        finetune(
            model, dynamic.dataset, tmp_path, Training(**SETTINGS), seed=5, epochs=3, callbacks=(dynamic,)
        )
        assert not same(weights(model), whole[0])

    def test_the_moments_are_those_of_the_last_step(self, whole):
        _, moments, _ = whole
        assert moments.step == 9
        assert all(bool((t != 0).any()) for t in moments.square.values())

    def test_a_finished_training_is_not_done_again(self, tmp_path, whole):
        rounds, watch = {}, Watch()
        train(tmp_path, rounds)
        found, _ = train(tmp_path, rounds, watch)
        assert watch.rates == []
        assert same(found, whole[0])

    def test_rates_rise_over_the_warmup_and_fall_to_the_end(self, tmp_path):
        watch = Watch()
        train(tmp_path, {}, watch, lr_warmup=0.3)  # 3 of 9 steps
        rising, falling = [step / 3 for step in range(3)], [(9 - step) / 6 for step in range(3, 9)]
        np.testing.assert_allclose(watch.rates, 1e-2 * np.array(rising + falling))
        assert optimizer_steps(10, 3, Training(**SETTINGS)) == 9

    def test_every_step_is_told_and_no_gradient_is_left(self, tmp_path):
        model, told = adapted(), []
        dataset = SwappableRows(rows(10), np.arange(10))
        moments = finetune(
            model,
            dataset,
            tmp_path,
            Training(**SETTINGS),
            seed=0,
            epochs=1,
            advance=lambda amount, note="", **_numbers: told.append(amount),
        )
        assert moments.step == sum(told) == optimizer_steps(10, 1, Training(**SETTINGS))
        assert all(p.grad is None for p in model.parameters())

    def test_a_loss_that_is_nan_names_the_row(self, tmp_path):
        model, some = adapted(), rows(6)
        with torch.no_grad():
            model.get_input_embeddings().weight[3 + 4] = torch.nan  # the first token of row 4
        dataset = SwappableRows(some, np.arange(6))
        with pytest.raises(InputError) as error:
            finetune(
                model,
                dataset,
                tmp_path,
                Training(**(SETTINGS | {"micro_batch": 1})),
                seed=0,
                epochs=1,
                describe="pool.jsonl:{}".format,
            )
        message = str(error.value)
        assert "the loss is nan on pool.jsonl:4;" in message
        assert message.startswith("training step ")
        assert "--lr" in message

    def test_seconds_add_up_over_attempts_without_pauses(self, tmp_path):
        clock = WholeCheckpoints(100.0)
        clock.pause(40.0)
        assert 60 <= clock.seconds < 70
        (tmp_path / "checkpoint-7").mkdir()
        (tmp_path / "checkpoint-7" / "whole.json").write_text(json.dumps({"seconds": 12.5}))
        (tmp_path / "checkpoint-10").mkdir()
        assert last_whole_checkpoint(tmp_path) == (tmp_path / "checkpoint-7", 12.5)
        assert 12.5 <= training_clock(tmp_path).seconds < 20
        assert last_whole_checkpoint(tmp_path / "nowhere") == (None, 0.0)
