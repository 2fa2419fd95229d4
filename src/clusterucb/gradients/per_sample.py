"""Gradients of each row's loss with respect to the adapter, from one backward pass over a padded batch.

For a linear layer y = x W^T the gradient of row b's loss is sum_t dL/dy[b, t] x[b, t]^T: an input kept on
the way forward and an output gradient met on the way back, summed over a layer's runs. Rows of a batch do
not mix, because the total loss is the sum of the rows' own losses. Each layer's gradients go to a consumer
at once and are freed.

Knows the model and one batch; nothing of optimizers, projections or files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.hooks import RemovableHandle

from clusterucb.errors import ConfigError
from clusterucb.gradients.anatomy import (
    by_row,
    check_by_row,
    check_steady,
    eval_mode,
    examine,
    inputs_need_gradients,
    stacked_layers,
)
from clusterucb.gradients.batches import Batch
from clusterucb.runtime.sharding import refuse_several_devices, reshard

Consumer = Callable[[str, torch.Tensor], None]

_ADAPTERS_OWN = re.compile(r"(\.lora_[AB])\.[^.]+(?=\.weight$)")


def canonical_name(name: str) -> str:
    """A parameter's name as adapter files spell it: without wrappers and without the adapter's own name."""
    return _ADAPTERS_OWN.sub(r"\1", name.removeprefix("module.").replace("_orig_mod.", ""))


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Canonical name to parameter, for those that training changes, in the model's order.

    Raises ConfigError where two adapters are trained at once.
    """
    reshard(model)
    parameters: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if (canonical := canonical_name(name)) in parameters:
            raise ConfigError(
                f"adapter parameter {name}: another adapter's {canonical} is trained, too; "
                "make one adapter active (model.set_adapter) and freeze the others"
            )
        parameters[canonical] = parameter
    return parameters


def adapter_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers whose weights are the trainable parameters, by canonical parameter name.

    Raises:
        ConfigError: a trainable parameter is not the weight of a linear layer, so that its per-row
            gradient has no such form (DoRA magnitudes, embeddings, trained biases); or a layer is trained
            as a whole (modules_to_save), or is the vocabulary head's; or layers are on several devices.
    """
    refuse_several_devices(model)
    parameters = trainable_parameters(model)
    linears = {m.weight: m for m in model.modules() if isinstance(m, nn.Linear)}
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[operator]
    of_head = set(head.parameters()) if head is not None else set()
    layers = {}
    for name, parameter in parameters.items():
        if parameter not in linears or ".modules_to_save." in name:
            raise ConfigError(
                f"adapter parameter {name}: per-row gradients need every trainable parameter to be the "
                f"weight of a linear layer; use a plain LoRA adapter without biases, DoRA or modules_to_save"
            )
        if parameter in of_head:
            raise ConfigError(
                f"adapter parameter {name}: the vocabulary head is given label positions only, so no row's "
                "gradient is known there; leave the head out of the target modules"
            )
        layers[name] = linears[parameter]
    if not layers:
        raise ConfigError("the model has no trainable parameter: attach a LoRA adapter that is not frozen")
    return layers


def upper_half(model: nn.Module, layers: Mapping[str, nn.Linear]) -> dict[str, nn.Linear]:
    """Those of `adapter_layers(model)` in the upper half of the model's layers, of an odd number the larger.

    Raises ConfigError where there are none.
    """
    stack = stacked_layers(model)
    upper = {module for layer in stack[len(stack) // 2 :] for module in layer.modules()}
    found = {name: layer for name, layer in layers.items() if layer in upper}
    if not found:
        raise ConfigError(
            f"features top: no adapter is in the upper half of the model's {len(stack)} layers; use "
            "--features gradients, or other --target-modules"
        )
    return found


def row_losses(model: nn.Module, batch: Batch) -> NDArray[np.float64]:
    """Mean cross-entropy over the label tokens of each row, (B,), without gradients."""
    with torch.no_grad(), eval_mode(model):
        return batch.row_means(label_losses(model, batch).cpu().numpy())


def row_gradients(
    model: nn.Module,
    layers: dict[str, nn.Linear],
    batch: Batch,
    consume: Consumer,
    axes: Mapping[str, int] | None = None,
) -> torch.Tensor:
    """Hand `consume(name, gradients)` every layer's per-row gradients, and return the labels' losses.

    Nothing of ours waits for the device here; the model's own code may (transformers looks once or twice
    whether a mask hides anything).

    Args:
        model: a transformers causal LM with an adapter; run in eval mode, so without dropout.
        layers: what `adapter_layers(model)` returned, or some of them: the backward pass ends at the lowest.
        batch: B rows.
        consume: called once a layer, in the backward pass's order, with float32 (B, out, in).
        axes: of the layers, as `examine(model, layers)` found them; found anew without.

    Returns:
        Cross-entropy of each label, (L,), on the device; `batch.row_means` makes the rows' losses of them.

    Raises:
        ConfigError: a layer mixes rows, or takes no part (an adapter that is trainable and not active).
    """
    axes = axes or examine(model, layers).axes
    linears = (module for module in model.modules() if isinstance(module, nn.Linear))
    others = {linear for linear in linears if linear.weight.requires_grad}.difference(layers.values())
    with (
        eval_mode(model),
        nullcontext() if others else inputs_need_gradients(model),
        _frozen([*layers.values(), *others]),
        ExitStack() as stack,
    ):
        given = _given_to_adapters(model, stack)
        sums = {name: _RunSum(name, axes[name], batch, consume, given) for name in layers}
        for name, layer in layers.items():
            stack.enter_context(layer.register_forward_hook(sums[name].run))
        with torch.enable_grad():
            losses = label_losses(model, batch)
            for one in sums.values():
                one.count()
            (losses * batch.weights).sum().backward()  # type: ignore[no-untyped-call]
        for name, layer in layers.items():
            sums[name].end(layer)
    return losses.detach()


def label_losses(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Cross-entropy of each label, (L,), in float32, of a model as it is: in training with dropout."""
    check_steady(model, batch.ids.shape[1])
    with _labels_only(model, batch):
        logits = model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits[0]
    return nn.functional.cross_entropy(logits.float(), batch.answers, reduction="none")  # of (L, V)


def _given_to_adapters(model: nn.Module, stack: ExitStack) -> dict[nn.Module, torch.Tensor]:
    """What peft's layers were given last, by their matrices A, which get a float32 copy of it each.

    Beside a half-precision base it takes half the memory, and q, k and v are given one tensor.
    """
    given: dict[nn.Module, torch.Tensor] = {}

    def keep(adapted: Any, args: tuple[torch.Tensor, ...]) -> None:
        given.update((layer, args[0].detach()) for layer in adapted.lora_A.values())

    for module in model.modules():
        plain = not getattr(module, "lora_variant", True)
        if plain and isinstance(getattr(module, "lora_A", None), nn.ModuleDict):
            stack.enter_context(module.register_forward_pre_hook(keep))
    return given


class _RunSum:
    """A layer's per-row gradients, summed over its runs in one pass before they are consumed."""

    def __init__(
        self, name: str, axis: int, batch: Batch, consume: Consumer, given: dict[nn.Module, torch.Tensor]
    ) -> None:
        self._name, self._axis, self._consume, self._given = name, axis, consume, given
        self._rows, self._tokens = batch.ids.shape
        self._runs, self._expected, self._finished = 0, 0, False
        self._sum: torch.Tensor | None = None

    def run(self, layer: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """A forward hook. A run without gradients is passed over; one on what has none asks for its own."""
        self._runs += 1
        if not torch.is_grad_enabled():  # also of a layer that will run again, on the way back
            return
        if not output.requires_grad:
            output.requires_grad_(True)
        given = self._given.pop(layer, args[0]).detach()
        check_by_row(self._name, given.shape, self._axis, self._rows, self._tokens)
        inputs = by_row(given, self._axis, self._rows)  # (B, n, in)

        def backward(gradient: torch.Tensor) -> None:
            outward = by_row(gradient, self._axis, self._rows)  # (B, n, out)
            found = torch.bmm(outward.float().transpose(1, 2), inputs.float())
            self._sum = found if self._sum is None else self._sum.add_(found)
            self._expected -= 1
            if not self._expected:
                self._finish(self._sum)

        output.register_hook(backward)  # type: ignore[no-untyped-call]

    def count(self) -> None:
        """The way forward has ended: so many runs are expected on the way back."""
        self._expected = self._runs

    def end(self, layer: nn.Linear) -> None:
        """Hand over what has not been: of runs of which some did not matter, or zeros where none did."""
        if not self._finished:
            shape = (self._rows, layer.out_features, layer.in_features)
            zeros = torch.zeros(shape, device=layer.weight.device)
            self._finish(zeros if self._sum is None else self._sum)

    def _finish(self, gradients: torch.Tensor) -> None:
        self._finished, self._sum = True, None
        self._consume(self._name, gradients)


def _labels_only(model: nn.Module, batch: Batch) -> RemovableHandle:
    """The vocabulary head sees label positions only: (B, T, H) becomes (1, L, H) just before it."""

    def gather(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        return (hidden.reshape(-1, hidden.shape[-1])[batch.predictors].unsqueeze(0), *args[1:])

    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    return head.register_forward_pre_hook(gather)


@contextmanager
def _frozen(layers: Iterable[nn.Linear]) -> Iterator[None]:
    """No summed weight gradient is formed: the per-row ones are all that is wanted.

    A layer's weight is looked up when the layer runs: that of a sharded model is another tensor then.
    """
    weights: list[torch.Tensor] = []

    def freeze(layer: nn.Module, _: tuple[torch.Tensor, ...]) -> None:
        weight: torch.Tensor = layer.weight  # type: ignore[assignment]
        weights.append(weight.requires_grad_(False))

    with ExitStack() as stack:
        stack.callback(lambda: [weight.requires_grad_(True) for weight in weights])
        for layer in layers:
            stack.enter_context(layer.register_forward_pre_hook(freeze))
        yield
