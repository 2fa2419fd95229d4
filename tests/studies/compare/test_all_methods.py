"""All methods in one comparison."""

from pathlib import Path

import pytest
from compare_helpers import csv_lines

from cli_helpers import clusterucb, options, read
from clusterucb.run.methods import METHODS


@pytest.fixture(scope="module")
def comparison(shared_settings, tmp_path_factory):
    """A finished comparison of all methods, and its settings."""
    settings = {**shared_settings, "less_checkpoints": 2, "periods": 2}
    out = tmp_path_factory.mktemp("all") / "out"
    given = options(settings, out=out)
    outcome = clusterucb("compare", "--methods", ",".join(METHODS), "--seeds", 1, *given)
    assert outcome.status == 0, outcome
    return out, settings


def test_every_method_has_its_line_and_its_cost(comparison):
    out, _ = comparison
    lines = {line["method"]: line for line in csv_lines(out)}
    assert list(lines) == list(METHODS)
    gradients = {name: int(line["pool_gradients"]) for name, line in lines.items()}
    assert gradients == {
        "clusterucb": 100 + 20,
        "clusterucb_hidden": 2 * 20,
        "linear_ucb": 100 + 20,
        "linear_ucb_hidden": 2 * 20,
        "dynamic": 2 * 100,
        "less_clusterucb": 100 + 20,
        "less": 2 * 100,
        **dict.fromkeys(("rds", "bm25", "loss_highest", "loss_lowest", "random"), 0),
    }
    forwards = {name for name, line in lines.items() if int(line["pool_forwards"]) == 100}
    assert forwards == {"clusterucb_hidden", "linear_ucb_hidden", "rds", "loss_highest", "loss_lowest"}
    computed = read(out / "comparison.json")["computed"]
    assert computed["pool_gradients"] == (120 + 40 + 20 + 40 + 100) + (
        120 + 100
    )  # each family's first features once


@pytest.mark.parametrize(
    "name", ["clusterucb_hidden", "linear_ucb", "less_clusterucb", "rds", "loss_lowest", "random"]
)
def test_a_run_after_others_is_the_same_run_alone(comparison, tmp_path, name):
    out, settings = comparison
    method = METHODS[name]
    own = {"method": method.method, "bandit": method.bandit, "perplexity": method.perplexity}
    own["features"], own["policy"] = method.features, method.policy
    alone = clusterucb("run", *options(settings, out=tmp_path / "run", **own))
    assert alone.status == 0, alone
    for file in ("rounds/1/selected.ids.jsonl", "adapter/adapter_model.safetensors"):
        assert (out / name / "0" / file).read_bytes() == (tmp_path / "run" / file).read_bytes()
    losses = [
        read(Path(run) / "evaluation.json")["adapter"]["losses"]
        for run in (out / name / "0", tmp_path / "run")
    ]
    assert losses[0] == losses[1]
