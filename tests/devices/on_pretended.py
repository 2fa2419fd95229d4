"""What runs on a device, on pretended ones: the CPU's numbers, no mixing, few waits, for the right device.

Not collected by itself: test_devices.py runs it in a process of its own.
"""

import numpy as np
import pytest
import torch
from pretended import MixedError, PretendedGPUs
from tiny_adapters import TARGETS, adapter, rows
from training_helpers import adapted, same, weights
from training_helpers import rows as training_rows

from clusterucb.config import Training, load
from clusterucb.errors import ConfigError
from clusterucb.evaluation.harness import HuggingFace, ask
from clusterucb.evaluation.loss import losses
from clusterucb.features.hidden import representations
from clusterucb.features.kmeans import spherical_kmeans
from clusterucb.gradients.adam import Moments
from clusterucb.gradients.anatomy import examine
from clusterucb.gradients.batches import collate, micro_batches
from clusterucb.gradients.featurizer import Featurizer, one_ahead, target_directions
from clusterucb.gradients.per_sample import adapter_layers, row_gradients, trainable_parameters
from clusterucb.gradients.projection import CountSketch, Rademacher
from clusterucb.recipes import dynamic
from clusterucb.run.rounds import read_round
from clusterucb.run.session import Session
from clusterucb.runtime.devices import passes_of, rounded_to, to_host
from clusterucb.runtime.files import read_json
from clusterucb.runtime.memory import recomputed
from clusterucb.tasks.task import Variant
from clusterucb.training.adapter import adapter_weights, load_adapter, save_adapter
from clusterucb.training.data import SwappableRows
from clusterucb.training.finetune import finetune
from clusterucb.training.model import pick_device

BATCH = rows([14, 9, 31, 3, 12, 12, 20, 7], 2)
BATCHES = micro_batches(np.array([len(row) for row in BATCH]), 48)

each_device = pytest.mark.parametrize(("device", "count"), [("gpu:0", 1), ("gpu:1", 2)])


def moments(model):
    generator = torch.Generator().manual_seed(0)
    shapes = {name: p.shape for name, p in trainable_parameters(model).items()}
    mean = {n: torch.randn(shape, generator=generator) * 1e-3 for n, shape in shapes.items()}
    square = {n: torch.rand(shape, generator=generator) * 1e-6 for n, shape in shapes.items()}
    return Moments(mean, square, 20)


def features(featurize, times=1):
    """Of all rows, in the order of the micro-batches."""
    found = [*one_ahead(featurize, BATCH, BATCHES * times)]
    return [np.concatenate(parts).astype(np.float64) for parts in zip(*found, strict=True)]


@pytest.mark.parametrize(
    ("architecture", "device", "count"), [("llama", "gpu:0", 1), *((name, "gpu:1", 2) for name in TARGETS)]
)
def test_features_are_the_cpus_and_the_host_waits_three_times_a_micro_batch_at_most(
    architecture, device, count
):
    """Twice for transformers, which looks whether a mask hides anything; and at the end, for the features."""
    model = adapter(architecture).eval()
    expected, expected_losses = features(Featurizer(model, CountSketch(seed=1, dim=96), moments(model)))
    with PretendedGPUs(count) as gpus:
        model = model.to(device)
        featurize = Featurizer(model, CountSketch(seed=1, dim=96), moments(model))
        found, found_losses = features(featurize)
        gpus.waits.clear()  # of the projection's tables, which are made once
        features(featurize, times=3)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    np.testing.assert_allclose(found_losses, expected_losses, rtol=1e-5)
    at_the_end = {wait: n for wait, n in gpus.waits.items() if wait.endswith("event")}
    assert sum(at_the_end.values()) == 3 * len(BATCHES)
    assert all(wait.startswith("gradients/per_sample.py") for wait in gpus.waits.keys() - at_the_end)
    assert gpus.waits.total() <= 3 * 3 * len(BATCHES)


def test_directions_by_a_dense_projection_are_the_cpus():
    model, codes = adapter().eval(), np.arange(8) % 2
    expected = target_directions(Featurizer(model, Rademacher(dim=40)), BATCH, codes, 48)
    with PretendedGPUs(2):
        found = target_directions(Featurizer(model.to("gpu:1"), Rademacher(dim=40)), BATCH, codes, 48)
    np.testing.assert_allclose(found, expected, atol=1e-3)


@each_device
def test_hidden_states_and_losses_are_the_cpus(device, count):
    model = adapter().eval()
    expected = representations(model, collate(BATCH), 0.5), losses(model, BATCH, 48)
    with PretendedGPUs(count):
        model = model.to(device)
        found = representations(model, collate(BATCH, device), 0.5), losses(model, BATCH, 48)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)


@pytest.mark.parametrize(("device", "count", "dtype"), [("gpu:0", 1, np.float32), ("gpu:1", 2, np.float16)])
def test_kmeans_is_the_cpus_to_the_bit_and_waits_for_stretches_of_blocks(device, count, dtype):
    """And in the first pass once for each block, whether its rows have a direction."""
    made = np.random.default_rng(0).normal(size=(300, 16))
    stored = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(dtype)
    expected = spherical_kmeans(stored, 7, block=4, iterations=3)
    with PretendedGPUs(count) as gpus:
        found = spherical_kmeans(stored, 7, block=4, iterations=3, device=device)
    assert (found.labels == expected.labels).all()
    assert (found.centroids == expected.centroids).all()
    assert found.history == expected.history
    passes, stretches, blocks = 4, -(-len(stored) // 8), -(-len(stored) // 4)
    at_the_end = sum(n for wait, n in gpus.waits.items() if wait.endswith("event"))
    assert at_the_end == len(found.history) * stretches == passes * stretches
    assert gpus.waits.total() - at_the_end <= blocks + 7 + 2 * passes  # once, each first row, each update


@each_device
def test_a_training_step_moves_adapter_and_moments_as_on_the_cpu(device, count, tmp_path):
    settings = Training(lr=1e-2, batch_size=4, save_steps=1)

    def trained(model, folder):
        dataset = SwappableRows(training_rows(10), np.arange(10))
        found = finetune(model, dataset, folder, settings, seed=5, epochs=2)
        return adapter_weights(model), found

    expected, expected_moments = trained(adapted(), tmp_path / "cpu")
    with PretendedGPUs(count):
        model = adapted().to(device)
        found, found_moments = trained(model, tmp_path / "gpu")
        assert {p.device for p in model.parameters()} == {torch.device(device)}
        found = {name: tensor.cpu() for name, tensor in found.items()}
        squares = {name: tensor.cpu() for name, tensor in found_moments.square.items()}
    assert found_moments.step == expected_moments.step
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5)
    for name, tensor in expected_moments.square.items():
        torch.testing.assert_close(squares[name], tensor, rtol=1e-3, atol=1e-12)


@each_device
def test_an_adapter_that_is_saved_and_loaded_is_the_same(device, count, tmp_path):
    expected = weights(adapted(seed=1))
    with PretendedGPUs(count):
        save_adapter(adapted(seed=1).to(device), tmp_path)
        model = adapted(seed=2).to(device)
        load_adapter(model, tmp_path)
        found = {name: tensor.cpu() for name, tensor in weights(model).items()}
    assert same(found, expected)


@each_device
@pytest.mark.parametrize("choices", [(), (" A", " B")], ids=["texts", "choices"])
def test_benchmarks_are_answered_as_on_the_cpu(device, count, choices):
    from benchmark_helpers import TOKENIZER, TULU, wide_model, with_adapter

    variant = Variant(0, ("exact_match",), choices=choices, max_new_tokens=0 if choices else 4)

    def answered(model):
        with HuggingFace(lambda: model, TOKENIZER, TULU).asked("adapter", 2) as lm:
            return ask(lm, variant, ["one two", "three", "four cats play"], [], 0)

    expected = answered(with_adapter(wide_model()))
    with PretendedGPUs(count):
        found = answered(with_adapter(wide_model()).to(device))
    if choices:
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    else:
        assert found == expected


def test_an_adapter_over_two_devices_is_refused():
    with PretendedGPUs(2):
        model = adapter().to("gpu:0")
        model.get_base_model().model.layers[1].to("gpu:1")
        with pytest.raises(
            ConfigError, match="layers are on gpu:0, gpu:1, and a row's gradient is taken on one"
        ):
            adapter_layers(model)


class Watched(CountSketch):
    """A projection that notes how kernels compute while gradients are projected, on the way back."""

    def add_to(self, out, name, gradients, adam=None):
        how = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
        self._tables.setdefault("seen", set()).add(how)
        super().add_to(out, name, gradients, adam)

    def __eq__(self, _other):
        return False


@pytest.mark.parametrize(
    ("dtype", "workspace", "how"),
    [
        (torch.bfloat16, None, (True, "high")),
        (torch.float32, ":16:8", (True, "highest")),
        (torch.float32, ":0:0", (False, "highest")),
    ],
)
def test_gradients_alone_are_taken_by_deterministic_kernels_and_beside_half_precision_in_tf32(
    dtype, workspace, how, monkeypatch
):
    """Unless a person has set another workspace for cuBLAS; k-means is in float32 in any case."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if workspace:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", workspace)
    seen = []
    with PretendedGPUs(1):
        model = adapter().to(dtype).eval().to(pick_device("gpu"))
        projection = Watched(dim=32)
        Featurizer(model, projection)(BATCH)
        assert projection._tables["seen"] == {how}
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.get_float32_matmul_precision() == "highest"
        with rounded_to("high"):
            spherical_kmeans(
                np.eye(4, dtype=np.float32),
                2,
                progress=lambda *_: seen.append(torch.get_float32_matmul_precision()),
            )
    assert set(seen) == {"highest"}


def test_an_operation_that_has_no_deterministic_kernel_is_one_line_with_what_to_do(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    said = "histc_cuda does not have a deterministic implementation, but you set 'torch.use_determ"
    words = (
        r"^the model has an operation .* \(histc_cuda\): set CUBLAS_WORKSPACE_CONFIG=:0:0 in the environment"
    )
    with PretendedGPUs(1):
        model = adapter().to("gpu")
        with pytest.raises(ConfigError, match=words), passes_of(model):
            raise RuntimeError(said)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_whole_run_selects_what_it_does_on_the_cpu(settings, tmp_path):
    """Warmup, features, clusters, every period's selection, training, evaluation."""
    small = {"periods": 2, "warmup_steps": 2, "k": 3, "dropout": 0.0}

    def run(name, device):
        config = load(None, {**settings, **small, "device": device, "out": str(tmp_path / name)})
        session = Session(config)
        dynamic(session)
        rounds = [read_round(session.dir.round(number)) for number in (1, 2)]
        return [chosen.rows.tolist() for chosen in rounds], read_json(session.dir.evaluation)

    expected, losses_there = run("cpu", "cpu")
    with PretendedGPUs(2) as gpus:
        found, losses_here = run("gpu", "gpu:1")
        assert gpus.current == 1
    assert found == expected
    for model in ("base", "adapter"):
        assert losses_here[model]["loss"] == pytest.approx(losses_there[model]["loss"], rel=1e-4)


def test_gradients_with_activations_computed_again_are_the_cpus():
    def by_rows(model, batch):
        found = {}
        layers = adapter_layers(model)
        row_gradients(model, layers, batch, lambda name, g: found.update({name: g.cpu()}), axes)
        return found

    model = adapter().eval()
    axes = examine(model, adapter_layers(model)).axes
    expected = by_rows(model, collate(BATCH))
    with PretendedGPUs(2):
        model = model.to("gpu:1")
        with recomputed(model):
            found = by_rows(model, collate(BATCH, "gpu:1"))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def test_a_device_that_is_named_is_the_one_that_others_call_theirs():
    with PretendedGPUs(2) as gpus:
        assert pick_device("gpu:1") == torch.device("gpu:1")
        assert gpus.current == 1
        assert torch.empty(1, device="gpu").device == torch.device("gpu:1")


class TestThePretendedGPUItself:
    def test_refuses_tensors_of_two_devices(self):
        with PretendedGPUs(2):
            here, there = torch.ones(2, device="gpu:0"), torch.ones(2, device="gpu:1")
            assert (here + torch.tensor(1.0)).cpu().tolist() == [2, 2]
            for other in (there, torch.ones(2)):
                with pytest.raises(MixedError, match="expected all tensors on one device, found"):
                    here + other
            with pytest.raises((TypeError, RuntimeError)):
                here.numpy()

    def test_holds_a_copy_back_until_its_own_device_was_waited_for(self):
        with PretendedGPUs(2) as gpus:
            copy = torch.ones(2, device="gpu:1").to("cpu", non_blocking=True)
            torch.cuda.synchronize("gpu:0")
            assert copy.isnan().all()
            torch.cuda.synchronize("gpu:1")
            assert copy.tolist() == [1, 1]
            arrived = to_host(torch.ones(2, device="gpu:1"))
            assert gpus.waits.total() == 0
            assert arrived()[0].tolist() == [1, 1]

    def test_counts_what_waits(self):
        with PretendedGPUs(1) as gpus:
            tensor = torch.ones(3, device="gpu")
            assert gpus.waits.total() == 0
            for wait in (lambda: tensor.sum().item(), lambda: tensor[tensor > 0], tensor.cpu, tensor.nonzero):
                gpus.waits.clear()
                wait()
                assert gpus.waits.total() > 0
