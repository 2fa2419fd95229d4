"""A pretended GPU: tensors that say they are on gpu:N, whose numbers lie in the host's memory and are right.

What a GPU refuses raises: tensors of two devices in one operation, a device's tensor as an array. What makes
the host wait is counted, by where in the package it happened. A copy to the host that nobody has waited for
is NaN until work on *its* device was waited for. It knows nothing of CUDA's numerics, memory and speed.

torch takes the device type for a whole process and for good, so only processes of their own import this.
"""

from __future__ import annotations

import traceback
from collections import Counter, defaultdict
from contextlib import ExitStack
from types import SimpleNamespace
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from clusterucb.runtime import devices

NAME, CPU = "gpu", torch.device("cpu")
_setup_privateuseone_for_python_backend(rename=NAME)
torch.gpu.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]

aten = torch.ops.aten
COPIES = {aten.copy_, aten._to_copy}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
WAITS = {  # the host needs a value, or a number of them
    *(aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.is_nonzero, aten.equal),
    *(aten._unique2, aten.bincount, aten.repeat_interleave),
}


class MixedError(RuntimeError):
    """Tensors of several devices meet in one operation."""


class OnGPU(torch.Tensor):
    """A tensor on a pretended GPU: `numbers` on the host, `place` is the device that it is said to be on."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    is_cuda = property(lambda _: True)

    @staticmethod
    def __new__(cls, numbers, place):
        kind = {"dispatch_device": True, "device_for_backend_keys": place}
        made = torch.Tensor._make_subclass(cls, numbers, numbers.requires_grad, **kind)
        made.numbers, made.place = numbers, place
        return made

    def tolist(self):
        """Through the host, as a GPU's tensor has it."""
        return self.cpu().tolist()

    def __repr__(self):
        return f"OnGPU({tuple(self.shape)}, {self.dtype}, {self.place})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return PretendedGPUs.now.compute(function, args, kwargs or {})


class PretendedGPUs(TorchDispatchMode):
    """`with PretendedGPUs(2) as gpus:` there are two.

    Attributes:
        waits: how often the host has waited, by file and line of the package and the reason.
    """

    now = None

    def __init__(self, count=1):
        super().__init__()
        self.count, self.current = count, 0
        self.waits = Counter()
        self._on_their_way = defaultdict(list)

    def __enter__(self):
        self._stack = ExitStack()
        of_dropout = {"get_rng_state": torch.get_rng_state, "set_rng_state": lambda _state: None}
        for owner, values in (
            (torch.cuda, self._of_cuda()),
            (torch.cuda.random, of_dropout),  # which is the host's
            (torch.Tensor, {"pin_memory": _pinned}),
            (torch, {"tensor": _of_values}),
            (torch.nn.Module, {"to": _moved}),
            (devices, {"_GPU": NAME}),
        ):
            self._stack.enter_context(mock.patch.multiple(owner, **values))
        self._stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        PretendedGPUs.now = self
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._stack.close()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return self.compute(function, args, kwargs or {})

    def _of_cuda(self):
        """What of torch.cuda the package and its libraries ask."""

        def index(device):
            found = device if isinstance(device, int) else torch.device(device).index
            return self.current if device is None or found is None else found

        def set_device(device):
            self.current = index(device)

        class Event:
            def record(event, stream=None):  # noqa: N805
                event.device = stream.device if stream else torch.device(NAME, self.current)

            def synchronize(event):  # noqa: N805
                self.wait("event")
                self.arrive(event.device)

        return {
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "_lazy_init": lambda: None,
            "device_count": lambda: self.count,
            "current_device": lambda: self.current,
            "set_device": set_device,
            "current_stream": lambda device=None: SimpleNamespace(device=torch.device(NAME, index(device))),
            "Event": Event,
            "synchronize": lambda device=None: self.arrive(torch.device(NAME, index(device))),
            "empty_cache": lambda: None,
            "get_device_name": lambda _device: "a pretended GPU",
            "is_bf16_supported": lambda **_: True,
        }

    def compute(self, function, args, kwargs):
        """An operation, by the host's numbers, on the device that its tensors are on."""
        if function is torch.ops.prim.device.default:
            return args[0].place
        operation = function.overloadpacket
        flat, spec = tree_flatten((args, kwargs))
        tensors = [value for value in flat if isinstance(value, torch.Tensor)]
        ours = [tensor for tensor in tensors if isinstance(tensor, OnGPU)]
        if operation not in COPIES:
            self._refuse_mixed(operation, args, tensors, ours)
        if ours and (operation in WAITS or (operation in INDEXED and _masked(args))):
            self.wait(str(function))
        if ours and operation is aten._fused_sdp_choice:
            return 0  # the kernel that is made of operations
        there = self._place(operation, args, kwargs, ours)
        if "device" in kwargs:
            on_host = {**kwargs, "device": CPU} | dict.fromkeys(kwargs.keys() & {"pin_memory"}, False)
            flat, spec = tree_flatten((args, on_host))
        host_args, host_kwargs = tree_unflatten([getattr(v, "numbers", v) for v in flat], spec)
        found = function(*host_args, **host_kwargs)
        result = tree_map(lambda value: _wrapped(value, tensors, there), found)
        if operation in COPIES:
            self._copied(operation, args, kwargs, there, result)
        return result

    def _place(self, operation, args, kwargs, ours):
        if operation is aten._local_scalar_dense:
            return CPU
        if operation is aten.copy_:
            return getattr(args[0], "place", CPU)
        asked = kwargs.get("device")
        if asked is None:
            return ours[0].place if ours else CPU
        device = torch.device(asked)
        return torch.device(NAME, self.current) if device.type == NAME and device.index is None else device

    def _refuse_mixed(self, operation, args, tensors, ours):
        """CUDA takes numbers of no dimension, and indices, from the host; for these it waits."""
        host = [tensor for tensor in tensors if not isinstance(tensor, OnGPU) and tensor.ndim]
        indices = list(args[1]) if operation in INDEXED else []
        from_host = [tensor for tensor in host if any(tensor is index for index in indices)]
        if len({tensor.place for tensor in ours}) > 1 or (ours and len(from_host) < len(host)):
            places = sorted({str(getattr(tensor, "place", CPU)) for tensor in [*ours, *host]})
            raise MixedError(f"{operation}: expected all tensors on one device, found {' and '.join(places)}")
        if ours and from_host:
            self.wait(f"{operation} by indices on the host")

    def _copied(self, operation, args, kwargs, there, result):
        source = args[1] if operation is aten.copy_ else args[0]
        here = getattr(source, "place", CPU)
        if here == there:
            return
        in_passing = kwargs.get("non_blocking") or (operation is aten.copy_ and len(args) > 2 and args[2])
        if not in_passing or (here == CPU and not getattr(source, "pinned", False)):
            self.wait(f"copy of {here} to {there}")
            self.arrive(here)
        elif there == CPU:
            self._on_their_way[here].append((result, result.clone()))
            result.fill_(torch.nan if result.is_floating_point() else 0)

    def wait(self, reason):
        """Count one more."""
        frames = [f for f in traceback.extract_stack() if "/clusterucb/" in f.filename]
        where = f"{frames[-1].filename.rpartition('/clusterucb/')[2]}:{frames[-1].lineno} " if frames else ""
        self.waits[f"{where}{reason}"] += 1

    def arrive(self, device):
        """What was on its way from `device` is there."""
        with _disable_current_modes(), torch.no_grad():
            for copy, numbers in self._on_their_way.pop(device, ()):
                copy.copy_(numbers)


_to, _tensor = torch.nn.Module.to, torch.tensor


def _moved(module, device=None, *more, **kind):
    """`Module.to`: on another device its parameters are others."""
    place = torch.device(device) if isinstance(device, str | torch.device) else None
    elsewhere = place is not None and any(
        p.device.type != place.type or place.index not in (None, p.device.index) for p in module.parameters()
    )
    torch.__future__.set_overwrite_module_params_on_conversion(elsewhere)
    try:
        return _to(module, *([] if device is None else [device]), *more, **kind)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def _of_values(values, *args, device=None, **more):
    """`torch.tensor`, which cannot be dispatched: made on the host, and copied."""
    made = _tensor(values, *args, **more)
    return made if device is None else made.to(device)


def _pinned(tensor, device=None):
    copy = tensor.clone()
    copy.pinned = True
    return copy


def _masked(args):
    return any(index is not None and index.dtype == torch.bool for index in args[1])


def _wrapped(value, tensors, there):
    """The same tensor, if the operation was in place; else one on its device."""
    if not isinstance(value, torch.Tensor):
        return value
    same = next((t for t in tensors if value is t or value is getattr(t, "numbers", None)), None)
    if same is not None:
        return same
    return value if there == CPU else OnGPU(value, there)
