"""Gradients of a linear map before the vocabulary head, against autograd through one row at a time."""

import numpy as np
import pytest
import torch
from tiny_adapters import adapter, slow_head_gradient

from clusterucb.data.chat import Encoded
from clusterucb.features.head import head_gradients, sides, signs
from clusterucb.gradients.batches import collate

DIM = 90


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request):
    return adapter(request.param)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return [
        Encoded(rng.integers(3, 320, length).astype(np.int32), rng.random(length) < 0.6)
        for length in (9, 31, 7, 18)
    ]


def test_it_is_the_projected_gradient_of_a_linear_map_before_the_head(model, rows):
    found = head_gradients(model, collate(rows), DIM, seed=5)
    assert found.shape == (4, 90)
    for row, vector in zip(rows, found, strict=True):
        gradient = slow_head_gradient(model, row)
        left, right = (signs(size, 32, 5 + i).double() for i, size in enumerate(sides(DIM)))
        expected = (left @ gradient @ right.T).flatten()
        assert vector == pytest.approx((expected / expected.norm()).numpy(), abs=2e-5)


def test_inner_products_are_those_of_the_whole_gradients_on_average(model, rows):
    whole = torch.stack([slow_head_gradient(model, row).flatten() for row in rows])
    whole = (whole / whole.norm(dim=1, keepdim=True)).numpy()
    found = [head_gradients(model, collate(rows), 256, seed) for seed in range(0, 120, 2)]
    mean = np.mean([f @ f.T for f in found], axis=0)
    assert mean == pytest.approx(whole @ whole.T, abs=0.12)


def test_no_backward_pass_is_made_and_dropout_is_off(model, rows, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "backward", lambda *_: pytest.fail("a backward pass"))
    model.train()
    first, again = (head_gradients(model, collate(rows), DIM, seed=5) for _ in range(2))
    assert (first == again).all()
    assert model.training
    model.eval()


@pytest.mark.parametrize("dim", [1, 2, 256, 1000, 8192])
def test_a_feature_has_no_more_numbers_than_asked_for_and_nearly_as_many(dim):
    p, q = sides(dim)
    assert 0.95 * dim - 2 <= p * q <= dim
    assert p <= q <= p + 3
