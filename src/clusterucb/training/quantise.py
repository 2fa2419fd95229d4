"""Base models whose linear layers bitsandbytes keeps in 8 bits (LLM.int8(), Dettmers et al. 2022, arXiv
2208.07339) or in 4 (QLoRA's NF4 with doubly quantised scales, Dettmers et al. 2023, arXiv 2305.14314).

The adapter's layers stay plain ones in float32, whose per-row gradients are taken as ever. All else is as in
a base that is not quantised: norms and embeddings keep the model's dtype, which the layers compute in, too.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from clusterucb.errors import ConfigError

__all__ = ["check_quantisation", "keep_packing", "loading"]


def check_quantisation(load_in: str, device: torch.device) -> None:
    """Refuse what cannot be loaded here.

    Raises:
        ConfigError: the package is missing, or the device is not one that it knows.
    """
    if load_in == "dtype":
        return
    if find_spec("bitsandbytes") is None:
        raise ConfigError(f"load_in {load_in}: needs one more package: pip install 'clusterucb[quant]'")
    if device.type not in ("cuda", "cpu"):
        raise ConfigError(
            f"load_in {load_in}: a quantised base runs on cuda or, slowly, on cpu, and the device is "
            f"{device.type}; leave --load-in out"
        )


def loading(load_in: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What from_pretrained is given to quantise a model while it is loaded, straight to its device."""
    check_quantisation(load_in, device)
    if load_in == "dtype":
        return {}
    place = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device
    if load_in == "8bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": {"": place}}
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": settings, "device_map": {"": place}}


def keep_packing(model: nn.Module) -> None:
    """Keep 4-bit weights in the form that has gradients: some CPUs repack them at the first evaluation."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
