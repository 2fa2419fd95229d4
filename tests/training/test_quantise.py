"""A base in 4 or 8 bits: every row's gradient is autograd's on that base, and a run goes through on it."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tiny_adapters import flat, slow_gradients
from training_helpers import moved, rows, settings_of

from builders import build_model
from cli_helpers import clusterucb, lines, options, read
from clusterucb.config import Lora
from clusterucb.errors import ConfigError
from clusterucb.gradients.batches import collate
from clusterucb.gradients.per_sample import adapter_layers, row_gradients, row_losses
from clusterucb.training import model as quantise
from clusterucb.training.adapter import attach_adapter, fingerprint_base
from clusterucb.training.model import load_model

installed = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
LORA = Lora(rank=4, alpha=8, dropout=0.2, target_modules=["q_proj", "down_proj"])


def quantised(folder, load_in, device="cpu", **changes):
    """A quantised base with an adapter that does something."""
    model = load_model(settings_of(folder, load_in=load_in, device=device, **changes))
    return moved(attach_adapter(model, LORA, 0), 0.1, "lora_B")


@installed
@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize(("load_in", "tolerance"), [("4bit", 1e-4), ("8bit", 1e-2)])
class TestARowsGradient:
    def test_is_autograds_on_the_same_quantised_base(self, model_folder, device, load_in, tolerance):
        model = quantised(model_folder, load_in, device).eval()
        batch, found = rows(5), {}
        row_gradients(
            model, adapter_layers(model), collate(batch, device), lambda n, g: found.update({n: g.clone()})
        )
        for i, row in enumerate(batch):
            expected = slow_gradients(model, row)
            assert found.keys() == expected.keys()
            ours, theirs = flat({name: gradients[i] for name, gradients in found.items()}), flat(expected)
            assert (ours - theirs).norm() <= tolerance * theirs.norm()

    def test_is_still_there_after_an_evaluation(self, model_folder, device, load_in, tolerance):
        """Without gradients a quantised layer may take another way, and must not stay on it."""
        model = quantised(model_folder, load_in, device)
        batch, both = collate(rows(3), device), ([], [])
        for found in both:
            row_gradients(
                model, adapter_layers(model), batch, lambda _, g, found=found: found.append(g.clone())
            )
            row_losses(model, batch)
        assert all(g.abs().sum() > 0 for g in both[0][1::2])
        assert all(torch.equal(one, other) for one, other in zip(*both, strict=True))


@installed
@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
def test_linear_layers_but_the_head_are_packed_and_the_adapter_is_not(model_folder, load_in):
    model = quantised(model_folder, load_in, dtype="bfloat16")
    kinds = {name: p.dtype for name, p in model.named_parameters()}
    packed = torch.uint8 if load_in == "4bit" else torch.int8
    for name, dtype in kinds.items():
        if "lora_" in name:
            assert dtype == torch.float32
        elif "_proj" in name:
            assert dtype == packed
        else:
            assert dtype == torch.bfloat16, name


@installed
def test_a_model_that_is_stored_quantised_is_loaded_as_it_is(model_folder, tmp_path):
    load_model(settings_of(model_folder, load_in="4bit")).save_pretrained(tmp_path)
    stored = load_model(settings_of(tmp_path))
    assert fingerprint_base(stored) == fingerprint_base(load_model(settings_of(model_folder, load_in="4bit")))
    model = attach_adapter(stored, LORA, 0)
    found = []
    row_gradients(model, adapter_layers(model), collate(rows(2)), lambda _, g: found.append(g.abs().sum()))
    assert any(found)


@installed
def test_the_fingerprint_tells_bases_and_ways_of_keeping_them_apart(model_folder, tmp_path):
    build_model(seed=1).save_pretrained(tmp_path)
    found = [
        fingerprint_base(load_model(settings_of(folder, load_in=load_in)))
        for folder in (model_folder, tmp_path)
        for load_in in ("dtype", "8bit", "4bit")
    ]
    assert len(set(found)) == 6
    model = quantised(model_folder, "4bit")  # the same with an adapter, and after it computed
    row_losses(model, collate(rows(2)))
    assert fingerprint_base(model) == found[2]


@installed
@pytest.mark.whole
def test_a_run_goes_through_on_a_4_bit_base(settings):
    small = {"periods": 2, "warmup_steps": 1, "dim": 64}
    outcome = clusterucb("run", *options(settings, load_in="4bit", **small))
    assert outcome.status == 0, outcome
    run = Path(settings["out"])
    assert read(run / "evaluation.json")["adapter"]["loss"] != read(run / "evaluation.json")["base"]["loss"]
    assert len(lines(run / "rounds/2/selected.jsonl")) == 10
    complaint = clusterucb("train", "--out", run, "--load-in", "8bit").complaint
    assert complaint.startswith("load_in: this run directory was made with '4bit'")


class TestRefused:
    def test_without_the_package(self, model_folder, monkeypatch):
        monkeypatch.setattr(quantise, "find_spec", lambda _: None)
        with pytest.raises(ConfigError, match=r"load_in 4bit: needs one more package: .*clusterucb\[quant\]"):
            load_model(settings_of(model_folder, load_in="4bit"))

    def test_on_a_device_without_kernels(self, monkeypatch):
        monkeypatch.setattr(quantise, "find_spec", lambda _: "there")
        with pytest.raises(ConfigError, match=r"load_in 8bit: .* the device is mps; leave --load-in out"):
            quantise.check_quantisation("8bit", torch.device("mps"))

    def test_with_an_engine_that_loads_the_base_itself(self, settings, monkeypatch):
        from clusterucb.config import load
        from clusterucb.evaluation import benchmarks

        monkeypatch.setattr(benchmarks, "require_harness", lambda _: None)
        config = load(None, settings | {"load_in": "4bit", "engine": "vllm", "tasks": "gsm8k"})
        with pytest.raises(ConfigError, match="engine vllm runs the base in --dtype, not in 4bit"):
            benchmarks.check_settings(config)
