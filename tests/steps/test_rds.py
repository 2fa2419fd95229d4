"""Weighted means of hidden states against one row at a time, without padding."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from builders import build_model
from clusterucb.data.chat import Encoded
from clusterucb.errors import InputError
from clusterucb.features.hidden import forward, representations
from clusterucb.features.influence import similarities
from clusterucb.gradients.batches import collate


def other_model():
    """GPT-2: learned positions, and a head that is tied to the embeddings."""
    import transformers as t

    torch.manual_seed(0)
    return t.GPT2LMHeadModel(
        t.GPT2Config(
            **{"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
            **{"initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2},
        )
    )


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request):
    """With an adapter that changes nothing, as before any training, and with dropout."""
    base, names = (build_model(), ["q_proj"]) if request.param == "llama" else (other_model(), ["c_attn"])
    settings = {"r": 4, "lora_dropout": 0.5, "target_modules": names, "task_type": "CAUSAL_LM"}
    return get_peft_model(base, LoraConfig(**settings, fan_in_fan_out=request.param == "gpt2"))


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return [
        Encoded(rng.integers(3, 320, length).astype(np.int32), np.arange(length) > 0)
        for length in (2, 31, 7, 18)
    ]


def slow_representation(model, row, layer=-1):
    ids = torch.from_numpy(row.ids.astype(np.int64))[None]
    with torch.no_grad(), model.disable_adapter():
        hidden = model.eval()(input_ids=ids, output_hidden_states=True).hidden_states[layer][0].double()
    weighted = sum((i + 1) * state for i, state in enumerate(hidden))
    mean = weighted / sum(range(1, len(hidden) + 1))
    return (mean / mean.norm()).numpy()


def test_at_a_share_of_the_layers_the_pass_ends_there(model, rows):
    ran = []
    blocks = [m for m in model.modules() if type(m).__name__ in ("LlamaDecoderLayer", "GPT2Block")]
    handles = [
        block.register_forward_pre_hook(lambda *_, n=n: ran.append(n)) for n, block in enumerate(blocks)
    ]
    found = representations(model, collate(rows), depth=0.6)
    assert ran == [0]
    for handle in handles:
        handle.remove()
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


def test_later_tokens_count_for_more(model, rows):
    """The mean without weights is another vector."""
    row = rows[1]
    ids = torch.from_numpy(row.ids.astype(np.int64))[None]
    with torch.no_grad():
        plain = model.eval()(input_ids=ids, output_hidden_states=True).hidden_states[-1][0].mean(0).numpy()
    (found,) = representations(model, collate([row]))
    assert found @ plain / np.linalg.norm(plain) < 0.999


def test_the_vocabulary_head_does_not_run(model, rows, monkeypatch):
    head = model.get_output_embeddings()
    monkeypatch.setattr(head, "forward", lambda *_: pytest.fail("logits were computed"))
    representations(model, collate(rows))


def test_a_cosine_does_not_depend_on_the_rows_beside_it(model, rows):
    found = representations(model, collate(rows)).astype(np.float16)
    targets = representations(model, collate(rows[::-1]))
    together = similarities(found, targets)
    assert together.shape == (4, 4)
    np.testing.assert_allclose(np.diag(together[:, ::-1]), 1, atol=1e-3)
    np.testing.assert_allclose(together, targets @ found.T.astype(np.float32), atol=1e-5)
    for row in range(4):
        np.testing.assert_array_equal(similarities(found[row : row + 1], targets)[:, 0], together[:, row])


def test_out_of_memory_halves_the_batch_and_names_a_row_that_does_not_fit_alone(model, rows):
    def scarce(model, batch):
        if batch.ids.numel() > 62:
            raise torch.OutOfMemoryError
        return representations(model, batch)

    found = forward(scarce, model, rows)
    np.testing.assert_allclose(found, representations(model, collate(rows)), atol=1e-6)

    def scarcer(model, batch):
        if batch.ids.numel() > 20:
            raise torch.OutOfMemoryError
        return representations(model, batch)

    with pytest.raises(InputError, match=r"^row 1: out of memory on cpu for this row alone \(31 tokens\)"):
        forward(scarcer, model, rows)


def test_a_row_that_is_not_finite_is_named(model, rows):
    def odd(model, batch):
        found = representations(model, batch)
        found[2, 5] = np.inf
        return found

    with pytest.raises(InputError, match=r"^row 2: what the model computes of it is not a finite number"):
        forward(odd, model, rows)
