"""Adam's moments by parameter name: out of a live optimizer, a file of ours, or one that a trainer has left.

An optimizer's own state is keyed by position or by number, which says nothing once parameters are ordered
otherwise. Here a moment always carries the name of its parameter.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import Trainer

from clusterucb.errors import InputError, MismatchError, reason
from clusterucb.gradients.adam import Moments
from clusterucb.gradients.per_sample import canonical_name, trainable_parameters
from clusterucb.runtime.files import publish
from clusterucb.runtime.sharding import whole


def moments_of(optimizer: Any, model: nn.Module) -> Moments:
    """The moments of the model's trainable parameters in a live AdamW, copied; whole, if it is sharded."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    groups = optimizer.param_groups
    if "betas" not in groups[0] or any(s and "exp_avg_sq" not in s for s in optimizer.state.values()):
        raise MismatchError(
            f"optimizer {type(optimizer).__name__}: expected Adam or AdamW, which keep two moments"
        )
    states = {name: optimizer.state.get(p) for name, p in trainable_parameters(model).items()}
    if idle := [name for name, state in states.items() if not state]:
        raise MismatchError(f"the optimizer has no moments of {idle[0]}: train for a step first")
    return _moments(states, groups)


def _moments(states: Mapping[str, dict[str, Any]], groups: Sequence[Mapping[str, Any]]) -> Moments:
    """Out of Adam's state by parameter name, copied, and the param groups, which may differ in rates only."""
    if len(settings := {(*group["betas"], group["eps"]) for group in groups}) > 1:
        raise MismatchError(
            f"the optimizer's param groups have several betas and eps ({sorted(settings)}); expected one of "
            "each, for all parameters"
        )
    ((*betas, eps),) = settings
    mean, square = (
        {name: whole(state[kind].detach()).float().clone() for name, state in states.items()}
        for kind in ("exp_avg", "exp_avg_sq")
    )
    step = max((int(state["step"]) for state in states.values()), default=0)
    return Moments(mean, square, step, (betas[0], betas[1]), eps)


def save_moments(moments: Moments, path: Path) -> None:
    """Publish moments as safetensors: `mean.<name>` and `square.<name>`, with step, betas and eps."""
    tensors = {f"mean.{n}": t.cpu().contiguous() for n, t in moments.mean.items()}
    tensors |= {f"square.{n}": t.cpu().contiguous() for n, t in moments.square.items()}
    facts = {"step": moments.step, "betas": list(moments.betas), "eps": moments.eps}
    with publish(path) as part:
        save_file(tensors, part, metadata={"adam": json.dumps(facts)})


def load_moments(path: Path) -> Moments:
    """What `save_moments` wrote."""
    kinds: dict[str, dict[str, torch.Tensor]] = {"mean": {}, "square": {}}
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["adam"])
        for key in file.keys():  # noqa: SIM118 (not a dict)
            kind, name = key.split(".", 1)
            kinds[kind][name] = file.get_tensor(key)
    return Moments(kinds["mean"], kinds["square"], facts["step"], tuple(facts["betas"]), facts["eps"])


def import_moments(checkpoint: Path, model: nn.Module) -> Moments:
    """Moments out of a trainer's checkpoint folder.

    Reads our own `moments.safetensors`, else `optimizer.pt` or `optimizer.bin`: keyed by number (named by the
    param groups, or in the order in which transformers' Trainer fills its two) or by parameter name (FSDP's
    full state).

    Raises:
        InputError: no such file, or one that does not load without running code.
        MismatchError: the state belongs to other parameters.
    """
    if (checkpoint / "moments.safetensors").exists():
        moments = load_moments(checkpoint / "moments.safetensors")
    else:
        moments = _trainers_moments(checkpoint, model)
    moments.check({name: p.shape for name, p in trainable_parameters(model).items()})
    return moments


def _trainers_moments(checkpoint: Path, model: nn.Module) -> Moments:
    paths = [checkpoint / name for name in ("optimizer.pt", "optimizer.bin")]
    path = next((p for p in paths if p.exists()), None)
    if path is None:
        raise InputError(
            f"{checkpoint}: has no moments.safetensors, optimizer.pt or optimizer.bin; "
            f"save the checkpoint with its optimizer (save_only_model=False)"
        )
    groups, states = _read_state(path)
    named = _by_name(groups, states, model, path)
    if not named or "betas" not in groups[0] or any("exp_avg_sq" not in state for state in named.values()):
        raise MismatchError(
            f"{path}: holds no moments of Adam; expected the state of Adam or AdamW after at least one step"
        )
    return _moments(named, groups)


def _read_state(path: Path) -> tuple[list[dict[str, Any]], Mapping[Any, dict[str, Any]]]:
    """An optimizer's param groups and states, read without running code."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on a pickle's protocol before it refuses it
            saved = torch.load(path, map_location="cpu", weights_only=True)
        return saved["param_groups"], saved["state"]
    except (RuntimeError, LookupError, TypeError, EOFError, ValueError, UnpicklingError) as error:
        raise InputError(f"{path}: cannot be read as an optimizer's state ({reason(error)})") from None


def _by_name(
    groups: list[dict[str, Any]], states: Mapping[Any, dict[str, Any]], model: nn.Module, path: Path
) -> dict[str, dict[str, Any]]:
    if any(isinstance(key, str) for key in states):
        return {canonical_name(name): state for name, state in states.items()}
    numbers = [number for group in groups for number in group["params"]]
    if all("param_names" in group for group in groups):  # as torch keeps them of named parameters
        names = [canonical_name(name) for group in groups for name in group["param_names"]]
    else:
        names = _trainer_order(model, [len(group["params"]) for group in groups], path)
    return {name: states[number] for number, name in zip(numbers, names, strict=True) if number in states}


def _trainer_order(model: nn.Module, sizes: Sequence[int], path: Path) -> list[str]:
    """Names in the order of the param groups of transformers' Trainer: decayed first, then the others.

    Raises MismatchError unless the groups have the sizes of these two, or are one of all parameters.
    """
    names = list(trainable_parameters(model))
    if sum(sizes) != len(names):
        raise MismatchError(
            f"{path}: has {sum(sizes)} parameters, the adapter {len(names)}: it belongs to another adapter"
        )
    if len(sizes) == 1:
        return names
    decay = {canonical_name(n) for n in Trainer.get_decay_parameter_names(cast(Trainer, None), model)}
    decayed, others = [n for n in names if n in decay], [n for n in names if n not in decay]
    if [*sizes] != [len(decayed), len(others)]:
        raise MismatchError(
            f"{path}: its param groups have {', '.join(map(str, sizes))} parameters (as of LoRA+ or rates by "
            f"layer), transformers' Trainer's {len(decayed)} and {len(others)}, so it is not known whose its "
            "moments are; save the state of an optimizer of named parameters, AdamW(model.named_parameters())"
        )
    return decayed + others
