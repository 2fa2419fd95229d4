"""What fits into a device's memory: found by failing, kept, told once. One policy for all that runs a model.

A micro-batch that does not fit is halved, and those that follow are no larger. A row that does not fit alone
has its layers' activations computed again on the way back, in the place of being kept (gradient
checkpointing; Chen et al. 2016, arXiv 1604.06174); where that does not help, one line names it and ends the
command. Rows are anything whose length is its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from clusterucb.errors import InputError
from clusterucb.runtime.devices import free_memory, is_out_of_memory, name_of
from clusterucb.runtime.files import read_json, write_json
from clusterucb.runtime.sharding import is_sharded

Describe = Callable[[int], str]
"""Names row i of a micro-batch in an error."""

Row = TypeVar("Row", bound=Sized)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Work:
    """What a device is asked for.

    Attributes:
        name: of it.
        advice: what helps where a row does not fit alone, and changes results.
        backward: whether it goes back through the layers, and so keeps their activations.
    """

    name: str
    advice: str
    backward: bool = False


_SHORTER = "lower {} or use a smaller model or rank"
_LENGTHS = _SHORTER.format("--gradient-length (of a target row --target-length)")
GRADIENTS = Work("gradients", _LENGTHS, backward=True)
FORWARD = Work("forward passes", _LENGTHS)
LOSSES = Work("held-out losses", _SHORTER.format("--train-length"))
TRAINING = Work("training", _SHORTER.format("--train-length"), backward=True)
BENCHMARKS = Work("benchmarks", "use --dtype bfloat16 or a smaller model")


@dataclass
class Fit:
    """What fits, as far as it is known.

    Attributes:
        tokens: padded tokens of several rows at once, at most.
        alone: a row of as many tokens, or more, has its activations computed again.
        planned: padded tokens that micro-batches are planned by.
    """

    tokens: int | None = None
    alone: int | None = None
    planned: int | None = None


class Room:
    """What has fitted in a run, by work and kind of device.

    Args:
        path: where it is kept for the commands to come; nowhere without it.
        say: tells a person.
    """

    def __init__(self, path: Path | None = None, say: Callable[[str], None] = lambda _line: None) -> None:
        self._path, self._say = path, say
        self._told = set[str]()
        there = read_json(path) if path and path.exists() else {}
        self.found = {key: Fit(**fit) for key, fit in there.items()}

    def at(self, work: Work, device: torch.device) -> Space:
        """For one kind of work on one device."""
        fit = self.found.setdefault(f"{work.name} on {name_of(device)}", Fit())
        return Space(work, device, fit, self)

    def tell(self, work: Work, line: str) -> None:
        """Tell a person, once of each kind of work."""
        if work.name not in self._told:
            self._told.add(work.name)
            self._say(f"{work.name}: {line}")

    def keep(self) -> None:
        """Write down what is known."""
        if self._path is not None:
            write_json(self._path, {key: asdict(fit) for key, fit in self.found.items() if fit != Fit()})


@dataclass
class Space:
    """What fits of one kind of work on one device."""

    work: Work
    device: torch.device
    fit: Fit
    room: Room
    _news: bool = field(default=False, repr=False)

    def rows(self, longest: int, wanted: int) -> int:
        """How many of `wanted` rows, padded to the longest, may be tried at once: one always."""
        return wanted if self.fit.tokens is None else max(1, min(wanted, self.fit.tokens // longest))

    def recomputes(self, longest: int) -> bool:
        """Whether a row of so many tokens did not fit with its activations kept."""
        return self.fit.alone is not None and longest >= self.fit.alone

    def lower(self, count: int, longest: int, model: nn.Module | None = None) -> None:
        """Know that so many rows, padded to the longest, did not fit.

        Raises InputError, which does not name them, where nothing can be done.
        """
        if model is not None and is_sharded(model):
            raise InputError(
                f"out of memory on {self.device} for a micro-batch of {count} rows from this one on, which "
                "processes that share a model cannot halve; lower --batch-tokens, also of this run directory"
            )
        if count > 1:
            self.fit.tokens = (count + 1) // 2 * longest
        elif model is not None and self.work.backward and not self.recomputes(longest) and _layers(model):
            self.fit.alone = longest
        else:
            raise InputError(
                f"out of memory on {self.device} for this row alone ({longest} tokens); go on with this run "
                f"directory on another --device, or {self.work.advice} in a new one"
            )
        self._news = True
        self.room.keep()

    def most(self, attempt: Callable[[int], object], least: int, most: int) -> int:
        """Tokens to plan micro-batches by: doubled, from the least on, while an attempt at them succeeds."""
        tokens = least
        while 2 * tokens <= most:
            try:
                attempt(2 * tokens)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                break
            tokens *= 2
        free_memory()
        return tokens

    def plan(self, tokens: int) -> int:
        """Plan micro-batches by so many tokens, from now on and in the commands to come."""
        self.fit.planned = tokens
        self.room.keep()
        return tokens

    def told(self) -> None:
        """Something has fitted: tell of what did not."""
        if self._news:
            most, alone = self.fit.tokens, self.fit.alone
            now = [f"at most {most} tokens at once"] if most else []
            now += [f"the activations of rows of {alone} tokens or more computed again"] if alone else []
            self.room.tell(self.work, f"memory ran out on {self.device}; going on with {', '.join(now)}")


def within_memory(
    compute: Callable[[Sequence[Row], Describe], Result],
    rows: Sequence[Row],
    describe: Describe,
    model: nn.Module,
    space: Space,
) -> list[Result]:
    """What `compute(rows, describe)` makes of a micro-batch, or of its halves where memory runs out.

    The processes that share a sharded model compute equally often, so there nothing is halved.

    Raises:
        InputError: memory does not suffice for one row alone, or for the micro-batch where it may not be
            halved; `describe(i)` names row i.
    """
    count, longest = len(rows), max(map(len, rows))
    if space.rows(longest, count) == count:
        try:
            with recomputed(model) if space.recomputes(longest) else nullcontext():
                found = [compute(rows, describe)]
            space.told()
            return found
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        try:
            space.lower(count, longest, model)
        except InputError as error:
            raise InputError(f"{describe(0)}: {error}") from None
        free_memory()  # here, as the error held what was computed
        return within_memory(compute, rows, describe, model, space)
    half = count // 2
    first = within_memory(compute, rows[:half], describe, model, space)
    return first + within_memory(compute, rows[half:], lambda i: describe(half + i), model, space)


@contextmanager
def recomputed(model: nn.Module) -> Iterator[None]:
    """Backward passes compute each layer's activations again, to the same bits, instead of keeping them.

    A layer runs twice, the second time with gradients, so hooks on what is in it meet each gradient once.
    """
    embeddings: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    with ExitStack() as stack:
        asking = embeddings.register_forward_hook(lambda _module, _args, out: out.requires_grad_(True))
        stack.callback(asking.remove)
        for layer in _layers(model):
            layer.forward = _twice(layer.forward)
            stack.callback(delattr, layer, "forward")
        yield


def _twice(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        flat, spec = tree_flatten((args, kwargs))

        def call(*flat: Any) -> Any:
            args, kwargs = tree_unflatten(list(flat), spec)
            return forward(*args, **kwargs)

        return checkpoint(call, *flat, use_reentrant=True)

    return run


def _layers(model: nn.Module) -> list[nn.Module]:
    """Those that transformers would compute again."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
