"""The example configurations: they are valid, and the paper's has the paper's values."""

from pathlib import Path

import pytest
import yaml

from clusterucb.config import load
from clusterucb.run.presets import PROCEDURES
from clusterucb.sources.catalogue import SOURCES
from clusterucb.tasks import TASKS, chosen

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_valid_and_names_what_exists(path):
    config = load(path)
    assert set(config.target) <= set(TASKS)
    assert set(config.holdout) <= set(TASKS)
    assert chosen(config.evaluation.tasks)
    assert {Path(pool).stem for pool in config.pool} <= set(SOURCES)
    assert len(config.pool) >= 5
    assert not config.evaluation.allow_code_execution
    assert not config.trust_remote_code


def test_the_papers_example_is_the_papers_preset():
    path = EXAMPLES[0].with_name("paper-llama2-7b.yaml")
    tree = yaml.safe_load(path.read_text())
    of_the_job = {name: value for name, value in tree.items() if not isinstance(value, dict)}
    besides = {"batch_tokens": tree["gradients"]["batch_tokens"], "tasks": tree["evaluation"]["tasks"]}
    assert load(path) == load(None, {**of_the_job, **besides, **PROCEDURES["paper"]})
    assert {Path(pool).stem for pool in tree["pool"]} == set(SOURCES)
    assert tree["chat"] == "tulu"


def test_the_papers_preset_has_the_papers_values():
    paper = PROCEDURES["paper"]
    assert (paper["rank"], paper["alpha"], paper["dropout"]) == (128, 512, 0.1)
    assert paper["target_modules"] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert (paper["lr"], paper["lr_warmup"], paper["weight_decay"]) == (2e-5, 0.03, 0.0)
    assert (paper["batch_size"], paper["train_length"], paper["periods"]) == (128, 4096, 4)
    assert (paper["gradient_length"], paper["target_length"], paper["epochs_per_period"]) == (2048, 1400, 1)
    assert (paper["dim"], paper["formula"], paper["features"]) == (8192, "less", "gradients")
    assert (paper["policy"], paper["beta"], paper["bandit"]) == ("ucb_beta", 1.0, "clusterucb")
    assert (paper["budget"], paper["top_p"], paper["warmup_steps"]) == (0.2, 0.05, 20)
