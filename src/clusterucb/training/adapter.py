"""A LoRA adapter: attached, opened, published, read and set by canonical names; fingerprints of weights."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from clusterucb.config import Lora
from clusterucb.errors import ConfigError, InputError, MismatchError, reason
from clusterucb.gradients.anatomy import idle_layers, parts
from clusterucb.gradients.per_sample import trainable_parameters
from clusterucb.runtime.sharding import fill, whole, whole_tensors

_SAMPLES = 64  # elements of each base tensor that enter its fingerprint
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # values of init_lora_weights
_KINDS: dict[str, Any] = {
    **{"r": int, "lora_alpha": float, "lora_dropout": float, "use_rslora": bool, "fan_in_fan_out": bool},
    **{"target_modules": str | list[str] | None, "exclude_modules": str | list[str] | None, "bias": str},
    **{"rank_pattern": dict[str, int] | None, "alpha_pattern": dict[str, float] | None},
    **{"layers_to_transform": int | list[int] | None, "modules_to_save": list[str] | None},
}
"""Of the settings of peft's LoraConfig that shape an adapter."""


def attach_adapter(
    model: nn.Module,
    lora: Lora,
    seed: int,
    adapter: str | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> PeftModel:
    """The model with a new adapter whose weights depend on `seed` alone, or with an existing one.

    The default target modules may be absent in part, and are not put where no text passes; `say` is told.

    Raises:
        ConfigError: no layer has the name of a target or excluded module; or targets are fused experts.
        InputError: `adapter` is not a folder with a LoRA adapter in safetensors.
    """
    if adapter is not None:
        return open_adapter(model, Path(adapter), is_trainable=True)
    names = lora.target_modules
    outside = _check_names(model, lora, say)
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear" if names == ["all-linear"] else names,
        exclude_modules=rf"(.*\.)?({'|'.join(map(re.escape, outside))})(\..*)?" if outside else None,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    try:
        attached = get_peft_model(model, settings)
    except (ValueError, TypeError, RuntimeError) as error:
        if not settings.target_parameters:
            raise ConfigError(f"target_modules {' '.join(names)}: {reason(error)}; try all-linear") from None
    if fused := settings.target_parameters:  # which peft has put in the place of some names
        raise ConfigError(
            f"target_modules {' '.join(names)}: some stand for {', '.join(sorted(fused))} in this model, "
            "experts fused to one tensor and given the tokens of all rows together, so no row's gradient is "
            f"known there; leave them out, as by --target-modules {' '.join(Lora().target_modules)}"
        )
    return attached


def _check_names(model: nn.Module, lora: Lora, say: Callable[[str], None]) -> list[str]:
    """The parts to exclude. Raises ConfigError for names that no layer has."""
    names, default = lora.target_modules, lora.target_modules == Lora().target_modules
    absent = absent_targets(model, lora)
    if absent and (not default or len(absent) == len(names)):
        linears = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise ConfigError(
            f"target_modules {' '.join(names)}: this model has no {', '.join(absent)}; "
            f"its linear layers are called {', '.join(linears)}, or use all-linear"
        )
    if absent_parts := _absent(model, lora.exclude_modules):
        raise ConfigError(f"exclude_modules: this model has no {', '.join(absent_parts)}; leave that out")
    if absent:
        say(
            f"target_modules: this model has no {', '.join(absent)}, so the adapter is on the others alone; "
            "--target-modules all-linear puts it on every linear layer"
        )
    idle = _idle_parts(model, names) if default else []
    if idle:
        say(f"target_modules: the adapter is not on {', '.join(idle)}, as no text passes through there")
    return lora.exclude_modules + idle


def absent_targets(model: nn.Module, lora: Lora) -> list[str]:
    """The target modules that are no layers of the model: peft would pass over them if others are."""
    return _absent(model, [name for name in lora.target_modules if name != "all-linear"])


def _absent(model: nn.Module, names: Sequence[str]) -> list[str]:
    there = [f".{name}" for name, _ in model.named_modules()]
    return [name for name in names if not any(layer.endswith(f".{name}") for layer in there)]


def _idle_parts(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The parts of a model whose layers of these names take no part in a text's pass, as vision towers do."""
    if next(model.parameters()).is_meta:  # of which shapes are wanted only
        return []
    layers = {name: m for name, m in model.named_modules() if name.rsplit(".", 1)[-1] in names}
    try:
        idle = idle_layers(model, layers)
    except ConfigError:  # a model that cannot be run, of which who runs it tells
        return []
    return parts(idle, layers.keys() - idle)


def open_adapter(model: nn.Module, adapter: Path, *, is_trainable: bool = False) -> PeftModel:
    """The model with the adapter in a folder that peft wrote; InputError where it does not fit or is none."""
    adapter_settings(adapter)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # an error of ours, below
            opened = PeftModel.from_pretrained(model, str(adapter), is_trainable=is_trainable)
        there = read_adapter(adapter)
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise InputError(f"{adapter}: does not fit this model ({reason(error)})") from None
    wanted = get_peft_model_state_dict(opened, save_embedding_layers=False)
    names = {name.replace(".default.", ".") for name in there}  # as some trainers write them
    if odd := sorted(name for name in wanted.keys() ^ names if ".lora_" in name):  # peft passes over these
        raise InputError(
            f"{adapter}: does not fit this model, first in {odd[0]}; give the --model that it was trained on"
        )
    return opened


def adapter_settings(folder: Path) -> dict[str, Any]:
    """What peft wrote beside an adapter's weights.

    Raises InputError where one of the two is missing, where a value is of another kind than peft's, and for
    an adapter whose loading changes the base.
    """
    path = folder / "adapter_config.json"
    if not all(file.exists() for file in (path, folder / "adapter_model.safetensors")):
        raise InputError(
            f"{folder}: expected a folder with adapter_config.json and adapter_model.safetensors"
        )
    settings = read_object(path)
    for key, kind in _KINDS.items():
        if key in settings and not _is_of_kind(settings[key], kind):
            raise InputError(
                f"{path}: {key} is {settings[key]!r}, expected {getattr(kind, '__name__', kind)}; "
                "put it right, as peft's LoraConfig has it"
            )
    start = str(settings.get("init_lora_weights")).lower()
    if name := next((name for name in _CHANGE_THE_BASE if start.startswith(name)), None):
        raise InputError(
            f"{folder}: init_lora_weights is {start}, so loading it changes the base, by numbers that may "
            f"differ between processes; convert {name} to plain LoRA where it was trained, by peft's "
            "save_pretrained(FOLDER, path_initial_model_for_weight_conversion=ADAPTER_BEFORE_TRAINING)"
        )
    return settings


def _is_of_kind(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is one of this type, as it stands."""
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of an adapter; InputError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); copy the adapter again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object; copy the adapter again")
    return content


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
    adapter_settings(folder)
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def adapter_size(folder: Path) -> tuple[int, int]:
    """Rank and alpha of the adapter in a folder that peft wrote; InputError where it is none."""
    settings = {"r": 8, "lora_alpha": 8} | adapter_settings(folder)  # peft leaves out none
    return int(settings["r"]), int(settings["lora_alpha"])


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
