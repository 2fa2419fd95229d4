"""The example configurations: they are valid, and the paper's has the paper's values."""

from pathlib import Path

import pytest

from clusterucb.config import load
from clusterucb.sources.catalogue import SOURCES
from clusterucb.tasks import TASKS
from clusterucb.tasks.chosen import chosen

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


def test_the_papers_example_has_the_papers_values():
    config = load(EXAMPLES[0].with_name("paper-llama2-7b.yaml"))
    lora, training, selection = config.lora, config.training, config.selection
    assert (lora.rank, lora.alpha, lora.dropout) == (128, 512, 0.1)
    assert lora.target_modules == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert (training.lr, training.lr_warmup, training.weight_decay) == (2e-5, 0.03, 0.0)
    assert (training.batch_size, training.train_length, training.periods) == (128, 4096, 4)
    assert (config.gradients.gradient_length, config.gradients.target_length) == (2048, 1400)
    assert (config.gradients.dim, config.gradients.formula) == (8192, "less")
    assert (selection.policy, selection.beta) == ("ucb_beta", 1.0)
    assert (selection.budget, selection.top_p) == (0.2, 0.05)
    assert (config.warmup.warmup_steps, config.clustering.iterations) == (20, 20)
    assert {Path(pool).stem for pool in config.pool} == set(SOURCES)
    assert config.chat == "tulu"
