"""Tiny real models, tokenizers and data, built in code."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = "add cat dog eat five four good has in jump keep lamp moon nine one play quiz red sun two".split()


def build_tokenizer():
    """A byte-level BPE tokenizer with ChatML's special tokens and template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([" ".join(WORDS), "user assistant system"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
    )


def build_model(seed=0, layers=2):
    """A Llama of a few thousand parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def sentence(rng, low, high):
    return " ".join(rng.choice(WORDS, rng.integers(low, high)))


def write_rows(path, count, seed, subtasks=0):
    """Random rows in the `messages` shape."""
    rng = np.random.default_rng(seed)
    with Path(path).open("w") as file:
        for i in range(count):
            turns = [{"role": "user", "content": sentence(rng, 1, 12)}]
            turns.append({"role": "assistant", "content": sentence(rng, 1, 8)})
            row = {"messages": turns, "n": i}
            if subtasks:
                row["subject"] = f"s{i % subtasks}"
            file.write(json.dumps(row) + "\n")
    return Path(path)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A tiny model with its tokenizer, as a folder."""
    folder = tmp_path_factory.mktemp("model")
    build_model().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    """pool-a.jsonl, pool-b.jsonl (100 rows), target.jsonl (two subtasks) and holdout.jsonl."""
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "pool-a.jsonl", 60, 1)
    write_rows(folder / "pool-b.jsonl", 40, 2)
    write_rows(folder / "target.jsonl", 6, 3, subtasks=2)
    write_rows(folder / "holdout.jsonl", 5, 4)
    return folder


@pytest.fixture
def settings(shared_settings, tmp_path):
    """Options of a whole run that takes seconds."""
    return {**shared_settings, "out": str(tmp_path / "run")}


@pytest.fixture(scope="session")
def shared_settings(model_folder, data_folder):
    """The same without a run directory."""
    return {
        "model": str(model_folder),
        "pool": [str(data_folder / "pool-a.jsonl"), str(data_folder / "pool-b.jsonl")],
        "target": [str(data_folder / "target.jsonl")],
        "subtask": "subject",
        "holdout": [str(data_folder / "holdout.jsonl")],
        "device": "cpu",
        "dtype": "float32",
        "rank": 4,
        "alpha": 8,
        "lr": 1e-3,
        "batch_size": 4,
        "micro_batch": 2,
        "warmup_steps": 3,
        "dim": 256,
        "k": 5,
        "periods": 3,
        "top_p": 0.1,
        "gradient_length": 48,
        "train_length": 64,
    }


@pytest.fixture(scope="session")
def finished_settings(shared_settings, tmp_path_factory):
    """Options of a whole run that is finished: its directory is not to be changed."""
    import gc

    from cli_helpers import clusterucb, options

    settings = {**shared_settings, "out": str(tmp_path_factory.mktemp("finished") / "run")}
    outcome = clusterucb("run", *options(settings))
    assert outcome.status == 0, outcome
    gc.collect()
    gc.freeze()  # a Trainer collects garbage, and would look at all of torch and transformers each time
    return settings
