"""The fused kernel against the plain operations: by Triton's interpreter, and on a GPU where there is one."""

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


@pytest.mark.parametrize("device", DEVICES)
def test_device_whose_kernel_is_right_is_trusted(device):
    fused.trusted(device, 64)


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
