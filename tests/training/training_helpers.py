"""A tiny Llama with a LoRA adapter, and rows to train it on."""

from __future__ import annotations

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from clusterucb.config import Config, Lora
from clusterucb.data.chat import Encoded
from clusterucb.training.adapter import attach_adapter

VOCABULARY = 320


def settings_of(folder, **changes):
    """A whole configuration around the model in `folder`."""
    required = {"model": str(folder), "pool": ["pool.jsonl"], "target": ["target.jsonl"], "out": "run"}
    return Config(**required, **({"device": "cpu", "dtype": "float32"} | changes))


def base(seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).requires_grad_(False)


def adapted(seed=0, dropout=0.2, **lora):
    """A model with an adapter whose weights depend on `seed`."""
    settings = {"rank": 4, "alpha": 8, "dropout": dropout, "target_modules": ["q_proj", "v_proj"]} | lora
    return attach_adapter(base(), Lora(**settings), seed)


def rows(count, seed=0):
    """Random rows of 4 to 20 tokens; the first token of row i is 3 + i, by which a test knows it again."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        ids = rng.integers(100, VOCABULARY, rng.integers(4, 21)).astype(np.int32)
        ids[0] = 3 + i
        labels = np.arange(len(ids)) >= len(ids) // 2
        made.append(Encoded(ids, labels))
    return made


def numbers(batch):
    """The rows that a collated batch holds."""
    return [int(first) - 3 for first in batch["input_ids"][:, 0]]


def weights(model):
    """A copy of what training changes."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def same(one, other):
    """Whether two dicts of tensors are equal in every bit."""
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)
