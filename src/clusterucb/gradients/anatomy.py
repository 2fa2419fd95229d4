"""How a model treats the rows of a batch: what two passes of two short rows show.

The passes differ in some tokens of one row only. So what differs in a layer's input tells along which axis
rows lie there; logits that differ before, that tokens see those behind them. A table that is looked up in
counting up is one of positions. A layer that no text reaches, or that is given all rows at once, is refused.

Knows the model; nothing of gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from traceback import walk_tb
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from clusterucb.errors import ConfigError, reason
from clusterucb.runtime.devices import is_out_of_memory, passes_of
from clusterucb.runtime.sharding import is_sharded, reshard

ROWS, TOKENS = 2, 7
"""Of the passes; the second row is two tokens shorter."""
CHANGED = slice(2, TOKENS - 2)
"""Its tokens that differ between the passes."""


@dataclass(frozen=True)
class Anatomy:
    """What the passes have shown.

    Attributes:
        axes: of each layer's input, the one along which rows lie one after another.
        causal: no token sees those behind it.
        vocabulary: token ids that have an embedding.
        room: tokens that a row may have, and what ends there; None where nothing does.
    """

    axes: Mapping[str, int]
    causal: bool
    vocabulary: int
    room: tuple[int, str] | None


def examine(model: nn.Module, layers: Mapping[str, nn.Module]) -> Anatomy:
    """How a model treats rows, and gives them to `layers`, by name.

    Raises:
        ConfigError: a layer has no gradient of a text's, or no axis of rows; or the model does not run.
    """
    vocabulary, dtype = len(_embeddings(model).weight), _embeddings(model).weight.dtype
    ids = torch.arange(1, 1 + ROWS * TOKENS).view(ROWS, TOKENS) * max(2, vocabulary // 32) % vocabulary
    others = ids.clone()
    others[1, CHANGED] = (ids[1, CHANGED] + 1) % vocabulary
    with _Tables() as tables:
        given, logits = _run(model, layers, ids)
    again, changed = _run(model, layers, others)
    reshard(model)
    if idle := [name for name in layers if not given[name]]:
        where = parts(idle, layers.keys() - idle)
        raise ConfigError(
            f"layer {min(idle)}: is trainable and takes no part in the model's pass of a text, so it has no "
            f"gradient (so have {len(idle)} of {len(layers)} layers, in {_few(where)}); leave such layers "
            f"out (--exclude-modules {_few(where, ' ')}), or activate their adapter (model.set_adapter)"
        )
    axes = {name: _shared_axis(name, given[name], again[name]) for name in layers}
    ends = [(size, f"has {size} positions") for size in tables.positions]
    ends += [steady] if (steady := steady_length(model)) else []
    return Anatomy(axes, _is_causal(logits, changed, dtype), vocabulary, min(ends, default=None))


def idle_layers(model: nn.Module, layers: Mapping[str, nn.Module]) -> list[str]:
    """Those of the layers, by name, that take no part in a text's pass."""
    given, _ = _run(model, layers, torch.ones(1, TOKENS, dtype=torch.long))
    return [name for name in layers if not given[name]]


def stacked_layers(model: nn.Module) -> Sequence[nn.Module]:
    """The model's layers, one after the other; none where they are not kept as a list."""
    config: Any = model.config
    number = config.get_text_config().num_hidden_layers
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return next(([*layers] for layers in lists if len(layers) == number), [])


def steady_length(model: nn.Module) -> tuple[int, str] | None:
    """The tokens above which a row changes the positions of all rows beside it, and why; None if none does.

    Rotary frequencies of these kinds are those of the longest row (transformers' `dynamic_rope_update`).
    """
    ends = []
    for module in model.modules():
        kinds = vars(module).get("rope_type", ())  # one, or one for each kind of layers
        for layers, kind in kinds.items() if isinstance(kinds, dict) else [(None, kinds)]:
            if "dynamic" in str(kind) or kind == "longrope":
                end = _steady_length(module, kind, layers)
                what = f"a row of more than {end} tokens moves the positions of all beside it"
                ends.append((end, f"has rope_type {kind}: {what}"))
    return min(ends, default=None)


def _steady_length(rotary: Any, kind: str, layers: str | None) -> int:
    end: int = rotary.original_max_seq_len
    if kind == "longrope":
        settings = getattr(rotary.config, "rope_parameters", None) or rotary.config.rope_scaling
        named = (settings[layers] if layers else settings).get("original_max_position_embeddings")
        return int(named or getattr(rotary.config, "original_max_position_embeddings", end))
    return end - bool(rotary.max_seq_len_cached > end)  # where a longer row before has left its mark


def check_steady(model: nn.Module, tokens: int) -> None:
    """Raise ConfigError for rows padded to so many tokens that their positions depend on each other."""
    if (steady := steady_length(model)) and tokens > steady[0]:
        raise ConfigError(
            f"the model {steady[1]}, and here is one of {tokens}; lower --gradient-length, --target-length "
            f"and --train-length to {steady[0]}"
        )


def by_row(tensor: torch.Tensor, axis: int, rows: int) -> torch.Tensor:
    """(B, n, H) of (..., H), where B `rows` lie one after another along `axis`."""
    apart: torch.Tensor = tensor.unflatten(axis, (rows, -1))  # type: ignore[no-untyped-call]
    return apart.movedim(axis, 0).flatten(1, -2)


def check_by_row(name: str, shape: Sequence[int], axis: int | None, rows: int, tokens: int) -> int:
    """The axis, where an input of this shape has B `rows` of so many padded `tokens` along it.

    Raises ConfigError where it has not.
    """
    if axis is not None and axis < len(shape) - 1 and shape[axis] in (rows, rows * tokens):
        return axis
    raise ConfigError(
        f"layer {name}: of {rows} rows of {tokens} tokens it is given {tuple(shape)}, in which no axis is "
        "that of rows: tokens of several rows together, as routed experts are, so no row's gradient is known "
        "there; leave such layers out (--target-modules, --exclude-modules)"
    )


def parts(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """What holds the modules of `names` and none of `others`: its last word, where no other has that."""
    around = {prefix for name in others for prefix in _prefixes(name)}
    words = {word for prefix in around for word in prefix.split(".")}
    found = [next((prefix for prefix in _prefixes(name) if prefix not in around), name) for name in names]
    short = {path: path.rsplit(".", 1)[-1] for path in found}
    return [*dict.fromkeys(path if w in words or w.isdigit() else w for path, w in short.items())]


def _prefixes(name: str) -> list[str]:
    words = name.removeprefix("base_model.model.").split(".")
    return [".".join(words[: end + 1]) for end in range(len(words))]


def _few(names: Sequence[str], between: str = ", ") -> str:
    return between.join(names[:4]) + (f"{between}..." if len(names) > 4 else "")


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """The model without dropout, as it was written and as `passes_of` computes, while the block runs."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with passes_of(model), _uncompiled(model):
            yield
    finally:
        for module in training:
            module.training = True


def _uncompiled(model: nn.Module) -> AbstractContextManager[None]:
    """A compiled model run as it was written: what was compiled without the hooks would pass them by."""
    compiled = any(m._compiled_call_impl or "_orig_mod" in m._modules for m in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def inputs_need_gradients(model: nn.Module) -> RemovableHandle:
    """Let gradients flow although no weight asks for one: the embeddings' output asks instead.

    The model gets a copy, which it may change in place.
    """
    return _embeddings(model).register_forward_hook(
        lambda _, _args, output: output.requires_grad_(True).clone()
    )


def _embeddings(model: nn.Module) -> nn.Embedding:
    found: nn.Embedding = model.get_input_embeddings()  # type: ignore[operator]
    return found


def _run(
    model: nn.Module, layers: Mapping[str, nn.Module], ids: torch.Tensor
) -> tuple[dict[str, list[torch.Tensor]], torch.Tensor]:
    """What each layer is given, run by run, where a gradient would come back; and the logits."""
    given: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    attention = torch.ones_like(ids)
    attention[1:, CHANGED.stop :] = 0
    device = _embeddings(model).weight.device

    def look(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any], _output: torch.Tensor) -> None:
            if torch.is_grad_enabled():
                given[name].append(next(iter((*args, *named.values()))).detach())

        return hook

    def headed(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        heads.append(args[0].shape[:-1])

    heads: list[torch.Size] = []
    with eval_mode(model), inputs_need_gradients(model), ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        for name, layer in layers.items():
            stack.enter_context(layer.register_forward_hook(look(name), with_kwargs=True))
        if (head := model.get_output_embeddings()) is not None:  # type: ignore[operator]
            stack.enter_context(head.register_forward_pre_hook(headed))
        stack.enter_context(_told(model))
        logits = model(input_ids=ids.to(device), attention_mask=attention.to(device), use_cache=False).logits
    if heads != [ids.shape]:  # or labels could not be picked there
        raise ConfigError(
            f"{_called(model)}: its vocabulary head is given {[*map(tuple, heads)]}, expected rows of tokens "
            f"{tuple(ids.shape)} once; no row's loss is known so, take another model"
        )
    return given, logits.detach().float()


@contextmanager
def _told(model: nn.Module) -> Iterator[None]:
    """What another library raises while the model runs is an error of one line that names the layer."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if is_sharded(model) or is_out_of_memory(error):
            raise
        names = {id(module): name.removeprefix("base_model.model.") for name, module in model.named_modules()}
        callers = (frame.f_locals.get("self") for frame, _ in walk_tb(error.__traceback__))
        *_, layer = ("", *(names[id(caller)] for caller in callers if id(caller) in names))
        raise ConfigError(
            f"{_called(model)}: cannot be run on a text, in {layer or 'the whole'} ({type(error).__name__}: "
            f"{reason(error)}); leave that layer out of the target modules, or take another model"
        ) from None


def _called(model: nn.Module) -> str:
    inner: Any = getattr(model, "get_base_model", lambda: model)()  # not peft's wrapper
    return getattr(inner, "name_or_path", "") or type(inner).__name__


class _Tables(TorchFunctionMode):
    """Sees tables that are looked up in counting up: `positions` are what they hold from the first on."""

    def __init__(self) -> None:
        super().__init__()
        self.positions: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.embedding:
            self._look(args[0], len(args[1]))
        elif func in (torch.gather, torch.Tensor.gather) and len(args) == 3:
            self._look(args[2].select(-1, 0), args[0].shape[args[1]])
        return func(*args, **(kwargs or {}))

    def _look(self, places: torch.Tensor, size: int) -> None:
        if places.shape[-1:] == (TOKENS,) and (places.reshape(-1, TOKENS)[0].diff() == 1).all():
            self.positions.append(size - int(places.reshape(-1)[0]))


def _shared_axis(name: str, given: Sequence[torch.Tensor], again: Sequence[torch.Tensor]) -> int:
    """The axis of rows in all that a layer is given."""
    same = [one.shape for one in given] == [other.shape for other in again]
    axes = {_axis(*pair) for pair in zip(given, again, strict=True)} if same else {None}
    return check_by_row(name, given[0].shape, axes.pop() if len(axes) == 1 else None, ROWS, TOKENS)


def _axis(one: torch.Tensor, other: torch.Tensor) -> int | None:
    """The first along which all that differs is in the second of two rows, but for rounding."""
    for axis, size in enumerate(one.shape[:-1]):
        if size in (ROWS, ROWS * TOKENS):
            first, second = by_row((one - other).float(), axis, ROWS).flatten(1).norm(dim=1)
            if not first > 0.01 * second:  # not a number either, which the row's loss will tell
                return axis
    return None


def _is_causal(logits: torch.Tensor, changed: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether the logits (B, T, V) before the first token that differs are the same, but for rounding."""
    change = (logits - changed)[1].norm(dim=1)  # (T,)
    rounding = max(1e-3, 8 * torch.finfo(dtype).eps) * float(change[CHANGED].max())
    return not float(change[: CHANGED.start].max()) > rounding
