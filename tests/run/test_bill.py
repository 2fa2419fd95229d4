"""A bill: every token once, in the unit that is said, against what doing without would take."""

from dataclasses import replace

import pytest

from clusterucb.report.bill import in_words
from clusterucb.run.costs import Cost, Work, bill, gradient_share, selecting_passes
from clusterucb.run.methods import Method

JOB = Work(rows=100, tokens=1000, training_tokens=2000, target_tokens=50, times=3)
STEPS = {
    "warmup": Cost(rows=20, tokens=400, seconds=4.0),
    "gradients": Cost(rows=100, tokens=1050, pool_gradients=100, target_gradients=5, seconds=10.5),
    "cluster": Cost(rows=100, seconds=2.0),
    "select 2": Cost(rows=20, tokens=250, pool_gradients=20, target_gradients=5, seconds=2.5),
    "train": Cost(rows=10, tokens=300, seconds=3.0),
    "evaluate": Cost(rows=10, tokens=90, seconds=0.3),
}


def test_all_parts_are_counted_and_a_forward_pass_is_a_third():
    found = bill(STEPS, JOB)
    assert found["passes"] == pytest.approx(0.4 + 1.3 + 0.3 + 0.03, abs=1e-4)
    assert found["seconds"] == pytest.approx(22.3)
    assert {name: part["passes"] for name, part in found["parts"].items()} == pytest.approx(
        {"warmup": 0.4, "selecting": 1.3, "training": 0.3, "evaluation": 0.03}, abs=1e-4
    )
    hidden = {"gradients": Cost(rows=100, tokens=1050, pool_forwards=100)}
    assert bill(hidden, JOB)["passes"] == pytest.approx(0.35, abs=1e-4)


def test_gradients_of_the_upper_half_of_the_layers_take_three_quarters_wherever_they_are_taken():
    top = Method("dynamic", 1, 1, "top", budgeted=True, reselects=True)
    whole, found = bill(STEPS, JOB), bill(STEPS, replace(JOB, gradient=gradient_share(top)))
    parts = {name: part["passes"] for name, part in whole["parts"].items()}
    expected = {**parts, "selecting": 0.75 * parts["selecting"]}
    assert {name: part["passes"] for name, part in found["parts"].items()} == pytest.approx(expected)
    assert found["score_all"]["passes"] == pytest.approx(0.4 + 0.75 * 3 * 1.05 + 0.3 + 0.03, abs=1e-4)
    assert found["train_only"] == whole["train_only"]


def test_scoring_all_rows_takes_their_gradients_each_time_at_this_runs_speed():
    full = bill(STEPS, JOB)["score_all"]
    assert full["passes"] == pytest.approx(0.4 + 3 * 1.05 + 0.3 + 0.03, abs=1e-4)
    assert full["seconds"] == pytest.approx(4 + 3 * 10.5 + 3 + 0.3)


def test_training_alone_is_as_many_rows_of_average_length():
    alone = bill(STEPS, JOB)["train_only"]
    assert alone["passes"] == pytest.approx(0.2 + 0.03, abs=1e-4)
    assert alone["seconds"] == pytest.approx(2.0 + 0.3)


def test_what_an_index_has_is_counted_and_told_apart():
    begun = {
        "warmup": STEPS["warmup"],
        "gradients": Cost(rows=100, tokens=1000, pool_gradients=100, seconds=10),
    }
    found, alone = bill(STEPS, JOB, begun), bill(STEPS, JOB)
    assert found["index"] == {"passes": pytest.approx(0.4 + 1.0), "seconds": pytest.approx(4 + 10)}
    assert {**found, "index": None} == alone
    assert "Of that, 1.40 passes over the pool, 14.0 s are the index's" in " ".join(in_words(found))
    assert not any("index" in line for line in in_words(alone))


def test_what_is_not_known_is_not_told():
    found = bill({"select 1": Cost(rows=100), "train": Cost(rows=10, tokens=300)}, JOB)
    assert found["score_all"]["seconds"] is None
    assert found["train_only"]["seconds"] is None
    assert bill({}, Work(100, 1000, 1000, 0, 0))["score_all"] is None
    assert not any("about" in line for line in in_words(found))


def test_in_words_a_share_never_stands_without_what_it_is_of():
    for line in in_words(bill(STEPS, JOB)):
        assert "%" not in line or line.count("passes over the pool") == 1
    assert next(in_words(bill(STEPS, JOB))).startswith(
        "In all 2.03 passes over the pool, 22.3 s, 52% of what scoring all rows takes: warmup 0.40,"
    )


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        (Method("dynamic", 1, 1, budgeted=True, reselects=True), 1 + 3 * 0.2),
        (Method("dynamic", 1, 1, "hidden", budgeted=True, reselects=True), 1 / 3 + 4 * 0.2),
        (Method("dynamic", 1, 1, "top", budgeted=True, reselects=True), 0.75 * (1 + 3 * 0.2)),
        (Method("less", 4, 1, budgeted=True), 1 + 3 * 0.2),
        (Method("less", 4, 4), 4),
        (Method("random"), 0),
    ],
)
def test_a_budget_is_spent_in_each_selection_that_needs_fresh_gradients(method, passes):
    assert selecting_passes(method, 4, 0.2) == pytest.approx(passes)
