"""`clusterucb doctor` tells sound features from unsound ones, and what a run would be up against."""

import json
import re

import pytest
import torch

from cli_helpers import clusterucb, done
from clusterucb.studies import doctor


def rows_of(shown):
    """What is printed before the cosine of each comparison, to the cosine."""
    cells = [line.split("\u2502") for line in shown.splitlines() if "\u2502" in line]
    return {row[1].strip(): float(row[2]) for row in cells}


def test_sound_model_passes_and_one_screen_says_what_was_found(model_folder, data_folder):
    outcome = done(
        *("doctor", "--model", model_folder, "--pool", data_folder / "pool-a.jsonl", "--dtype", "bfloat16"),
        *("--features", "gradients", "--budget", 0.2, "--top-p", 0.1),
    )
    found = rows_of(outcome.out)
    assert list(found) == ["padded", "beside a row 20 times longer", "in float32"]
    assert min(found.values()) >= 0.99
    assert len(outcome.out.splitlines()) <= 24
    for said in (
        "[[",
        "<|im_end|>]]",  # the end of an answer is learnt
        "begin tokens before a row: 0",
        "attention: scaled_dot_product",
        "memory: ",
        "a run takes 96 gradients of the 60 rows",  # 60 stored, and a fifth in each of three re-selections
    ):
        assert said in outcome.out


def test_without_a_pool_examples_serve_and_float32_is_compared_with_nothing(model_folder):
    shown = done("doctor", "--model", model_folder, "--dtype", "float32").out
    assert list(rows_of(shown)) == ["padded", "beside a row 20 times longer"]
    assert "capital of Norway" in shown
    assert "a run takes" not in shown


def broken(change):
    """`load_model`, with a hook on the embeddings' output (B, T, H)."""

    def load(config):
        model = doctor_load(config)
        model.get_input_embeddings().register_forward_hook(lambda _module, _args, output: change(output))
        return model

    return load


doctor_load = doctor.load_model


@pytest.mark.parametrize(
    ("change", "unsound"),
    [
        (lambda hidden: hidden / hidden.shape[1], "beside a row 20 times longer"),  # padding counts
        (lambda hidden: hidden * torch.tensor(1 + hidden.element_size()), "in float32"),  # as does the type
    ],
    ids=["padding counts", "the type counts"],
)
def test_features_that_depend_on_padding_or_rounding_end_with_status_1(
    model_folder, monkeypatch, change, unsound
):
    monkeypatch.setattr(doctor, "load_model", broken(change))
    outcome = clusterucb("doctor", "--model", model_folder, "--dtype", "bfloat16")
    assert outcome.status == 1
    assert rows_of(outcome.out)[unsound] < 0.99
    assert "not to be trusted" in outcome.out


def templated(monkeypatch, before):
    """Let the tokenizer's template begin with something more."""
    load = doctor.load_tokenizer

    def changed(config):
        tokenizer = load(config)
        tokenizer.bos_token = "<|endoftext|>"
        tokenizer.chat_template = before + tokenizer.chat_template
        return tokenizer

    monkeypatch.setattr(doctor, "load_tokenizer", changed)


def test_double_begin_tokens_are_counted_and_told(model_folder, monkeypatch):
    templated(monkeypatch, "{{ bos_token }}{{ bos_token }}")
    assert "begin tokens before a row: 2; use" in done("doctor", "--model", model_folder).out


def test_what_is_missing_is_told_in_one_line():
    assert clusterucb("doctor").complaint.startswith("doctor needs --model, or a settings file")
    said = clusterucb("doctor", "--model", "no/where/is").complaint
    assert said.startswith("no/where/is: there is no such folder")


def test_a_row_that_the_chat_format_refuses_costs_one_row_and_a_pool_of_them_one_line(
    model_folder, monkeypatch, tmp_path
):
    templated(monkeypatch, "{% if messages[0].content == 'bad' %}{{ raise_exception('bad') }}{% endif %}")
    pool = tmp_path / "pool.jsonl"
    rows = [{"prompt": text, "completion": "three"} for text in ("bad", "good")]
    pool.write_text(json.dumps(rows[0]) + "\n")
    said = clusterucb("doctor", "--model", model_folder, "--pool", pool).complaint
    assert said == "pool.jsonl:1: cannot be used; expected answers to learn from"
    pool.write_text("\n".join(map(json.dumps, [rows[0], *[rows[1]] * 9])))
    assert "of the 10 rows" in done("doctor", "--model", model_folder, "--pool", pool).out


def test_a_micro_batch_that_does_not_fit_is_halved_and_what_fits_is_told(model_folder, monkeypatch):
    run = doctor.Featurizer._batch

    def batch(self, rows, describe):
        if len(rows) > 5:
            raise torch.OutOfMemoryError
        return run(self, rows, describe)

    monkeypatch.setattr(doctor.Featurizer, "_batch", batch)
    shown = done("doctor", "--model", model_folder, "--dtype", "float32", "--batch-tokens", 91 * 16)
    assert re.search(r"^[45] rows of \d+ tokens went at once", shown.out, re.M)


def test_rows_that_are_mixed_are_refused(model_folder, monkeypatch):
    mixed = broken(lambda hidden: hidden + hidden.mean((0, 1), keepdim=True))
    monkeypatch.setattr(doctor, "load_model", mixed)
    assert "no axis is that of rows" in clusterucb("doctor", "--model", model_folder).complaint
