"""Features and target directions against slow references, and what happens to rows that have none."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from tiny_adapters import adapter, flat, rows, slow_gradients

from clusterucb.data.chat import Encoded
from clusterucb.errors import InputError
from clusterucb.gradients.adam import Moments
from clusterucb.gradients.featurizer import Featurizer, one_ahead, target_directions
from clusterucb.gradients.per_sample import trainable_parameters
from clusterucb.gradients.projection import CountSketch

DIM = 96
CODES, BATCHES = np.zeros(4, np.int64), [np.array([0, 1]), np.array([2]), np.array([3])]


@pytest.fixture(scope="module")
def model():
    return adapter("llama")


@pytest.fixture
def featurize(model):
    return Featurizer(model, CountSketch(seed=1, dim=DIM))


def random_moments(model, seed=0, step=20):
    generator = torch.Generator().manual_seed(seed)
    parameters = trainable_parameters(model)
    mean = {n: torch.randn(p.shape, generator=generator) * 1e-3 for n, p in parameters.items()}
    square = {n: torch.rand(p.shape, generator=generator) * 1e-6 for n, p in parameters.items()}
    return Moments(mean, square, step)


def slow_feature(model, row, projection, moments=None, formula="less", of=lambda _name: True):
    """METHOD's feature of one row, by the parameters of such names, in float64 up to the projection."""
    gradients = {name: g.double() for name, g in slow_gradients(model, row).items() if of(name)}
    sketch = torch.zeros(1, projection.dim)
    for name, g in gradients.items():
        if moments is not None:
            (b1, b2), eps, t = moments.betas, moments.eps, moments.step + 1
            m = b1 * moments.mean[name].double() + (1 - b1) * g
            v = b2 * moments.square[name].double() + (1 - b2) * g**2
            if formula == "less":
                g = m / torch.sqrt(v + eps)
            else:
                g = m / (1 - b1**t) / (torch.sqrt(v / (1 - b2**t)) + eps)
        projection.add_to(sketch, name, g.float()[None])
    return (sketch / sketch.norm())[0].numpy()


@pytest.mark.parametrize("formula", [None, "less", "adam"])
def test_a_feature_is_the_normalised_projected_direction(model, formula):
    moments, projection = formula and random_moments(model), CountSketch(seed=1, dim=DIM)
    batch = rows([14, 9, 31, 3], 2)
    features, losses = Featurizer(model, projection, moments, formula or "less")(batch)
    assert features.dtype == np.float16
    assert features.shape == (4, DIM)
    assert losses.shape == (4,)
    expected = np.stack([slow_feature(model, row, projection, moments, formula) for row in batch])
    np.testing.assert_allclose(features, expected, atol=2e-4)
    np.testing.assert_allclose(np.linalg.norm(features.astype(np.float64), axis=1), 1, atol=2**-11)
    assert all(flat(slow_gradients(model, row)).norm() > 0.01 for row in batch)  # or it would say nothing


def test_a_gradient_of_zero_is_named_and_never_becomes_a_feature(model, featurize):
    both_matrices = trainable_parameters(model).values()  # if all are 0, so are their gradients
    words = r"^first: its loss is \d.* and its gradient's norm 0, expected"
    with changed(both_matrices, 0), pytest.raises(InputError, match=words):
        featurize(rows([8, 5]), ["first", "second"].__getitem__)


@pytest.mark.parametrize(
    "look",
    [
        lambda featurize, some, describe: featurize(some, describe),
        lambda featurize, some, describe: list(one_ahead(featurize, some, BATCHES, describe)),
        lambda featurize, some, describe: target_directions(featurize, some, CODES, 14, describe),
    ],
    ids=["in one batch", "one batch ahead", "in the target"],
)
@pytest.mark.parametrize("room", [1, 9])
def test_a_row_whose_loss_is_nan_is_named_wherever_it_comes(featurize, model, monkeypatch, look, room):
    some = rows([8, 6, 7, 5])
    some[2] = Encoded(np.r_[np.int32(1), some[2].ids[1:]], some[2].labels)  # token 1 is in no other row
    limit(monkeypatch, room)
    words = r"^pool\.jsonl:2: its loss is nan .*--dtype float32, or take"
    with changed([model.get_input_embeddings().weight[1]], torch.nan), pytest.raises(InputError, match=words):
        look(featurize, some, "pool.jsonl:{}".format)
    assert np.isfinite(featurize(some)[0]).all()


def limit(monkeypatch, size):
    """Let `Featurizer` run out of memory above `size` rows; returns the sizes that were tried."""
    whole, tried = Featurizer._batch, []

    def batch(self, some, describe):
        tried.append(len(some))
        if len(some) > size:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, some, describe)

    monkeypatch.setattr(Featurizer, "_batch", batch)
    return tried


@contextmanager
def changed(tensors, value):
    """Weights filled with a value for a while."""
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors]
    with torch.no_grad():
        for tensor, _ in kept:
            tensor.fill_(value)
        yield
        for tensor, before in kept:
            tensor.copy_(before)


class TestOutOfMemory:
    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_halved_batches_give_the_same_rows_in_order(self, featurize, monkeypatch, size):
        batch = rows([12] * 7, 4)
        features, losses = featurize(batch)
        tried = limit(monkeypatch, size)
        halved, halved_losses = featurize(batch)
        assert tried[0] == 7
        assert max(n for n in tried if n <= size) == size
        np.testing.assert_allclose(halved.astype(float), features.astype(float), atol=1e-3)
        np.testing.assert_allclose(halved_losses, losses, rtol=1e-5)

    def test_a_row_that_alone_is_too_much_is_named(self, featurize, monkeypatch):
        limit(monkeypatch, 0)
        words = (
            r"row 0: out of memory on cpu .*\(9 tokens\); go on with .* --device, or lower --gradient-length"
        )
        with pytest.raises(InputError, match=words):
            featurize(rows([9, 5, 4]))

    def test_a_batch_of_processes_that_share_a_model_is_not_halved(self, featurize, monkeypatch):
        tried = limit(monkeypatch, 2)
        monkeypatch.setattr("clusterucb.runtime.memory.is_sharded", lambda _model: True)
        words = r"row 0: out of memory.* micro-batch of 3 rows .* cannot halve; lower --batch-tokens"
        with pytest.raises(InputError, match=words):
            featurize(rows([9, 5, 4]))
        assert tried == [3]


def test_the_next_batch_is_begun_before_the_last_is_waited_for(featurize, monkeypatch):
    events = []
    begin = Featurizer.begin

    def told(self, some, describe):
        events.append(("begun", len(some)))
        finish = begin(self, some, describe)

        def finished():
            events.append(("finished", len(some)))
            return finish()

        return finished

    monkeypatch.setattr(Featurizer, "begin", told)
    batches = [np.array([4, 0, 2]), np.array([1, 5]), np.array([3])]
    some = rows([12, 9, 8, 7, 11, 6], 4)
    found = list(one_ahead(featurize, some, batches))
    assert events == [
        *[("begun", 3), ("begun", 2), ("finished", 3)],
        *[("begun", 1), ("finished", 2), ("finished", 1)],
    ]
    features, losses = (np.concatenate(parts) for parts in zip(*found, strict=True))
    for place, feature, loss in zip(np.concatenate(batches), features, losses, strict=True):
        alone, alone_loss = featurize([some[place]])
        np.testing.assert_allclose(feature.astype(float), alone[0].astype(float), atol=1e-3)
        np.testing.assert_allclose(loss, alone_loss[0], rtol=1e-5)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_directions_are_means_over_subtasks_of_unequal_sizes_in_any_order(model, featurize, order):
    batch = rows([14, 9, 31, 3, 12, 5, 27, 8], 6)
    codes = np.array([2, 0, 2, 1, 2, 2, 0, 2])
    shuffle, seen = np.random.default_rng(order).permutation(len(batch)), []
    some = [batch[i] for i in shuffle]
    found = target_directions(featurize, some, codes[shuffle], batch_tokens=40, progress=seen.append)
    assert found.dtype == np.float32
    assert sum(seen) == len(batch)
    slow = np.stack([slow_feature(model, row, featurize.projection) for row in batch])
    expected = np.stack([slow[codes == code].mean(0) for code in range(3)])
    np.testing.assert_allclose(found, expected, atol=2e-4)
