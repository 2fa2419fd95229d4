"""Per-row gradients of every causal language model of transformers, against a one-row autograd loop.

    python benchmarks/architectures.py            all that can be built (minutes)
    python benchmarks/architectures.py llama opt  some, by model type

A tiny model with random weights is made of each configuration, with LoRA on all linear layers but the head.
Layers that are refused are left out, and told. The gradients of four rows of unlike lengths, padded to one
batch, are compared with autograd's of each row alone. Prints the rows of docs/models.md's table.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from clusterucb.data.chat import Encoded
from clusterucb.errors import ClusterUCBError
from clusterucb.gradients.anatomy import examine, idle_layers
from clusterucb.gradients.batches import collate
from clusterucb.gradients.per_sample import adapter_layers, row_gradients

VOCABULARY, LENGTHS = 320, (17, 9, 12, 5)
LARGEST = 120_000_000
"""Parameters of a model that is still small; others do not follow the sizes below."""
ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError),
    *(TypeError, ValueError, ClusterUCBError, StrictDataclassError),
)
"""What another library may raise of sizes that are not its own."""
SIZES: dict[str, Any] = {
    **{"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2},
    **{"is_decoder": True, "use_cache": False, "tie_word_embeddings": False},
    **{"embedding_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "decoder_ffn_dim": 48},
    **{"encoder_layers": 2, "decoder_layers": 2, "decoder_attention_heads": 4, "encoder_attention_heads": 4},
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2},
    **{"moe_num_experts": 4, "moe_k": 2, "moe_topk": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1},
    **{"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "first_k_dense_replace": 1},
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8},
    **{"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "state_size": 8},
    **{"ssm_state_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1, "time_step_rank": 4},
    **{"lru_width": 32, "d_inner": 48, "attention_hidden_size": 32, "query_pre_attn_scalar": 8},
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8},
    **{"linear_value_head_dim": 8, "shared_intermediate_size": 48, "hidden_size_per_layer_input": 8},
    **{"mamba_d_ssm": 64, "expand": 2, "attention_window": 16, "num_heads": 8},
    **{"vocab_size_per_layer_input": VOCABULARY, "multi_query": True, "rotary_dim": 4, "d_head": 8},
}


def main() -> None:
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    print("| model type | linear layers compared | worst error | left out, and why |\n|---|---|---|---|")
    for model_type in sys.argv[1:] or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        print(f"| {model_type} | {' | '.join(row(model_type))} |", flush=True)


def row(model_type: str) -> tuple[str, str, str]:
    """Of the table: layers by the last words of their names, worst error over the norm, what was left out."""
    try:
        base = tiny(model_type)
        linears = linear_layers(base)
        out = dict.fromkeys(idle_layers(base, linears), "no text reaches it")
    except ERRORS as error:
        return "", "", f"not built: {_short(error)}"
    while names := sorted(linears.keys() - out.keys()):
        model = tiny(model_type)
        try:
            model = adapted(model, names)
            layers = adapter_layers(model)
            causal = examine(model, layers).causal
            worst = compared(model, layers)
        except _RefusedError as refused:
            out |= refused.layers
        except ERRORS as error:
            named = re.search(r"(?:layer|parameter|text, in) (\S+?)(?:\.lora_\S+)?:? ", f"{error} ")
            if named is None or (layer := named[1].removeprefix("base_model.model.")) not in names:
                return "", "", f"does not run: {_short(error)}"
            out[layer] = _why(str(error))
        else:
            told = [] if causal else ["not causal, so a run refuses it"]
            return ", ".join(_words(names)), f"{worst:.1e}", "; ".join(told + _grouped(out))
    return "", "", "; ".join(_grouped(out)) or "no linear layer"


class _RefusedError(Exception):
    """Peft takes no adapter on some layers."""

    def __init__(self, names: Iterable[str], why: str) -> None:
        self.layers = dict.fromkeys(names, why)


def tiny(model_type: str) -> Any:
    """A model of a few thousand parameters; ValueError where the sizes are not the configuration's own."""
    kind = CONFIG_MAPPING[model_type]
    try:
        return built(configured(kind))
    except ERRORS:  # where kinds of layers are listed by number
        return built(configured(kind, layer_types=["full_attention"] * 2))


def built(config: Any) -> Any:
    """The same weights whenever it is called."""
    with torch.device("meta"):
        count = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if count > LARGEST:
        raise ValueError(f"{count / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def configured(kind: Any, **more: Any) -> Any:
    """A configuration with those of the sizes that it knows, in its parts too."""
    known = {field.name for field in dataclasses.fields(kind)} | set(kind.attribute_map)
    if "qk_rope_head_dim" in known:  # which a head's size is made of; there are as many keys as queries
        known -= {"head_dim", "num_key_value_heads"}
    parts = {
        name: configured(part, **more)
        for name, part in (kind.sub_configs or {}).items()
        if name == "text_config" and dataclasses.is_dataclass(part)
    }
    sizes = {name: size for name, size in {**SIZES, **more}.items() if name in known}
    if "kv_lora_rank" in sizes:
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    return kind(**sizes, **parts)


def linear_layers(model: Any) -> dict[str, nn.Module]:
    """Its linear layers by name, without the head."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and not name.endswith("lm_head")
    }


def adapted(model: Any, names: list[str]) -> Any:
    """With LoRA matrices of which neither is zero."""
    settings = LoraConfig(r=4, target_modules=names, task_type="CAUSAL_LM")
    try:
        model = get_peft_model(model, settings)
    except ValueError as error:
        if named := re.search(r"Module '(\S+)' is incompatible", str(error)):
            raise _RefusedError((n for n in names if n.endswith(named[1])), "peft refuses it") from None
        if settings.target_parameters is None:
            raise
    if settings.target_parameters:
        gone = {*names} - {*settings.target_modules}
        raise _RefusedError(gone, "peft puts the adapters of fused experts in its place")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return model.eval()


def compared(model: Any, layers: dict[str, nn.Linear]) -> float:
    """The largest error of a row's gradient, as a share of its norm."""
    batch, found = rows(), [dict[str, torch.Tensor]() for _ in LENGTHS]

    def consume(name: str, gradients: torch.Tensor) -> None:
        for gradient, mine in zip(gradients, found, strict=True):
            mine[name] = gradient.clone()

    row_gradients(model, layers, collate(batch), consume)
    pairs = zip(found, batch, strict=True)
    return float(np.max([_error(mine, alone(model, layers, row)) for mine, row in pairs]))  # NaN stays NaN


def _error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    one, other = (torch.cat([g[name].flatten() for name in expected]) for g in (found, expected))
    return float((one - other).norm() / other.norm())


def rows() -> list[Encoded]:
    """Random tokens, of which the second half are labels."""
    rng = np.random.default_rng(0)
    return [Encoded(rng.integers(3, VOCABULARY, n).astype(np.int32), np.arange(n) >= n // 2) for n in LENGTHS]


def alone(model: Any, layers: dict[str, nn.Linear], row: Encoded) -> dict[str, torch.Tensor]:
    """One row's gradients by autograd, through the model's own logits, without padding."""
    ids = torch.from_numpy(row.ids.astype(np.int64))
    logits = model(input_ids=ids[None], use_cache=False).logits[0]
    labels = ids.where(torch.from_numpy(row.labels), -100)
    loss = nn.functional.cross_entropy(logits[:-1].float(), labels[1:])
    weights = [layer.weight for layer in layers.values()]
    found = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
    return dict(zip(layers, found, strict=True))


def _why(message: str) -> str:
    reasons = {
        "in which no axis": "given tokens of all rows together",
        "cannot be run": "an adapter breaks it",
    }
    return next((short for words, short in reasons.items() if words in message), message)


def _words(names: Iterable[str]) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name in names})


def _grouped(out: dict[str, str]) -> list[str]:
    """Of each reason, the layers by the last two words of their names."""
    return [
        f"{', '.join(sorted({'.'.join(n.split('.')[-2:]) for n in out if out[n] == why}))}: {why}"
        for why in sorted({*out.values()})
    ]


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:120].replace("|", "/")


if __name__ == "__main__":
    main()
