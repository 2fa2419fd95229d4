"""What passes really do, counted on a real model: operations, calls, and bytes through memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from clusterucb.data.chat import Encoded
from clusterucb.gradients.adam import AdamMap, Moments
from clusterucb.gradients.batches import collate
from clusterucb.gradients.featurizer import Featurizer
from clusterucb.gradients.per_sample import adapter_layers, row_losses
from clusterucb.gradients.projection import CountSketch
from clusterucb.training.passes import StepPasses

__all__ = [
    "Counted",
    "counted_forward",
    "counted_gradients",
    "counted_traffic",
    "counted_training",
    "made_up",
]

VIEWS = ("view", "reshape", "expand", "slice", "detach", "unsqueeze", "transpose", "alias", "t.", "permute")


@dataclass(frozen=True)
class Counted:
    """Operations as torch counts them, and calls of the device."""

    flops: int
    calls: int


class _Calls(TorchDispatchMode):
    """Counts what reaches a device, and the bytes that go in and out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func).removeprefix("aten.")
        if not name.removeprefix("_").startswith(VIEWS):
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
            self.calls += 1
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        return out


def made_up(rows: int, length: int, vocabulary: int) -> list[Encoded]:
    """Random tokens; the second half of each row is the answer."""
    rng = np.random.default_rng(0)
    labels = np.arange(length) >= length // 2
    return [Encoded(rng.integers(3, vocabulary, length).astype(np.int32), labels) for _ in range(rows)]


def moments(model: nn.Module) -> Moments:
    ones = {name: torch.full(layer.weight.shape, 1e-4) for name, layer in adapter_layers(model).items()}
    return Moments(ones, ones, step=1)


def counted_gradients(model: nn.Module, rows: list[Encoded], dim: int = 8192) -> Counted:
    """Features of one micro-batch, by the program's own code."""
    featurize = Featurizer(model, CountSketch(0, dim), moments(model))
    featurize(rows)  # makes the tables
    return _counted(lambda: featurize(rows))


def counted_forward(model: nn.Module, rows: list[Encoded]) -> Counted:
    return _counted(lambda: row_losses(model, collate(rows)))


def counted_training(model: nn.Module, rows: list[Encoded]) -> Counted:
    """One micro-batch of training, as the trainer takes it."""
    step_of_rows, placed = StepPasses(model), [*enumerate(rows)]

    def step() -> None:
        model.train()
        step_of_rows(placed)
        model.zero_grad(set_to_none=True)
        model.eval()

    return _counted(step)


def counted_traffic(shape: tuple[int, int], rows: int, tokens: int, dim: int = 8192) -> float:
    """Times that a row's gradient of one layer goes through memory between its passes and its sketch."""
    m = torch.full(shape, 1e-4)
    adam = AdamMap.of(Moments({"w": m}, {"w": m}, step=1), "less")
    sketch, out = CountSketch(0, dim), torch.zeros(rows, dim)
    left, right = torch.randn(rows, shape[0], tokens), torch.randn(rows, tokens, shape[1])
    sketch.add_to(out, "w", torch.bmm(left, right))
    with _Calls() as calls:
        sketch.add_to(out, "w", torch.bmm(left, right), adam)
    return calls.bytes / (rows * m.numel() * m.element_size())


def _counted(work: Any) -> Counted:
    with FlopCounterMode(display=False) as flops, sdpa_kernel(SDPBackend.MATH):  # it knows no other on a CPU
        work()
    with _Calls() as calls:
        work()
    return Counted(flops.get_total_flops(), calls.calls)
