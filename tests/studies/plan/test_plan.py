"""A plan against what runs of every method then spent."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from cli_helpers import clusterucb, options, read
from clusterucb.cli.study_tables import show_plan
from clusterucb.config import load
from clusterucb.features.kmeans import default_k
from clusterucb.gradients.projection import CountSketch
from clusterucb.run.methods import METHODS
from clusterucb.run.session import Session
from clusterucb.studies.plan import facts as facts_module
from clusterucb.studies.plan.facts import read_facts
from clusterucb.studies.plan.plan import plan
from clusterucb.studies.plan.sizes import Sizes, model_sizes
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
def inputs(config, tmp_path_factory):
    """What a plan knows of the inputs, and of the model."""
    elsewhere = config.model_copy(update={"out": str(tmp_path_factory.mktemp("facts"))})
    return read_facts(Session(elsewhere)), model_sizes(config)


@pytest.fixture(scope="module")
def spent(settings):
    """The directory of each method's run, after all were run."""
    given = options(settings)
    outcome = clusterucb("compare", "--methods", ",".join(METHODS), "--seeds", 1, *given)
    assert outcome.status == 0, outcome
    return {name: Path(settings["out"]) / name / "0" for name in METHODS}


@pytest.fixture(scope="module")
def planned(config):
    """A plan by a speed that is given: no weight is read."""
    return plan(config, tokens_per_second=SPEED)


@pytest.mark.parametrize("name", METHODS)
def test_a_plan_has_the_counts_that_the_run_then_has(name, config, inputs, spent):
    facts, sizes = inputs
    steps = planned_steps(METHODS[name].config(config, 0, spent[name]), facts, sizes)
    summary = read(spent[name] / "summary.json")
    assert list(steps) == list(summary["steps"])
    for step, found in summary["steps"].items():
        cost = steps[step].cost
        assert {key: getattr(cost, key) for key in COUNTS} == {key: found[key] for key in COUNTS}, step
        if not steps[step].expected:
            assert cost.tokens == found["tokens"], step


@pytest.mark.parametrize("name", METHODS)
def test_only_what_a_selection_decides_is_an_expectation(name, config, inputs, spent):
    """And it lies between the tokens of the shortest and of the longest rows."""
    facts, sizes = inputs
    steps = planned_steps(METHODS[name].config(config, 0, spent[name]), facts, sizes)
    first, second = {"select 1"}, {"select 2"}
    fresh = {"clusterucb": second, "linear_ucb": second, "less_clusterucb": first}
    fresh |= dict.fromkeys(("clusterucb_hidden", "linear_ucb_hidden"), first | second)
    fresh = fresh.get(name, set())
    assert {step for step, found in steps.items() if found.expected} == fresh | {"train"}
    target = int(facts.target_lengths.sum())
    for step in fresh:
        lengths = np.sort(facts.gradient_lengths)
        assert lengths[:20].sum() < steps[step].cost.tokens - target < lengths[-20:].sum()


def test_a_budget_of_all_rows_leaves_no_expectation(config, inputs):
    facts, sizes = inputs
    everything = config.model_copy(
        update={"selection": config.selection.model_copy(update={"budget": 1.0, "top_p": 1.0})}
    )
    steps = planned_steps(everything, facts, sizes)
    assert not any(step.expected for step in steps.values())
    assert steps["select 2"].cost.tokens == steps["gradients"].cost.tokens


def test_total_and_full_method_are_those_of_the_runs(planned, spent):
    summary = read(spent["clusterucb"] / "summary.json")
    for key in COUNTS:
        assert planned["total"][key] == summary["total"][key]
    assert planned["full"]["pool_gradients"] == summary["full"]["pool_gradients"]
    assert planned["full"]["share_of_pool_gradients"] == summary["full"]["share_of_pool_gradients"]
    assert planned["full"]["share_of_cost"] == summary["full"]["share_of_cost"]
    for name, folder in spent.items():
        counted = read(folder / "summary.json")
        for key in COUNTS:
            assert planned["methods"][name][key] == counted["total"][key], name
        assert planned["methods"][name]["gradient_equivalents"] == counted["gradient_equivalents"], name
    assert planned["total"] == planned["methods"]["clusterucb"]


def tensor_bytes(path):
    with safe_open(path, "numpy") as file:
        return sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118


def test_the_disk_of_a_step_is_what_its_arrays_take(planned, spent):
    run = spent["clusterucb"]
    disk = {name: step["disk"] for name, step in planned["steps"].items()}
    files = ("features.f16", "losses.f32", "done.u8")
    directions = tensor_bytes(run / "features/directions.safetensors")
    assert disk["gradients"] == directions + sum((run / "features" / n).stat().st_size for n in files)
    for step, folder in (("warmup", "warmup"), ("train", "adapter")):
        names = ("adapter_model", "moments")
        held = sum(tensor_bytes(run / folder / f"{name}.safetensors") for name in names)
        assert disk[step] == pytest.approx(held, abs=64)  # the moments' own settings
    clusters = tensor_bytes(run / "clusters.safetensors")
    assert disk["cluster"] == pytest.approx(clusters, abs=8 * 32)  # the objective of each iteration
    tokens = sum((run / "pool" / name).stat().st_size for name in ("ids.bin", "labels.bin"))
    assert planned["disk"]["pool"] == tokens + 16 * 100
    assert planned["disk"]["initial"] == tensor_bytes(run / "initial/adapter_model.safetensors")
    kept = planned["disk"]["pool"] + planned["disk"]["initial"]
    assert planned["total"]["disk"] == kept + sum(disk.values())


def test_hidden_states_take_forward_passes_and_the_room_of_their_size(config, spent):
    run = spent["clusterucb_hidden"]
    hidden = config.model_copy(
        update={"clustering": config.clustering.model_copy(update={"features": "hidden"})}
    )
    found = plan(hidden, tokens_per_second=SPEED)
    assert found["total"] == found["methods"]["clusterucb_hidden"]
    summary = read(run / "summary.json")
    assert found["full"]["share_of_cost"] == summary["full"]["share_of_cost"]
    step = found["steps"]["gradients"]
    assert step["seconds"] == pytest.approx(step["tokens"] / (3 * SPEED), abs=1e-3)
    files = [run / "features" / name for name in ("features.f16", "losses.f32", "done.u8")]
    directions = tensor_bytes(run / "features/directions.safetensors")
    assert step["disk"] == directions + sum(path.stat().st_size for path in files)
    clusters = tensor_bytes(run / "clusters.safetensors")
    assert found["steps"]["cluster"]["disk"] == pytest.approx(clusters, abs=8 * 32)
    assert found["memory"]["clustering"]["centroids"] == 3 * 4 * config.clustering.k * 32


def test_sizes_are_those_of_the_real_model_without_its_weights(inputs, config, spent):
    _, sizes = inputs
    model = AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32)
    held = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
    assert sizes.weights == sum(held.values())
    assert sizes.adapter == tensor_bytes(spent["clusterucb"] / "initial/adapter_model.safetensors")
    going_on = config.model_copy(update={"adapter": str(spent["clusterucb"] / "adapter")})
    assert model_sizes(going_on) == sizes


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4), st.integers(1, 300)
)
def test_the_tables_have_the_size_that_they_then_have(shapes, dim):
    sizes = Sizes(0, {f"layer {n}": shape for n, shape in enumerate(shapes)}, hidden=0)
    sketch, out = CountSketch(dim=dim), torch.zeros(1, dim)
    for name, shape in sizes.layers.items():
        sketch.add_to(out, name, torch.ones(1, *shape))
    made = [table.nbytes for pair in sketch._tables.values() for table in pair]
    assert sizes.tables(dim) == sum(made)


def test_time_is_tokens_by_the_speed_given(planned):
    for name, step in planned["steps"].items():
        speed = 3 * SPEED if name == "evaluate" else SPEED
        expected = None if name == "cluster" else pytest.approx(step["tokens"] / speed, abs=1e-3)
        assert step["seconds"] == expected, name
    assert planned["total"]["seconds"] == pytest.approx(
        sum(step["seconds"] or 0 for step in planned["steps"].values()), abs=1e-2
    )


def test_memory_at_its_peak_is_the_largest_stage_with_what_is_always_there(planned, inputs, config):
    stages = {name: sum(parts.values()) for name, parts in planned["memory"].items() if name != "peak"}
    always = stages.pop("always")
    assert planned["memory"]["peak"] == {
        "stage": max(stages, key=stages.get),
        "bytes": always + max(stages.values()),
    }
    _, sizes = inputs
    assert always == sizes.weights + sizes.adapter
    assert planned["memory"]["gradients"]["projection tables"] == sizes.tables(config.gradients.dim)
    assert not planned["activations_measured"]


def test_the_command_measures_and_leaves_nothing_behind(settings, tmp_path):
    out = tmp_path / "none" / "yet"
    shown = clusterucb("plan", *options(settings, out=out), "--json", "--probe-seconds", "0.2")
    assert shown.status == 0, shown
    found = json.loads(shown.out)
    assert list(tmp_path.iterdir()) == []
    assert "/clusterucb-plan-" not in shown.err
    assert found["speed"]["measured"]
    assert found["activations_measured"]
    assert found["memory"]["gradients"]["activations"] > 0
    assert found["memory"]["training"]["activations"] > 0
    speed, steps = found["speed"], found["steps"]
    assert steps["gradients"]["seconds"] == pytest.approx(
        steps["gradients"]["tokens"] / speed["gradients"], abs=1e-3
    )
    k = settings["k"] or default_k(100, 20)
    assert steps["cluster"]["seconds"] == pytest.approx(100 * k * 20 / speed["clustering"], abs=1e-3)


def test_a_plan_of_a_finished_run_changes_nothing_in_it(finished_settings):
    run = Path(finished_settings["out"])
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    shown = clusterucb("plan", "--out", run, "--tokens-per-second", "1e3", "--budget", "0.4")
    assert shown.status == 0, shown
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert "180 pool gradients are 60% of the 300" in shown.out
    for text in ("dynamic with clusterucb, 100 usable rows", "select 3", "less_clusterucb", "peak"):
        assert text in shown.out


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
    narrow = config.model_copy(
        update={
            "method": "random",
            "selection": config.selection.model_copy(update={"top_p": 0.5}),  # above the budget
        }
    )
    found = plan(narrow, tokens_per_second=SPEED)
    assert set(found["methods"]) == set(METHODS) - {"clusterucb", "clusterucb_hidden", "less_clusterucb"}
    assert "full" not in found


@pytest.mark.parametrize("wrong", ["0", "-1", "fast", "nan", "inf"])
def test_a_speed_that_is_none_is_refused(settings, wrong):
    complaint = clusterucb("plan", *options(settings), f"--tokens-per-second={wrong}").complaint
    assert complaint == f"--tokens-per-second {wrong}: expected a number above 0"


def test_a_pool_that_no_row_can_be_used_of_is_refused_with_a_reason(settings, tmp_path):
    given = options(settings, out=tmp_path / "run", gradient_length=2)
    complaint = clusterucb("plan", *given, "--tokens-per-second", "1").complaint
    assert complaint.startswith("no row of the pool can be used: pool-a.jsonl:1: answer of ")


def test_a_wide_table_is_whole_in_a_file(planned, capsys):
    show_plan(planned)
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert "target gradients" in shown
