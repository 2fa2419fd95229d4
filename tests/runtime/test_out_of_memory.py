"""What happens when memory runs out: one policy, whatever is computed, and no result but by rounding."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from tiny_adapters import TARGETS, adapter, flat, rows

from clusterucb.config import load
from clusterucb.errors import InputError
from clusterucb.evaluation.loss import losses
from clusterucb.features.hidden import forward, representations
from clusterucb.gradients.anatomy import ROWS, TOKENS, examine
from clusterucb.gradients.batches import collate
from clusterucb.gradients.featurizer import Featurizer
from clusterucb.gradients.per_sample import (
    adapter_layers,
    label_losses,
    row_gradients,
    trainable_parameters,
)
from clusterucb.gradients.projection import CountSketch
from clusterucb.run.session import Session
from clusterucb.runtime.memory import GRADIENTS, Room, recomputed
from clusterucb.training.passes import StepPasses

FULL = torch.OutOfMemoryError("CUDA out of memory.")
LENGTHS = [12, 11, 11, 10, 9, 9, 8]


@contextmanager
def scarce(model, tokens, kept=None):
    """A model that runs out of memory above so many padded tokens, or so many whose activations are kept.

    It does so at the very end: of the way forward, or if there is one of the way back. Tells the sizes that
    were tried, of which the first number is of rows.
    """
    tried, again = [], []
    embeddings, last = model.get_input_embeddings(), model.get_base_model().model.layers[-1].mlp

    def begun(_module, _args, out):
        again.clear()
        if tuple(out.shape[:2]) == (ROWS, TOKENS):  # short rows, to see how the model treats them
            again.append(True)
            return
        tried.append(tuple(out.shape[:2]))
        if torch.is_grad_enabled() and out.shape[:2].numel() > tokens:
            out.requires_grad_(True).register_hook(fail)

    def ended(_module, _args, out):
        size = out.shape[:2].numel()
        if (size > tokens and not torch.is_grad_enabled() and not kept) or (
            kept is not None and torch.is_grad_enabled() and not again and size > kept
        ):
            raise FULL
        again.append(True)

    def fail(_gradient):
        raise FULL

    handles = [embeddings.register_forward_hook(begun), last.register_forward_hook(ended)]
    try:
        yield tried
    finally:
        for handle in handles:
            handle.remove()


def gradients_of_a_step(model, some, room=None, **bounds):
    """Of the parameters, and the loss."""
    loss = StepPasses(model, room=room or Room(), **bounds)([*enumerate(some)])
    found = {name: p.grad.clone() for name, p in trainable_parameters(model).items()}
    model.zero_grad(set_to_none=True)
    return found, loss


WORK = {
    "gradients": lambda model, some, room: Featurizer(model, CountSketch(dim=64), room=room)(some)[0],
    "hidden states": lambda model, some, room: forward(representations, model, some, room=room),
    "held-out losses": lambda model, some, room: losses(model, some, room=room),
    "training": lambda model, some, room: flat(gradients_of_a_step(model, some, room)[0]).numpy(),
}


@pytest.fixture(scope="module")
def model():
    return adapter("llama", dropout=0.0)


@pytest.mark.parametrize("name", WORK)
def test_memory_that_runs_out_changes_no_result_is_told_once_and_remembered(model, name, tmp_path):
    compute, some, told = WORK[name], rows(LENGTHS, 1), []
    expected = compute(model, some, Room())
    room = Room(tmp_path / "memory.json", told.append)
    with scarce(model, 36) as tried:
        found = compute(model, some, room)
        first = len(tried)
        compute(model, some, room)
    np.testing.assert_allclose(
        found.astype(float), expected.astype(float), atol=1e-3 * np.abs(expected).max()
    )
    assert tried[0] == (7, 12)  # half is 48 tokens: 3 rows have fewer, 4 that follow have 40
    assert [size for size in tried[:first] if size[0] * size[1] > 36] == [(7, 12), (4, 10)]
    assert all(size[0] * size[1] <= 36 for size in tried[first:])
    (line,) = told
    assert line.endswith("memory ran out on cpu; going on with at most 48 tokens at once")
    with scarce(model, 36) as tried:  # the next command
        compute(model, some, Room(tmp_path / "memory.json", told.append))
    assert all(size[0] * size[1] <= 36 for size in tried)
    assert len(told) == 1


@pytest.mark.parametrize("name", ["gradients", "training"])
def test_a_row_that_does_not_fit_alone_has_its_activations_computed_again(model, name, tmp_path):
    compute, some, told = WORK[name], rows([12, 5], 1), []
    expected = compute(model, some, Room())
    room = Room(tmp_path / "memory.json", told.append)
    with scarce(model, 99, kept=8) as tried:
        found = compute(model, some, room)
        again = len(tried)
        compute(model, some, room)
    np.testing.assert_allclose(
        found.astype(float), expected.astype(float), atol=1e-3 * np.abs(expected).max()
    )
    assert tried == [(2, 12), (1, 12), (1, 12), (1, 5), (1, 12), (1, 5)][: len(tried)]
    assert again == 4
    assert told == [
        f"{name}: memory ran out on cpu; going on with at most 12 tokens at once, "
        "the activations of rows of 12 tokens or more computed again"
    ]


@pytest.mark.parametrize("name", WORK)
def test_a_row_that_does_not_fit_at_all_is_named_with_what_to_do(model, name):
    words = r"^row 0: out of memory on cpu for this row alone \(12 tokens\); go on with this run directory on"
    with scarce(model, 11), pytest.raises(InputError, match=words):
        WORK[name](model, rows([12, 5], 1), Room())


def test_any_other_error_comes_through(model):
    def broken(_model, _batch):
        raise RuntimeError("device-side assert triggered")

    with pytest.raises(RuntimeError, match="assert triggered"):
        forward(broken, model, rows([5]))


def by_rows(model, batch, axes):
    """Each row's gradient of every layer, to the bit."""
    found = {}
    row_gradients(model, adapter_layers(model), batch, lambda name, g: found.update({name: g.clone()}), axes)
    return found


@pytest.mark.parametrize("architecture", TARGETS)
def test_gradients_with_activations_computed_again_are_the_same_to_the_bit(architecture):
    model, batch = adapter(architecture), collate(rows([9, 14, 6]))
    axes = examine(model, adapter_layers(model)).axes
    expected = by_rows(model, batch, axes)
    passes = []
    model.get_base_model().base_model.register_forward_hook(lambda *_: passes.append("model"))
    with recomputed(model):
        found = by_rows(model, batch, axes)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert passes == ["model"]
    assert by_rows(model, batch, axes).keys() == expected.keys()  # and it is left as it was


def kept_on_the_way_forward(model, batch):
    """Bytes of what a forward pass keeps for the way back, each tensor once, without the model's own."""
    own = {p.data_ptr() for p in model.parameters()}
    found = {}

    def keep(tensor):
        found[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        label_losses(model, batch)
    return sum(size for place, size in found.items() if place not in own)


def test_less_is_kept_when_activations_are_computed_again():
    model, batch = adapter("llama").eval(), collate(rows([60, 60]))
    before = kept_on_the_way_forward(model, batch)
    with recomputed(model):
        assert kept_on_the_way_forward(model, batch) < before / 3


def test_dropout_draws_the_same_when_activations_are_computed_again():
    model = adapter("llama", dropout=0.3).train()
    torch.manual_seed(1)
    expected, loss = gradients_of_a_step(model, rows([9, 14, 6]))
    torch.manual_seed(1)
    with recomputed(model):
        found, again = gradients_of_a_step(model, rows([9, 14, 6]))
    assert again == loss
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_has_fitted_is_of_one_kind_of_work_and_kept_only_where_there_is_news(tmp_path):
    room = Room(tmp_path / "memory.json")
    space = room.at(GRADIENTS, torch.device("cpu"))
    space.told()
    assert not (tmp_path / "memory.json").exists()
    space.lower(8, 100)
    assert Room(tmp_path / "memory.json").found == room.found
    assert space.rows(100, 8) == 4
    assert space.rows(50, 20) == 8
    assert space.rows(1000, 20) == 1


def test_what_lies_on_a_device_is_let_go_of_for_another_engine(settings):
    session = Session(load(None, settings))
    model, projection = session.model, session.projection
    session.release_device()
    assert session.projection == projection
    assert session.projection is not projection
    assert session.model is not model


class TestHowLargeAMicroBatchIs:
    """Found on a GPU by doubling, bounded by what fits, by tokens and by rows."""

    @pytest.mark.parametrize(
        ("fits", "count", "length", "found"),
        [
            (10**6, 256, 200, 32768),
            (20000, 256, 200, 16384),
            (4096, 256, 200, 4096),
            (1000, 256, 200, 4096),  # which is halved when it comes to that
            (10**6, 256, 40, 8192),  # as many rows as are taken at once
            (10**6, 3, 2000, 4096),  # as many as there are
        ],
    )
    def test_it_is_what_fits_in_powers_of_two(self, model, monkeypatch, fits, count, length, found):
        def batch(_featurize, some, _describe):
            assert 0 < len(some) <= count
            if len(some) * length > fits:
                raise FULL

        monkeypatch.setattr(Featurizer, "_batch", batch)
        assert Featurizer(model, CountSketch(dim=8)).most_tokens(rows([length] * count)) == found

    def test_a_run_on_a_gpu_finds_it_once_and_its_next_commands_know_it(
        self, settings, monkeypatch, tmp_path
    ):
        asked = []
        monkeypatch.setattr("clusterucb.run.session.is_gpu", lambda _device: True)
        monkeypatch.setattr(Featurizer, "most_tokens", lambda _self, some: asked.append(some) or 8192)
        for _ in range(2):
            session = Session(load(None, settings))
            assert session.batch_tokens == session.batch_tokens == 8192
        (some,) = asked
        lengths = [len(row) for row in some]
        assert lengths == sorted(session.inputs.pooled.lengths.tolist(), reverse=True)[:256]
        assert json.loads((tmp_path / "run/memory.json").read_text())["gradients on cpu"]["planned"] == 8192
        assert Session(load(None, {**settings, "batch_tokens": 300})).batch_tokens == 300

    def test_on_a_cpu_it_is_what_was_measured_to_be_fastest(self, settings):
        assert Session(load(None, settings)).batch_tokens == 4096
