"""Loading a model, attaching an adapter, and what tells two models apart."""

import json
import re
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_helpers import adapted, base, moved, same, settings_of, weights
from transformers import AutoModelForCausalLM, Gemma3Config, Qwen3MoeConfig

from clusterucb.config import Lora
from clusterucb.errors import ConfigError, InputError, MismatchError
from clusterucb.gradients.anatomy import examine
from clusterucb.gradients.per_sample import adapter_layers, trainable_parameters
from clusterucb.training.adapter import (
    absent_targets,
    attach_adapter,
    fingerprint_base,
    fingerprint_tensors,
    load_adapter,
    open_adapter,
    read_adapter,
    save_adapter,
)
from clusterucb.training.model import load_model, load_tokenizer, pick_device, pick_dtype


def changed(folder, **settings):
    """An adapter's folder with other settings."""
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))


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
        again = attach_adapter(base(), Lora(rank=16, alpha=16), 9, str(tmp_path / "adapter"))  # goes on
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
        changed(tmp_path, r=8)
        with pytest.raises(InputError, match="does not fit this model"):
            attach_adapter(base(), Lora(), seed=0, adapter=str(tmp_path))
        (tmp_path / "adapter_config.json").write_text("{")
        with pytest.raises(InputError, match=str(tmp_path)):
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
        "init", ["pissa", "pissa_niter_4", "olora", "OLoRA", "corda", "loftq", "lora_ga"]
    )
    def test_one_whose_loading_changes_the_base_is_refused_by_its_name(self, tmp_path, init):
        save_adapter(moved(adapted(seed=1)), tmp_path)
        changed(tmp_path, init_lora_weights=init)
        model = base()
        before = fingerprint_base(model)
        words = rf"init_lora_weights is {init.lower()}, .*path_initial_model_for_weight_conversion"
        with pytest.raises(InputError, match=words):
            open_adapter(model, tmp_path)
        assert fingerprint_base(model) == before
        for plain in (True, False, "gaussian", "orthogonal"):
            changed(tmp_path, init_lora_weights=plain)
            opened = open_adapter(base(), tmp_path, is_trainable=True)
            assert same(weights(opened), weights(moved(adapted(seed=1))))
            assert fingerprint_base(opened) == before

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            *(("r", "4"), ("lora_alpha", "8"), ("lora_dropout", "0.1"), ("r", None), ("use_rslora", "yes")),
            *(("target_modules", 5), ("rank_pattern", {"q_proj": "4"}), ("alpha_pattern", [1])),
            *(("layers_to_transform", ["1"]), ("r", [4])),
        ],
    )
    def test_a_setting_of_another_kind_is_one_line_with_its_key(self, tmp_path, key, value):
        save_adapter(adapted(), tmp_path)
        changed(tmp_path, **{key: value})
        with pytest.raises(
            InputError, match=rf"adapter_config\.json: {key} is {re.escape(repr(value))}, expected"
        ):
            open_adapter(base(), tmp_path)

    @pytest.mark.parametrize(
        "more",
        [{"lora_alpha": 8.0}, {"a_key_of_the_future": [1]}, {"target_modules": "all-linear"}, {"r": 4}],
    )
    def test_settings_that_peft_reads_are_taken(self, tmp_path, more):
        model = moved(adapted(seed=1, target_modules=["all-linear"]))
        save_adapter(model, tmp_path)
        changed(tmp_path, **more)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft's, of a key that it does not know
            assert same(weights(open_adapter(base(), tmp_path, is_trainable=True)), weights(model))

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
            attach_adapter(base(), Lora(rank=4, alpha=8, target_modules=["q_proj", "v_porj"]), seed=0)
        fused = base()
        for layer in fused.model.layers:
            layer.self_attn.qkv_proj = layer.self_attn.q_proj
            del layer.self_attn.q_proj
        assert absent_targets(fused, Lora()) == ["q_proj"]
        names = trainable_parameters(attach_adapter(fused, Lora(rank=8, alpha=32), seed=0))
        assert {name.split(".")[-3] for name in names} == {"k_proj", "v_proj", "o_proj"}

    def test_target_modules_that_match_nothing_name_the_models_layers(self):
        layers = "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
        with pytest.raises(ConfigError, match=rf"^target_modules query w1: .*{layers}.*all-linear"):
            attach_adapter(base(), Lora(rank=4, alpha=8, target_modules=["query", "w1"]), seed=0)

    def test_all_linear_means_all_but_the_head_and_nothing_else_is_trained(self):
        names = trainable_parameters(adapted(target_modules=["all-linear"]))
        assert all("lora_" in name for name in names)
        layers = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
        assert {name.split(".")[-3] for name in names} == layers


TINY = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


class TestPartsThatNoTextReaches:
    @pytest.fixture
    def multimodal(self):
        torch.manual_seed(0)
        vision = {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
        vision |= {"image_size": 28, "patch_size": 14, "model_type": "siglip_vision_model"}
        config = Gemma3Config(text_config=TINY, vision_config=vision, mm_tokens_per_image=4)
        return AutoModelForCausalLM.from_config(config).requires_grad_(False)

    def test_the_default_target_modules_leave_them_out_and_say_so(self, multimodal):
        said = []
        model = attach_adapter(multimodal, Lora(rank=4, alpha=8), seed=0, say=said.append)
        names = adapter_layers(model)
        assert {name.split(".")[-3] for name in names} == {"q_proj", "k_proj", "v_proj", "o_proj"}
        assert all("language_model" in name for name in names)
        assert said == ["target_modules: the adapter is not on vision_tower, as no text passes through there"]
        examine(model, names)

    @pytest.mark.parametrize("names", [["q_proj", "v_proj"], ["all-linear"], ["fc1", "q_proj"]])
    def test_named_they_are_refused_with_the_option_that_leaves_them_out(self, multimodal, names):
        model = attach_adapter(multimodal, Lora(rank=4, alpha=8, target_modules=names), seed=0)
        with pytest.raises(ConfigError, match=r"in vision_tower.*--exclude-modules vision_tower"):
            examine(model, adapter_layers(model))

    @pytest.mark.parametrize("out", [["vision_tower"], ["model.vision_tower"], ["self_attn", "encoder"]])
    def test_what_is_excluded_has_no_adapter(self, multimodal, out):
        lora = Lora(rank=4, alpha=8, target_modules=["q_proj", "v_proj", "up_proj"], exclude_modules=out)
        names = adapter_layers(attach_adapter(multimodal, lora, seed=0))
        assert not any(f".{part.split('.')[-1]}." in name for name in names for part in out)
        assert any("up_proj" in name for name in names)

    def test_an_excluded_part_that_is_not_there_is_refused(self):
        with pytest.raises(ConfigError, match="exclude_modules: this model has no vision; leave that out"):
            adapted(exclude_modules=["vision"])

    def test_fused_experts_are_refused_by_their_names(self):
        torch.manual_seed(0)
        routed = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
        config = Qwen3MoeConfig(**TINY, **routed, mlp_only_layers=[0])
        model = AutoModelForCausalLM.from_config(config)
        lora = Lora(rank=4, alpha=8, target_modules=["q_proj", "gate_proj", "up_proj", "down_proj"])
        words = r"target_modules q_proj .*: some stand for .*down_proj, .*gate_up_proj in this model, experts"
        with pytest.raises(ConfigError, match=words):
            attach_adapter(model, lora, seed=0)


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

    @pytest.mark.parametrize("content", [None, "{", '{"model_type": "bert"}', '{"model_type": "nonsense"}'])
    def test_a_folder_that_is_no_causal_model(self, tmp_path, content):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(InputError, match="cannot be loaded as a causal language model"):
            load_model(settings_of(tmp_path))

    @pytest.mark.parametrize(
        "damage", [lambda _: b"garbage", lambda d: d[:1000], None], ids=["garbage", "torn", "gone"]
    )
    def test_a_folder_whose_weights_are_damaged_or_gone(self, tmp_path, damage, model_folder):
        file = shutil.copytree(model_folder, tmp_path / "model") / "model.safetensors"
        file.write_bytes(damage(file.read_bytes())) if damage else file.unlink()
        with pytest.raises(InputError, match="cannot be loaded as a causal language model"):
            load_model(settings_of(tmp_path / "model"))

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

    @pytest.mark.parametrize(
        ("rename", "first"),
        [
            (lambda name: f"_orig_mod.{name}", "lm_head.weight"),
            (lambda name: None if "1.self_attn.q_proj" in name else name, "model.layers.1.self_attn.q_proj"),
        ],
        ids=["of a compiled model", "one is missing"],
    )
    def test_weights_that_are_not_in_the_models_files_are_never_random(self, tmp_path, rename, first):
        base().save_pretrained(tmp_path)
        file = tmp_path / "model.safetensors"
        there = {rename(name): tensor for name, tensor in load_file(file).items()}
        save_file({name: tensor for name, tensor in there.items() if name}, file, metadata={"format": "pt"})
        with pytest.raises(InputError, match=rf"\d+ of \d+ weights are not in its files, first {first}"):
            load_model(settings_of(tmp_path))
