"""What a GPU asks of its host: copies and waiting, memory that has run out, and how its kernels compute.

The only module that asks CUDA for any of this, so a test may put a pretended device in its place. On a CPU,
and on other devices, nothing here does more than torch does by itself.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from clusterucb.errors import ConfigError, InputError

_GPU = "cuda"
_ORDERLY = (":4096:8", ":16:8")  # workspaces with which cuBLAS adds in one order
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_FULL = ("out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED", "cublasCreate(")


def is_gpu(device: torch.device) -> bool:
    """Whether the host goes on while the device works."""
    return device.type == _GPU


def name_of(device: torch.device) -> str:
    """What kind it is: two alike have as much memory."""
    return torch.cuda.get_device_name(device) if is_gpu(device) else device.type


def use(device: torch.device) -> torch.device:
    """Have this process work on `device`, before it computes: what others call `cuda` is this one."""
    if is_gpu(device):
        os.environ.setdefault(_WORKSPACE, _ORDERLY[0])  # cuBLAS looks once, at its first product
        if device.index is not None:
            torch.cuda.set_device(device)
    return device


def to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array on `device`; a GPU copies it when it comes to that, and the host goes on."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if is_gpu(device) else tensor.to(device)


def to_host(*tensors: torch.Tensor) -> Callable[[], list[NDArray[Any]]]:
    """Begin to copy tensors to the host; what is returned waits for them alone, not for work begun later."""
    device = tensors[0].device
    if not is_gpu(device):
        found = [tensor.cpu().numpy() for tensor in tensors]
        return lambda: found
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record(torch.cuda.current_stream(device))

    def arrived() -> list[NDArray[Any]]:
        done.synchronize()
        return [copy.numpy() for copy in copies]

    return arrived


def wait_for(device: torch.device) -> None:
    """Until all that was begun on `device` is done."""
    if is_gpu(device):
        torch.cuda.synchronize(device)


def free_memory() -> None:
    """Hand back what no tensor holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says so: torch's own, or what it passes on of CUDA, cuBLAS, MPS or the host."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL)


@contextmanager
def room_for(what: str, advice: str) -> Iterator[None]:
    """Turn memory that runs out where nothing can be halved into InputError, one line."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"{what}: out of memory; {advice}") from None


@contextmanager
def rounded_to(precision: str) -> Iterator[None]:
    """How float32 products are rounded while the block runs: `highest` not, `high` to TF32 on a GPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def passes_of(model: nn.Module) -> Iterator[None]:
    """How a model's passes compute on a GPU: the same bits each time, and the adapter on tensor cores.

    Attention's backward adds in no fixed order unless torch is asked for one; it cannot be asked where cuBLAS
    was in use before this package (its workspace then is not `_ORDERLY`), or where a person has set another.
    Beside a base in half precision the adapter's float32 products may be TF32, which keeps the ten bits that
    float16 has behind the point, and more than bfloat16 has; nothing else in the process is rounded so.
    """
    weight = next(model.parameters())
    if not is_gpu(weight.device):
        yield
        return
    with rounded_to("highest" if weight.dtype == torch.float32 else "high"), _orderly():
        yield


@contextmanager
def _orderly() -> Iterator[None]:
    """Kernels that add in one order, if that can be asked for and is not yet."""
    if torch.are_deterministic_algorithms_enabled() or os.environ.get(_WORKSPACE) not in _ORDERLY:
        yield
        return
    settings: Any = torch.utils.deterministic
    filled, settings.fill_uninitialized_memory = settings.fill_uninitialized_memory, False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "deterministic implementation" not in str(error):
            raise
        raise ConfigError(
            f"the model has an operation that torch has in no fixed order ({str(error).split()[0]}): set "
            f"{_WORKSPACE}=:0:0 in the environment to take it, and results that differ each time"
        ) from error
    finally:
        torch.use_deterministic_algorithms(False)
        settings.fill_uninitialized_memory = filled
