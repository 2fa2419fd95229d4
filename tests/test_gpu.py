"""On a GPU: the CPU's results, the same bits again, and every GPU that is there. `make gpu` runs these."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tiny_adapters import adapter, rows

from cli_helpers import done, options
from clusterucb.features.kmeans import spherical_kmeans
from clusterucb.gradients.adam import Moments
from clusterucb.gradients.featurizer import Featurizer, one_ahead
from clusterucb.gradients.per_sample import trainable_parameters
from clusterucb.gradients.projection import CountSketch, Rademacher
from clusterucb.run.directory import RunDir

pytestmark = pytest.mark.gpu
GPU = "cuda"
BATCHES = [np.array([3, 0, 2]), np.array([1, 4]), np.array([5])]


@pytest.fixture(autouse=True)
def exact_products():
    """A run beside a half-precision base may use TF32; here float32 is compared with the CPU's."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def features(device, architecture="llama", projection=None):
    """Of six rows in three micro-batches, one ahead."""
    model, some = adapter(architecture), rows([14, 9, 31, 27, 12, 5], 2)
    generator = torch.Generator().manual_seed(0)
    shapes = {name: p.shape for name, p in trainable_parameters(model).items()}
    mean = {name: 1e-3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    square = {name: 1e-6 * torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    moments = Moments(mean, square, 20)
    featurize = Featurizer(model.to(device), projection or CountSketch(1, 256), moments)
    return np.concatenate([found for found, _ in one_ahead(featurize, some, BATCHES)])


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_neox", "gpt2"])
def test_features_are_the_cpus(architecture):
    np.testing.assert_allclose(features(GPU, architecture), features("cpu", architecture), atol=1e-3)


def test_dense_projection_is_the_cpus():
    dense = Rademacher(1, 64)
    np.testing.assert_allclose(features(GPU, projection=dense), features("cpu", projection=dense), atol=1e-3)


def test_features_on_every_gpu_are_the_cpus():
    expected = features("cpu")
    for number in range(torch.cuda.device_count() if GPU == "cuda" else 0):
        np.testing.assert_allclose(features(f"cuda:{number}"), expected, atol=1e-3)


def test_kmeans_finds_the_cpus_clusters():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 256)).astype(np.float32) + 3 * rng.standard_normal((20, 256)).repeat(
        100, 0
    )
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
    here, there = (spherical_kmeans(x, 20, device=device) for device in ("cpu", GPU))
    assert (here.labels == there.labels).mean() > 0.999
    assert np.array_equal(there.labels, spherical_kmeans(x, 20, device=GPU).labels)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_whole_run_ends_and_a_second_selects_the_same(settings, tmp_path, dtype):
    runs = [RunDir(tmp_path / name) for name in ("one", "two")]
    for run in runs:
        done("run", *options(settings, device=GPU, dtype=dtype, out=str(run.path)))
    one, two = ((run.round(1) / "selected.jsonl").read_bytes() for run in runs)
    assert one == two
    weights = load_file(runs[0].adapter / "adapter_model.safetensors")
    assert all(np.isfinite(tensor).all() for tensor in weights.values())
