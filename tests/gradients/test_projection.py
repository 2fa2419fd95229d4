"""Both projections keep inner products, and depend on seed, dim and name alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterucb.errors import ConfigError
from clusterucb.gradients.projection import CountSketch, Rademacher, projection

BOTH = [CountSketch, Rademacher]


def sketch(made, parameters):
    """Sketch (B, dim) of named gradients (B, ...)."""
    out = torch.zeros(len(next(iter(parameters.values()))), made.dim)
    for name, gradients in parameters.items():
        made.add_to(out, name, gradients)
    return out


def with_outliers(count, rows, columns, stride, seed, loud=20.0):
    """Vectors (count, rows * columns) as gradients of a real model are: the same channels loud in each row.

    What is loud recurs at a fixed stride, so any map that repeats tile after tile would add it up.
    """
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(1, rows, columns))
    vectors = 0.5 * shared + rng.normal(size=(count, rows, columns))
    vectors[:, :, 3::stride] *= loud
    vectors *= rng.lognormal(0, 1.0, (1, rows, 1))
    return torch.from_numpy(vectors.reshape(count, -1)).float()


def cosines(vectors):
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    products = unit @ unit.T
    return products[np.triu_indices(len(products), 1)]


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("dim", [32, 48])
def test_inner_products_and_norms_are_unbiased_over_several_parameters(kind, dim):
    seeds = 1500 if kind is CountSketch else 700
    both = with_outliers(2, 12, 16, 8, seed=1, loud=4.0)
    parts = {"a": both[:, :70], "b": both[:, 70:]}
    sketches = torch.stack([sketch(kind(seed=seed, dim=dim), parts) for seed in range(seeds)]).double()
    found, exact = sketches @ sketches.mT, both.double() @ both.double().T  # (seeds, 2, 2), (2, 2)
    error = found.std(0) / math.sqrt(seeds)
    assert (error < 0.1 * exact.diag().prod().sqrt()).all()  # or the check would say nothing
    assert ((found.mean(0) - exact).abs() < 4 * error).all()


@pytest.mark.parametrize("stride", [8, 64, 96, 1024])
def test_countsketch_is_as_close_as_the_dense_matrix_on_outlier_channels(stride):
    dim, pairs = 1024, 12
    vectors = with_outliers(pairs, 96, 1024 if stride == 1024 else 192, stride, seed=3)
    exact = cosines(vectors)

    def rmse(kind, seeds):
        errors = [cosines(sketch(kind(seed=s, dim=dim), {"p": vectors})) - exact for s in range(seeds)]
        return float(torch.cat(errors).square().mean().sqrt())

    assert rmse(CountSketch, 6) <= 1.3 * rmse(Rademacher, 2)


@pytest.mark.parametrize("kind", BOTH)
@settings(max_examples=20)
@given(size=st.integers(1, 200), dim=st.sampled_from([1, 2, 7, 24, 64]), seed=st.integers(0, 99))
def test_linear(kind, size, dim, seed):
    rng = np.random.default_rng(seed)
    x, y = torch.from_numpy(rng.normal(size=(2, 1, size))).float()
    made = kind(seed=seed, dim=dim)
    px, py, both = (sketch(made, {"p": v}) for v in (x, y, 2 * x - 3 * y))
    torch.testing.assert_close(both, 2 * px - 3 * py, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", BOTH)
def test_equal_for_any_batch_and_any_order_of_parameters(kind):
    parameters = {"a": torch.randn(6, 5, 13), "b": torch.randn(6, 170), "c": torch.randn(6, 3)}
    whole = sketch(kind(seed=4, dim=24), parameters)
    for batch in ([0], [5], [3, 1], [2, 5, 4, 0]):
        part = sketch(kind(seed=4, dim=24), {n: g[batch] for n, g in parameters.items()})
        torch.testing.assert_close(part, whole[batch], rtol=1e-5, atol=1e-5)
    backwards = sketch(kind(seed=4, dim=24), dict(reversed(parameters.items())))
    torch.testing.assert_close(backwards, whole, rtol=1e-5, atol=1e-5)
    one_by_one = sum(sketch(kind(seed=4, dim=24), {name: found}) for name, found in parameters.items())
    torch.testing.assert_close(one_by_one, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", BOTH)
def test_another_seed_name_or_kind_is_another_matrix(kind):
    x = torch.randn(1, 300)
    made = [
        sketch(kind(seed=0, dim=64), {"a": x}),
        sketch(kind(seed=1, dim=64), {"a": x}),
        sketch(kind(seed=0, dim=64), {"b": x}),
        sketch(next(k for k in BOTH if k is not kind)(seed=0, dim=64), {"a": x}),
    ]
    for i, one in enumerate(made):
        assert not any(torch.allclose(one, other) for other in made[i + 1 :])


@pytest.mark.parametrize("kind", BOTH)
def test_the_same_matrix_again_whatever_was_projected_before(kind):
    x = torch.randn(2, 300)
    fresh, used = kind(seed=0, dim=40), kind(seed=0, dim=40)
    sketch(used, {"z": torch.randn(7, 77), "a": torch.randn(7, 300)})
    assert torch.equal(sketch(fresh, {"a": x}), sketch(used, {"a": x}))


@pytest.mark.parametrize("dim", [1, 2, 24, 30, 64, 97])
@pytest.mark.parametrize("size", [1, 63, 64, 200])
def test_countsketch_sends_every_coordinate_to_one_bucket_and_no_two_of_a_tile_to_the_same(dim, size):
    matrix = sketch(CountSketch(seed=5, dim=dim), {"p": torch.eye(size)})  # (size, dim): a row a coordinate
    assert set(matrix.abs().sum(1).tolist()) == {1.0}
    assert set(matrix.unique().tolist()) <= {-1.0, 0.0, 1.0}
    for start in range(0, size, dim):
        assert matrix[start : start + dim].abs().sum(0).max() == 1


def test_rademacher_has_signs_of_one_length_whatever_its_block():
    dim, size = 48, 600
    matrix = sketch(Rademacher(seed=5, dim=dim), {"p": torch.eye(size)})
    torch.testing.assert_close(matrix.abs(), torch.full((size, dim), 1 / math.sqrt(dim)))
    assert abs(float(matrix.sign().mean())) < 4 / math.sqrt(size * dim)
    gram = matrix.double() @ matrix.double().T  # no two rows alike
    gram.fill_diagonal_(0)
    assert gram.abs().max() < 0.9


def test_tables_do_not_change_between_releases():
    """Stores on disk outlive the program: whoever changes a map must give the projection another name."""
    x = {"a.lora_A.weight": torch.arange(1.0, 301.0)[None]}
    signed_sums = sketch(CountSketch(seed=3, dim=8), x)[0]
    assert signed_sums.tolist() == [-812, 832, -696, 349, 494, -1767, -1286, 1014]
    assert str(CountSketch(seed=3, dim=8)) == "countsketch to 8 with seed 3"
    signed_sums = (sketch(Rademacher(seed=3, dim=8), x)[0] * math.sqrt(8)).round()
    assert signed_sums.tolist() == [1106, -4428, -1374, 1224, 5534, -406, -4150, 4026]
    assert str(Rademacher(seed=3, dim=8)) == "rademacher (philox4x32) to 8 with seed 3"


@pytest.mark.parametrize("dim", [32, 48])  # one divides by its bits
@pytest.mark.parametrize("in_cache", [1, 96 * 3, 200 * 3])
def test_countsketch_is_the_same_whatever_a_cpu_does_at_once(dim, in_cache, monkeypatch):
    x = torch.arange(3 * 1000.0).view(3, 1000)  # integers: their sums are exact in any order
    expected = sketch(CountSketch(seed=0, dim=dim), {"a": x})
    monkeypatch.setattr("clusterucb.gradients.projection.IN_CACHE", in_cache)
    assert torch.equal(sketch(CountSketch(seed=0, dim=dim), {"a": x}), expected)


@pytest.mark.parametrize("kind", BOTH)
def test_half_precision_gradients_are_summed_in_float32(kind):
    x = torch.randn(2, 5000).to(torch.bfloat16)
    made = kind(seed=0, dim=16)
    assert torch.equal(sketch(made, {"a": x}), sketch(made, {"a": x.float()}))


def test_names_and_bad_dims():
    assert projection("countsketch", 64, 3) == CountSketch(seed=3, dim=64)
    assert projection("rademacher", 64, 3) == Rademacher(seed=3, dim=64)
    with pytest.raises(ConfigError, match="projection 'gauss': expected countsketch or rademacher"):
        projection("gauss")
    for kind in BOTH:
        with pytest.raises(ConfigError, match=rf"{kind.__name__}\(dim=0\): must be at least 1"):
            kind(dim=0)
