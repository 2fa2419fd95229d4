"""Bytes of a model, its adapter and what is computed with them, known from shapes alone.

The model is made without weights, so a plan for a large one needs no machine that could hold it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from clusterucb.config import Config
from clusterucb.gradients.per_sample import adapter_layers
from clusterucb.training.adapter import attach_adapter, read_adapter_shapes
from clusterucb.training.model import empty_model

FLOAT = 4


@dataclass(frozen=True)
class Sizes:
    """Of one model with its adapter.

    Attributes:
        weights: bytes of the base model on its device.
        layers: shape (out, in) of each adapter parameter.
        hidden: numbers of a token's last hidden state.
        unpacked: bytes of the largest quantised layer as it is when it computes; 0 where none is quantised.
    """

    weights: int
    layers: Mapping[str, tuple[int, int]]
    hidden: int
    unpacked: int = 0

    @property
    def adapter(self) -> int:
        """Bytes of the adapter; it is kept in float32."""
        return FLOAT * sum(map(math.prod, self.layers.values()))

    @property
    def moments(self) -> int:
        """Bytes of Adam's two moments of it."""
        return 2 * self.adapter

    @property
    def checkpoint(self) -> int:
        """Bytes of an adapter on disk with its moments."""
        return self.adapter + self.moments

    @property
    def largest_layer(self) -> int:
        """Bytes of one row's gradient of the largest adapter parameter."""
        return FLOAT * max(map(math.prod, self.layers.values()))

    @property
    def layer_inputs(self) -> int:
        """Bytes of one token's inputs of all adapter layers, which are held until their gradient is taken."""
        return FLOAT * sum(inputs for _, inputs in self.layers.values())

    def tables(self, dim: int) -> int:
        """Bytes of CountSketch's tables: an int64 and a sign of one byte for each bucket of each tile."""
        return 9 * dim * sum(-(-math.prod(shape) // dim) for shape in self.layers.values())


def model_sizes(config: Config) -> Sizes:
    """Of the model and adapter that the settings name."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = empty_model(config)
        weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
        unpacked = 0
        for layer in _quantised(model) if config.load_in != "dtype" else ():
            whole = layer.weight.numel() * layer.weight.element_size()
            weights += packed_bytes(layer.out_features, layer.in_features, config.load_in) - whole
            unpacked = max(unpacked, whole)
        if config.adapter is not None:
            return Sizes(weights, read_adapter_shapes(Path(config.adapter)), hidden_size(model), unpacked)
        adapted = attach_adapter(model, config.lora, config.seed)
        layers = adapter_layers(adapted)
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}
    return Sizes(weights, shapes, hidden_size(adapted), unpacked)


def hidden_size(model: nn.Module) -> int:
    """Numbers of a token's last hidden state, as the vocabulary head gets it."""
    head: nn.Linear = model.get_output_embeddings()  # type: ignore[operator]
    return head.in_features


def packed_bytes(outputs: int, inputs: int, load_in: str) -> int:
    """A quantised layer's weights: codes and their scales.

    8bit has a float32 scale an output; 4bit a byte for 64 weights, and a float32 for 256 of these.
    """
    numbers = outputs * inputs
    if load_in == "8bit":
        return numbers + FLOAT * outputs
    scales = -(-numbers // 64)
    return -(-numbers // 2) + scales + FLOAT * -(-scales // 256)


def _quantised(model: nn.Module) -> list[nn.Linear]:
    """The layers that are quantised: all linear ones but the vocabulary head."""
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    return [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
