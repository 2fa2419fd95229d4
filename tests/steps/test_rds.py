"""Weighted means of hidden states against one row at a time, without padding."""

import numpy as np
import pytest
import tiny_adapters
import torch

from clusterucb.errors import InputError
from clusterucb.features.hidden import forward, representations
from clusterucb.gradients.batches import collate


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request):
    """GPT-2 has learned positions, and a head that is tied to the embeddings."""
    return tiny_adapters.adapter(request.param, dropout=0.5)


@pytest.fixture
def rows():
    return tiny_adapters.rows([2, 31, 7, 18])


def slow_representation(model, row, layer=-1):
    ids = torch.from_numpy(row.ids.astype(np.int64))[None]
    with torch.no_grad():
        hidden = model.eval()(input_ids=ids, output_hidden_states=True).hidden_states[layer][0].double()
    weighted = sum((i + 1) * state for i, state in enumerate(hidden))
    mean = weighted / sum(range(1, len(hidden) + 1))
    return (mean / mean.norm()).numpy()


def test_at_a_share_of_the_layers_the_pass_ends_there(model, rows, request):
    ran = []
    blocks = [m for m in model.modules() if type(m).__name__ in ("LlamaDecoderLayer", "GPT2Block")]
    for number, block in enumerate(blocks):
        hook = block.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
        request.addfinalizer(hook.remove)
    found = representations(model, collate(rows), depth=0.6)
    assert ran == [0]
    expected = [slow_representation(model, row, layer=1) for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    again = representations(model, collate(rows))  # nothing of it is left behind
    np.testing.assert_allclose(again, [slow_representation(model, row) for row in rows], atol=1e-5)


def test_padded_rows_are_those_of_each_row_alone(model, rows):
    model.train()
    found = representations(model, collate(rows))
    assert model.training
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [slow_representation(model, row) for row in rows], atol=1e-5)


def test_the_vocabulary_head_does_not_run(model, rows, monkeypatch):
    head = model.get_output_embeddings()
    monkeypatch.setattr(head, "forward", lambda *_: pytest.fail("logits were computed"))
    representations(model, collate(rows))


def test_out_of_memory_halves_the_batch_and_names_a_row_that_does_not_fit_alone(model, rows):
    def scarce(model, batch):
        if batch.ids.numel() > room:
            raise torch.OutOfMemoryError
        return representations(model, batch)

    room = 62
    found = forward(scarce, model, rows)
    np.testing.assert_allclose(found, representations(model, collate(rows)), atol=1e-6)
    room = 20
    with pytest.raises(InputError, match=r"^row 1: out of memory on cpu for this row alone \(31 tokens\)"):
        forward(scarce, model, rows)


def test_a_row_that_is_not_finite_is_named(model, rows):
    def odd(model, batch):
        found = representations(model, batch)
        found[2, 5] = np.inf
        return found

    with pytest.raises(InputError, match=r"^row 2: what the model computes of it is not a finite number"):
        forward(odd, model, rows)
