"""A plan against what runs of every method then spent."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from cli_helpers import clusterucb, done, options, read
from clusterucb.config import load
from clusterucb.run.directory import RunDir
from clusterucb.run.presets import PRESETS
from clusterucb.run.session import Session
from clusterucb.studies.plan import facts as facts_module
from clusterucb.studies.plan.facts import model_sizes, read_facts
from clusterucb.studies.plan.plan import plan
from clusterucb.studies.plan.spending import planned_steps

COUNTS = ("rows", "pool_gradients", "target_gradients", "pool_forwards")
SPEED = 1000.0


@pytest.fixture(scope="module")
def settings(shared_settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("planned") / "out"
    return {**shared_settings, "less_checkpoints": 2, "less_warmup": 0.1, "periods": 2, "out": str(out)}


@pytest.fixture(scope="module")
def config(settings):
    return load(None, settings)


@pytest.fixture(scope="module")
def facts(config, tmp_path_factory):
    """What a plan knows of the inputs and the model."""
    return read_facts(Session(config.model_copy(update={"out": str(tmp_path_factory.mktemp("facts"))})))


@pytest.fixture(scope="module")
def spent(settings):
    """The directory of each method's run, after all were run."""
    done("compare", "--methods", ",".join(PRESETS), "--seeds", 1, *options(settings, features=None))
    return {name: Path(settings["out"]) / name / "0" for name in PRESETS}


@pytest.fixture(scope="module")
def planned(config):
    """A plan by a speed that is given: no weight is read."""
    return plan(config, tokens_per_second=SPEED)


@pytest.mark.whole
@pytest.mark.parametrize("name", PRESETS)
def test_a_plan_has_the_counts_that_the_run_then_has(name, config, facts, planned, spent):
    """What a selection decides is an expectation, between the tokens of the shortest and longest rows."""
    steps = planned_steps(PRESETS[name].config(config, 0, spent[name]), facts)
    summary, total = read(spent[name] / "summary.json"), planned["methods"][name]
    assert {key: total[key] for key in COUNTS} == {key: summary["total"][key] for key in COUNTS}
    assert total["passes"] == pytest.approx(summary["bill"]["passes"], rel=0.2)
    assert list(steps) == list(summary["steps"])
    for step, found in summary["steps"].items():
        cost = steps[step].cost
        assert {key: getattr(cost, key) for key in COUNTS} == {key: found[key] for key in COUNTS}, step
        if not steps[step].expected:
            assert cost.tokens == found["tokens"], step
    first, second = {"select 1"}, {"select 2"}
    fresh = {"clusterucb": second, "linear_ucb": second, "linear_ucb_words": second, "less_clusterucb": first}
    fresh |= dict.fromkeys(
        ("clusterucb_hidden", "linear_ucb_hidden", "cluster_less", "landmarks"), first | second
    )
    fresh = fresh.get(name, set())
    assert {step for step, found in steps.items() if found.expected} == fresh | {"train"}
    target, lengths = int(facts.target_lengths.sum()), np.sort(facts.gradient_lengths)
    for step in fresh:
        assert lengths[:20].sum() < steps[step].cost.tokens - target < lengths[-20:].sum()


def test_a_budget_of_all_rows_leaves_no_expectation(config, facts):
    steps = planned_steps(config.with_settings({"budget": 1.0, "top_p": 1.0}), facts)
    assert not any(step.expected for step in steps.values())
    assert steps["select 2"].cost.tokens == steps["gradients"].cost.tokens


@pytest.mark.whole
def test_the_bill_is_the_runs(planned, spent):
    """A plan's passes differ by the tokens alone that the selections decide; what runs alike has the same."""
    ours, counted = planned["bill"], read(spent["clusterucb"] / "summary.json")["bill"]
    assert ours["one_pass"] == counted["one_pass"]
    for part in ("warmup", "evaluation"):
        assert ours["parts"][part]["passes"] == counted["parts"][part]["passes"]
    assert ours["train_only"]["passes"] == counted["train_only"]["passes"]
    assert planned["total"] == planned["methods"]["clusterucb"]


def test_scoring_all_rows_would_cost_what_the_full_method_is_planned_to(planned):
    full, all_rows = planned["bill"]["score_all"], planned["methods"]["dynamic"]
    assert (full["times"], full["passes"]) == (2, pytest.approx(all_rows["passes"], abs=1e-3))
    assert full["seconds"] == pytest.approx(all_rows["seconds"], rel=1e-3)
    assert full["passes"] > planned["bill"]["passes"]


def test_a_plan_says_what_a_colleague_would(planned, config):
    few = config.model_copy(update={"holdout": []})
    said = plan(few, tokens_per_second=SPEED)["remarks"]
    assert any("no rows are held out" in remark for remark in said)
    assert not any("no rows are held out" in remark for remark in planned["remarks"])
    assert any("the target has 6 rows" in remark for remark in planned["remarks"])


def tensor_bytes(*paths):
    return sum(array.nbytes for path in paths for array in load_file(path).values())


@pytest.mark.parametrize(
    "name",
    [
        "clusterucb",
        *(pytest.param(name, marks=pytest.mark.whole) for name in ("clusterucb_hidden", "linear_ucb_words")),
    ],
)
def test_the_disk_of_a_step_is_what_its_arrays_take(finished_run, name):
    run = RunDir(finished_run(name).folder)
    found = plan(load(run.config), tokens_per_second=SPEED)
    steps, kept = found["steps"], found["disk"]
    files = [run.features / name for name in ("features.f16", "losses.f32", "done.u8")]
    held = tensor_bytes(run.directions_at(1)) + sum(path.stat().st_size for path in files)
    if name == "linear_ucb_words":
        held += sum(array.nbytes for array in np.load(run.features / "words.npz").values())
    assert steps["gradients"]["disk"] == held
    objectives = 8 * 32  # of each iteration of k-means
    assert steps["cluster"]["disk"] == pytest.approx(tensor_bytes(run.clusters), abs=objectives)
    for step, folder in (("warmup", run.warmup), ("train", run.adapter)):
        if step not in steps:  # words need none
            continue
        held = tensor_bytes(folder / "adapter_model.safetensors", folder / "moments.safetensors")
        assert steps[step]["disk"] == pytest.approx(held, abs=64)  # the moments' own settings
    tokens = sum((run.pool / name).stat().st_size for name in ("ids.bin", "labels.bin"))
    assert kept["pool"] == tokens + 16 * 100
    assert kept["initial"] == tensor_bytes(run.initial / "adapter_model.safetensors")
    disk = sum(step["disk"] for step in steps.values())
    assert found["total"]["disk"] == kept["pool"] + kept["initial"] + disk


def test_hidden_states_take_forward_passes(config):
    found = plan(config.with_settings({"features": "hidden"}), tokens_per_second=SPEED)
    assert found["total"] == found["methods"]["clusterucb_hidden"]
    step = found["steps"]["gradients"]
    assert step["seconds"] == pytest.approx(step["tokens"] / (3 * SPEED), abs=1e-3)


def test_an_adapter_to_go_on_with_has_the_size_of_a_new_one(facts, config, finished_run):
    going_on = config.model_copy(update={"adapter": str(finished_run("clusterucb").folder / "adapter")})
    assert model_sizes(going_on) == facts.sizes


def test_time_is_tokens_by_the_speed_given(planned):
    for name, step in planned["steps"].items():
        speed = 3 * SPEED if name == "evaluate" else SPEED
        expected = None if name == "cluster" else pytest.approx(step["tokens"] / speed, abs=1e-3)
        assert step["seconds"] == expected, name
    seconds = sum(step["seconds"] or 0 for step in planned["steps"].values())
    assert planned["total"]["seconds"] == pytest.approx(seconds, abs=1e-2)


def test_the_command_measures_and_leaves_nothing_behind(settings, tmp_path):
    out = tmp_path / "none" / "yet"
    shown = done("plan", *options(settings, out=out), "--json", "--probe-seconds", "0.2")
    found = json.loads(shown.out)
    assert list(tmp_path.iterdir()) == []
    assert "/clusterucb-plan-" not in shown.err
    speed, steps = found["speed"], found["steps"]
    assert speed["measured"]
    gradients, pairs = steps["gradients"]["tokens"], 100 * settings["k"] * 20
    assert steps["gradients"]["seconds"] == pytest.approx(gradients / speed["gradients"], abs=1e-3)
    assert steps["cluster"]["seconds"] == pytest.approx(pairs / speed["clustering"], abs=1e-3)


def test_a_plan_of_a_finished_run_is_shown_and_changes_nothing_in_it(finished_settings):
    run = Path(finished_settings["out"])
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    given = ("--tokens-per-second", "1e3", "--budget", "0.4", "--targets", "5")
    shown = done("plan", "--out", run, *given).out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert "Scoring all rows at every selection (3 times) instead:" in shown
    assert "…" not in shown
    for text in ("dynamic with clusterucb, 100 usable", "select 3", "target gradients", "less_clusterucb"):
        assert text in shown
    words = " ".join(shown.split())
    for told in (r"5 targets over one index \(`clusterucb index`, then --index\)", "each with its own"):
        assert re.search(told + r": \d+\.\d+ passes over the pool, ", words), words


def test_a_quick_plan_speaks_for_all_rows_by_some(config, monkeypatch, planned):
    monkeypatch.setattr(facts_module, "SAMPLE", 30)
    quick = plan(config, quick=True, tokens_per_second=SPEED)
    assert (quick["rows"], quick["exact"]) == (100, False)
    for key in COUNTS:
        assert quick["total"][key] == planned["total"][key]
    assert quick["total"]["tokens"] == pytest.approx(planned["total"]["tokens"], rel=0.3)
    assert quick["total"]["tokens"] != planned["total"]["tokens"]
    assert all(quick["steps"][name]["expected"] for name in ("warmup", "gradients", "train"))


def test_a_method_that_the_settings_rule_out_is_left_out(config):
    narrow = config.with_settings({"top_p": 0.5, "method": "random"})
    found = plan(narrow, tokens_per_second=SPEED)  # top_p is above the budget
    assert set(found["methods"]) == set(PRESETS) - {"clusterucb", "clusterucb_hidden", "less_clusterucb"}
    assert found["bill"]["score_all"] is None


@pytest.mark.parametrize("wrong", ["0", "-1", "fast", "nan", "inf"])
def test_a_speed_that_is_none_is_refused(settings, wrong):
    complaint = clusterucb("plan", *options(settings), f"--tokens-per-second={wrong}").complaint
    assert complaint == f"--tokens-per-second {wrong}: expected a number above 0"


def test_a_pool_that_no_row_can_be_used_of_is_refused_with_a_reason(settings, tmp_path):
    given = options(settings, out=tmp_path / "run", gradient_length=2)
    complaint = clusterucb("plan", *given, "--tokens-per-second", "1").complaint
    assert complaint.startswith("no row of the pool can be used: pool-a.jsonl:1: answer of ")


def test_many_targets_take_one_index_and_so_often_the_rest(config, planned):
    """Five over one index, each with its own first part left out."""
    found = plan(config, tokens_per_second=SPEED, targets=5)["targets"]
    steps, tokens = planned["steps"], planned["bill"]["one_pass"]["tokens"]
    index = sum(steps[name]["tokens"] for name in ("warmup", "gradients", "cluster")) / tokens
    total = planned["bill"]["passes"]
    assert found["index"]["passes"] == pytest.approx(index, abs=1e-4)
    assert found["over_one_index"]["passes"] == pytest.approx(index + 5 * (total - index), abs=1e-3)
    assert found["alone"]["passes"] == pytest.approx(5 * total, abs=1e-3)
    assert found["alone"]["seconds"] == pytest.approx(5 * planned["bill"]["seconds"], abs=1e-2)


@pytest.fixture(scope="module")
def over_index(config, spent):
    """A plan of a run that begins at what another has left, with clusters as published."""
    settings = {"index": str(spent["clusterucb"]), "centre": False}
    return plan(config.with_settings(settings), tokens_per_second=SPEED, targets=5)


@pytest.mark.whole
def test_a_run_over_an_index_is_planned_without_what_is_there(over_index, planned, facts):
    """Of its own it has the target's directions, and all that comes after."""
    ours, alone = over_index["steps"], planned["steps"]
    assert [name for name, step in ours.items() if step["in_index"]] == ["warmup", "gradients", "cluster"]
    target = {"tokens": int(facts.target_lengths.sum()), "target_gradients": len(facts.target_lengths)}
    for name in ("warmup", "gradients", "cluster"):
        counts = dict.fromkeys((*COUNTS, "tokens"), 0) | (target if name == "gradients" else {})
        assert {key: ours[name][key] for key in counts} == counts, name
    assert {name: step for name, step in ours.items() if not step["in_index"]} == {
        name: step for name, step in alone.items() if name.split()[0] in ("select", "train", "evaluate")
    }
    assert (ours["warmup"]["disk"], over_index["disk"]["pool"]) == (0, 0)
    index = sum(alone[name]["tokens"] - ours[name]["tokens"] for name in ("warmup", "gradients"))
    passes = planned["bill"]["passes"] - index / planned["bill"]["one_pass"]["tokens"]
    assert over_index["total"]["passes"] == pytest.approx(passes, abs=1e-3)
    assert over_index["bill"]["score_all"]["times"] == planned["bill"]["score_all"]["times"] - 1
    many = over_index["targets"]
    assert many["over_one_index"]["passes"] == pytest.approx(5 * passes, rel=0.1)
    assert many["alone"]["passes"] == pytest.approx(5 * planned["bill"]["passes"], abs=1e-3)


@pytest.mark.whole
def test_only_what_fits_is_taken_from_an_index(over_index, planned, config, spent):
    """A method with another warmup or other features has its own, and so have other clusters."""
    ours, alone = over_index["methods"], planned["methods"]
    for name in ("less", "clusterucb_hidden", "random"):
        assert ours[name]["passes"] == alone[name]["passes"]
    for name in ("dynamic", "linear_ucb"):
        assert ours[name]["pool_gradients"] == alone[name]["pool_gradients"] - 100
    other = {"index": str(spent["clusterucb"]), "centre": False, "k": 4}
    steps = plan(config.with_settings(other), tokens_per_second=SPEED)["steps"]
    assert (steps["gradients"]["in_index"], steps["cluster"]["in_index"]) == (True, False)
    assert steps["cluster"]["rows"] == 100
