"""DynamicSelection in trainers that others wrote: whatever their settings, the rows that are swapped in are
those that are trained on, and a selection sees each row's own gradient.
"""

from itertools import chain

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_adapters import slow_gradients
from torch.utils.data import Subset
from training_helpers import ARGUMENTS, Batches, adapted, base, moved, own_trainer, rows, same, weights
from transformers import TrainerCallback, TrainingArguments

from builders import build_tokenizer
from clusterucb.errors import ConfigError
from clusterucb.gradients.adam import AdamMap
from clusterucb.gradients.featurizer import Featurizer
from clusterucb.gradients.per_sample import trainable_parameters
from clusterucb.gradients.projection import projection
from clusterucb.training.callbacks import DynamicSelection
from clusterucb.training.moments import moments_of

POOL, COUNT, PERIODS = rows(20), 6, 3
FIRST = np.arange(COUNT)
GIVEN = {1: FIRST, 2: np.array([6, 8, 9, 12, 13, 17]), 3: np.array([2, 3, 5, 7, 11, 13])}
PROJECTION = projection("countsketch", 256, 0)
DIRECTION = np.random.default_rng(5).normal(size=256)


def by_hooks(model, moments):
    """Features of all rows as a selection computes them, (20, 256)."""
    return Featurizer(model, PROJECTION, moments)(POOL)[0].astype(np.float64)


def by_autograd(model, moments):
    """The same, row by row, through the model's own logits."""
    sketches, adam = torch.zeros(len(POOL), PROJECTION.dim), AdamMap.of(moments, "less")
    for row, sketch in zip(POOL, sketches, strict=True):
        for name, gradient in slow_gradients(model, row).items():
            PROJECTION.add_to(sketch[None], name, gradient.float()[None], adam)
    return (sketches / sketches.norm(dim=1, keepdim=True)).double().numpy()


class Judge:
    """Selects by real gradients, and compares them with autograd's."""

    def __init__(self, tolerance=2e-3):
        self.tolerance, self.periods = tolerance, {1: FIRST}

    def __call__(self, period, model, moments):
        if period not in self.periods:  # as a `Reselection` reads what it wrote before training was cut
            now = moments()
            found = by_hooks(model, now)
            if self.tolerance:
                np.testing.assert_allclose(found, by_autograd(model, now), atol=self.tolerance)
            self.periods[period] = np.sort(np.argsort(-found @ DIRECTION)[:COUNT])
        return self.periods[period]

    @property
    def selected(self):
        return [self.periods[period].tolist() for period in range(1, PERIODS + 1)]


def train(folder, judge=None, *more, epochs=1, resume=None, **changes):
    """A plain Trainer's training: what was selected, and the model; its rows are checked."""
    judge, batches = judge or Judge(), Batches()
    dynamic = DynamicSelection(POOL, FIRST, judge, epochs_per_period=epochs)
    changes = {"num_train_epochs": PERIODS * epochs} | changes
    trainer = own_trainer(folder, dynamic, batches, *more, **changes)
    trainer.train(resume_from_checkpoint=resume)
    if resume is None and not changes.get("torch_compile"):  # what is compiled has no Python hooks
        assert batches.parts(PERIODS * epochs)[::epochs] == judge.selected
        assert batches.parts(PERIODS * epochs)[epochs - 1 :: epochs] == judge.selected
    return judge, trainer.model


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What a training without any particular setting selects, and its weights."""
    judge, model = train(tmp_path_factory.mktemp("plain"))
    assert len({*map(tuple, judge.selected)}) == PERIODS  # other rows in every period
    return judge.selected, weights(model)


class Stop(TrainerCallback):
    def __init__(self, at):
        self.at = at

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.at
        control.should_save = control.should_training_stop


OFTEN = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}


@pytest.mark.whole
class TestAPlainTrainer:
    @pytest.mark.parametrize(
        ("tolerance", "changes"),
        [
            *((2e-3, {"gradient_accumulation_steps": steps}) for steps in (2, 3)),
            (0.03, {"bf16": True}),
            (0.03, {"model": lambda: adapted().to(torch.bfloat16)}),
            (2e-3, {"model": lambda: other_adapter(use_rslora=True)}),
            (2e-3, {"eval_dataset": POOL[18:], "average_tokens_across_devices": True, **OFTEN}),
        ],
        ids=["accumulation 2", "accumulation 3", "autocast", "bfloat16", "rank-stabilised", "evaluation"],
    )
    def test_whatever_its_settings_it_trains_on_what_real_gradients_select(
        self, tmp_path, tolerance, changes
    ):
        if "model" in changes:
            changes = {"model": changes["model"]()}
        train(tmp_path, Judge(tolerance), **changes)

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_gradient_checkpointing_changes_nothing(self, tmp_path, plain, reentrant):
        """It is off while a selection takes gradients, and on again in training."""
        new = "activation_checkpointing" in TrainingArguments.__dataclass_fields__  # transformers 5.2x
        name = "activation_checkpointing" if new else "gradient_checkpointing"
        judge, model = train(tmp_path, **{name: True, f"{name}_kwargs": {"use_reentrant": reentrant}})
        assert judge.selected == plain[0]
        assert same(weights(model), plain[1])
        assert model.is_gradient_checkpointing

    def test_workers_that_read_ahead_have_the_new_rows(self, tmp_path, plain):
        judge, model = train(tmp_path, dataloader_num_workers=1, dataloader_prefetch_factor=4)
        assert judge.selected == plain[0]
        assert same(weights(model), plain[1])

    def test_a_second_training_begins_with_the_first_rows(self, tmp_path):
        judge, batches = Judge(), Batches()
        trainer = own_trainer(tmp_path, DynamicSelection(POOL, FIRST, judge))
        trainer.train()
        trainer.add_callback(batches)
        trainer.train()
        assert batches.parts(PERIODS) == judge.selected

    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at it
    def test_a_compiled_model_shows_every_rows_gradient(self, tmp_path, plain):
        """Compiled is what trains; a selection looks into the model as it was written."""
        judge, model = train(tmp_path, torch_compile=True, torch_compile_backend="eager")
        assert judge.selected == plain[0]
        for name, weight in weights(model).items():
            torch.testing.assert_close(weight, plain[1][name])

    @pytest.mark.parametrize(("at", "epochs"), [(2, 1), (5, 1), (6, 1), (9, 2)])
    def test_resumed_it_ends_the_same(self, tmp_path, plain, at, epochs):
        """Within a period, at one's start, and at the start of a period's second epoch."""
        if epochs == 1:
            expected, ended = plain
        else:
            judge, model = train(tmp_path / "whole", epochs=epochs)
            expected, ended = judge.selected, weights(model)
        judge, cut = train(tmp_path, Judge(tolerance=None), Stop(at), epochs=epochs, resume=False)
        assert not same(weights(cut), ended)
        _, model = train(tmp_path, judge, epochs=epochs, resume=str(tmp_path / f"checkpoint-{at}"))
        assert judge.selected == expected
        assert same(weights(model), ended)

    def test_a_selection_is_asked_for_at_each_periods_start_with_the_live_model_and_moments(self, tmp_path):
        asked = []

        def reselect(period, model, moments):
            now, live = moments(), moments_of(trainer.optimizer, trainer.model)
            assert model is trainer.model
            assert same(now.mean, live.mean)
            assert same(now.square, live.square)
            asked.append((period, now.step))
            return GIVEN[period]

        dynamic = DynamicSelection(POOL, FIRST, reselect, epochs_per_period=2)
        trainer = own_trainer(tmp_path, dynamic, num_train_epochs=6, gradient_accumulation_steps=2)
        trainer.train()
        # 6 rows are 3 batches, and those 2 optimizer steps, the second short
        assert asked == [(2, 4), (3, 8)]

    @pytest.mark.parametrize("max_steps", [7, 9])
    def test_a_number_of_steps_in_the_place_of_epochs(self, tmp_path, max_steps):
        asked, batches = [], Batches()
        dynamic = DynamicSelection(POOL, FIRST, lambda p, *_: asked.append(p) or GIVEN[p])
        own_trainer(tmp_path, dynamic, batches, max_steps=max_steps).train()
        assert asked == [2, 3]
        assert sorted(chain(*batches.seen[3:6])) == GIVEN[2].tolist()


@pytest.mark.whole  # for the time that it takes to compile
@pytest.mark.parametrize("whole", [True, False])
def test_rows_gradients_are_seen_however_a_model_was_compiled(whole):
    model = moved(adapted(), 0.1, "lora_B").eval()
    expected = by_hooks(model, None)
    compiled = torch.compile(model, backend="eager") if whole else model
    if not whole:
        for layer in model.get_base_model().model.layers:
            layer.compile(backend="eager")
    with torch.no_grad():  # compiled here, without the hooks
        compiled(input_ids=torch.from_numpy(POOL[0].ids.astype(np.int64))[None])
    np.testing.assert_array_equal(by_hooks(compiled, None), expected)


def test_the_data_set_shows_the_rows_of_now():
    dynamic = DynamicSelection(POOL, FIRST, Judge())
    before = dynamic.as_datasets()
    copied = before.select_columns(["input_ids"])  # trainers drop columns, and copy what they have
    dynamic.dataset.swap(FIRST + 7)
    for shown in (before, copied):
        assert [row["input_ids"] for row in shown] == [POOL[i].ids.tolist() for i in FIRST + 7]
        for row, i in zip(shown, FIRST + 7, strict=True):
            assert row["labels"] == np.where(POOL[i].labels, POOL[i].ids, -100).tolist()


def test_a_data_set_around_the_rows_shows_them_too():
    dynamic = DynamicSelection(POOL, FIRST, Judge())
    inner, view = dynamic.dataset, dynamic.as_datasets()
    for served in (inner, view, view.select_columns(["input_ids"]), Subset(inner, [0, 1]), Subset(view, [0])):
        assert inner.serves(served)
    others = DynamicSelection(POOL, FIRST, Judge())
    for other in (POOL, others.dataset, others.as_datasets(), Subset(others.dataset, [0])):
        assert not inner.serves(other)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"auto_find_batch_size": True}, "auto_find_batch_size=True: a second attempt"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy=group_by_length: lengths"),
        ({"dataloader_persistent_workers": True, "dataloader_num_workers": 1}, "never see the swapped rows"),
        ({"train_dataset": POOL[:COUNT]}, r"train_dataset: is not the one.*dynamic\.dataset"),
    ],
)
def test_what_would_never_see_a_swap_is_refused_in_one_line(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        train(tmp_path, **changes)


def other_adapter(name="default", **lora):
    settings = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.2, "target_modules": ["q_proj", "v_proj"]} | lora
    model = base()
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings), name)


@pytest.mark.whole
class TestAdapters:
    def test_an_adapter_by_another_name_is_the_same_adapter(self, tmp_path, plain):
        """Its parameters have the same names, and with them the same projection."""
        judge, model = train(tmp_path, model=other_adapter(name="mine"))
        assert judge.selected == plain[0]
        renamed = {name.replace(".mine.", ".default."): w for name, w in weights(model).items()}
        assert same(renamed, plain[1])
        assert trainable_parameters(model).keys() == trainable_parameters(adapted()).keys()

    def test_a_second_adapter_that_is_not_active_stays_out(self, tmp_path, plain):
        model = other_adapter()
        model.add_adapter("idle", LoraConfig(r=2, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM"))
        idle = {name: p.detach().clone() for name, p in model.named_parameters() if ".idle." in name}
        judge, model = train(tmp_path, model=model)
        assert judge.selected == plain[0]
        assert same(weights(model), plain[1])
        assert idle
        assert all(torch.equal(model.get_parameter(name), weight) for name, weight in idle.items())


@pytest.mark.whole
@pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing. is deprecated:FutureWarning"
)  # trl's own default
class TestTrl:
    """SFTTrainer, which takes data sets of the library `datasets` only and has a loss of its own."""

    @pytest.fixture(autouse=True)
    def trl(self):
        return pytest.importorskip("trl", reason="trl is not installed (extra dev)")

    def sft(self, trl, folder, judge, model=None, **changes):
        batches, dynamic = Batches(), DynamicSelection(POOL, FIRST, judge)
        as_it_is = {"bf16": False, "max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
        trainer = trl.SFTTrainer(
            model or adapted(),
            trl.SFTConfig(str(folder), **(ARGUMENTS | as_it_is | changes)),
            train_dataset=dynamic.as_datasets(),
            processing_class=build_tokenizer(),
            callbacks=[dynamic, batches],
        )
        return trainer, batches

    @pytest.mark.parametrize("remove", [True, False])
    def test_selects_and_trains_what_a_plain_trainer_does(self, trl, tmp_path, plain, remove):
        judge = Judge()
        trainer, batches = self.sft(trl, tmp_path, judge, remove_unused_columns=remove)
        trainer.train()
        assert batches.parts(PERIODS) == judge.selected == plain[0]
        for name, weight in weights(trainer.model).items():
            torch.testing.assert_close(weight, plain[1][name], rtol=1e-3, atol=1e-5)

    def test_without_padding_it_does_the_same(self, trl, tmp_path):
        """Rows of a batch are laid end to end in training; a selection pads them as ever."""
        judge = Judge()
        trainer, _ = self.sft(trl, tmp_path, judge, model=adapted(dropout=0.0), padding_free=True)
        trainer.train()
        expected, model = train(tmp_path, model=adapted(dropout=0.0))
        assert judge.selected == expected.selected
        for name, weight in weights(trainer.model).items():
            torch.testing.assert_close(weight, weights(model)[name], rtol=1e-3, atol=1e-5)

    def test_packing_is_refused(self, trl, tmp_path):
        with pytest.raises(ConfigError, match="packing=True: packed sequences are made once"):
            self.sft(trl, tmp_path, Judge(), packing=True, max_length=32)

    def test_resumed_within_a_period_it_ends_the_same(self, trl, tmp_path):
        def run(judge, resume=None):
            trainer, _ = self.sft(trl, tmp_path, judge, save_strategy="steps", save_steps=5)
            trainer.train(resume_from_checkpoint=resume)
            return weights(trainer.model)

        expected = run(judge := Judge(tolerance=None))
        chosen = judge.selected
        del judge.periods[3]  # training was cut in the second period
        assert same(run(judge, str(tmp_path / "checkpoint-5")), expected)
        assert judge.selected == chosen
