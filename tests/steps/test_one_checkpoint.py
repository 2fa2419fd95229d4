"""A warmup of a single optimizer step, whose learning rate is 0 under a rising schedule."""

from clusterucb.config import load
from clusterucb.run.session import Session
from clusterucb.runtime.files import write_json
from clusterucb.steps.less import weights


def test_a_single_checkpoint_has_all_the_weight_though_its_rate_is_0(settings):
    session = Session(load(None, settings))
    session.dir.warmup.mkdir(parents=True)
    write_json(session.dir.warmup / "checkpoint.json", {"learning_rate": 0.0})
    assert weights(session) == [1.0]
