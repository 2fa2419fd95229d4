"""LESS, and the methods without a bandit, by command on a tiny model."""

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors

import clusterucb as package
from cli_helpers import clusterucb, lines, options, read, result
from clusterucb.config import load
from clusterucb.features.influence import EndToEnd, stored_influence, weighted_directions
from clusterucb.features.store import FeatureStore
from clusterucb.run.session import Session
from clusterucb.steps.less import weights
from clusterucb.training.moments import load_moments

CHECKPOINTS = 3
STEPS = 5  # of one epoch: 20 of 100 rows, 4 a step
SLOW_ROWS = range(0, 100, 3)


def run(settings, command="run", **changes):
    outcome = clusterucb(command, *options(settings, **changes))
    assert outcome.status == 0, outcome
    return Path({**settings, **changes}["out"])


def without_its_end(folder, to, *more):
    """A copy of a run, without its settings and what came after its features."""
    left_out = ("config.yaml", "rounds", "adapter", "evaluation.json", "summary.json", *more)
    return shutil.copytree(folder, to, ignore=shutil.ignore_patterns(*left_out))


def selection(folder, number=1):
    return load_file(folder / f"rounds/{number}/selection.safetensors")


def scores(folder):
    """Score by row, of all rows that were scored."""
    found = selection(folder)
    return dict(zip(found["drawn"].tolist(), found["drawn_scores"].tolist(), strict=True))


@pytest.fixture(scope="module")
def less(shared_settings):
    changes = {"method": "less", "less_warmup": 0.2, "less_checkpoints": CHECKPOINTS, "target_length": 64}
    return {**shared_settings, **changes}


@pytest.fixture(scope="module")
def full(less, tmp_path_factory):
    """A finished run of the original LESS: not to be changed."""
    settings = {**less, "bandit": "none", "k": None, "out": str(tmp_path_factory.mktemp("full") / "run")}
    return run(settings), settings


@pytest.fixture(scope="module")
def drawn(less, tmp_path_factory):
    """A finished run of LESS with the bandit, from Python: not to be changed."""
    settings = {**less, "budget": 0.3, "out": str(tmp_path_factory.mktemp("drawn") / "run")}
    with Session(load(None, settings)).owned() as session:
        summary = package.less(session)
    assert summary == read(session.dir.summary)
    return session.dir.path, settings


def schedule(step, steps, peak, share):
    """The learning rate of optimizer step `step`, from 0: up in a line, then down in a line."""
    rising = math.ceil(share * steps)
    return peak * (step / rising if step < rising else (steps - step) / (steps - rising))


def test_a_checkpoints_rate_is_the_mean_of_its_epochs_schedule(full):
    folder, settings = full
    rates = [schedule(t, CHECKPOINTS * STEPS, settings["lr"], 0.03) for t in range(CHECKPOINTS * STEPS)]
    means = [sum(rates[e * STEPS : (e + 1) * STEPS]) / STEPS for e in range(CHECKPOINTS)]
    found = [read(folder / name / "checkpoint.json")["learning_rate"] for name in warmups()]
    assert found == pytest.approx(means, rel=1e-12)
    assert weights(Session(load(folder / "config.yaml"))) == pytest.approx(np.array(means) / sum(means))


def warmups():
    return ["warmup", *(f"warmup-{n}" for n in range(2, CHECKPOINTS + 1))]


def test_each_checkpoint_is_the_end_of_its_epoch(full):
    folder, _ = full
    adapters = [load_file(folder / name / "adapter_model.safetensors") for name in ("initial", *warmups())]
    for before, after in pairwise(adapters):
        assert any(not np.array_equal(before[name], after[name]) for name in before)
    moments = [load_moments(folder / name / "moments.safetensors") for name in warmups()]
    assert [found.step for found in moments] == [STEPS, 2 * STEPS, 3 * STEPS]
    assert list(folder.rglob("*.part")) == []
    assert not (folder / "warmup.states").exists()


class Slow:
    """LESS's scores by its formulas: one row at a time, by autograd and nothing else, in float64."""

    def __init__(self, folder, model):
        self.folder, self.session = folder, Session(load(folder / "config.yaml"))
        self.base = model
        self.rows = [self.session.inputs.pooled.tokens[row] for row in SLOW_ROWS]

    def scores(self, given):
        summed = 0
        for name, weight in zip(warmups(), given, strict=True):
            model = self.model(name)
            tensors = load_tensors(self.folder / name / "moments.safetensors")
            targeted = self.session.inputs.targeted
            plain = self.units([gradients(model, row) for row in targeted.tokens])
            directions = np.array([plain[targeted.codes == s].mean(0) for s in range(2)])
            features = self.units([adam(gradients(model, row), tensors) for row in self.rows])
            summed = summed + weight * (features @ directions.T)  # (N, S)
        return summed.max(1)

    def model(self, name):
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
        return PeftModel.from_pretrained(base, self.folder / name, is_trainable=True).eval()

    def units(self, rows):
        """Each row projected by the run's projection, and divided by its norm, (n, d)."""
        sketch = torch.zeros(len(rows), 256)
        for name in rows[0]:
            self.session.projection.add_to(sketch, name, torch.stack([parts[name] for parts in rows]))
        vectors = sketch.double().numpy()
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def gradients(model, row):
    parameters = {n.replace(".default.", "."): p for n, p in model.named_parameters() if p.requires_grad}
    ids = torch.from_numpy(row.ids.astype(np.int64))
    logits = model(input_ids=ids[None]).logits[0, :-1]
    wanted = torch.from_numpy(np.array(row.labels[1:]))
    loss = torch.nn.functional.cross_entropy(logits[wanted], ids[1:][wanted])
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def adam(parts, tensors):
    directions = {}
    for name, g in parts.items():
        m, v = tensors[f"mean.{name}"], tensors[f"square.{name}"]
        directions[name] = (0.9 * m + 0.1 * g) / torch.sqrt(0.999 * v + 0.001 * g * g + 1e-8)
    return directions


@pytest.fixture(scope="module")
def slow(full):
    folder, settings = full
    rates = [read(folder / name / "checkpoint.json")["learning_rate"] for name in warmups()]
    return Slow(folder, settings["model"]).scores(np.array(rates) / sum(rates))


def test_scores_equal_a_slow_computation_row_by_row(full, slow):
    found = scores(full[0])
    assert sorted(found) == list(range(100))
    np.testing.assert_allclose([found[row] for row in SLOW_ROWS], slow, atol=2e-4)
    assert np.std(slow) > 0.02  # so that the tolerance tells rows apart


def test_the_rows_kept_are_the_best_of_all(full):
    found = scores(full[0])
    best = sorted(found, key=lambda row: (-found[row], row))[:10]
    assert selection(full[0])["rows"].tolist() == sorted(best)


def test_the_bandits_scores_are_those_of_the_full_method(full, drawn):
    every, some = scores(full[0]), scores(drawn[0])
    assert len(some) == 30
    np.testing.assert_allclose(list(some.values()), [every[row] for row in some], atol=1e-3)
    best = sorted(sorted(some, key=lambda row: (-some[row], row))[:10])
    assert selection(drawn[0])["rows"].tolist() == best


def test_what_does_not_depend_on_the_bandit_is_the_same(full, drawn):
    with_bandit, without = result(drawn[0]), result(full[0])
    shared = [name for name in without if name.startswith(("warmup", "initial", "features/"))]
    assert len(shared) >= 9
    assert all(with_bandit[name] == without[name] for name in shared)
    assert not (drawn[0] / "features-2").exists()
    assert not (full[0] / "clusters.safetensors").exists()


def test_less_with_budget_1_equals_the_full_method_exactly(full, less, tmp_path):
    folder = without_its_end(full[0], tmp_path / "run", "features-*")
    settings = {**less, "budget": 1.0, "out": str(folder)}
    run(settings, "cluster")
    run(settings, "select")
    ours, theirs = selection(folder), selection(full[0])
    for name in ("rows", "scores", "drawn", "drawn_scores"):
        assert ours[name].tobytes() == theirs[name].tobytes(), name
    assert read(folder / "rounds/1/summary.json")["cost"]["pool_gradients"] == 2 * 100
    assert (folder / "rounds/1/selected.jsonl").read_bytes() == (
        full[0] / "rounds/1/selected.jsonl"
    ).read_bytes()


@pytest.fixture(scope="module")
def dynamic_full(shared_settings, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("dynamic") / "run")
    settings = {**shared_settings, "bandit": "none", "k": None, "periods": 2, "out": out}
    return run(settings), settings


def test_dynamic_with_budget_1_equals_the_full_method_exactly(dynamic_full, shared_settings, tmp_path):
    folder = run({**shared_settings, "budget": 1.0, "periods": 2, "out": str(tmp_path / "run")})
    for number in (1, 2):
        ours, theirs = selection(folder, number), selection(dynamic_full[0], number)
        for name in ("rows", "scores", "drawn", "drawn_scores"):
            assert ours[name].tobytes() == theirs[name].tobytes(), (number, name)
    without_clusters = {
        name: content
        for name, content in result(folder).items()
        if name.startswith(("warmup", "features", "adapter", "evaluation")) or name.endswith("selected.jsonl")
    }
    theirs = result(dynamic_full[0])
    assert all(theirs[name] == content for name, content in without_clusters.items())
    assert len(without_clusters) >= 8


def test_dynamic_without_a_bandit_scores_all_rows_in_every_period(dynamic_full):
    folder, _ = dynamic_full
    summary = read(folder / "summary.json")
    assert [found["drawn"] for found in summary["selected"]] == [100, 100]
    assert summary["bandit"] == "none"
    assert summary["full"] == {
        "method": "dynamic",
        "pool_gradients": 200,
        "pool_tokens": 2 * summary["steps"]["select 2"]["tokens"] - 2 * target_tokens(folder),
        "share_of_pool_gradients": 1.0,
        "share_of_cost": 1.0,
    }
    assert "cluster" not in summary["steps"]
    assert {entry["cluster"] for entry in lines(folder / "rounds/2/selected.ids.jsonl")} == {0}
    assert lines(folder / "rounds/2/draws.jsonl") == []


def target_tokens(folder):
    return sum(len(row) for row in Session(load(folder / "config.yaml")).targeted.tokens)


def test_without_a_bandit_any_checkpoint_can_be_selected_at(dynamic_full, tmp_path):
    copy = shutil.copytree(dynamic_full[0], tmp_path / "run")
    outcome = clusterucb("select", "--out", copy, "--checkpoint", copy / "adapter")
    assert outcome.status == 0, outcome
    assert read(Path(outcome.out.strip()).parent / "summary.json")["drawn"] == 100


@pytest.mark.parametrize("which", ["full", "dynamic_full"])
def test_clusters_that_no_bandit_needs_are_refused_in_one_line(request, which):
    folder, settings = request.getfixturevalue(which)
    assert clusterucb("cluster", "--out", folder).complaint == (
        f"method {settings.get('method', 'dynamic')}, bandit none: no bandit, so no clusters are needed; "
        f"go on with `clusterucb select --out {folder}`"
    )


def test_costs_are_those_of_all_rows_at_all_checkpoints_without_a_bandit(full):
    summary = read(full[0] / "summary.json")
    assert list(summary["steps"]) == [
        *("warmup", "warmup 2", "warmup 3", "gradients", "gradients 2", "gradients 3"),
        *("select 1", "train", "evaluate"),
    ]
    assert (summary["method"], summary["bandit"]) == ("less", "none")
    assert summary["total"]["pool_gradients"] == summary["full"]["pool_gradients"] == 300
    assert summary["total"]["target_gradients"] == 3 * 6
    assert summary["full"]["share_of_pool_gradients"] == 1
    for step in ("warmup", "warmup 2", "warmup 3"):
        assert (summary["steps"][step]["rows"], summary["steps"][step]["pool_gradients"]) == (20, 0)
    assert summary["steps"]["train"]["rows"] == 3 * 10  # periods, of one selection


def test_with_the_bandit_only_the_first_checkpoint_costs_all_rows(drawn):
    folder, _ = drawn
    summary = read(folder / "summary.json")
    assert summary["total"]["pool_gradients"] == 100 + 30 * 2
    assert summary["total"]["target_gradients"] == 3 * 6
    assert summary["full"]["share_of_pool_gradients"] == 160 / 300
    lengths = Session(load(folder / "config.yaml")).pooled.lengths
    spent = 2 * int(lengths[selection(folder)["drawn"]].sum()) + 2 * target_tokens(folder)
    assert summary["steps"]["select 1"]["tokens"] == spent
    assert [entry for entry in summary["steps"] if entry.startswith("gradients")] == ["gradients"]
    for key in ("rows", "tokens", "pool_gradients", "target_gradients"):
        assert summary["total"][key] == sum(step[key] for step in summary["steps"].values())
    draws = [row for draw in lines(folder / "rounds/1/draws.jsonl") for row in draw["ids"]]
    assert len(draws) == len(set(draws)) == 30


def test_the_end_of_a_run_shows_what_all_checkpoints_would_take(drawn):
    shown = clusterucb("run", "--out", drawn[0])
    assert shown.status == 0, shown
    assert "160 pool gradients, 53% of the 300 that scoring all rows at every checkpoint takes" in shown.out
    for text in ("warmup 3", "select 1"):
        assert text in shown.out
    assert [path.name for path in (drawn[0] / "rounds").iterdir()] == ["1"]


def test_step_by_step_gives_the_same_as_the_whole_from_python(drawn, tmp_path):
    (folder, settings), there = drawn, tmp_path / "run"
    for number, step in enumerate(("warmup", "gradients", "cluster", "select", "train", "evaluate")):
        given = options(settings, out=there) if number == 0 else ["--out", str(there)]
        outcome = clusterucb(step, *given)
        assert outcome.status == 0, outcome
        assert Path(outcome.out.splitlines()[-1]).exists()
    assert result(there) == result(folder)


def test_a_second_run_computes_nothing(full, drawn, monkeypatch):
    monkeypatch.setattr("clusterucb.run.session.load_model", lambda *_: pytest.fail("loaded"))
    for folder, _ in (full, drawn):
        assert clusterucb("run", "--out", folder).status == 0


def test_given_weights_are_used_in_the_place_of_rates(full, tmp_path):
    """With all weight on one checkpoint, its own influence decides."""
    for number, weight in enumerate(("1,0,0", "0 0 2"), 1):
        folder = without_its_end(full[0], tmp_path / str(number))
        run({**full[1], "out": str(folder)}, "select", less_weights=weight)
        at = "features" if number == 1 else "features-3"
        directions = load_file(folder / at / "directions.safetensors")["directions"]
        alone = stored_influence(FeatureStore(folder / at).features, directions)
        assert scores(folder) == dict(enumerate(alone.tolist()))
    config = load(None, {**full[1], "less_weights": "1, 1, 2"})
    assert weights(Session(config)) == [0.25, 0.25, 0.5]


def test_one_checkpoint_leaves_nothing_to_the_bandit(drawn, less, tmp_path):
    """All that it could draw is stored: every row is ranked, and no gradient is computed for it."""
    folder = without_its_end(drawn[0], tmp_path / "run")
    run({**less, "out": str(folder)}, "select", less_checkpoints=1)
    summary = read(folder / "rounds/1/summary.json")
    assert (summary["drawn"], summary["cost"]["pool_gradients"]) == (100, 0)


def test_another_repetition_draws_other_rows_at_the_same_checkpoints(drawn, tmp_path):
    folder = without_its_end(drawn[0], tmp_path / "run")
    run({**drawn[1], "out": str(folder)}, "select", repeat=1)
    assert set(scores(folder)) != set(scores(drawn[0]))


def test_the_sum_over_checkpoints_comes_before_the_maximum_over_subtasks():
    """Row 0 is for one subtask at one checkpoint, for the other at the other; row 1 always for the first."""
    first, second = np.array([[1, 0], [0.75, 0]]), np.array([[0, 1], [0.75, 0]])
    directions = [np.eye(2, dtype=np.float32)] * 2
    found = stored_influence(EndToEnd([first, second]), weighted_directions(directions, [0.5, 0.5]))
    assert found.tolist() == [0.5, 0.75]
    other_order = 0.5 * first.max(1) + 0.5 * second.max(1)
    assert found.argmax() != other_order.argmax()


@examples(deadline=None, max_examples=40)
@given(st.integers(1, 20), st.integers(1, 4), st.integers(1, 4), st.integers(0, 999), st.integers(1, 7))
def test_influence_over_checkpoints_equals_the_formula(rows, subtasks, checkpoints, seed, block):
    rng = np.random.default_rng(seed)
    stores = [rng.normal(size=(rows, 6)).astype(np.float16) for _ in range(checkpoints)]
    directions = [rng.normal(size=(subtasks, 6)).astype(np.float32) for _ in range(checkpoints)]
    given = rng.random(checkpoints)
    found = stored_influence(EndToEnd(stores), weighted_directions(directions, given), block)
    for row in range(rows):
        products = [
            sum(
                float(w) * sum(float(a) * float(b) for a, b in zip(store[row], d[s], strict=True))
                for w, store, d in zip(given, stores, directions, strict=True)
            )
            for s in range(subtasks)
        ]
        assert found[row] == pytest.approx(max(products), rel=1e-6, abs=1e-6)


def test_select_at_a_checkpoint_is_dynamics_alone(full):
    folder, _ = full
    assert clusterucb("select", "--out", folder, "--checkpoint", folder / "warmup").complaint == (
        f"--checkpoint {folder / 'warmup'}: only method dynamic selects at any checkpoint, and this run's is "
        "less; leave --checkpoint out"
    )


def test_a_step_before_its_time_names_the_step_to_run(less, drawn, full, tmp_path):
    out = tmp_path / "new"
    for step, missing, needed in (
        ("gradients", "warmup", "warmup"),
        ("cluster", "features", "gradients"),
        ("train", "rounds/1", "select"),
    ):
        said = clusterucb(step, *options(less, out=out)).complaint
        assert said == f"{out / missing} is not there yet: run `clusterucb {needed} --out {out}` first"
    for (folder, settings), missing, needed in (
        (drawn, "warmup-2", "warmup"),
        (full, "warmup-3", "warmup"),
        (full, "features-2", "gradients"),
    ):
        copy = without_its_end(folder, tmp_path / f"{missing}", missing)
        said = clusterucb("select", *options(settings, out=copy)).complaint
        assert said == f"{copy / missing} is not there yet: run `clusterucb {needed} --out {copy}` first"


def test_a_warmup_whose_only_rate_is_0_is_refused_before_training(less, tmp_path):
    changes = {"out": tmp_path / "run", "less_warmup": 0.01, "less_checkpoints": 1}
    assert clusterucb("warmup", *options(less, **changes)).complaint == (
        "less_checkpoints 1 of 1 rows is one optimizer step, whose learning rate is 0 under lr_warmup 0.03; "
        "raise --less-checkpoints or --less-warmup, or use --lr-warmup 0"
    )
    assert not (tmp_path / "run/config.yaml").exists()
    assert clusterucb("warmup", *options(less, **changes, lr_warmup=0)).status == 0


@pytest.mark.parametrize("given", ["1,2", "0,0,0", "1,2,3,4"])
def test_weights_that_are_not_one_a_checkpoint_are_refused(less, given, tmp_path):
    said = clusterucb("run", *options(less, out=tmp_path / "run", less_weights=given)).complaint
    assert said.endswith("expected one number for each of the 3 less_checkpoints, not all 0")


def test_a_negative_weight_is_refused(less, tmp_path):
    said = clusterucb("run", *options(less, out=tmp_path / "run"), "--less-weights=-1,1,1").complaint
    assert said == "options: less.less_weights.0 is '-1': input should be greater than or equal to 0"


def test_directions_of_other_weights_are_refused(drawn, tmp_path):
    folder = without_its_end(drawn[0], tmp_path / "run")
    part = folder / "rounds/1.part"
    part.mkdir(parents=True)
    kept = "directions-warmup-2.safetensors"
    shutil.copy(drawn[0] / "rounds/1" / kept, part / kept)
    raw = (part / kept).read_bytes()
    found = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["weights"]
    (part / kept).write_bytes(raw.replace(found.encode(), b"0" * len(found)))
    said = clusterucb("select", *options(drawn[1], out=folder)).complaint
    assert said.startswith(
        f"{part / kept} was made with weights '{'0' * len(found)}', this run has '{found}'"
    )
