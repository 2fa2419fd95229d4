"""Per-row gradients against one-by-one autograd loops through the model's own logits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.torch import load_file
from tiny_adapters import TARGETS, VOCABULARY, adapter, base, flat, rows, slow_gradients

from clusterucb.data.chat import Encoded
from clusterucb.errors import ConfigError
from clusterucb.evaluation.loss import losses as evaluation_losses
from clusterucb.gradients.batches import collate
from clusterucb.gradients.per_sample import (
    adapter_layers,
    canonical_name,
    row_gradients,
    row_losses,
    trainable_parameters,
)

TOLERANCE = 1e-4  # of the row's gradient norm


@pytest.fixture(scope="module")
def models():
    return {architecture: adapter(architecture) for architecture in TARGETS}


@pytest.fixture
def one_thread():
    """Matrix kernels sum in another order where threads share out a product."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gradients(model, batch):
    """Each row's gradients by parameter name, and the rows' losses."""
    found = [{} for _ in batch]

    def consume(name, per_row):
        for gradient, row in zip(per_row, found, strict=True):
            assert name not in row
            row[name] = gradient.clone()

    collated = collate(batch)
    losses = row_gradients(model, adapter_layers(model), collated, consume)
    return found, collated.row_means(losses.numpy())


def state_of(model):
    training = [module.training for module in model.modules()]
    asking = {name: p.requires_grad for name, p in model.named_parameters()}
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    hooks = [dict(getattr(module, kind)) for module in model.modules() for kind in kinds]
    return training, asking, hooks


class TestAgainstAutograd:
    @pytest.mark.parametrize("architecture", TARGETS)
    @settings(max_examples=8)
    @given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=7), seed=st.integers(0, 999))
    def test_rows_padded_in_any_batch_match_a_one_by_one_loop(self, models, architecture, lengths, seed):
        model, batch = models[architecture], rows(lengths, seed)
        found, _ = gradients(model, batch)
        for gradient, row in zip(found, batch, strict=True):
            expected = slow_gradients(model, row)
            assert set(gradient) == set(expected)
            whole = flat(expected)
            assert (flat(gradient) - whole).norm() <= TOLERANCE * whole.norm()

    @pytest.mark.parametrize("architecture", TARGETS)
    def test_beside_a_half_precision_base_too(self, architecture):
        """Where the adapter is float32, and the inputs of its matrices A are kept in the base's type."""
        model = adapter(architecture, model=base(architecture).to(torch.bfloat16))
        assert {p.dtype for p in trainable_parameters(model).values()} == {torch.float32}
        batch = rows([16])  # alone: half precision shows what a row is padded to
        (found,), _ = gradients(model, batch)
        whole = flat(slow_gradients(model, batch[0]))
        assert (flat(found) - whole).norm() <= TOLERANCE * whole.norm()

    @pytest.mark.parametrize("architecture", TARGETS)
    @pytest.mark.parametrize("length", [16, 33])
    def test_bit_equal_at_equal_lengths_on_one_thread(self, models, architecture, length, one_thread):
        """Matrix kernels sum in another order where rows are few: of 5 they do with AVX-512."""
        model, batch = models[architecture], with_labels(rows([length] * 5, length), 4)
        found, together = gradients(model, batch)
        for gradient, loss, row in zip(found, together, batch, strict=True):
            (alone,), alone_loss = gradients(model, [row])
            assert torch.equal(flat(gradient), flat(alone))
            assert loss == alone_loss[0]
            assert torch.equal(flat(gradient), flat(slow_gradients(model, row)))

    @pytest.mark.parametrize("architecture", TARGETS)
    def test_losses_equal_transformers_own_loss_of_the_row_alone(self, models, architecture):
        """Also where the model softcaps its logits, though its head sees label positions only."""
        model, batch = models[architecture].eval(), rows([3, 17, 9, 40], 3)
        _, found = gradients(model, batch)
        expected = []
        for row in batch:
            ids = torch.from_numpy(row.ids.astype(np.int64))[None]
            labels = ids.where(torch.from_numpy(row.labels.copy()), -100)
            expected.append(model(input_ids=ids, labels=labels).loss.item())
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        np.testing.assert_allclose(row_losses(model, collate(batch)), expected, rtol=1e-5)
        np.testing.assert_allclose(evaluation_losses(model, batch, batch_tokens=41), expected, rtol=1e-5)

    def test_gradients_of_half_precision_models_come_in_float32_per_layer(self):
        model, kinds = adapter("llama").to(torch.bfloat16), set()
        layers, batch = adapter_layers(model), collate(rows([9, 5]))
        row_gradients(model, layers, batch, lambda _, g: kinds.add((g.dtype, g.ndim)))
        assert kinds == {(torch.float32, 3)}


def with_labels(batch, least):
    """The rows with their last `least` tokens as labels too."""
    return [Encoded(row.ids, row.labels | (np.arange(len(row.ids)) >= len(row.ids) - least)) for row in batch]


class TestModelIsLeftAsItWas:
    def test_dropout_is_inactive(self, models):
        model, batch = models["llama"].train(), rows([11, 8], 1)
        (first, _), (second, _) = gradients(model, batch)[0], gradients(model, batch)[0]
        assert torch.equal(flat(first), flat(second))

    @pytest.mark.parametrize("training", [True, False])
    def test_modes_flags_hooks_and_gradients_are_restored(self, models, training):
        model = models["llama"].train(training)
        model.get_submodule("base_model.model.model.norm").train(not training)  # a mode of its own
        before = state_of(model)
        gradients(model, rows([11, 8], 1))
        row_losses(model, collate(rows([11, 8], 1)))
        assert state_of(model) == before
        assert all(parameter.grad is None for parameter in model.parameters())

    @pytest.mark.parametrize("where", ["consumer", "forward", "layer"])
    def test_restored_after_an_exception(self, models, where):
        model, layers = models["llama"].train(), adapter_layers(models["llama"])
        before = state_of(model)
        batch = collate(rows([11, 8], 1))

        def consume(name, per_row):
            if where == "consumer":
                raise RuntimeError("no room")

        if where == "forward":
            batch.ids[0, 0] = VOCABULARY  # no such token
        if where == "layer":  # one that mixes rows
            layers = {"embedding": model.get_input_embeddings()} | layers
        with pytest.raises((RuntimeError, IndexError, ConfigError)):
            row_gradients(model, layers, batch, consume)
        model.get_input_embeddings().weight.requires_grad_(False)  # the "layer" case asked for it
        assert state_of(model) == before
        found, _ = gradients(model, rows([11, 8], 1))
        assert set(found[0]) == set(trainable_parameters(model))

    def test_a_frozen_other_adapter_is_left_out(self):
        model = adapter("llama")
        frozen = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        trainable_parameters(model)[frozen].requires_grad_(False)
        (found,), _ = gradients(model, rows([9]))
        assert frozen not in found
        assert set(found) == set(trainable_parameters(model))


class TestRefused:
    @pytest.mark.parametrize(
        ("lora", "words"),
        [
            ({"use_dora": True}, "lora_magnitude_vector.*without biases, DoRA or modules_to_save"),
            ({"lora_bias": True}, "lora_B.*bias.*without biases"),
            ({"modules_to_save": ["norm"]}, "norm"),
            ({"modules_to_save": ["down_proj"]}, "down_proj.modules_to_save.*or modules_to_save"),
            ({"modules_to_save": ["lm_head"]}, "lm_head.modules_to_save.*or modules_to_save"),
            ({"modules_to_save": ["embed_tokens"]}, "embed_tokens.modules_to_save.*or modules_to_save"),
            ({"target_modules": ["q_proj", "embed_tokens"]}, "lora_embedding_A"),
            ({"target_modules": ["q_proj", "lm_head"]}, "lm_head.*leave the head out of the target modules"),
            ({"trainable_token_indices": {"embed_tokens": [1, 2]}}, "trainable_tokens_delta"),
            (
                {"bias": "all", "model": base("gpt_neox"), "target_modules": ["dense"]},
                "bias: per-row gradients need.*plain LoRA adapter",
            ),
        ],
    )
    @pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed")
    def test_parameters_without_a_gradient_of_a_single_row(self, lora, words):
        with pytest.raises(ConfigError, match=words):
            adapter_layers(adapter("llama", **{"target_modules": ["q_proj", "v_proj"], **lora}))

    @pytest.mark.parametrize(
        ("targets", "words"),
        [
            (["q_proj", "v_proj"], r"\.second\.weight: another adapter's .*lora_A\.weight is trained"),
            (["gate_proj"], r"gate_proj\.lora_A\.weight: .* takes no part"),
        ],
        ids=["beside the first", "not active"],
    )
    def test_a_second_trained_adapter(self, targets, words):
        model = adapter("llama")
        model.add_adapter("second", LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        with pytest.raises(ConfigError, match=words):
            gradients(model, rows([9]))

    def test_a_model_without_a_trainable_parameter(self):
        with pytest.raises(ConfigError, match="attach a LoRA adapter"):
            adapter_layers(base().requires_grad_(False))


def test_names_are_spelled_as_adapter_files_spell_them(tmp_path):
    model = adapter("llama")
    model.save_pretrained(str(tmp_path))
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == set(trainable_parameters(model))
    assert canonical_name("module._orig_mod.a.lora_A.default.weight") == "a.lora_A.weight"
