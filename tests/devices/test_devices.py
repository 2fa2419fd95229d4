"""Devices without one: everything in on_pretended.py, in a process that has the pretended device."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clusterucb.errors import InputError
from clusterucb.runtime.devices import is_out_of_memory, room_for, rounded_to

HERE = Path(__file__).parent


@pytest.mark.whole
def test_all_that_runs_on_a_device_does_on_pretended_ones():
    paths = [*sys.path, str(HERE), str(HERE.parent / "evaluation")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "on_pretended.py")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert " passed" in found.stdout
    assert "skipped" not in found.stdout


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_says_that_memory_ran_out(error, is_one):
    assert is_out_of_memory(error) is is_one


def test_memory_that_runs_out_where_nothing_can_be_halved_is_one_line():
    with (
        pytest.raises(InputError, match=r"^k-means: out of memory; lower k$"),
        room_for("k-means", "lower k"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")
    with pytest.raises(RuntimeError, match="assert"), room_for("k-means", "lower k"):
        raise RuntimeError("device-side assert triggered")


def test_products_are_rounded_for_a_while_only():
    before = torch.get_float32_matmul_precision()
    with rounded_to("high"):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before
