"""DynamicSelection in trainers that others wrote: whatever their settings, the rows that are swapped in are
those that are trained on, and a selection sees each row's own gradient.
"""

from itertools import chain

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import Subset
from training_helpers import adapted, base, numbers, rows, same, weights
from transformers import Trainer, TrainerCallback, TrainingArguments

from builders import build_tokenizer
from clusterucb.errors import ConfigError
from clusterucb.gradients.adam import adam_direction
from clusterucb.gradients.featurizer import Featurizer
from clusterucb.gradients.per_sample import trainable_parameters
from clusterucb.gradients.projection import projection
from clusterucb.training.callbacks import DynamicSelection

POOL, COUNT, PERIODS = rows(20), 6, 3
FIRST = np.arange(COUNT)
PROJECTION = projection("countsketch", 256, 0)
DIRECTION = np.random.default_rng(5).normal(size=256)


def by_hooks(model, moments):
    """Features of all rows as a selection computes them, (20, 256)."""
    return Featurizer(model, PROJECTION, moments)(POOL)[0].astype(np.float64)


def by_autograd(model, moments):
    """The same, row by row, through the model's own loss."""
    training, model = model.training, model.eval()
    parameters = trainable_parameters(model)
    sketches = torch.zeros(len(POOL), PROJECTION.dim)
    for row, sketch in zip(POOL, sketches, strict=True):
        ids = torch.from_numpy(row.ids.astype(np.int64))[None]
        labels = ids.where(torch.from_numpy(row.labels), -100)
        loss = model(input_ids=ids, labels=labels).loss
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            direction = adam_direction(gradient.float()[None], name, moments, "less")
            PROJECTION.add_to(sketch[None], name, direction)
    model.train(training)
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


class Batches(TrainerCallback):
    """The rows of each micro-batch that the model was given in training."""

    def __init__(self):
        self.seen = []

    def on_train_begin(self, args, state, control, model, **kwargs):
        embeddings = model.get_input_embeddings()
        embeddings.register_forward_pre_hook(lambda _, given: self.note(model, given[0]))

    def note(self, model, ids):
        if model.training:
            self.seen.append(numbers({"input_ids": ids}))

    def periods(self):
        """The rows that each period trained on."""
        size = len(self.seen) // PERIODS
        return {p + 1: np.sort([*chain(*self.seen[p * size : (p + 1) * size])]) for p in range(PERIODS)}


ARGUMENTS = {
    "per_device_train_batch_size": 2,
    "num_train_epochs": PERIODS,
    "learning_rate": 1e-2,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
}


def train(folder, model=None, judge=None, resume=None, more=(), evaluated=None, **changes):
    """A plain Trainer's training: the judge, and the model that was trained; its rows are checked."""
    judge, batches = judge or Judge(), Batches()
    dynamic = DynamicSelection(POOL, FIRST, judge)
    trainer = Trainer(
        adapted() if model is None else model,
        TrainingArguments(str(folder), **({"remove_unused_columns": False} | ARGUMENTS | changes)),
        train_dataset=dynamic.dataset,
        eval_dataset=evaluated,
        data_collator=dynamic.collate,
        callbacks=[dynamic, batches, *more],
    )
    trainer.train(resume_from_checkpoint=resume)
    if resume is None and not changes.get("torch_compile"):  # what is compiled has no Python hooks
        assert_trained_on_what_was_selected(judge, batches)
    return judge, trainer.model


def assert_trained_on_what_was_selected(judge, batches):
    trained = batches.periods()
    assert set(trained) == set(judge.periods)
    for period, selected in judge.periods.items():
        assert trained[period].tolist() == selected.tolist()


def selected(judge):
    return {period: found.tolist() for period, found in judge.periods.items()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A training without any particular setting."""
    judge, model = train(tmp_path_factory.mktemp("plain"))
    assert len({*map(tuple, judge.periods.values())}) == PERIODS  # other rows in every period
    return selected(judge), weights(model)


class TestAPlainTrainer:
    @pytest.mark.parametrize("accumulate", [2, 3])
    def test_gradient_accumulation(self, tmp_path, accumulate):
        train(tmp_path, gradient_accumulation_steps=accumulate)

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_gradient_checkpointing_changes_nothing(self, tmp_path, plain, reentrant):
        """It is off while a selection takes gradients, and on again in training."""
        new = "activation_checkpointing" in TrainingArguments.__dataclass_fields__  # transformers 5.2x
        name = "activation_checkpointing" if new else "gradient_checkpointing"
        judge, model = train(tmp_path, **{name: True, f"{name}_kwargs": {"use_reentrant": reentrant}})
        assert selected(judge) == plain[0]
        assert same(weights(model), plain[1])
        assert model.is_gradient_checkpointing

    def test_autocast_to_bfloat16(self, tmp_path):
        train(tmp_path, judge=Judge(tolerance=0.03), bf16=True)

    def test_a_base_in_bfloat16(self, tmp_path):
        train(tmp_path, model=adapted().to(torch.bfloat16), judge=Judge(tolerance=0.03))

    def test_evaluation_in_the_middle(self, tmp_path):
        often = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}
        train(tmp_path, evaluated=[POOL[18], POOL[19]], average_tokens_across_devices=True, **often)

    def test_workers_that_read_ahead_have_the_new_rows(self, tmp_path, plain):
        judge, model = train(tmp_path, dataloader_num_workers=1, dataloader_prefetch_factor=4)
        assert selected(judge) == plain[0]
        assert same(weights(model), plain[1])

    def test_a_second_training_begins_with_the_first_rows(self, tmp_path):
        asked, batches = Judge(), Batches()
        dynamic = DynamicSelection(POOL, FIRST, asked)
        arguments = TrainingArguments(str(tmp_path), remove_unused_columns=False, **ARGUMENTS)
        rest = {"train_dataset": dynamic.dataset, "data_collator": dynamic.collate}
        trainer = Trainer(adapted(), arguments, callbacks=[dynamic], **rest)
        trainer.train()
        trainer.add_callback(batches)
        trainer.train()
        assert_trained_on_what_was_selected(asked, batches)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at it
    def test_a_compiled_model_shows_every_rows_gradient(self, tmp_path, plain):
        """Compiled is what trains; a selection looks into the model as it was written."""
        judge, model = train(tmp_path, torch_compile=True, torch_compile_backend="eager")
        assert selected(judge) == plain[0]
        for name, weight in weights(model).items():
            torch.testing.assert_close(weight, plain[1][name])

    @pytest.mark.parametrize("whole", [True, False])
    def test_however_it_was_compiled(self, whole):
        model = adapted().eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
        expected = by_hooks(model, None)
        compiled = torch.compile(model, backend="eager") if whole else model
        if not whole:
            for layer in model.get_base_model().model.layers:
                layer.compile(backend="eager")
        with torch.no_grad():  # compiled here, without the hooks
            compiled(input_ids=torch.from_numpy(POOL[0].ids.astype(np.int64))[None])
        np.testing.assert_array_equal(by_hooks(compiled, None), expected)

    @pytest.mark.parametrize("at", [2, 5, 6])
    def test_resumed_within_a_period_it_ends_the_same(self, tmp_path, plain, at):
        class Stop(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_training_stop = state.global_step == at
                control.should_save = control.should_training_stop

        judge, cut = train(tmp_path, judge=Judge(tolerance=None), more=[Stop()], resume=False)
        assert not same(weights(cut), plain[1])
        _, model = train(tmp_path, judge=judge, resume=str(tmp_path / f"checkpoint-{at}"))
        assert selected(judge) == plain[0]
        assert same(weights(model), plain[1])


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


class TestRefusedInOneLine:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"auto_find_batch_size": True}, "auto_find_batch_size=True: a second attempt"),
            (
                {"train_sampling_strategy": "group_by_length"},
                "train_sampling_strategy=group_by_length: lengths",
            ),
            (
                {"dataloader_persistent_workers": True, "dataloader_num_workers": 1},
                "never see the swapped rows",
            ),
        ],
    )
    def test_settings_under_which_a_swap_would_do_nothing(self, tmp_path, changes, words):
        with pytest.raises(ConfigError, match=words):
            train(tmp_path, **changes)

    def test_a_data_set_that_is_never_swapped(self, tmp_path):
        dynamic = DynamicSelection(POOL, FIRST, Judge())
        arguments = TrainingArguments(str(tmp_path), remove_unused_columns=False, **ARGUMENTS)
        rest = {"train_dataset": POOL[:COUNT], "data_collator": dynamic.collate}
        trainer = Trainer(adapted(), arguments, callbacks=[dynamic], **rest)
        with pytest.raises(ConfigError, match=r"train_dataset: is not the one.*dynamic\.dataset"):
            trainer.train()


def other_adapter(model=None, name="default", **lora):
    settings = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.2, "target_modules": ["q_proj", "v_proj"]} | lora
    model = base() if model is None else model
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings), name)


class TestAdapters:
    def test_rank_stabilised_lora(self, tmp_path):
        judge, _ = train(tmp_path, model=other_adapter(use_rslora=True))
        assert len(judge.periods) == PERIODS

    def test_an_adapter_by_another_name_is_the_same_adapter(self, tmp_path, plain):
        """Its parameters have the same names, and with them the same projection."""
        judge, model = train(tmp_path, model=other_adapter(name="mine"))
        assert selected(judge) == plain[0]
        renamed = {name.replace(".mine.", ".default."): w for name, w in weights(model).items()}
        assert same(renamed, plain[1])
        assert trainable_parameters(model).keys() == trainable_parameters(adapted()).keys()

    def test_a_second_adapter_that_is_not_active_stays_out(self, tmp_path, plain):
        model = other_adapter()
        model.add_adapter("idle", LoraConfig(r=2, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM"))
        idle = {name: p.detach().clone() for name, p in model.named_parameters() if ".idle." in name}
        judge, model = train(tmp_path, model=model)
        assert selected(judge) == plain[0]
        assert same(weights(model), plain[1])
        assert idle
        assert all(torch.equal(model.get_parameter(name), weight) for name, weight in idle.items())

    def test_two_trained_adapters_are_refused(self):
        model = other_adapter()
        model.add_adapter(
            "second", LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        with pytest.raises(
            ConfigError, match=r"\.second\.weight: another adapter's .*lora_A\.weight is trained"
        ):
            trainable_parameters(model)

    def test_a_trainable_adapter_that_is_not_active_is_refused(self):
        model = other_adapter()
        model.add_adapter("second", LoraConfig(r=2, target_modules=["o_proj"], task_type="CAUSAL_LM"))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        with pytest.raises(ConfigError, match=r"o_proj\.lora_A\.weight: .* takes no part"):
            by_hooks(model, None)

    @pytest.mark.parametrize(
        ("lora", "words"),
        [
            ({"use_dora": True}, "lora_magnitude_vector.*without biases, DoRA or modules_to_save"),
            ({"lora_bias": True}, "lora_B.*bias.*without biases"),
            ({"modules_to_save": ["down_proj"]}, "down_proj.modules_to_save.*or modules_to_save"),
            ({"modules_to_save": ["lm_head"]}, "lm_head.modules_to_save.*or modules_to_save"),
            ({"modules_to_save": ["embed_tokens"]}, "embed_tokens.modules_to_save.*or modules_to_save"),
            ({"target_modules": ["q_proj", "embed_tokens"]}, "lora_embedding_A"),
            ({"target_modules": ["q_proj", "lm_head"]}, "lm_head.*leave the head out of the target modules"),
            ({"trainable_token_indices": {"embed_tokens": [1, 2]}}, "trainable_tokens_delta"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed")
    def test_what_has_no_gradient_of_a_single_row_is_refused(self, lora, words):
        with pytest.raises(ConfigError, match=words):
            Featurizer(other_adapter(**lora), PROJECTION)


@pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing. is deprecated:FutureWarning"
)  # trl's own default
class TestTrl:
    """SFTTrainer, which takes data sets of the library `datasets` only and has a loss of its own."""

    @pytest.fixture(autouse=True)
    def trl(self):
        return pytest.importorskip("trl", reason="trl is not installed (extra dev)")

    def sft(self, trl, folder, judge, model=None, dataset=None, **changes):
        batches = Batches()
        dynamic = DynamicSelection(POOL, FIRST, judge)
        settings = (
            ARGUMENTS
            | {"bf16": False, "max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
            | changes
        )
        trainer = trl.SFTTrainer(
            adapted() if model is None else model,
            trl.SFTConfig(str(folder), **settings),
            train_dataset=dynamic.as_datasets() if dataset is None else dataset,
            processing_class=build_tokenizer(),
            callbacks=[dynamic, batches],
        )
        return trainer, batches

    @pytest.mark.parametrize("remove", [True, False])
    def test_selects_and_trains_what_a_plain_trainer_does(self, trl, tmp_path, plain, remove):
        judge = Judge()
        trainer, batches = self.sft(trl, tmp_path, judge, remove_unused_columns=remove)
        trainer.train()
        assert_trained_on_what_was_selected(judge, batches)
        assert selected(judge) == plain[0]
        for name, weight in weights(trainer.model).items():
            torch.testing.assert_close(weight, plain[1][name], rtol=1e-3, atol=1e-5)

    def test_without_padding_it_does_the_same(self, trl, tmp_path):
        """Rows of a batch are laid end to end in training; a selection pads them as ever."""
        judge = Judge()
        trainer, _ = self.sft(trl, tmp_path, judge, model=adapted(dropout=0.0), padding_free=True)
        trainer.train()
        expected, model = train(tmp_path, model=adapted(dropout=0.0))
        assert selected(judge) == selected(expected)
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
        chosen = selected(judge)
        del judge.periods[3]  # training was cut in the second period
        assert same(run(judge, str(tmp_path / "checkpoint-5")), expected)
        assert selected(judge) == chosen
