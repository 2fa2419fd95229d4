"""What is `auto` is decided for the job, before anything runs; a preset is what was published."""

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cli_helpers import clusterucb, done, options, read, result
from clusterucb.config import load, settings
from clusterucb.run.presets import PROCEDURES
from clusterucb.run.session import Session
from clusterucb.run.sizing import DRAWS, STEPS, TRAINING, Job, decide, is_open
from clusterucb.selection.share import share

NEEDED = {"model": "m", "pool": ["p.jsonl"], "target": ["t.jsonl"], "out": "run"}
LEAST = ("model", "pool", "target", "holdout", "device", "dtype")


KINDS = [{}, {"policy": "ucb_beta"}, {"method": "less"}, {"bandit": "none"}, {"method": "random"}]
KINDS += [{"top_p": 1.0}]


def job(rows, **more):
    return Job(rows, **{"tokens": 50.0, "width": 576, "layers": 30, "family": "llama", **more})


def decided(rows, given=(), **more):
    return decide(load(None, {**NEEDED, **dict(given)}), job(rows, **more))[0]


@pytest.mark.parametrize(
    ("rows", "kept", "batch", "epochs", "warmup", "drawn"),
    [
        (192, 24, 2, 2, 9, 48),
        (240, 30, 2, 1, 12, 60),
        (2_034, 101, 4, 1, 20, 203),
        (10_000, 500, 32, 1, 20, 1_000),
        (270_000, 13_500, 128, 1, 20, 27_000),
    ],
)
def test_sizes_follow_from_the_number_of_rows(rows, kept, batch, epochs, warmup, drawn):
    config = decided(rows)
    training, chosen = config.training, config.selection
    assert (share(chosen.top_p, rows), share(chosen.cap, rows)) == (kept, drawn)
    assert (training.batch_size, training.epochs_per_period) == (batch, epochs)
    assert config.warmup.warmup_steps == warmup


@given(rows=st.integers(1, 2_000_000), processes=st.sampled_from([1, 2, 8]), given=st.sampled_from(KINDS))
def test_whatever_the_pool_everything_is_decided_and_fits_it(rows, processes, given):
    config = decided(rows, given, processes=processes)
    assert not is_open(config)
    training = config.training
    kept, batch = share(config.selection.top_p, rows), training.batch_size
    assert 1 <= kept <= rows
    assert batch % processes == 0
    assert batch <= max(kept, processes)
    steps = training.periods * training.epochs_per_period * math.ceil(kept / batch)
    assert steps >= min(STEPS, kept // batch * 4 * training.periods)
    warmed = config.warmup.warmup_steps
    assert warmed == 1 or warmed * batch <= rows / 10
    assert config.clustering.k <= rows
    assert decide(config, job(5)) == (config, [])


@pytest.mark.parametrize("setting", [setting for setting in settings() if setting.auto], ids=lambda s: s.name)
def test_what_is_given_is_never_changed(setting):
    given = {"features": "gradients", "top_p": 0.3, "budget": 0.5, "lr": 0.5}.get(setting.name, 1)
    assert setting.of(decided(1000, {setting.name: given})) == given


def test_every_auto_setting_has_one_rule():
    rules = [rule.setting for rule in TRAINING + DRAWS]
    assert sorted(rules) == sorted(setting.name for setting in settings() if setting.auto)


def test_the_learning_rate_is_the_published_formula():
    """The rates that the authors give: 5e-5 for full fine-tuning at width 2000, times ten for LoRA."""
    assert decided(1000, width=2000).training.lr == 5e-4
    assert decided(1000, width=4096).training.lr == pytest.approx(5e-4 * (2000 / 4096) ** 0.781, rel=0.02)
    assert decided(1000, width=4096, family="qwen2").training.lr == pytest.approx(4.7e-4, rel=0.02)
    assert decided(1000, {"rank": 64}).training.lr == decided(1000, {"rank": 4}).training.lr
    assert decided(1000, {"alpha": 64}).training.lr == pytest.approx(decided(1000).training.lr / 2, rel=0.04)
    assert decided(1000, width=32).training.lr == decided(1000, width=576).training.lr == 5e-4


def test_an_adapter_has_about_as_many_weights_as_it_is_shown_tokens():
    assert decided(2000).lora.rank == 8
    large = decided(2_000_000, tokens=300.0, width=4096, layers=32)
    weights = large.lora.rank * 8 * 4096 * 32
    assert weights / 2 < 4 * 100_000 * 300 <= weights
    given = decided(2_000_000, adapter=(4, 7)).lora
    assert (given.rank, given.alpha) == (4, 7)


def test_words_are_taken_wherever_the_method_leaves_the_choice_and_hidden_states_by_an_index():
    assert decided(1000).clustering.features == "words"
    assert decided(1000, {"shard": "fsdp"}).clustering.features == "words"
    assert load(None, NEEDED).without_target.features == "hidden"
    assert load(None, {**NEEDED, "shard": "fsdp"}).without_target.features == "gradients"
    assert load(None, {**NEEDED, "features": "words"}).without_target.features == "words"
    for others in ({"method": "less"}, {"bandit": "none"}, {"features": "gradients"}):
        assert decided(1000, others).clustering.features == "gradients"


def test_only_what_matters_to_the_run_is_told():
    def told(**given):
        return {one.setting for one in decide(load(None, {**NEEDED, **given}), job(1000))[1]}

    assert {"budget_cap", "rounds", "features"} <= told()
    assert told(method="random").isdisjoint({"k", "budget_cap", "rounds", "draw_batch", "warmup_steps"})
    assert {"budget", "draw_batch"} <= told(policy="ucb_beta")
    assert told(policy="ucb_beta").isdisjoint({"rounds", "budget_cap"})


def test_the_papers_presets_leave_nothing_of_the_method_open():
    unused = {"paper": set(), "less": {"features", "budget", "draw_batch", "warmup_steps"}}
    for name, of_others in unused.items():
        config = load(None, {**NEEDED, **PROCEDURES[name]})
        left = {setting.name for setting in settings() if setting.auto and setting.of(config) is None}
        assert left == {"k", "rounds", "budget_cap"} | of_others, name


def test_options_go_over_a_preset_and_a_preset_over_the_file(tmp_path):
    """The file's cold start would be 0.3 and its budget 0.5."""
    path = tmp_path / "run.yaml"
    given = {**NEEDED, "out": str(tmp_path / "run"), "selection": {"budget": 0.5, "csp": 0.3}}
    path.write_text(yaml.safe_dump(given))
    said = clusterucb("run", path, "--preset", "paper", "--budget", "0.01").complaint
    assert said.startswith("budget 0.01 is below csp 0.02")


def test_an_unknown_preset_is_refused():
    said = clusterucb("run", "--preset", "papers", "--out", "x").complaint
    assert said == "--preset papers: there is no such preset; did you mean 'paper'?"


def test_presets_are_shown_as_yaml_that_a_run_takes(tmp_path):
    shown = done("presets").out.splitlines()
    assert [line for line in shown if line.startswith("# ")] == ["# --preset paper", "# --preset less"]
    path = tmp_path / "paper.yaml"
    path.write_text(done("presets", "paper").out)
    assert load(path, NEEDED) == load(None, {**NEEDED, **PROCEDURES["paper"]})


@pytest.fixture(scope="module")
def decided_run(shared_settings, tmp_path_factory):
    """A finished run of which nothing but the inputs is given."""
    folder = tmp_path_factory.mktemp("decided") / "run"
    given = {**{name: shared_settings[name] for name in LEAST}, "out": str(folder)}
    return folder, given, done("run", *options(given))


@pytest.mark.whole
def test_a_run_tells_what_it_decides_once_and_keeps_it(decided_run):
    folder, given, outcome = decided_run
    config = load(folder / "config.yaml")
    assert not is_open(config)
    expected = decide(load(None, given), job(100, tokens=0, width=32, layers=2))[0]
    assert config == expected.with_absolute_paths()
    for name in ("top_p", "batch_size", "epochs_per_period", "lr", "budget_cap", "rounds"):
        assert f"  {name} " in outcome.err
    again = done("run", *options(given))
    assert "decided" not in again.err
    assert again.out.splitlines()[1:] == outcome.out.splitlines()[1:]


@pytest.mark.whole
def test_a_replay_of_what_was_decided_ends_the_same(decided_run, tmp_path):
    folder, _, _ = decided_run
    replay = done("run", folder / "config.yaml", "--out", tmp_path / "replay")
    assert "decided" not in replay.err
    assert result(tmp_path / "replay") == result(folder)


@pytest.mark.whole
def test_settings_that_a_file_leaves_open_are_as_the_run_has_them(decided_run):
    """A file without them is no other setting, and nothing is decided anew."""
    folder, given, _ = decided_run
    path = folder.parent / "least.yaml"
    path.write_text(yaml.safe_dump(given))
    before = (folder / "config.yaml").read_bytes()
    assert "decided" not in done("run", path).err
    assert (folder / "config.yaml").read_bytes() == before


@pytest.mark.whole
def test_a_session_on_a_run_takes_what_that_has_decided(decided_run):
    """Also where it does not own the directory."""
    folder, given, _ = decided_run
    session = Session(load(None, given))
    assert is_open(session.config)
    assert session.budget.top_p == load(folder / "config.yaml").selection.top_p
    assert session.config == load(folder / "config.yaml")
    assert session.decided == []


@pytest.mark.whole
def test_a_plan_decides_as_the_run_does(decided_run, tmp_path):
    folder, given, _ = decided_run
    asked = options(given, out=tmp_path / "none", tokens_per_second=1000, json=True)
    plan, config = yaml.safe_load(done("plan", *asked).out), load(folder / "config.yaml")
    homes = {setting.name: setting for setting in settings()}
    assert plan["decided"]
    for one in plan["decided"]:
        assert one["value"] == homes[one["setting"]].of(config)
    steps, found = plan["steps"], read(folder / "summary.json")["steps"]
    assert {name: steps[name]["rows"] for name in found} == {n: step["rows"] for n, step in found.items()}
    assert {*steps} == {*found}
    assert not (tmp_path / "none").exists()
