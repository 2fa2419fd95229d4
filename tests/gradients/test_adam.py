"""The Adam direction against METHOD's formula in float64 and against torch.optim.AdamW's own update."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterucb.errors import MismatchError
from clusterucb.gradients.adam import AdamMap, Moments
from clusterucb.training.moments import moments_of

EPS = 1e-8


def adam_direction(gradients, name, moments, formula="less"):
    """The whole direction, by the map."""
    adam = AdamMap.of(moments, formula)
    return adam.apply(name, gradients.flatten(1).float().clone()).view(gradients.shape) * adam.scale


def numbers(rng, shape, exponent):
    return torch.from_numpy(rng.normal(size=shape) * 10.0**exponent).float()


@settings(max_examples=40)
@given(st.integers(0, 999), st.integers(-9, 1), st.integers(-9, 1), st.integers(0, 50))
def test_less_equals_the_formula_in_float64(seed, of_gradients, of_moments, step):
    rng = np.random.default_rng(seed)
    g = numbers(rng, (3, 4, 5), of_gradients)
    m, v = numbers(rng, (4, 5), of_moments), numbers(rng, (4, 5), of_moments).square()
    moments = Moments({"p": m}, {"p": v}, step, (0.9, 0.999), EPS)
    found = adam_direction(g, "p", moments).double().numpy()
    gd, md, vd = g.double().numpy(), m.double().numpy(), v.double().numpy()
    root = np.sqrt(0.999 * vd + 0.001 * gd**2 + EPS)
    scale = (np.abs(0.9 * md) + np.abs(0.1 * gd)) / root  # rounding is relative to terms that may cancel
    assert (np.abs(found - (0.9 * md + 0.1 * gd) / root) <= 1e-6 * scale + 1e-30).all()


@pytest.mark.parametrize("steps", [1, 2, 7, 30])
@pytest.mark.parametrize(("betas", "eps"), [((0.9, 0.999), 1e-8), ((0.8, 0.95), 1e-3)])
def test_adam_equals_the_next_update_of_torch_adamw(steps, betas, eps):
    torch.manual_seed(steps)
    lr = 0.5
    layer = torch.nn.Linear(6, 5, bias=False).requires_grad_(True)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=lr, betas=betas, eps=eps, weight_decay=0.0)
    for _ in range(steps):
        layer.weight.grad = torch.randn(5, 6)
        optimizer.step()
    moments = moments_of(optimizer, layer)
    assert moments.step == steps
    rows = torch.randn(2, 5, 6)
    directions = adam_direction(rows, "weight", moments, "adam")
    state = copy.deepcopy(optimizer.state_dict())
    for row, direction in zip(rows, directions, strict=True):
        with torch.no_grad():
            layer.weight.zero_()  # so that the update is all there is
        optimizer.load_state_dict(copy.deepcopy(state))
        layer.weight.grad = row.clone()
        optimizer.step()
        torch.testing.assert_close(direction, layer.weight.detach() / -lr, rtol=2e-5, atol=1e-7)


def test_a_moment_of_half_precision_does_not_underflow():
    """(1 - b2) g^2 of g = 1e-3 is 1e-9: 0 in float16, where the direction would be far too long."""
    g = torch.full((1, 2), 1e-3, dtype=torch.float16)
    assert (g * g * (1 - 0.999) == 0).all()
    zero = {"p": torch.zeros(2)}
    moments = Moments(zero, zero, 1, eps=1e-16)
    found = adam_direction(g, "p", moments)
    assert found.dtype == torch.float32
    expected = 0.1 * float(g[0, 0]) / np.sqrt(0.001 * float(g[0, 0]) ** 2 + 1e-16)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("formula", ["less", "adam"])
def test_neither_gradients_nor_moments_are_changed(formula):
    g, m, v = torch.randn(2, 3), torch.randn(3), torch.rand(3)
    kept = [t.clone() for t in (g, m, v)]
    adam_direction(g, "p", Moments({"p": m}, {"p": v}, 3), formula)
    assert all(torch.equal(a, b) for a, b in zip((g, m, v), kept, strict=True))


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"a": [2], "b": [2]}, r"of b have shape none, the adapter's parameter \(2,\)"),
        ({}, r"of a have shape \(2,\), the adapter's parameter none"),
        ({"a": [3]}, r"of a have shape \(2,\), the adapter's parameter \(3,\)"),
    ],
)
def test_moments_of_another_adapter_are_refused(parameters, said):
    moments = Moments({"a": torch.zeros(2)}, {"a": torch.zeros(2)}, 1)
    moments.check({"a": torch.Size([2])})
    with pytest.raises(MismatchError, match=f"moments {said}: they belong to another adapter"):
        moments.check({name: torch.Size(shape) for name, shape in parameters.items()})
