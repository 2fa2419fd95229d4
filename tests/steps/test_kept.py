"""Keep rules and aims in whole runs of a tiny model."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file
from step_helpers import going_on, selection, summary

from cli_helpers import clusterucb, done, options, read
from clusterucb.config import load
from clusterucb.features.drawn import DrawnWriter
from clusterucb.features.kmeans import spherical_kmeans
from clusterucb.features.store import FeatureStore
from clusterucb.gradients.featurizer import Featurizer
from clusterucb.run.directory import RunDir
from clusterucb.run.session import Session
from clusterucb.selection.bandit import Selection
from clusterucb.selection.round_robin import round_robin
from clusterucb.selection.turns import Turns
from clusterucb.steps.features import directions
from clusterucb.steps.reselection import Drawing
from clusterucb.training.adapter import load_adapter

pytestmark = pytest.mark.whole
ANEW = {"gradients": ("directions",), "cluster": ("features", "clusters.*")}  # where such a step is asked for


@pytest.fixture
def continued(finished_run, tmp_path):
    """A method's name and settings to a run that goes on from its clusters, or before them: the folder."""

    def go(name, *steps, prepare=lambda _folder: None, **changes):
        finished, to = finished_run(name), tmp_path / "-".join([name, *map(str, changes.values())])
        given = going_on(finished, to, *(made for step in steps for made in ANEW.get(step, ())), **changes)
        prepare(to)
        for step in steps:
            done(step, *given)
        return to

    return go


def gradients(folder, number):
    return summary(folder, number)["cost"]["pool_gradients"]


@pytest.mark.parametrize("name", ["clusterucb", "linear_ucb", "dynamic"])
def test_by_the_sum_a_period_trains_on_the_best_of_all_periods_for_no_gradient_more(
    name, continued, finished_run
):
    folder = continued(name, "select", "train", keep="sum")
    rounds, now = [selection(folder, n) for n in (1, 2, 3)], finished_run(name).folder
    assert rounds[0]["rows"].tolist() == selection(now, 1)["rows"].tolist()
    for number, found in enumerate(rounds, start=1):
        mean = sum(earlier["learned"] for earlier in rounds[:number]) / number
        assert found["rows"].tolist() == sorted(np.argsort(-mean, kind="stable")[:10].tolist())
        assert found["scores"] == pytest.approx(mean[found["rows"]])
        assert found["learned"][found["drawn"]].tolist() == found["drawn_scores"].tolist()
        assert gradients(folder, number) == gradients(now, number)
    assert rounds[1]["drawn"].tolist() == selection(now, 2)["drawn"].tolist() or name == "dynamic"
    shutil.rmtree(folder / "adapter")
    shutil.rmtree(folder / "rounds/3")
    before = {n: selection(folder, n)["rows"].tolist() for n in (1, 2)}
    done("train", "--out", folder)  # as after a kill in period 3, but from the beginning
    assert {n: selection(folder, n)["rows"].tolist() for n in (1, 2)} == before
    assert selection(folder, 3)["rows"].tolist() == rounds[2]["rows"].tolist()


def test_where_runs_share_the_first_round_it_is_remembered_too(continued, finished_run):
    own = continued("clusterucb", "select", "train", keep="sum", repeat=1)

    def elsewhere(folder):
        RunDir(folder).over({"first_round": own}).keep_elsewhere()

    found = continued("clusterucb", "train", prepare=elsewhere, keep="sum", repeat="01")
    assert not (found / "rounds/1").exists()
    assert selection(found, 2)["rows"].tolist() == selection(own, 2)["rows"].tolist()


def test_a_round_that_remembers_nothing_ends_a_run_that_needs_it_in_one_line(continued, finished_run):
    folder = continued("clusterucb", "select", "train", keep="sum")
    for left in ("adapter", "rounds/2", "rounds/3"):
        shutil.rmtree(folder / left)
    shutil.copy(finished_run("clusterucb").folder / "rounds/1/selection.safetensors", folder / "rounds/1")
    assert "rounds/1: an earlier version selected it" in clusterucb("train", "--out", folder).complaint


@pytest.mark.parametrize(("name", "centre"), [("clusterucb", False), ("linear_ucb", True)])
def test_clusters_are_centred_but_for_the_published_method(name, centre, finished_run):
    folder = finished_run(name).folder
    assert load(folder / "config.yaml").clustering.centre == centre
    found = spherical_kmeans(FeatureStore(folder / "features").features, 5, centre=centre)
    assert load_file(folder / "clusters.safetensors")["labels"].tolist() == found.labels.tolist()


def test_once_trains_on_no_row_twice_while_others_are_left(continued):
    folder = continued("clusterucb", "select", "train", keep="once")
    rows = np.concatenate([selection(folder, n)["rows"] for n in (1, 2, 3)])
    assert len(set(rows.tolist())) == 30


def test_static_selects_once_and_trains_on_it_in_every_period(continued, finished_run):
    folder = continued("clusterucb", "select", "train", keep="static")
    first = selection(finished_run("clusterucb").folder, 1)
    assert selection(folder, 1)["rows"].tolist() == first["rows"].tolist()
    assert not (folder / "rounds/2").exists()
    assert read(folder / "adapter/checkpoint.json")["cost"]["rows"] == 30
    session = Session(load(folder / "config.yaml"))
    assert list(session.method.rounds(3)) == [1]
    assert session.method.full(3) == 3


def turns(products, count):
    """The rows that target rows take in turn; products (n, N)."""
    return sorted(round_robin([products.astype(np.float32)], count).rows.tolist())


def test_nearest_ranks_by_the_target_row_that_a_row_helps_most(continued):
    folder = continued("clusterucb", "gradients", "select", aim="nearest")
    session = Session(load(folder / "config.yaml"))
    load_adapter(session.model, session.dir.warmup)
    featurize = Featurizer(session.model, session.projection)
    target = np.stack([featurize([row])[0][0] for row in session.inputs.targeted.tokens]).astype(float)
    assert directions(session)[0] == pytest.approx(target, abs=1e-3)
    found = selection(folder, 1)
    products = (session.index.store().features[:].astype(float) @ target.T).max(1)
    best = np.sort(products)[-10:]
    assert products[found["rows"]].min() >= best.min() - 1e-3
    assert found["scores"] == pytest.approx(products[found["rows"]], abs=1e-3)


@pytest.mark.parametrize("name", ["clusterucb", "dynamic", "less"])
def test_in_turns_every_target_row_takes_its_best_row(name, continued):
    folder = continued(name, "gradients", "select", aim="round_robin")
    session = Session(load(folder / "config.yaml"))
    if name == "less":
        from clusterucb.steps.less import weights

        stored = [session.index.store(n).features[:].astype(float) for n in session.method.numbers]
        aims = [directions(session, n)[0].astype(float) for n in session.method.numbers]
        products = sum(w * a @ f.T for w, a, f in zip(weights(session), aims, stored, strict=True))
    else:
        products = directions(session)[0].astype(float) @ session.index.store().features[:].astype(float).T
    assert selection(folder, 1)["rows"].tolist() == turns(products, 10)


def test_turns_over_live_features_are_those_over_stored_ones(continued):
    """All rows are drawn at the warmup checkpoint once more."""
    folder = continued("dynamic", "gradients", "select", aim="round_robin")
    done("select", "--out", folder, "--checkpoint", folder / "warmup")
    live = next((folder / "selections").iterdir())
    found = load_file(live / "1/selection.safetensors")
    assert found["rows"].tolist() == selection(folder, 1)["rows"].tolist()
    assert (live / "1/drawn.f16").stat().st_size >= 2 * 256 * 100


def test_turns_are_taken_of_what_all_processes_drew(tmp_path):
    """Though some rows were drawn twice, in an attempt that was killed."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 16)).astype(np.float16)
    target = rng.normal(size=(3, 16)).astype(np.float32)
    drawn = rng.permutation(40)[:24]
    for rank, own in enumerate((drawn[:10], drawn[8:])):
        with DrawnWriter(tmp_path, 16, rank) as writer:
            for rows in np.array_split(own, 3):
                writer.add(rows, features[rows])
    nothing = np.empty(0)
    before = Selection(drawn[:8], nothing, nothing, drawn, nothing, nothing, 0)
    drawing = Drawing(pooled=None, selector=SimpleNamespace(clusters=np.arange(40) % 5))
    found = drawing._in_turns(Turns(), tmp_path, before, target)
    products = np.full((3, 40), -np.inf, np.float32)
    products[:, drawn] = target.astype(float) @ features[drawn].astype(float).T
    assert found.rows.tolist() == turns(products, 8)
    assert found.clusters.tolist() == (found.rows % 5).tolist()
    assert all(score in products[:, row] for row, score in zip(found.rows, found.scores, strict=True))


def test_turns_under_a_budget_take_drawn_rows_alone(continued):
    folder = continued("clusterucb", "gradients", "select", "train", aim="round_robin")
    for number in (2, 3):
        found = selection(folder, number)
        assert len(set(found["rows"].tolist())) == 10
        assert set(found["rows"].tolist()) <= set(found["drawn"].tolist())


def test_a_run_with_an_aim_inside_the_targets_subspace_ends_well(continued):
    folder = continued("linear_ucb", "gradients", "select", "train", aim="subspace", keep="mean")
    done("report", folder)
    for number in (1, 2, 3):
        scores = selection(folder, number)["scores"]
        assert -1.001 <= scores.min() <= scores.max() <= 1.001


def test_features_of_the_head_take_a_forward_pass_each_and_guide_the_draws(continued):
    folder = continued("linear_ucb", "gradients", "cluster", "select", "train", features="head")
    store = FeatureStore(folder / "features")
    assert store.features.shape == (100, 256)
    cost = store.manifest["cost"]
    assert (cost["pool_forwards"], cost["pool_gradients"]) == (100, 0)
    assert [gradients(folder, number) for number in (1, 2, 3)] == [20, 20, 20]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"aim": "round_robin", "keep": "sum"}, "keep sum: rows taken in turn, by aim round_robin or"),
        ({"aim": "subspace", "method": "less"}, "aim subspace: method less"),
        ({"aim": "round_robin", "method": "less"}, "aim round_robin: method less with bandit clusterucb"),
    ],
)
def test_an_aim_that_cannot_be_added_up_is_refused(settings, said, shared_settings, tmp_path):
    given = options(shared_settings, out=tmp_path / "run", **settings)
    assert clusterucb("run", *given).complaint.startswith(said)


def test_another_aim_than_the_directions_there_is_told(continued, finished_run):
    folder = continued("clusterucb")
    given = options(finished_run("clusterucb").elsewhere(folder, aim="nearest"))
    assert "aim" in clusterucb("select", *given).complaint
