"""Tiny models of several architectures with a LoRA adapter that does something, rows, and slow references."""

from __future__ import annotations

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from clusterucb.data.chat import Encoded
from clusterucb.gradients.per_sample import trainable_parameters

VOCABULARY = 320


def base(architecture="llama", seed=0, **changes):
    """A causal LM of a few thousand parameters, of one of four unlike architectures."""
    import transformers as t

    torch.manual_seed(seed)
    common = {"vocab_size": VOCABULARY, "hidden_size": 32, "initializer_range": 0.2} | changes
    common |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    grouped = heads | {"num_key_value_heads": 2}
    if architecture == "llama":
        return t.LlamaForCausalLM(t.LlamaConfig(**common, **grouped))
    if architecture == "gemma2":  # softcaps its logits after the head; scaled, tied embeddings
        capped = {"head_dim": 8, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 5.0}
        windows = {"sliding_window": 8, "query_pre_attn_scalar": 8}
        return t.Gemma2ForCausalLM(t.Gemma2Config(**common, **grouped, **capped, **windows))
    if architecture == "gpt_neox":  # fused query, key and value; learned biases; parallel residual
        return t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**common, **heads))
    if architecture == "gpt2":  # Conv1D base layers, learned absolute positions
        common["n_embd"] = common.pop("hidden_size")
        return t.GPT2LMHeadModel(t.GPT2Config(**common, n_layer=2, n_head=4, n_positions=128))
    raise ValueError(architecture)


TARGETS = {
    "llama": ["q_proj", "v_proj", "o_proj", "down_proj"],
    "gemma2": ["q_proj", "k_proj", "o_proj", "gate_proj"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
    "gpt2": ["c_attn", "c_fc"],
}


def adapter(architecture="llama", seed=0, dropout=0.3, rank=4, model=None, **lora):
    """`base` with LoRA matrices of which neither is zero (with B at 0, A's gradient is 0)."""
    settings = {"target_modules": TARGETS[architecture], "fan_in_fan_out": architecture == "gpt2"} | lora
    model = get_peft_model(
        base(architecture, seed) if model is None else model,
        LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=dropout, task_type="CAUSAL_LM", **settings),
    )
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return model


def rows(lengths, seed=0):
    """Random rows; labels are a random set of positions after the first, at least one."""
    rng = np.random.default_rng(seed)
    made = []
    for length in lengths:
        labels = rng.random(length) < 0.5
        labels[rng.integers(1, length)] = True
        labels[0] = False
        made.append(Encoded(rng.integers(3, VOCABULARY, length).astype(np.int32), labels))
    return made


def slow_gradients(model, row):
    """One row's gradients by autograd through the model's own full logits and torch's cross-entropy."""
    training = model.training
    model.eval()
    parameters = trainable_parameters(model)
    ids = torch.from_numpy(row.ids.astype(np.int64)).to(model.device)
    logits = model(input_ids=ids[None]).logits[0]
    labels = ids.where(torch.from_numpy(row.labels.copy()).to(model.device), -100)
    loss = torch.nn.functional.cross_entropy(logits[:-1].float(), labels[1:], ignore_index=-100)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    model.train(training)
    return dict(zip(parameters, gradients, strict=True))


def slow_head_gradient(model, row):
    """Of the row's loss, in a matrix that stands between the last hidden state and the head, (H, H)."""
    model.eval()
    ids = torch.from_numpy(row.ids.astype(np.int64))
    head = model.get_output_embeddings()
    with torch.no_grad():
        hidden = model(input_ids=ids[None], output_hidden_states=True).hidden_states[-1][0]
    between = torch.eye(hidden.shape[1], dtype=torch.float64, requires_grad=True)
    logits = (hidden.double() @ between.T) @ head.weight.detach().double().T
    wanted = torch.from_numpy(np.flatnonzero(row.labels[1:]))
    loss = torch.nn.functional.cross_entropy(logits[wanted], ids[wanted + 1], reduction="sum")
    return torch.autograd.grad(loss, between)[0]


def flat(gradients):
    """One vector of a dict of gradients, by sorted name."""
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)])
