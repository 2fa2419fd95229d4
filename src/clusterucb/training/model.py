"""A causal language model with its tokenizer and a LoRA adapter: loading, saving, fingerprints."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from clusterucb.config import Common, Lora
from clusterucb.errors import ConfigError, InputError, MismatchError
from clusterucb.gradients.per_sample import trainable_parameters
from clusterucb.run.directory import publish_folder
from clusterucb.runtime.sharding import fill, whole, whole_tensors
from clusterucb.training.quantise import keep_packing, loading

__all__ = [
    "adapter_weights",
    "allow_tf32",
    "attach_adapter",
    "empty_model",
    "fingerprint_base",
    "fingerprint_tensors",
    "load_adapter",
    "load_model",
    "load_tokenizer",
    "model_source",
    "open_adapter",
    "pick_device",
    "pick_dtype",
    "read_adapter",
    "read_adapter_shapes",
    "save_adapter",
    "set_adapter",
]

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
_SAMPLES = 64  # elements of each base tensor that enter its fingerprint


def pick_device(name: str) -> torch.device:
    """The device called `name`; auto takes cuda, then mps, then cpu."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r}: not usable here ({reason}); try --device cpu") from None
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type called `name`; auto takes bfloat16 where the device multiplies it fast, else float32."""
    if name == "auto":
        fast = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else False
        if device.type == "cpu":
            fast = _cpu_has_bfloat16()
        return torch.bfloat16 if fast else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def allow_tf32(device: torch.device, dtype: torch.dtype) -> None:
    """Let a GPU multiply the adapter's float32 on tensor cores beside a base model in half precision.

    TF32 keeps the ten bits that float16 has behind the point, and more than bfloat16 has.
    """
    if device.type == "cuda" and dtype != torch.float32:
        torch.set_float32_matmul_precision("high")


def load_tokenizer(config: Common) -> Any:
    """The model's own tokenizer."""
    source, extra = _source(config.model)
    folder = Path(source)
    if folder.is_dir() and not extra and not any((folder / name).exists() for name in _TOKENIZER_FILES):
        raise InputError(
            f"{folder}: has no tokenizer (expected tokenizer.json); save the model's tokenizer there"
        )
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=config.trust_remote_code, **extra)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{config.model}: its tokenizer cannot be loaded ({_reason(error)})") from None


def load_model(config: Common, *, on_host: bool = False) -> nn.Module:
    """The base model on its device, frozen, without an adapter; quantised if `load_in` says so.

    `on_host` leaves it in the host's memory, from where it is sharded.
    """
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    allow_tf32(device, dtype)
    quantised = loading(config.load_in, dtype, device)
    source, extra = _source(config.model)
    try:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            trust_remote_code=config.trust_remote_code,
            use_safetensors=None if extra else True,
            **quantised,
            **extra,
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise InputError(
            f"{config.model}: cannot be loaded as a causal language model ({_reason(error)}); "
            f"expected a folder with config.json and safetensors weights, a GGUF file or a hub id"
        ) from None
    keep_packing(model)  # also of a model that is stored quantised
    return (model if quantised or on_host else model.to(device)).requires_grad_(False)


def empty_model(config: Common) -> nn.Module:
    """The base model's shapes and types, without its weights: to be called where torch makes meta tensors."""
    source, extra = _source(config.model)
    trusted = {"trust_remote_code": config.trust_remote_code}
    try:
        shape = AutoConfig.from_pretrained(source, **trusted, **extra)
        dtype = pick_dtype(config.dtype, pick_device(config.device))
        model: nn.Module = AutoModelForCausalLM.from_config(shape, dtype=dtype, **trusted)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            f"{config.model}: cannot be loaded as a causal language model ({_reason(error)}); "
            f"expected a folder with config.json, a GGUF file or a hub id"
        ) from None
    return model.requires_grad_(False)


def attach_adapter(model: nn.Module, lora: Lora, seed: int, adapter: str | None = None) -> PeftModel:
    """The model with a new adapter whose weights depend on `seed` alone, or with an existing one.

    Raises:
        ConfigError: no layer has the name of a target module.
        InputError: `adapter` is not a folder with a LoRA adapter in safetensors.
    """
    if adapter is not None:
        return open_adapter(model, Path(adapter), is_trainable=True)
    targets: str | list[str] = lora.target_modules
    if targets == ["all-linear"]:
        targets = "all-linear"
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    linears = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)})
    torch.manual_seed(seed)
    try:
        return get_peft_model(model, settings)
    except ValueError as error:
        raise ConfigError(
            f"target_modules {' '.join(lora.target_modules)}: {_reason(error)}; "
            f"this model's linear layers are called {', '.join(linears)}, or use all-linear"
        ) from None


def open_adapter(model: nn.Module, adapter: Path, *, is_trainable: bool = False) -> PeftModel:
    """The model with the adapter in a folder that peft wrote.

    Raises:
        InputError: there is no LoRA adapter in safetensors, or it does not fit the model.
    """
    _check_adapter(adapter)
    try:
        return PeftModel.from_pretrained(model, str(adapter), is_trainable=is_trainable)
    except (ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise InputError(f"{adapter}: does not fit this model ({_reason(error)})") from None


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
    """The shapes of its tensors, without reading them.

    Raises:
        InputError: there is no LoRA adapter in safetensors.
    """
    _check_adapter(folder)
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


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


def _cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware (torch has no public question for it)."""
    probes = (
        getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return any(probe() for probe in probes if probe is not None)


def model_source(model: str) -> str:
    """What a library that runs models is given for `model`: a folder or a hub id."""
    return _source(model)[0]


def _source(model: str) -> tuple[str, dict[str, Any]]:
    """What transformers is given for `model`: a GGUF file is converted once and then read from a cache."""
    path = Path(model)
    if path.suffix == ".gguf":
        return str(_converted(path)), {}
    if not path.exists() and (path.is_absolute() or model.startswith(".") or model.count("/") != 1):
        raise InputError(f"{model}: there is no such folder or GGUF file, and it is not a hub id (org/name)")
    return model, {}


def _converted(gguf: Path) -> Path:
    """The folder of safetensors that stands for a GGUF file, made at the first use."""
    if not gguf.is_file():
        raise InputError(f"{gguf}: there is no such GGUF file")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "clusterucb"
    facts = f"{gguf.resolve()} {gguf.stat().st_size} {gguf.stat().st_mtime_ns}"
    folder = cache / f"{gguf.stem}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
    if folder.exists():
        return folder
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
    except ImportError:
        raise ConfigError(
            f"{gguf}: GGUF files need one more package: pip install 'clusterucb[gguf]'"
        ) from None
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{gguf}: cannot be read as a GGUF model ({_reason(error)})") from None
    _forget_quantisation(model)
    with publish_folder(folder) as part:
        model.save_pretrained(str(part))
        tokenizer.save_pretrained(str(part))
    return folder


def _forget_quantisation(model: Any) -> None:
    """The weights are plain numbers now; transformers refuses to save them while it believes otherwise."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if name in vars(model):
            delattr(model, name)


def _reason(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
