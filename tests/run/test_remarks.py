"""Each remark appears where it should, says what to do, and is silent elsewhere."""

from dataclasses import replace

import numpy as np
import pytest

from clusterucb.config import load
from clusterucb.run import remarks as module
from clusterucb.run.remarks import After, Before, chance_influence, own_influence
from clusterucb.steps.summary import before

GOOD = Before(
    steps=60, rate=2e-4, warmup=0.1, saved=2.4, target_rows=40, held_out=30, repeats=0, reselects=True
)
DONE = After(
    base=2.0,
    fall=0.5,
    error=0.05,
    rise=(0.0, 0.01),
    selected=0.2,
    everyone=0.05,
    best=0.3,
    chance=0.04,
    whole=True,
    reselects=True,
)

APPEARS = [
    (GOOD, {"steps": 4, "rate": 2e-5}, "4 steps at a learning rate of at most 2e-05", "raise --lr"),
    (GOOD, {"steps": 1, "rate": 1e-5}, "1 step at", "lower --batch-size"),
    (GOOD, {"warmup": 8.5}, "8.5 passes over the pool, more than the 2.4", "lower --warmup-steps"),
    (GOOD, {"held_out": 0}, "rows that steered the selection", "with --holdout"),
    (GOOD, {"target_rows": 7}, "the target has 7 rows", "give 8 or more"),
    (GOOD, {"target_rows": 1}, "the target has 1 row,", "give 8 or more"),
    (GOOD, {"repeats": 12}, "12 pool rows nearly repeat rows of the task", "--keep auto"),
    (DONE, {"fall": 0.017, "error": 0.012, "rise": None}, "moved by -0.0170 ± 0.0120", "more --holdout rows"),
    (DONE, {"fall": -0.4}, "the loss rose by 0.4000", "lower --lr"),
    (DONE, {"rise": (0.1, 0.01)}, "ends 0.1000 ± 0.0100 above its lowest", "fewer --periods"),
    (DONE, {"fall": 0.02, "error": 0.001}, "fell by 1.0% only", "raise --lr"),
    (DONE, {"selected": 0.052}, "all rows are alike to the target", "random ones"),
    (DONE, {"own": 0.03}, "about 3% of the pool is as influential as the target's own rows", "--keep auto"),
    (DONE, {"best": 0.07}, "the target is far from everything", "--method random"),
]


@pytest.mark.parametrize(("facts", "changes", "what", "to_do"), APPEARS)
def test_a_remark_appears_alone_in_one_sentence_and_says_what_to_do(facts, changes, what, to_do):
    (remark,) = replace(facts, **changes).remarks()
    assert what in remark
    assert to_do in remark
    assert not remark[0].isupper()
    assert not remark.endswith(".")
    assert len(remark) < 240


@pytest.mark.parametrize(
    "facts",
    [
        *(GOOD, DONE),  # a run as it should be
        replace(GOOD, steps=9, rate=5e-4),  # few steps at a high rate go as far
        replace(GOOD, warmup=9.0, saved=None),  # without a budget nothing is to be saved
        replace(GOOD, target_rows=8),
        replace(GOOD, repeats=5, reselects=False),
        replace(DONE, fall=0.2, error=0.09),
        replace(DONE, error=None, fall=0.001, rise=(0.5, None)),  # of one row nothing is sure
        replace(DONE, rise=(0.019, 0.01)),
        replace(DONE, selected=0.056),
        replace(DONE, selected=0.051, whole=False),  # what a bandit draws is no sample of the pool
        replace(DONE, best=0.09),
        replace(DONE, own=0.009),
        replace(DONE, own=0.5, reselects=False),
        After(base=2.0, fall=0.5, error=0.05),  # a baseline knows no influence
    ],
)
def test_on_the_other_side_of_a_limit_there_is_nothing_to_say(facts):
    assert [*facts.remarks()] == []


def test_chance_gives_about_the_highest_influence_of_random_rows():
    rng = np.random.default_rng(0)
    rows, directions = rng.normal(size=(2000, 512)), 0.4 * rng.normal(size=(3, 512)) / np.sqrt(512)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    highest = float((rows @ directions.T).max())
    assert chance_influence(2000, directions) == pytest.approx(highest, rel=0.15)


def test_own_influence_is_the_mean_of_the_targets_rows_on_each_other():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(7, 30)) + 1
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    parts = [rows[:4], rows[4:6], rows[6:]]  # one row tells nothing
    each = [(part @ part.T)[~np.eye(len(part), dtype=bool)].mean() for part in parts[:2]]
    directions = np.stack([part.mean(0) for part in parts])
    found = own_influence(directions, np.array([4, 2, 1]))
    assert found == pytest.approx(module.OWN * np.mean(each))
    assert own_influence(directions[2:], np.array([1])) == np.inf


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"keep": "now"}, True),
        ({"keep": "sum"}, True),
        ({"keep": "auto"}, True),  # of gradients nothing is seen beforehand
        ({"keep": "auto", "features": "hidden"}, False),
        ({"keep": "static"}, False),
        ({"method": "less"}, False),
        ({"method": "rds"}, False),
    ],
)
def test_to_keep_rows_of_the_task_is_advised_where_they_would_leave(shared_settings, given, told):
    config = load(None, {**shared_settings, "out": "run", "top_p": 0.1, **given})
    said = " ".join(before(config, 100, 40, 5, repeats=3).remarks())
    assert ("with --keep auto" in said) is told
