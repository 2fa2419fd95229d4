"""Runs of a comparison begin at one index, beside which is what goes with the target alone."""

from types import SimpleNamespace

import pytest
from compare_helpers import CONFIG, cell, write

from clusterucb.steps.features import clusters_of

COMMON = {"inputs", "pool", "base answers"}
CHECKPOINTS = {"checkpoints"}
FEATURES = {"checkpoints", "features"}
CLUSTERS = {"clusters"}
FIRST = {"first round"}


def groups(run):
    """The paths of what may be shared, each with all that goes with it."""
    return {
        "inputs": (run.target, run.holdout, run.contamination),
        "pool": (run.pool, run.initial),
        "base answers": run.base_answers,
        "checkpoints": tuple(map(run.checkpoint, (1, 2, 3))),
        "features": tuple(map(run.features_at, (1, 2, 3))),
        "clusters": run.clusters,
        "first round": run.round(1),
    }


@pytest.mark.parametrize(
    ("mine", "theirs", "shared"),
    [
        ("clusterucb", "clusterucb", FEATURES | CLUSTERS | FIRST),
        ("clusterucb", "dynamic", FEATURES | CLUSTERS),
        ("linear_ucb", "clusterucb", FEATURES | CLUSTERS),
        ("dynamic", "dynamic", FEATURES | CLUSTERS | FIRST),
        ("clusterucb_hidden", "clusterucb", CHECKPOINTS),
        ("linear_ucb_hidden", "clusterucb_hidden", FEATURES | CLUSTERS),
        ("linear_ucb_words", "linear_ucb_hidden", CHECKPOINTS),
        ("linear_ucb_words", "linear_ucb_words", FEATURES | CLUSTERS | FIRST),
        ("cluster_less", "landmarks", FEATURES | CLUSTERS),
        ("clusterucb_hidden", "clusterucb_hidden", FEATURES | CLUSTERS),
        ("clusterucb@0.1", "clusterucb", FEATURES | CLUSTERS),
        ("linear_ucb@0.1", "clusterucb@0.1", FEATURES | CLUSTERS),
        ("linear_ucb@0.1", "linear_ucb@0.1", FEATURES | CLUSTERS | FIRST),
        ("clusterucb@0.1", "clusterucb@0.1", FEATURES | CLUSTERS | FIRST),
        ("less", "less_clusterucb", FEATURES | CLUSTERS),
        ("less", "less", FEATURES | CLUSTERS | FIRST),
        ("less_clusterucb", "less_clusterucb", FEATURES | CLUSTERS),
        ("dynamic", "less", set()),
        ("random", "clusterucb", set()),
        ("random", "random", set()),
        ("bm25", "bm25", FIRST),
        ("loss_lowest", "loss_lowest", FIRST),
        ("loss_lowest", "loss_highest", set()),
    ],
)
def test_a_run_shares_what_it_would_make_alike_and_nothing_else(tmp_path, mine, theirs, shared):
    """Of the second repetition of one with the first of the other."""
    new, old = cell(tmp_path, mine, 1), cell(tmp_path, theirs, 0)
    for one in (new, old):
        one.share(CONFIG)
    ours, others = groups(new.run), groups(old.run)
    assert {name for name in ours if ours[name] == others[name]} == COMMON | shared
    for run in (new.run, old.run):
        assert not any(
            path.is_relative_to(tmp_path / "shared") for path in (run.adapter, run.summary, run.round(2))
        )


def test_clusters_are_shared_only_where_number_and_centre_are_the_same(tmp_path):
    """Those that are there are the first run's."""
    ours, places = CONFIG.with_settings({"k": 4}), []
    for name, k in (("clusterucb", 4), ("clusterucb", 4), ("clusterucb@0.1", 3), ("linear_ucb", 4)):
        one = cell(tmp_path, name)
        one.share(ours)
        config = one.config(ours.with_settings({"k": k}))
        session = SimpleNamespace(dir=one.run, config=config, decide=lambda: None)
        places.append(clusters_of(session).relative_to(tmp_path))
        if len(places) == 1:
            write(tmp_path / places[0], "")
            write(tmp_path / places[0].with_suffix(".json"), '{"k": 4, "centre": false}')
    first, second, *others = (place.parts[0] for place in places)
    assert (first, second, *others) == ("shared", "shared", "clusterucb@0.1", "linear_ucb")


def test_a_run_finds_them_when_the_comparison_has_moved(tmp_path):
    before = cell(tmp_path / "here", "clusterucb", 1)
    before.share(CONFIG)
    (tmp_path / "here").rename(tmp_path / "there")
    run = cell(tmp_path / "there", "clusterucb", 1).run
    assert run.pool == tmp_path / "there/shared/pool"
    assert run.round(1) == tmp_path / "there/clusterucb/0/rounds/1"


@pytest.mark.parametrize("begun", ["here", "by an earlier version"])
def test_a_run_that_has_begun_keeps_what_it_has(tmp_path, begun):
    one = cell(tmp_path, "clusterucb")
    if begun == "here":
        one.share(CONFIG)
    write(one.run.config, one.config(CONFIG).to_yaml())
    before = groups(one.run)
    one.share(CONFIG)
    assert groups(one.run) == before
    assert one.run.pool.parent == (one.run.path if begun != "here" else tmp_path / "shared")
