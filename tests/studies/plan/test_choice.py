"""A run within a person's time or share of the cost: what is chosen, and that it is chosen once."""

from dataclasses import replace
from pathlib import Path

import pytest

from cli_helpers import clusterucb, done, options, read
from clusterucb.config import load
from clusterucb.errors import ConfigError
from clusterucb.runtime.screen import Screen
from clusterucb.studies.plan import choice as module
from clusterucb.studies.plan.choice import Limit, choose, plans
from clusterucb.studies.plan.spending import look

SPEED = 1000.0


@pytest.fixture(scope="module")
def found(shared_settings, tmp_path_factory):
    own = {"warmup_steps": 40, "epochs_per_period": 2, "top_p": 0.05}
    config = load(None, {**shared_settings, **own, "out": str(tmp_path_factory.mktemp("choice") / "run")})
    return look(config, Screen(quiet=True), tokens_per_second=SPEED)


def of(found, changes):
    """The same with some settings changed."""
    return replace(found, config=found.config.with_settings(changes))


def test_plans_get_cheaper_one_setting_at_a_time_and_say_what_is_lost(found):
    tried = [*plans(found)]
    assert [len(plan.gives_up) for plan in tried] == [*range(len(tried))]
    costs = [plan.bill["seconds"] for plan in tried]
    assert costs == sorted(costs, reverse=True)
    assert list(tried[-1].changes) == ["warmup_steps", "budget", "features", "periods", "epochs_per_period"]
    assert tried[-1].config == found.config.with_settings(tried[-1].changes)


def test_the_first_plan_that_fits_is_chosen_by_seconds_and_by_share(found):
    tried = [*plans(found)]
    for plan in tried:
        fitting = next(other for other in tried if other.bill["seconds"] <= plan.bill["seconds"])
        assert choose(found, Limit("", "seconds", plan.bill["seconds"])) == fitting
        share = plan.bill["passes"] / plan.full
        assert choose(found, Limit("", "share", share + 1e-9)).bill["passes"] <= plan.bill["passes"]
    assert choose(found, Limit("", "seconds", 1e9)).config == found.config


def test_two_processes_take_half_the_time(found):
    together = replace(found, speed=found.speed.by(2))
    (alone, *_), (shared, *_) = plans(found), plans(together)
    assert shared.bill["seconds"] == pytest.approx(alone.bill["seconds"] / 2, rel=1e-3)
    assert shared.bill["passes"] == alone.bill["passes"]


def test_what_a_person_has_set_is_kept(found):
    cheapest = [*plans(found, {"budget", "periods"})][-1].config
    assert (cheapest.selection.budget, cheapest.training.periods) == (0.2, 3)
    assert cheapest.clustering.features == "words"
    by_words = of(found, {"features": "words"})  # without a warmup, a shorter one saves nothing
    assert {"features", "warmup_steps"}.isdisjoint([*plans(by_words)][-1].changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"k": 8},
        {"top_p": 0.2},
        {"policy": "linear_ucb", "budget": "auto"},
        {"method": "less"},
        {"method": "bm25"},
    ],
)
def test_every_plan_holds_for_its_rows(found, changes):
    tried = [*plans(of(found, changes))]
    for plan in tried:
        found.steps(plan.config)
        assert plan.config.selection.budget is None or changes.get("budget") is None
    assert tried[-1].bill["seconds"] < tried[0].bill["seconds"]


def test_no_plan_that_fits_names_the_nearest(found):
    cheapest = [*plans(found)][-1]
    with pytest.raises(
        ConfigError, match=r"--time 0.2s: no plan fits; the nearest takes about .*periods 1"
    ) as told:
        choose(found, Limit("--time 0.2s", "seconds", 0.2))
    assert cheapest.takes(Limit("", "seconds", 0.2)) in str(told.value)


def test_a_share_of_nothing_is_refused(found):
    with pytest.raises(ConfigError, match=r"--cost 0.4: method bm25 takes no gradients"):
        choose(of(found, {"method": "bm25"}), Limit("--cost 0.4", "share", 0.4))


@pytest.mark.parametrize(
    ("given", "seconds"), [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("2h", 7200), ("1h0m5s", 3605)]
)
def test_a_time_is_hours_minutes_and_seconds(given, seconds):
    assert Limit.read(given, None).most == seconds


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--time", "soon"], "--time soon: expected hours, minutes or seconds, as 30m, 1h30m or 90s"),
        (["--time", "30"], "--time 30: expected hours, minutes or seconds, as 30m, 1h30m or 90s"),
        (["--cost", "40%"], "--cost 40%: expected a share above 0 and at most 1, as 0.4"),
        (["--cost", "1.5"], "--cost 1.5: expected a share above 0 and at most 1, as 0.4"),
        (["--cost", "1", "--time", "1h"], "--time and --cost: give one of the two"),
    ],
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_what_is_no_limit_is_one_line(settings, command, given, said):
    assert clusterucb(command, *options(settings), *given).complaint == said
    assert not Path(settings["out"]).exists()


def test_nothing_runs_where_no_plan_fits(settings):
    complaint = clusterucb("run", *options(settings), "--cost", "0.01").complaint
    assert complaint.startswith("--cost 0.01: no plan fits; the nearest takes ")
    assert not Path(settings["out"]).exists()


@pytest.mark.whole
def test_a_run_keeps_its_choice_and_does_not_choose_again(settings, tmp_path, monkeypatch):
    file = tmp_path / "run.yaml"
    file.write_text(load(None, {**settings, "warmup_steps": 30, "top_p": 0.05}).to_yaml())
    given = [file, "--cost", "0.5"]
    first = done("run", *given)
    assert "--cost 0.5: warmup_steps 4; this takes 1.97 of 4.60 passes" in first.err
    assert "it gives up: " in first.err
    run = Path(settings["out"])
    bill, kept = read(run / "summary.json")["bill"], load(run / "config.yaml")
    assert kept.warmup.warmup_steps == 4
    assert bill["parts"]["warmup"]["passes"] < 0.3
    monkeypatch.setattr(module, "look", lambda *_, **__: pytest.fail("chosen again"))
    assert done("run", *given).out == first.out
    assert done("run", "--out", run).out == first.out
    other = clusterucb("run", *given, "--periods", 1).complaint
    assert other.startswith("periods: this run directory was made with 3")


def test_a_plan_within_a_share_says_what_it_gives_up(settings, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(load(None, {**settings, "warmup_steps": 30}).to_yaml())
    shown = done("plan", file, "--cost", "0.5", "--tokens-per-second", "1000").out
    assert "--cost 0.5: " in shown
    assert "it gives up: " in shown
