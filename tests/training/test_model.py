"""Loading a model, attaching an adapter, and what tells two models apart."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_helpers import adapted, base, moved, same, settings_of, weights

from clusterucb.config import Lora
from clusterucb.errors import ConfigError, InputError, MismatchError
from clusterucb.gradients.per_sample import trainable_parameters
from clusterucb.training.adapter import (
    absent_targets,
    attach_adapter,
    fingerprint_base,
    fingerprint_tensors,
    load_adapter,
    read_adapter,
    save_adapter,
)
from clusterucb.training.model import allow_tf32, load_model, load_tokenizer, pick_device, pick_dtype


class TestAdapter:
    def test_initial_weights_depend_on_the_seed_alone(self):
        first = weights(adapted(seed=7))
        torch.manual_seed(123)
        torch.randn(5)
        assert same(weights(adapted(seed=7)), first)
        assert not same(weights(adapted(seed=8)), first)
        for name, weight in first.items():
            assert bool((weight != 0).any()) == ("lora_A" in name)

    def test_saved_it_is_read_by_us_and_by_peft_equal_in_every_bit(self, tmp_path):
        from peft import PeftModel

        model, other = moved(adapted(seed=1)).eval(), adapted(seed=2)
        save_adapter(model, tmp_path / "adapter")
        load_adapter(other, tmp_path / "adapter")
        again = attach_adapter(base(), Lora(rank=16), seed=9, adapter=str(tmp_path / "adapter"))  # goes on
        assert same(weights(other), weights(model))
        assert same(weights(again), weights(model))
        assert same(read_adapter(tmp_path / "adapter"), trainable_parameters(model))
        loaded, ids = PeftModel.from_pretrained(base(), str(tmp_path / "adapter")).eval(), torch.arange(20)
        with torch.no_grad():
            assert torch.equal(loaded(input_ids=ids[None]).logits, model(input_ids=ids[None]).logits)

    def test_a_folder_without_an_adapter_or_one_of_another_shape_is_refused(self, tmp_path):
        with pytest.raises(InputError, match=r"expected a folder with adapter_config\.json"):
            attach_adapter(base(), Lora(), seed=0, adapter=str(tmp_path))
        save_adapter(adapted(rank=4), tmp_path)
        config = tmp_path / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 8}))
        with pytest.raises(InputError, match="does not fit this model"):
            attach_adapter(base(), Lora(), seed=0, adapter=str(tmp_path))

    @pytest.mark.parametrize(
        ("rename", "first"),
        [
            (lambda name: name.replace("model.layers", "model.language_model.layers"), "language_model"),
            (lambda name: name.removeprefix("base_model.model."), "base_model.model.model.layers.0"),
            (lambda name: None if "layers.1" in name else name, "base_model.model.model.layers.1"),
        ],
        ids=["of a multimodal wrapper", "without peft's prefix", "of half the layers"],
    )
    def test_an_adapter_that_would_be_taken_in_part_or_not_at_all_is_refused(self, tmp_path, rename, first):
        save_adapter(moved(adapted(seed=1)), tmp_path)
        there = {rename(name): tensor for name, tensor in read_adapter(tmp_path).items()}
        save_file({n: t for n, t in there.items() if n}, tmp_path / "adapter_model.safetensors")
        with pytest.raises(InputError, match=f"does not fit this model, first in .*{first}.*--model"):
            attach_adapter(base(), Lora(), seed=0, adapter=str(tmp_path))

    def test_names_as_other_trainers_write_them_are_taken(self, tmp_path):
        model = moved(adapted(seed=1))
        save_adapter(model, tmp_path)
        there = read_adapter(tmp_path) | {"some.other.state": torch.zeros(1)}
        save_file(there, tmp_path / "adapter_model.safetensors")
        assert same(weights(attach_adapter(base(), Lora(), seed=9, adapter=str(tmp_path))), weights(model))

    @pytest.mark.parametrize(
        ("lora", "words"),
        [
            ({"target_modules": ["q_proj"]}, r"this adapter and the run's differ, first in .*v_proj"),
            ({"rank": 8}, "rank"),
        ],
    )
    def test_another_one_is_not_loaded(self, tmp_path, lora, words):
        save_adapter(adapted(**lora), tmp_path / "adapter")
        with pytest.raises(MismatchError, match=words):
            load_adapter(adapted(), tmp_path / "adapter")

    def test_target_modules_that_match_in_part_are_refused_unless_they_are_the_default(self):
        with pytest.raises(ConfigError, match=r"q_proj v_porj: this model has no v_porj; its linear layers"):
            attach_adapter(base(), Lora(target_modules=["q_proj", "v_porj"]), seed=0)
        fused = base()
        for layer in fused.model.layers:
            layer.self_attn.qkv_proj = layer.self_attn.q_proj
            del layer.self_attn.q_proj
        assert absent_targets(fused, Lora()) == ["q_proj"]
        assert {
            name.split(".")[-3]
            for name in trainable_parameters(attach_adapter(fused, Lora(rank=8, alpha=32), seed=0))
        } == {
            "k_proj",
            "v_proj",
            "o_proj",
        }

    def test_target_modules_that_match_nothing_name_the_models_layers(self):
        layers = "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
        with pytest.raises(ConfigError, match=rf"^target_modules query w1: .*{layers}.*all-linear"):
            attach_adapter(base(), Lora(target_modules=["query", "w1"]), seed=0)

    def test_all_linear_means_all_but_the_head_and_nothing_else_is_trained(self):
        names = trainable_parameters(adapted(target_modules=["all-linear"]))
        assert all("lora_" in name for name in names)
        layers = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
        assert {name.split(".")[-3] for name in names} == layers


class TestFingerprint:
    def test_the_base_has_the_same_with_any_adapter_or_none(self):
        plain = fingerprint_base(base())
        assert fingerprint_base(adapted(seed=1)) == fingerprint_base(moved(adapted())) == plain

    def test_it_changes_with_any_one_weight_tensor(self):
        model = base()
        seen = {fingerprint_base(model)}
        for _, parameter in model.named_parameters():
            kept = parameter.detach().clone()
            with torch.no_grad():
                parameter.mul_(1.01)
                seen.add(fingerprint_base(model))
                parameter.copy_(kept)
        assert len(seen) == 1 + len(list(model.named_parameters()))
        assert fingerprint_base(model.to(torch.bfloat16)) not in seen

    def test_of_tensors_it_sees_every_element_and_name(self):
        tensors = {"a": torch.zeros(300), "b": torch.ones(2, 3)}
        seen = {fingerprint_tensors(tensors)}
        assert fingerprint_tensors(dict(reversed(tensors.items()))) in seen
        for i in (0, 17, 299):
            changed = tensors["a"].clone()
            changed[i] = 1e-30
            seen.add(fingerprint_tensors({**tensors, "a": changed}))
        seen.add(fingerprint_tensors({"a": tensors["a"], "c": tensors["b"]}))
        seen.add(fingerprint_tensors({"a": tensors["a"], "b": tensors["b"].reshape(3, 2)}))
        assert len(seen) == 6


class TestLoading:
    def test_a_loaded_model_is_frozen_and_on_its_device(self, model_folder):
        model = load_model(settings_of(model_folder))
        assert not any(p.requires_grad for p in model.parameters())
        assert {(p.device.type, p.dtype) for p in model.parameters()} == {("cpu", torch.float32)}
        assert load_tokenizer(settings_of(model_folder)).eos_token == "<|im_end|>"

    def test_a_folder_without_a_tokenizer(self, tmp_path):
        base().save_pretrained(tmp_path / "model")
        with pytest.raises(InputError, match=r"model: has no tokenizer \(expected tokenizer\.json\)"):
            load_tokenizer(settings_of(tmp_path / "model"))

    @pytest.mark.parametrize(
        "content", [None, "{", '{"model_type": "bert"}', '{"model_type": "nonsense"}', "torn weights"]
    )
    def test_a_folder_that_is_no_causal_model(self, tmp_path, content, model_folder):
        if content == "torn weights":
            shutil.copytree(model_folder, tmp_path, dirs_exist_ok=True)
            os.truncate(tmp_path / "model.safetensors", 1000)
        elif content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(InputError, match="cannot be loaded as a causal language model"):
            load_model(settings_of(tmp_path))

    @pytest.mark.parametrize("name", ["no/such/folder", "./model", "model", "weights.gguf"])
    def test_a_path_that_is_not_there_is_not_looked_up_on_the_hub(self, name):
        with pytest.raises(InputError, match=r"there is no such (folder or )?GGUF file"):
            load_model(settings_of(name))

    def test_weights_in_pickles_are_not_read(self, tmp_path):
        model = base()
        model.config.save_pretrained(tmp_path)
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        with pytest.raises(InputError, match="safetensors weights"):
            load_model(settings_of(tmp_path))

    def test_a_device_that_is_not_here(self):
        with pytest.raises(ConfigError, match=r"device 'nonsense': not usable here \(.*--device cpu"):
            pick_device("nonsense")
        assert pick_device("cpu") == torch.device("cpu")
        assert pick_dtype("float16", torch.device("cpu")) == torch.float16
        assert pick_dtype("auto", torch.device("cpu")) in (torch.float32, torch.bfloat16)

    def test_only_beside_a_base_in_half_precision_are_a_gpus_products_rounded_to_tf32(self, monkeypatch):
        asked = []
        monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
        for device in ("cpu", "cuda", "mps"):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                allow_tf32(torch.device(device), dtype)
        assert asked == ["high", "high"]


@pytest.mark.parametrize(
    ("rename", "first"),
    [
        (lambda name: f"_orig_mod.{name}", "lm_head.weight"),
        (
            lambda name: None if "layers.1.self_attn.q_proj" in name else name,
            "model.layers.1.self_attn.q_proj",
        ),
    ],
    ids=["of a compiled model", "one is missing"],
)
def test_weights_that_are_not_in_the_models_files_are_never_random(tmp_path, rename, first):
    from builders import build_model, build_tokenizer
    from clusterucb.config import Common

    build_model().save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    there = {rename(name): tensor for name, tensor in load_file(file).items()}
    save_file({name: tensor for name, tensor in there.items() if name}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"\d+ of \d+ weights are not in its files, first {first}"):
        load_model(Common(model=str(tmp_path), out="o", device="cpu"))
