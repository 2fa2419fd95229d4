"""Base models and their tokenizers: a folder, a hub id or a GGUF file, in a type or quantised.

Quantised, bitsandbytes keeps the linear layers in 8 bits (LLM.int8(), Dettmers et al. 2022, arXiv 2208.07339)
or in 4 (QLoRA's NF4 with doubly quantised scales, Dettmers et al. 2023, arXiv 2305.14314). The adapter's
layers stay plain ones in float32, whose per-row gradients are taken as ever. All else is as in a base that is
not quantised: norms and embeddings keep the model's dtype, which the layers compute in, too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from clusterucb.config import Common
from clusterucb.errors import ConfigError, InputError, reason
from clusterucb.runtime.devices import room_for, use
from clusterucb.runtime.files import publish_folder

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def pick_device(name: str) -> torch.device:
    """The device called `name`; auto takes cuda, then mps, then cpu."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r}: not usable here ({reason(error)}); try --device cpu") from None
    return use(device)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type called `name`; auto takes bfloat16 where the device multiplies it fast, else float32."""
    if name == "auto":
        fast = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else False
        if device.type == "cpu":
            fast = _cpu_has_bfloat16()
        return torch.bfloat16 if fast else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def load_tokenizer(config: Common) -> Any:
    """The model's own tokenizer."""
    source = model_source(config.model)
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).exists() for name in _TOKENIZER_FILES):
        raise InputError(
            f"{folder}: has no tokenizer (expected tokenizer.json); save the model's tokenizer there"
        )
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{config.model}: its tokenizer cannot be loaded ({reason(error)})") from None


def load_model(config: Common, *, on_host: bool = False) -> nn.Module:
    """The base model on its device, frozen, without an adapter; quantised if `load_in` says so.

    `on_host` leaves it in the host's memory, from where it is sharded.
    """
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    quantised = _quantising(config.load_in, dtype, device)
    source = model_source(config.model)
    trusted = {"trust_remote_code": config.trust_remote_code}
    with _loading(config.model), _placing(config.model):
        model, found = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, output_loading_info=True, **trusted, **quantised
        )
    _check_weights(config.model, model, found)
    _keep_packing(model)  # also of a model that is stored quantised
    with _placing(config.model):
        placed: nn.Module = model if quantised or on_host else model.to(device)
    return placed.requires_grad_(False)


def _check_weights(name: str, model: nn.Module, found: Mapping[str, Any]) -> None:
    """Refuse a model of which some weights are random, as they are not in its files or of another shape."""
    absent = sorted({str(key) for key in found["missing_keys"]})
    absent += sorted({str(key[0]) for key in found["mismatched_keys"]})
    if absent:
        raise InputError(
            f"{name}: {len(absent)} of {len(model.state_dict())} weights are not in its files, first "
            f"{absent[0]}; they would be random: save the whole model again, by its save_pretrained"
        )


def empty_model(config: Common) -> nn.Module:
    """The base model's shapes and types, without its weights: to be called where torch makes meta tensors."""
    source, dtype = model_source(config.model), pick_dtype(config.dtype, pick_device(config.device))
    trusted = {"trust_remote_code": config.trust_remote_code}
    with _loading(config.model):
        shape = AutoConfig.from_pretrained(source, **trusted)
        model: nn.Module = AutoModelForCausalLM.from_config(shape, dtype=dtype, **trusted)
    return model.requires_grad_(False)


def model_shape(config: Common) -> tuple[int, int, str]:
    """Numbers of a token's hidden state, layers and family of the model, by its configuration alone."""
    with _loading(config.model):
        trusted = {"trust_remote_code": config.trust_remote_code}
        shape = AutoConfig.from_pretrained(model_source(config.model), **trusted)
    text = shape.get_text_config()
    return text.hidden_size, text.num_hidden_layers, shape.model_type


def _placing(model: str) -> AbstractContextManager[None]:
    return room_for(model, "use --dtype bfloat16, --load-in 4bit, another --device or a smaller model")


@contextmanager
def _loading(model: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise InputError(
            f"{model}: cannot be loaded as a causal language model ({reason(error)}); "
            f"expected a folder with config.json and safetensors weights, a GGUF file or a hub id"
        ) from None


def _cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware (torch has no public question for it)."""
    probes = (
        getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return any(probe() for probe in probes if probe is not None)


def model_source(model: str) -> str:
    """What a library that runs models is given for `model`: a folder or a hub id.

    A GGUF file is converted once, and then read from a cache.
    """
    path = Path(model)
    if path.suffix == ".gguf":
        return str(_converted(path))
    if not path.exists() and (path.is_absolute() or model.startswith(".") or model.count("/") != 1):
        raise InputError(f"{model}: there is no such folder or GGUF file, and it is not a hub id (org/name)")
    return model


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
        raise InputError(f"{gguf}: cannot be read as a GGUF model ({reason(error)})") from None
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


def check_quantisation(load_in: str, device: torch.device) -> None:
    """Raise ConfigError where the package is missing, or the device is not one that it knows."""
    if load_in == "dtype":
        return
    if find_spec("bitsandbytes") is None:
        raise ConfigError(f"load_in {load_in}: needs one more package: pip install 'clusterucb[quant]'")
    if device.type not in ("cuda", "cpu"):
        raise ConfigError(
            f"load_in {load_in}: a quantised base runs on cuda or, slowly, on cpu, and the device is "
            f"{device.type}; leave --load-in out"
        )


def _quantising(load_in: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What from_pretrained is given to quantise a model while it is loaded, straight to its device."""
    check_quantisation(load_in, device)
    if load_in == "dtype":
        return {}
    place = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device
    settings = {
        "8bit": BitsAndBytesConfig(load_in_8bit=True),
        "4bit": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
    }
    return {"quantization_config": settings[load_in], "device_map": {"": place}}


def _keep_packing(model: nn.Module) -> None:
    """Keep 4-bit weights in the form that has gradients: some CPUs repack them at the first evaluation."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
