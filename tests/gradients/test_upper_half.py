"""Features of the upper half of the layers, against gradients of all layers, one row at a time."""

import re

import numpy as np
import pytest
from test_featurizer import random_moments, slow_feature
from tiny_adapters import TARGETS, adapter, rows

from builders import build_model
from clusterucb.errors import ConfigError, MismatchError
from clusterucb.gradients.featurizer import Featurizer
from clusterucb.gradients.per_sample import adapter_layers, trainable_parameters, upper_half
from clusterucb.gradients.projection import CountSketch
from clusterucb.runtime.memory import recomputed

SKETCH = CountSketch(seed=1, dim=96)


@pytest.fixture(scope="module")
def three():
    """A model of three layers: the middle one is in the upper half."""
    return adapter("llama", model=build_model(layers=3))


def layer_of(name):
    return int(re.search(r"\.(?:layers|h)\.(\d+)\.", name)[1])


def upper(name):
    """Of two layers or of three, all but the first."""
    return layer_of(name) > 0


@pytest.mark.parametrize("formula", [None, "less", "adam"])
@pytest.mark.parametrize("architecture", [*TARGETS, "three"])
def test_a_feature_is_that_of_the_upper_layers_part_of_the_gradient(architecture, formula, three):
    model = three if architecture == "three" else adapter(architecture)
    moments, formula = formula and random_moments(model), formula or "less"
    batch = rows([14, 9, 31, 3], 2)
    found, losses = Featurizer(model, SKETCH, moments, formula, top=True)(batch)
    expected = np.stack([slow_feature(model, row, SKETCH, moments, formula, of=upper) for row in batch])
    np.testing.assert_allclose(found, expected, atol=2e-4)
    whole, same = Featurizer(model, SKETCH, moments, formula)(batch)
    assert np.abs(found - whole).max() > 0.01
    np.testing.assert_array_equal(losses, same)


def test_the_backward_pass_ends_at_the_lowest_of_them(three):
    """The output of the layer below has no gradient, and no parameter has one at the end."""
    asked = {}

    def note(number):
        def hook(_module, _args, output):
            asked[number] = (output[0] if isinstance(output, tuple) else output).requires_grad

        return hook

    layers = three.get_base_model().model.layers
    handles = [layer.register_forward_hook(note(number)) for number, layer in enumerate(layers)]
    for top in (True, False):
        featurize = Featurizer(three, SKETCH, top=top)
        featurize(rows([9, 12]))
        assert asked == {0: not top, 1: True, 2: True}
    for handle in handles:
        handle.remove()
    assert all(parameter.grad is None for parameter in three.parameters())
    assert len(trainable_parameters(three)) == 3 * 2 * len(TARGETS["llama"])  # training trains all


def test_a_row_whose_activations_are_computed_again_has_the_same_feature(three):
    featurize, batch = Featurizer(three, SKETCH, top=True), rows([9, 12])
    expected, _ = featurize(batch)
    with recomputed(three):
        np.testing.assert_array_equal(featurize(batch)[0], expected)


def test_moments_are_those_of_the_whole_adapter_of_which_a_part_goes_to_the_device(three):
    moments = random_moments(three)
    featurize = Featurizer(three, SKETCH, moments, top=True)
    assert {layer_of(name) for name in moments.mean} == {0, 1, 2}
    assert {layer_of(name) for name in featurize.adam.lift} == {1, 2}
    with pytest.raises(MismatchError, match="they belong to another adapter"):
        Featurizer(three, SKETCH, moments.of(featurize.layers), top=True)


def test_an_adapter_of_lower_layers_alone_has_none():
    model = adapter("llama", layers_to_transform=[0])
    assert Featurizer(model, SKETCH)(rows([5]))[0].shape == (1, 96)
    words = "model's 2 layers; use --features gradients, or other --target-modules$"
    with pytest.raises(ConfigError, match=f"^features top: no adapter is in the upper half of the {words}"):
        Featurizer(model, SKETCH, top=True)


def test_a_model_whose_layers_are_no_list_is_refused():
    model = adapter("llama")
    model.config.num_hidden_layers = 7
    with pytest.raises(ConfigError, match=r"^features top: no adapter is in the upper half of the model's 0"):
        upper_half(model, adapter_layers(model))


def test_an_adapter_of_upper_layers_alone_has_the_same_feature_either_way():
    model, batch = adapter("llama", layers_to_transform=[1]), rows([9, 12])
    top, whole = (Featurizer(model, SKETCH, top=top)(batch)[0] for top in (True, False))
    np.testing.assert_array_equal(top, whole)
