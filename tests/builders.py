"""Tiny real models, tokenizers and data, built in code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = [
    *("add", "cat", "dog", "eat", "five", "four", "good", "has", "in", "jump"),
    *("keep", "lamp", "moon", "nine", "one", "play", "quiz", "red", "sun", "two"),
]


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
