"""The processes of a run: one, or as many as torchrun or accelerate has started.

A `World` says which of them this one is, and has the few verbs by which they act together. One process alone
does each of them trivially, so no step asks how many there are. Rank 0 leads: it owns the run directory,
writes everything in it but rows of a feature store, and speaks to the person.

    share     like pieces of work: each process does its part, and all get all results, in order
    lead      rank 0 acts or decides; the others wait as long as it takes, and get what it returns
    once      the same for what is needed at no fixed moment: rank 0 acts, the others wait until it has
    gather    a value of each process, for all
    total     sums over processes, which no order of adding can change if they are of whole numbers

They meet through torchrun's store and torch.distributed (gloo between hosts' memories, nccl between GPUs).
Nothing is set up at import, and nothing at all where there is one process. accelerate's gathers are the same
calls behind a state of the whole process, which knows of no attempts and names no rank that is lost.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from clusterucb.errors import ConfigError, LostError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
Item = TypeVar("Item")

TIMEOUT = "CLUSTERUCB_TIMEOUT"
"""Environment variable: seconds that a process waits for the others where all meet."""

_SECONDS = 1800
_POLL = 0.02
_GRACE = 1.0  # for the processes that are there to say so, before the others are called lost
_FAREWELL = 5.0  # for the others to end by themselves, before torchrun ends them
_MEETINGS = 20  # of processes that share a piece of work, at least: so often does its bar move
_TALK = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe", "Timed out waiting")


@dataclass(frozen=True)
class World:
    """Which process this is, and of how many; as it stands, the only one.

    Attributes:
        rank: from 0.
        size: number of processes.
        step: what they are at, for messages.
        together: what `in_step` asks for.
        store: keys and values that all see, served by torchrun itself.
        seconds: how long the others are waited for where all meet.
        group: of torch.distributed, by which they meet; None is all that there are.
    """

    rank: int = 0
    size: int = 1
    step: str = "start"
    together: bool = False
    store: Any = None
    seconds: float = _SECONDS
    group: Any = None
    _numbers: Iterator[int] = field(default_factory=itertools.count, repr=False)

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def at(self, step: str) -> World:
        """The same processes at another step."""
        return replace(self, step=step)

    def in_step(self) -> World:
        """The same processes, of which each computes as many items as the others whenever they share."""
        return replace(self, together=True)

    def gather(self, value: T) -> list[T]:
        """The value of each process, by rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        self._meet(dist.all_gather_object, found, value)
        return found

    def total(self, numbers: Tensor) -> Tensor:
        """The sum over all processes, in place; exact for whole numbers, below 2^53 in float64."""
        if self.size > 1:
            import torch.distributed as dist

            self._meet(dist.all_reduce, numbers)
        return numbers

    def share(
        self,
        items: Sequence[Item],
        compute: Callable[[Sequence[Item]], Iterable[T]],
        each: int = 1,
    ) -> Iterator[tuple[Item, T]]:
        """Every item, in order, with what `compute` makes of it: one result an item, from some of them.

        Items of like size should be neighbours, as neighbours go to different processes. The processes meet
        after at most `each` items of each, and often enough to show how far they are.
        """
        if self.size == 1:
            yield from zip(items, compute(items), strict=True)
            return
        each = min(each, max(1, len(items) // (_MEETINGS * self.size)))
        for start in range(0, len(items), each * self.size):
            wave = items[start : start + each * self.size]
            own = wave[self.rank :: self.size]
            if self.together and len(own) * self.size < len(wave):
                own = [*own, wave[0]]  # a result that nobody needs, of work that takes all
            with self.watching():
                own_results = list(compute(own))
            parts = self.gather(own_results)
            for place, item in enumerate(wave):
                yield item, parts[place % self.size][place // self.size]

    def lead(self, act: Callable[[], T]) -> T:
        """What `act` returns on rank 0, where alone it is called."""
        if self.size == 1:
            return act()
        import torch.distributed as dist

        found: list[Any] = [act() if self.leads else None]
        self._follow(f"led/{next(self._numbers)}")
        self._meet(dist.broadcast_object_list, found)
        value: T = found[0]
        return value

    def once(self, what: Path | str, act: Callable[[], object]) -> None:
        """Have rank 0 `act`, at most once for each `what`; the others wait until it has."""
        if self.size == 1:
            act()
            return
        key = f"once/{what}"
        if self.leads and not self.store.check([key]):
            act()
        self._follow(key)

    def has(self, path: Path) -> bool:
        """Whether rank 0 finds `path`: one answer for all, whatever another file system's cache says."""
        return self.lead(path.exists)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Turn what other libraries say of a process that has ended, or does not answer, into LostError."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or "out of memory" in str(error) or not any(w in str(error) for w in _TALK):
                raise
            raise LostError(self._lost()) from error

    def check_device(self, name: str) -> None:
        """Refuse a device that several processes cannot have one each of."""
        if self.size == 1:
            return
        import torch

        if name.startswith("cuda:"):
            raise ConfigError(
                f"device {name}: {self.size} processes would share it; with --device cuda each takes its own"
            )
        if name in ("auto", "cuda") and (there := torch.cuda.device_count()):
            own = torch.cuda.get_device_properties(_local(os.environ) % there).uuid  # each may see one alone
            if (gpus := len(set(self.gather((socket.gethostname(), str(own)))))) < self.size:
                raise ConfigError(
                    f"{self.size} processes have {gpus} GPUs between them; start at most one for each "
                    "(--nproc-per-node)"
                )

    def check_complete(self) -> None:
        """Raise ConfigError where there are others that this world does not know: all would write as one."""
        import torch.distributed as dist

        if self.size == 1 and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise ConfigError(
                f"{dist.get_world_size()} processes, of which this one was not told: give "
                "Reselection(..., world=world), from `with clusterucb.runtime.processes.joined() as world`"
            )

    def speaks(self) -> bool:
        """Whether this process is to show the error that ends it; the others are told to end, too."""
        if self.size == 1:
            return True
        with contextlib.suppress(RuntimeError):  # the store itself may be gone
            first: bool = self.store.add("ended", 1) == 1
            self._leave()
            return first
        return self.leads

    def _leave(self) -> None:
        """Close the connections, so that the others notice, and give them a moment to end like this."""
        import torch.distributed as dist

        if dist.is_initialized() and dist.get_backend() == "gloo":  # nccl would wait for what never comes
            dist.destroy_process_group()
        until = time.monotonic() + _FAREWELL
        while self.store.add("ended", 0) < self.size and time.monotonic() < until:
            time.sleep(_POLL)

    def _follow(self, key: str) -> None:
        """Wait for rank 0 to come to `key`, as long as it takes: nobody can tell how long its work is."""
        if self.leads:
            self.store.set(key, "")
            return
        while not self.store.check([key]):
            if self.store.check(["ended"]):
                raise LostError(f"{self.step}: another process has ended")
            time.sleep(_POLL)

    def _meet(self, exchange: Callable[..., object], *values: Any) -> None:
        """Exchange values by a function of torch.distributed, in which all have to come."""
        with self.watching():
            exchange(*values, group=self.group)

    def _lost(self) -> str:
        """Which processes are not there any more; each that is says so."""
        self.store.set(f"there/{self.rank}", "")
        until = time.monotonic() + _GRACE
        missing = list(range(self.size))
        while missing and time.monotonic() < until and not self.store.check(["ended"]):
            time.sleep(_POLL)
            missing = [rank for rank in missing if not self.store.check([f"there/{rank}"])]
        who = ", ".join(f"rank {rank}" for rank in missing) or "a process"
        return (
            f"{self.step}: {who} of {self.size} does not answer: it has ended, or it has hung for "
            f"{self.seconds:.0f} s ({TIMEOUT}); what was finished is kept: run the same command again"
        )


ALONE = World()
"""One process."""


def leads(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the only one or rank 0: known before the processes have met."""
    return _size(environment) == 1 or environment.get("RANK", "0") == "0"


@contextmanager
def joined(environment: Mapping[str, str] = os.environ, *, fsdp: bool = True) -> Iterator[World]:
    """The world that torchrun's environment variables tell of, until the block ends.

    A process group that is there already, as a Trainer makes one, is used and left.

    Args:
        environment: variables and their values.
        fsdp: whether accelerate may be told to shard the model, for a Trainer of one's own.

    Raises:
        ConfigError: the time limit is not a number, or accelerate is to split the model in another way.
        LostError: the other processes are not there.
    """
    size = _size(environment)
    if size == 1:
        yield ALONE
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    _refuse_shards(environment, fsdp)
    seconds = _seconds(environment)
    limit = timedelta(seconds=seconds)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(
            _local(environment) % torch.cuda.device_count()
        )  # what is called `cuda` from here
    try:
        shared, rank, size = next(rendezvous("env://", timeout=limit))
        attempt = _attempt(PrefixStore("clusterucb", shared), rank, size, seconds)
        store = PrefixStore(f"clusterucb/{attempt}", shared)
        own, group = not dist.is_initialized(), None
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        if own:
            meeting = PrefixStore("group", store)
            dist.init_process_group(backend, store=meeting, rank=rank, world_size=size, timeout=limit)
        elif "gloo" not in str(dist.get_backend_config()):  # a Trainer's, by which GPUs alone can meet
            group = dist.new_group(backend=backend, timeout=limit)
    except (RuntimeError, ValueError) as error:
        raise LostError(
            f"start: the {size} processes did not find each other ({str(error).splitlines()[0]})"
        ) from error
    yield World(rank, size, store=store, seconds=seconds, group=group)
    if own and dist.is_initialized():
        dist.destroy_process_group()


def _attempt(store: Any, rank: int, size: int, seconds: float) -> str:
    """A name that the processes of this attempt alone agree on, as torchrun keeps one store for all attempts.

    Each says hello by a name of its own, which nobody answers but a rank 0 that is there now.
    """
    own, until = uuid.uuid4().hex, time.monotonic() + seconds
    absent = set(range(1, size))
    store.set(f"hello/{rank}", own)

    def welcomed() -> bool:
        return bool(store.check([f"welcome/{own}"]))

    def all_here() -> bool:
        for other in list(absent):
            if store.check([f"here/{own}/{other}"]):
                absent.discard(other)
            elif store.check([f"hello/{other}"]):
                store.set(f"welcome/{store.get(f'hello/{other}').decode()}", own)
        return not absent

    while not (welcomed() if rank else all_here()):
        if time.monotonic() > until:
            raise RuntimeError(f"after {seconds:.0f} s, {TIMEOUT}, some had not come")
        time.sleep(_POLL)
    if rank == 0:
        return own
    name: str = store.get(f"welcome/{own}").decode()
    store.set(f"here/{name}/{rank}", "")
    return name


def _local(environment: Mapping[str, str]) -> int:
    """The process' number on its machine."""
    return int(environment.get("LOCAL_RANK", "0"))


def _size(environment: Mapping[str, str]) -> int:
    """Processes that were started together; one where nothing says how they meet."""
    told = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys()
    return int(environment["WORLD_SIZE"]) if told else 1


def _refuse_shards(environment: Mapping[str, str], fsdp: bool) -> None:
    """DeepSpeed shows no layer's weights as they are, and our own commands shard by a setting of theirs."""
    refused = {"DEEPSPEED": "no row has a gradient of its own under it"}
    if not fsdp:
        refused["FSDP"] = "the command shards the model itself, if it is told to"
    for name, reason in refused.items():
        if environment.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise ConfigError(
                f"{name}, in accelerate's configuration: {reason}; start with torchrun or `accelerate launch "
                "--multi_gpu`, and with --shard fsdp if the model is too large for one GPU"
            )


def _seconds(environment: Mapping[str, str]) -> float:
    text = environment.get(TIMEOUT, str(_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise ConfigError(f"{TIMEOUT}={text}: expected a number of seconds above 0")
    return seconds
