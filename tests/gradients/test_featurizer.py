"""Features and target directions against slow references, and what happens to rows that have none."""

import numpy as np
import pytest
import torch
from tiny_adapters import adapter, flat, rows, slow_gradients

from clusterucb.data.chat import Encoded
from clusterucb.errors import InputError, MismatchError
from clusterucb.gradients.adam import Moments
from clusterucb.gradients.featurizer import Featurizer, one_ahead, target_directions
from clusterucb.gradients.per_sample import trainable_parameters
from clusterucb.gradients.projection import CountSketch

DIM = 96


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


def slow_feature(model, row, projection, moments=None, formula="less"):
    """METHOD's feature of one row, in float64 up to the projection."""
    sketch = torch.zeros(1, projection.dim)
    for name, gradient in slow_gradients(model, row).items():
        g = gradient.double()
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


@pytest.mark.parametrize("formula", ["plain", "less", "adam"])
def test_a_feature_is_the_normalised_projected_direction(model, formula):
    moments = None if formula == "plain" else random_moments(model)
    projection = CountSketch(seed=1, dim=DIM)
    featurize = Featurizer(model, projection, moments, "less" if formula == "plain" else formula)
    batch = rows([14, 9, 31, 3], 2)
    features, losses = featurize(batch)
    assert features.dtype == np.float16
    assert features.shape == (4, DIM)
    assert losses.shape == (4,)
    expected = np.stack([slow_feature(model, row, projection, moments, formula) for row in batch])
    np.testing.assert_allclose(features, expected, atol=2e-4)


def test_features_have_norm_1_within_float16_rounding(featurize):
    features, _ = featurize(rows([14, 9, 31, 3], 2))
    norms = np.linalg.norm(features.astype(np.float64), axis=1)
    np.testing.assert_allclose(norms, 1, atol=2**-11)


def test_a_gradient_of_zero_is_named_and_never_becomes_a_feature(model, featurize):
    weights = {n: p.detach().clone() for n, p in trainable_parameters(model).items()}
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.zero_()  # both LoRA matrices 0: so are both gradients
    try:
        with pytest.raises(InputError, match=r"^first: its loss is \d.* and its gradient's norm 0, expected"):
            featurize(rows([8, 5]), ["first", "second"].__getitem__)
    finally:
        with torch.no_grad():
            for name, parameter in trainable_parameters(model).items():
                parameter.copy_(weights[name])


def test_a_loss_that_is_nan_is_named_by_its_own_row(featurize, model):
    embeddings = model.get_input_embeddings().weight
    good, other, bad = rows([8, 6, 7])
    bad = Encoded(np.r_[np.int32(1), bad.ids[1:]], bad.labels)  # token 1 occurs in no other row
    with torch.no_grad():
        kept = embeddings[1].clone()
        embeddings[1] = torch.nan
    try:
        with pytest.raises(InputError, match=r"^pool\.jsonl:3: its loss is nan .*--dtype float32, or take"):
            featurize([good, other, bad], ["pool.jsonl:1", "pool.jsonl:2", "pool.jsonl:3"].__getitem__)
    finally:
        with torch.no_grad():
            embeddings[1] = kept
    assert np.isfinite(featurize([good, bad])[0]).all()


class TestOutOfMemory:
    @staticmethod
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

    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_halved_batches_give_the_same_rows_in_order(self, featurize, monkeypatch, size):
        batch = rows([12] * 7, 4)
        features, losses = featurize(batch)
        tried = self.limit(monkeypatch, size)
        halved, halved_losses = featurize(batch)
        assert tried[0] == 7
        assert max(n for n in tried if n <= size) == size
        np.testing.assert_allclose(halved.astype(float), features.astype(float), atol=1e-3)
        np.testing.assert_allclose(halved_losses, losses, rtol=1e-5)

    def test_a_row_that_alone_is_too_much_is_named(self, featurize, monkeypatch):
        self.limit(monkeypatch, 0)
        with pytest.raises(InputError, match=r"row 0: out of memory.*\(9 tokens\); lower --gradient-length"):
            featurize(rows([9, 5, 4]))

    def test_a_batch_of_processes_that_share_a_model_is_not_halved(self, featurize, monkeypatch):
        tried = self.limit(monkeypatch, 2)
        monkeypatch.setattr("clusterucb.gradients.batches.is_sharded", lambda _model: True)
        words = r"row 0: out of memory.* micro-batch of 3 rows .* cannot halve; lower --batch-tokens"
        with pytest.raises(InputError, match=words):
            featurize(rows([9, 5, 4]))
        assert tried == [3]

    def test_rows_keep_their_names_in_the_halves(self, featurize, model, monkeypatch):
        self.limit(monkeypatch, 1)
        batch = rows([9, 5, 4, 8, 6])
        real = Featurizer._batch

        def failing(self, some, describe):
            if some[0] is batch[3] and len(some) == 1:
                raise InputError(describe(0))
            return real(self, some, describe)

        monkeypatch.setattr(Featurizer, "_batch", failing)
        with pytest.raises(InputError, match=r"^id 3$"):
            featurize(batch, "id {}".format)


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
    found = dict_of(one_ahead(featurize, some, batches))
    assert events == [
        *[("begun", 3), ("begun", 2), ("finished", 3)],
        *[("begun", 1), ("finished", 2), ("finished", 1)],
    ]
    for place, (feature, loss) in found.items():
        alone, alone_loss = featurize([some[place]])
        np.testing.assert_allclose(feature.astype(float), alone[0].astype(float), atol=1e-3)
        np.testing.assert_allclose(loss, alone_loss[0], rtol=1e-5)


def dict_of(batches):
    return {
        place: (feature, loss)
        for numbers, (features, losses) in batches
        for place, feature, loss in zip(numbers.tolist(), features, losses, strict=True)
    }


def test_what_is_wrong_with_a_row_of_an_earlier_batch_is_told_by_its_name(featurize, monkeypatch):
    real = Featurizer._batch

    def batch(self, some, describe):
        finish = real(self, some, describe)

        def finished():
            if len(some[0].ids) == 5:
                raise InputError(describe(0))
            return finish()

        return finished

    monkeypatch.setattr(Featurizer, "_batch", batch)
    batches = [np.array([0]), np.array([1]), np.array([2])]
    with pytest.raises(InputError, match=r"^id 1$"):
        list(one_ahead(featurize, rows([9, 5, 7], 4), batches, "id {}".format))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_directions_are_means_over_subtasks_of_unequal_sizes_in_any_order(model, featurize, order):
    batch = rows([14, 9, 31, 3, 12, 5, 27, 8], 6)
    codes = np.array([2, 0, 2, 1, 2, 2, 0, 2])
    shuffle = np.random.default_rng(order).permutation(len(batch)) if order else np.arange(len(batch))
    seen = []
    found = target_directions(
        featurize, [batch[i] for i in shuffle], codes[shuffle], batch_tokens=40, progress=seen.append
    )
    assert found.dtype == np.float32
    assert sum(seen) == len(batch)
    slow = np.stack([slow_feature(model, row, featurize.projection) for row in batch])
    expected = np.stack([slow[codes == code].mean(0) for code in range(3)])
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_a_target_row_without_a_gradient_is_named(featurize, monkeypatch):
    def batch(self, some, describe):
        raise InputError(describe(len(some) - 1))

    monkeypatch.setattr(Featurizer, "_batch", batch)
    with pytest.raises(InputError, match=r"^target\.jsonl:1$"):  # the shorter of the first batch, 9 and 6
        target_directions(featurize, rows([5, 6, 9]), np.zeros(3, int), 18, "target.jsonl:{}".format)


def test_moments_of_another_adapter_are_refused_before_any_row(model):
    moments = random_moments(adapter("llama", rank=8))
    with pytest.raises(MismatchError, match="belong to another adapter"):
        Featurizer(model, CountSketch(dim=DIM), moments)


def test_the_features_of_a_row_hardly_depend_on_padding(model):
    featurize = Featurizer(model, CountSketch(seed=1, dim=DIM), random_moments(model))
    row, long, short = rows([20, 37, 6], 7)
    alone, _ = featurize([row])
    for batch in ([row, long], [short, row, long]):
        found, _ = featurize(batch)
        np.testing.assert_allclose(found[batch.index(row)], alone[0], atol=2e-4)


def test_reference_gradients_are_not_zero(model):
    assert flat(slow_gradients(model, rows([9])[0])).norm() > 0.01
