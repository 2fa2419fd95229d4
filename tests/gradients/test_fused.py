"""The fused kernel against the plain operations: by Triton's interpreter, and on a GPU where there is one."""

import os
import subprocess
import sys

import pytest
import torch

from clusterucb.gradients import projection
from clusterucb.gradients.adam import AdamMap, Moments
from clusterucb.gradients.projection import CountSketch

pytest.importorskip("triton", reason="Triton has no wheel here")

from clusterucb.gradients import fused

CPU = torch.device("cpu")
NAME = "layers.0.q_proj.lora_A.weight"
DEVICES = [
    pytest.param(CPU, id="interpreter", marks=pytest.mark.skipif(not fused.interpreted(), reason="compiles")),
    pytest.param(torch.device("cuda"), id="cuda", marks=pytest.mark.gpu),
]


def gradients(rows, shape, seed=0):
    return 1e-3 * torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed))


def adam_map(shape, formula, device):
    generator = torch.Generator().manual_seed(1)
    m, v = (torch.randn(shape, generator=generator) for _ in "mv")
    return AdamMap.of(Moments({NAME: m * 1e-4}, {NAME: v.square() * 1e-8}, 20), formula, device)


def failing(error):
    """What raises it whenever it is called."""

    def fail(*_):
        raise error

    return fail


def sketched(sketch, made, adam):
    out = torch.zeros(len(made), sketch.dim, device=made.device)
    sketch.add_to(out, NAME, made.clone(), adam)
    return out.cpu()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("formula", [None, "less", "adam"])
@pytest.mark.parametrize("shape", [(1, 1), (8, 512), (512, 8), (5, 333), (64, 80)])
def test_kernel_gives_what_the_plain_operations_give(monkeypatch, device, formula, shape):
    rows = 1 if shape == (1, 1) else 3
    made = gradients(rows, shape).to(device)
    adam = formula and adam_map(shape, formula, device)
    monkeypatch.setattr(projection, "kernel", lambda *_: None)
    expected = sketched(CountSketch(3, 256), made, adam)
    monkeypatch.setattr(projection, "kernel", lambda *_: fused.fused_sketch)
    found = sketched(CountSketch(3, 256), made, adam)
    assert (found - expected).norm(dim=1).max() <= 1e-5 * expected.norm(dim=1).min()
    assert torch.equal(found, sketched(CountSketch(3, 256), made, adam))  # no atomics: the same bits again


COMPILE = """
import sys
import subprocess
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from clusterucb.gradients.fused import sketch_kernel

folder, capability, dim = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
kinds = dict.fromkeys(["gradients", "lift", "floor", "out"], "*fp32") | {"eps": "fp32", "signs": "*u8"}
kinds |= dict.fromkeys(["steps", "shifts"], "*i32") | dict.fromkeys(["size", "tiles", "run"], "i32")
kinds |= {"ADAM": "constexpr", "D": "constexpr"}
signature = {name: kinds[name] for name in sketch_kernel.arg_names}
source = ASTSource(sketch_kernel, signature, {"ADAM": True, "D": dim})
made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 16})
assert made.metadata.shared <= 49152, made.metadata.shared
with open(folder + "/kernel.ptx", "w") as file:
    file.write(made.asm["ptx"])
target = f"--gpu-name=sm_{capability}{'a' if capability == 90 else ''}"
command = [triton.knobs.nvidia.ptxas.path, "-v", target, file.name, "-o", folder + "/kernel.cubin"]
print(subprocess.run(command, capture_output=True, text=True, check=True).stderr)
"""


@pytest.mark.whole
@pytest.mark.parametrize("capability", [80, 90])
def test_kernel_compiles_for_a_gpu_without_one_and_keeps_its_sums_in_registers(tmp_path, capability):
    """For A100 and H100: nothing is spilled at d 8192, and two programs' shared memory fits."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", COMPILE, str(tmp_path), str(capability), "8192"]
    shown = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert shown.returncode == 0, shown.stderr
    assert " 0 bytes spill stores, 0 bytes spill loads" in shown.stdout


@pytest.mark.parametrize("device", DEVICES)
def test_device_whose_kernel_is_right_is_trusted(device):
    assert fused.trusted(device, 64)


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (lambda sums: 1.001 * sums, r"off by 1\.0e-03 of the norm"),
        (lambda sums: sums * torch.nan, "off by nan"),
        (failing(RuntimeError("out of shared memory\nat line 3")), "out of shared memory$"),
    ],
    ids=["wrong", "nan", "does not compile"],
)
def test_device_whose_kernel_is_not_right_is_told_and_takes_the_plain_operations(monkeypatch, broken, why):
    right = fused.fused_sketch
    monkeypatch.setattr(fused, "fused_sketch", lambda *given: broken(right(*given)))
    with pytest.warns(UserWarning, match=f"not used on cpu, where features are slower: .*{why}"):
        assert not fused.trusted(CPU, 64)


def test_out_of_memory_says_nothing_of_the_kernel(monkeypatch):
    monkeypatch.setattr(fused, "fused_sketch", failing(torch.OutOfMemoryError("no room")))
    with pytest.raises(torch.OutOfMemoryError):
        fused.trusted(CPU, 64)


@pytest.mark.parametrize(
    ("device", "dim"), [("cpu", 8192), ("mps", 8192), ("cuda", 1000), ("cuda", 32), ("cuda", 2**15)]
)
def test_elsewhere_and_for_other_dimensions_there_is_no_kernel(device, dim):
    assert projection.kernel(torch.device(device), dim) is None
