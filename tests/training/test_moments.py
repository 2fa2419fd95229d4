"""Adam's moments carry their parameters' names, wherever they come from."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn
from training_helpers import adapted, own_trainer, rows, same
from transformers import Trainer

from clusterucb.errors import InputError, MismatchError
from clusterucb.gradients.adam import Moments
from clusterucb.gradients.per_sample import trainable_parameters
from clusterucb.training.callbacks import DynamicSelection
from clusterucb.training.moments import import_moments, load_moments, moments_of, save_moments

MODULES = ["q_proj", "down_proj", "o_proj"]


def stepped(model, kind=torch.optim.AdamW, steps=3, groups=1, **settings):
    """An optimizer of the trainable parameters after a few steps with random gradients."""
    parameters = list(trainable_parameters(model).values())
    some = [{"params": parameters[i::groups]} for i in range(groups)]
    optimizer = kind(some, lr=1e-3, **settings)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return optimizer


def saved(groups, folder):
    """An optimizer of these groups after a step with a gradient of its own for each, in `folder` too."""
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    for i, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        parameter.grad = torch.full_like(parameter, 1.0 + i)
    optimizer.step()
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    return optimizer


def equal(one, other):
    facts = [(m.step, tuple(m.betas), m.eps) for m in (one, other)]
    return facts[0] == facts[1] and same(one.mean, other.mean) and same(one.square, other.square)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A plain transformers Trainer after 4 steps, its checkpoint, and the live moments."""
    folder = tmp_path_factory.mktemp("trainer")
    model = adapted(target_modules=MODULES)
    dynamic = DynamicSelection(rows(12), np.arange(12), lambda *_: np.arange(12))
    saved = {"max_steps": 4, "save_strategy": "steps", "save_steps": 4}
    trainer = own_trainer(folder, dynamic, model=model, adam_beta2=0.99, weight_decay=0.1, **saved)
    trainer.train()
    return trainer, folder / "checkpoint-4"


class TestLive:
    @pytest.mark.parametrize("groups", [1, 2])
    def test_moments_are_copies_of_those_of_the_named_parameter(self, groups):
        model = adapted()
        optimizer = stepped(model, groups=groups, betas=(0.8, 0.95), eps=1e-6)
        states = {name: dict(optimizer.state[p]) for name, p in trainable_parameters(model).items()}
        kinds = ("exp_avg", "exp_avg_sq")
        mean, square = ({name: state[kind].clone() for name, state in states.items()} for kind in kinds)
        moments = moments_of(optimizer, model)
        optimizer.step()
        assert same(moments.mean, mean)
        assert same(moments.square, square)
        assert (moments.step, moments.betas, moments.eps) == (3, (0.8, 0.95), 1e-6)

    @pytest.mark.parametrize(
        ("kind", "more", "words"),
        [
            (torch.optim.SGD, {"momentum": 0.9}, "SGD: expected Adam or AdamW"),
            (torch.optim.RMSprop, {}, "RMSprop: expected Adam or AdamW"),
            (torch.optim.Adamax, {}, "Adamax: expected Adam or AdamW"),
            (torch.optim.AdamW, {"steps": 0}, r"no moments of .*lora_A.weight: train for a step first"),
        ],
    )
    def test_an_optimizer_without_two_moments_is_refused(self, kind, more, words):
        model = adapted()
        with pytest.raises(MismatchError, match=words):
            moments_of(stepped(model, kind, **more), model)


def test_saved_and_loaded_they_are_equal_in_every_bit_in_any_order(tmp_path):
    model, path = adapted(), tmp_path / "moments.safetensors"
    moments = moments_of(stepped(model, betas=(0.85, 0.9995), eps=3e-7), model)
    mean, square = (dict(reversed(tensors.items())) for tensors in (moments.mean, moments.square))
    for same_ones in (moments, Moments(mean, square, moments.step, moments.betas, moments.eps)):
        save_moments(same_ones, path)
        assert equal(load_moments(path), moments)
        assert equal(import_moments(tmp_path, model), moments)


class TestImported:
    def test_from_a_trainers_checkpoint_they_are_the_live_ones_by_name(self, trained):
        trainer, checkpoint = trained
        assert len(torch.load(checkpoint / "optimizer.pt", weights_only=True)["param_groups"]) == 2
        live = moments_of(trainer.optimizer, trainer.model)
        assert live.step == 4
        assert live.betas == (0.9, 0.99)
        assert equal(import_moments(checkpoint, adapted(target_modules=MODULES)), live)

    def test_from_param_groups_in_the_trainers_order(self, tmp_path):
        """Norms have no weight decay: the second group holds parameters from between the first's."""
        model = nn.ModuleDict({n: nn.Linear(3, 3, bias=False) for n in ("one", "q_norm", "two", "k_norm")})
        decayed = Trainer.get_decay_parameter_names(None, model)
        parameters = dict(model.named_parameters())
        groups = [[p for n, p in parameters.items() if (n in decayed) == first] for first in (True, False)]
        assert [len(group) for group in groups] == [2, 2]
        optimizer = saved([{"params": group} for group in groups], tmp_path)
        assert equal(import_moments(tmp_path, model), moments_of(optimizer, model))

    @pytest.mark.parametrize("order", [0, 1, 2])
    def test_from_groups_that_name_their_parameters_in_any_order(self, tmp_path, order):
        """As LoRA+ (a rate for A, one for B) or rates by layer make them: shapes alone tell nothing."""
        model = adapted()
        named = [*trainable_parameters(model).items()]
        np.random.default_rng(order).shuffle(named)
        groups = [{"params": named[:3]}, {"params": named[3:4], "lr": 1e-2}, {"params": named[4:]}]
        optimizer = saved(groups, tmp_path)
        assert equal(import_moments(tmp_path, adapted()), moments_of(optimizer, model))

    @pytest.mark.parametrize(
        ("split", "sizes"),
        [
            (lambda names: ["lora_A" in n for n in names], "4, 4"),
            (lambda names: ["lora_B" in n and 2 for n in names], "4, 0, 4"),
            (lambda names: [int(n.split(".layers.")[1][0]) for n in names], "4, 4"),
            (lambda names: range(len(names)), "1, 1, 1, 1, 1, 1, 1, 1"),
        ],
        ids=["by matrix", "with an empty one", "by layer", "each alone"],
    )
    def test_from_other_groups_than_the_trainers_they_are_refused(self, tmp_path, split, sizes):
        model = adapted()
        parameters = trainable_parameters(model)
        places = [int(place) for place in split(list(parameters))]
        groups = [{"params": []} for _ in range(max(places) + 1)]
        for place, parameter in zip(places, parameters.values(), strict=True):
            groups[place]["params"].append(parameter)
        saved(groups, tmp_path)
        words = rf"param groups have {sizes} parameters .* Trainer's 8 and 0, .*named parameters, AdamW"
        with pytest.raises(MismatchError, match=words):
            import_moments(tmp_path, model)

    def test_from_groups_of_several_adams_they_are_refused(self, tmp_path):
        model = adapted()
        optimizer = stepped(model, groups=2)
        optimizer.param_groups[1]["betas"] = (0.8, 0.99)
        torch.save(optimizer.state_dict(), tmp_path / "optimizer.bin")
        with pytest.raises(MismatchError, match=r"several betas and eps \(\[\(0\.8, 0\.99, 1e-08\), \(0\.9"):
            moments_of(optimizer, model)

    @pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
    def test_from_states_keyed_by_name(self, tmp_path, prefix):
        """FSDP's full state: parameter names as keys, with wrappers' prefixes, in any order."""
        model = adapted()
        optimizer = stepped(model)
        names = {p: n for n, p in model.named_parameters()}
        states = {prefix + names[p]: state for p, state in reversed(optimizer.state.items())}
        groups = [{**optimizer.param_groups[0], "params": list(states)}]
        torch.save({"state": states, "param_groups": groups}, tmp_path / "optimizer.bin")
        assert equal(import_moments(tmp_path, model), moments_of(optimizer, model))

    @pytest.mark.parametrize(
        "lora", [{"rank": 8}, *({"target_modules": t} for t in (["q_proj"], ["q_proj", "k_proj", "v_proj"]))]
    )
    @pytest.mark.parametrize("ours", [True, False])
    def test_another_adapters_are_refused(self, tmp_path, lora, ours):
        model = adapted(**lora)
        optimizer = stepped(model)
        if ours:
            save_moments(moments_of(optimizer, model), tmp_path / "moments.safetensors")
        else:
            torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
        with pytest.raises(MismatchError, match="another adapter"):
            import_moments(tmp_path, adapted())

    def test_names_of_another_adapter_are_refused(self, tmp_path):
        states = {"elsewhere.weight": {"exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2), "step": 1}}
        groups = [{"params": list(states), "betas": (0.9, 0.999), "eps": 1e-8}]
        torch.save({"state": states, "param_groups": groups}, tmp_path / "optimizer.bin")
        with pytest.raises(MismatchError, match="another adapter"):
            import_moments(tmp_path, adapted())

    @pytest.mark.parametrize(
        ("kind", "settings", "words"),
        [
            (torch.optim.SGD, {}, r"optimizer\.pt: holds no moments of Adam; expected"),
            (torch.optim.SGD, {"momentum": 0.9}, r"optimizer\.pt: holds no moments of Adam; expected"),
            (torch.optim.AdamW, {"steps": 0}, "after at least one step"),
        ],
    )
    def test_a_state_without_moments_is_refused(self, tmp_path, kind, settings, words):
        model = adapted()
        torch.save(stepped(model, kind, **settings).state_dict(), tmp_path / "optimizer.pt")
        with pytest.raises(MismatchError, match=words):
            import_moments(tmp_path, model)

    def test_a_checkpoint_without_an_optimizer_says_what_to_do(self, tmp_path):
        with pytest.raises(InputError, match=r"has no moments\.safetensors, optimizer\.pt or optimizer\.bin"):
            import_moments(tmp_path, adapted())

    @pytest.mark.parametrize(
        "content",
        [
            *(b"", b"not a file of torch", b"PK\x03\x04 torn", b"\x80\x02", b"{}"),
            *([], {"state": {}}, {"a": torch.zeros(2)}, torch.zeros(3), 5),
        ],
    )
    def test_a_file_that_is_no_state_is_refused(self, tmp_path, content):
        path = tmp_path / "optimizer.pt"
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(InputError, match=r"optimizer\.pt: cannot be read as an optimizer's state"):
            import_moments(tmp_path, adapted())

    @pytest.mark.parametrize("dump", [torch.save, pickle.dump])
    def test_code_in_a_pickle_is_refused_and_not_run(self, tmp_path, dump):
        marker = tmp_path / "was run"
        with (tmp_path / "optimizer.pt").open("wb") as file:
            dump({"state": Malicious(str(marker)), "param_groups": []}, file)
        with pytest.raises(InputError, match=r"optimizer\.pt: cannot be read as an optimizer's state"):
            import_moments(tmp_path, adapted())
        assert not marker.exists()


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (self.path,)
