"""benchmarks/scale.py: its formulas against what torch counts, and the page that shows its tables."""

from __future__ import annotations

from pathlib import Path

import pytest
import scale
import scale_runs
from scale_counts import counted_forward, counted_gradients, counted_traffic, counted_training, made_up
from scale_model import TRAFFIC, Assumptions, Passes, llama_2_7b, stages

from builders import build_model
from clusterucb.config import Lora
from clusterucb.training.adapter import attach_adapter

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
ROWS, LENGTH = 3, 96
TOKENS, LABELS = ROWS * LENGTH, ROWS * LENGTH // 2


def tiny(layers=2):
    return attach_adapter(build_model(layers=layers).requires_grad_(False), Lora(rank=4, alpha=16), 0)


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def llama():
    return llama_2_7b()


@pytest.mark.parametrize(
    ("formula", "labels", "counted"),
    [
        (Passes.gradients, LABELS, counted_gradients),
        (Passes.forward, LABELS, counted_forward),
        (Passes.gradients, LABELS, counted_training),
    ],
    ids=["features", "forward", "training"],
)
def test_operations_of_passes_are_those_that_torch_counts(model, formula, labels, counted):
    found = counted(model, made_up(ROWS, LENGTH, model.config.vocab_size))
    assert formula(Passes.of(model), TOKENS, LENGTH, labels) == pytest.approx(found.flops, rel=0.2)


def test_a_gradient_goes_through_memory_as_often_as_assumed():
    assert counted_traffic((128, 1024), 13, 64) == pytest.approx(TRAFFIC, rel=0.2)


def test_a_layer_takes_as_many_calls_as_assumed(model):
    rows = made_up(ROWS, LENGTH, model.config.vocab_size)
    deeper = tiny(layers=4)
    for assumed, counted in (
        (Assumptions.operations, counted_gradients),
        (Assumptions.training_operations, counted_training),
    ):
        more = counted(deeper, rows).calls - counted(model, rows).calls
        assert more / 2 == pytest.approx(assumed, rel=0.2)


def test_shapes_are_those_of_llama_2_7b(llama):
    passes = llama[2]
    assert passes.body + 2 * passes.head == 6_738_149_376  # weights of all matrices, with the embedding
    assert passes.adapter == 32 * 4 * 128 * (4096 + 4096)


def test_page_shows_what_the_script_prints(llama):
    shown = PAGE.read_text(encoding="utf-8").splitlines()
    for rows in scale.ROWS:
        missing = [line for line in scale.table(rows, scale.GPUS, llama, Assumptions()) if line not in shown]
        assert missing == [], "python benchmarks/scale.py prints it; put it into docs/scale.md"
    assert set(scale.memory_table(scale.ROWS, llama[0])) <= set(shown)


def test_page_shows_every_assumption():
    page = PAGE.read_text(encoding="utf-8")
    said = [f"| `{name}` | {scale.plain(value)} |" for name, value in vars(Assumptions()).items()]
    assert [line for line in said if line not in page] == []


def test_no_stage_takes_longer_on_more_gpus(llama):
    one, many = stages(10**6, 1, llama), stages(10**6, 64, llama)
    assert [stage.name for stage in one] == [stage.name for stage in many]
    assert all(a.seconds >= b.seconds for a, b in zip(one, many, strict=True))
    assert all(a.flops == b.flops for a, b in zip(one, many, strict=True))


def test_bandit_and_k_means_of_a_small_size_run(capsys):
    scale_runs.main(["bandit", "kmeans", "--rows", "20000"])
    bandit, kmeans = capsys.readouterr().out.splitlines()
    assert "20,000 rows, k 141, ucb_beta, 4,000 draws, 8 at a time of one" in bandit
    assert "20,000 rows x 32, k 141" in kmeans
