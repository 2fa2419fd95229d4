"""A LoRA adapter: attached, opened, published, read and set by canonical names; fingerprints of weights."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from clusterucb.config import Lora
from clusterucb.errors import ConfigError, InputError, MismatchError, reason
from clusterucb.gradients.per_sample import trainable_parameters
from clusterucb.runtime.sharding import fill, whole, whole_tensors

_SAMPLES = 64  # elements of each base tensor that enter its fingerprint


def attach_adapter(model: nn.Module, lora: Lora, seed: int, adapter: str | None = None) -> PeftModel:
    """The model with a new adapter whose weights depend on `seed` alone, or with an existing one.

    Raises:
        ConfigError: no layer has the name of a target module.
        InputError: `adapter` is not a folder with a LoRA adapter in safetensors.
    """
    if adapter is not None:
        return open_adapter(model, Path(adapter), is_trainable=True)
    names = lora.target_modules
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear" if names == ["all-linear"] else names,
        task_type="CAUSAL_LM",
    )
    absent = absent_targets(model, lora)
    if absent and (names != Lora().target_modules or len(absent) == len(names)):
        linears = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise ConfigError(
            f"target_modules {' '.join(names)}: this model has no {', '.join(absent)}; "
            f"its linear layers are called {', '.join(linears)}, or use all-linear"
        )
    torch.manual_seed(seed)
    try:
        return get_peft_model(model, settings)
    except ValueError as error:
        raise ConfigError(f"target_modules {' '.join(names)}: {reason(error)}; try all-linear") from None


def absent_targets(model: nn.Module, lora: Lora) -> list[str]:
    """The target modules that are no layers of the model: peft would pass over them if others are."""
    there = [f".{name}" for name, _ in model.named_modules()]
    names = [name for name in lora.target_modules if name != "all-linear"]
    return [name for name in names if not any(layer.endswith(f".{name}") for layer in there)]


def open_adapter(model: nn.Module, adapter: Path, *, is_trainable: bool = False) -> PeftModel:
    """The model with the adapter in a folder that peft wrote; InputError where it does not fit or is none."""
    _check_adapter(adapter)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # an error of ours, below
            opened = PeftModel.from_pretrained(model, str(adapter), is_trainable=is_trainable)
        there = read_adapter(adapter)
    except (ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise InputError(f"{adapter}: does not fit this model ({reason(error)})") from None
    wanted = get_peft_model_state_dict(opened, save_embedding_layers=False)
    names = {name.replace(".default.", ".") for name in there}  # as some trainers write them
    if odd := sorted(name for name in wanted.keys() ^ names if ".lora_" in name):  # peft passes over these
        raise InputError(
            f"{adapter}: does not fit this model, first in {odd[0]}; give the --model that it was trained on"
        )
    return opened


def save_adapter(model: PeftModel, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write the adapter's configuration and weights, as they are or as given, as a folder that peft loads."""
    model.save_pretrained(str(folder), state_dict=weights)


def adapter_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """All of the adapter's weights, by the model's own names; of a sharded model that takes all processes."""
    return whole_tensors({name: p for name, p in model.named_parameters() if p.requires_grad})


def read_adapter(folder: Path) -> dict[str, torch.Tensor]:
    """The adapter's tensors by canonical name, on the host."""
    tensors: dict[str, torch.Tensor] = load_file(folder / "adapter_model.safetensors")
    return tensors


def read_adapter_shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """The shapes of its tensors, without reading them; InputError where there is no adapter."""
    _check_adapter(folder)
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def adapter_size(folder: Path) -> tuple[int, int]:
    """Rank and alpha of the adapter in a folder that peft wrote; InputError where it is none."""
    _check_adapter(folder)
    try:
        facts = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return int(facts["r"]), int(facts["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: adapter_config.json cannot be read ({reason(error)})") from None


def _check_adapter(folder: Path) -> None:
    if not (folder / "adapter_model.safetensors").exists():
        raise InputError(
            f"{folder}: expected a folder with adapter_config.json and adapter_model.safetensors"
        )


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Set the model's adapter to the weights in `folder`."""
    set_adapter(model, read_adapter(folder), folder)


def set_adapter(model: nn.Module, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Set the model's adapter to weights that were read from `folder`."""
    parameters = trainable_parameters(model)
    found = {(name, tensor.shape) for name, tensor in tensors.items()}
    if odd := sorted(found ^ {(name, p.shape) for name, p in parameters.items()}):
        raise MismatchError(
            f"{folder}: this adapter and the run's differ, first in {odd[0][0]}; was --rank changed?"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            fill(parameter, tensors[name])


def fingerprint_base(model: nn.Module) -> str:
    """A hash of the frozen weights: names, shapes, types and evenly spaced elements of each tensor."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            continue
        flat = whole(parameter.detach()).reshape(-1)
        step = max(1, flat.numel() // _SAMPLES)
        own_name = name.removeprefix("base_model.model.").replace("base_layer.", "")  # as without an adapter
        digest.update(f"{own_name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(np.ascontiguousarray(flat[::step].float().cpu().numpy()).tobytes())
    return digest.hexdigest()[:16]


def fingerprint_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """A hash of all elements of named tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().float().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:16]
