"""The command line itself: options, where output goes, and that it is one program however it is called."""

import inspect
import os
import subprocess
import sys

import pytest
import typer
from typer import rich_utils

from cli_helpers import clusterucb, options, read
from clusterucb.cli.main import application
from clusterucb.cli.options import parameters, repeat_list_options
from clusterucb.config import settings as all_settings
from clusterucb.version import __version__, commit

VERSION = f"clusterucb {__version__} (commit {commit() or 'unknown'})\n"

STEPS = {"run", "warmup", "gradients", "cluster", "select", "train"}


@pytest.fixture(scope="module")
def commands():
    return typer.main.get_command(application()).commands


def process(*arguments, **environment):
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **path, **environment},
    )


def test_there_is_a_command_for_each_step(commands):
    others = {"evaluate", "prepare", "compare", "simulate", "plan", "doctor", "presets", "report", "export"}
    others |= {"index", "query"}
    assert set(commands) == STEPS | others


def test_every_step_takes_every_setting_as_an_option(commands):
    flags = {f"--{setting.name.replace('_', '-')}" for setting in all_settings()}
    for name in STEPS | {"index", "query"}:
        known = {flag for parameter in commands[name].params for flag in parameter.opts}
        assert flags <= known, name


def test_the_issues_options_have_their_names(commands):
    known = {flag for parameter in commands["select"].params for flag in parameter.opts}
    wanted = "--k --beta --ucb-p --csp --budget --top-p --draw-batch --seed --subtask --chat --out"
    assert set(wanted.split()) <= known
    assert {"--checkpoint", "--trust-remote-code", "--target-modules"} <= known


def test_no_option_is_taken_twice():
    names = [parameter.name for parameter in parameters()]
    assert len(names) == len(set(names))
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters())


@pytest.mark.parametrize("command", ["run", "select"])
def test_help_tells_of_every_setting_with_its_default_where_all_are_asked_for(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "220")
    monkeypatch.setenv("TERMINAL_WIDTH", "220")
    for name in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS"):
        monkeypatch.delenv(name, raising=False)
    few, shown = clusterucb(command, "--help"), clusterucb(command, "--help-all")
    assert few.status == shown.status == 0
    for setting in all_settings():
        assert f"--{setting.name.replace('_', '-')} " in shown.out
        assert not setting.required or f"--{setting.name} " in few.out
    for default in ("0", "0.05", "auto", "q_proj k_proj v_proj o_proj"):
        assert f"(default: {default})" in shown.out
    assert len(few.out.splitlines()) < len(shown.out.splitlines()) / 2
    assert "--auto-change" not in few.out
    assert "--help-all shows every setting" in few.out


def test_help_shows_brackets_and_what_stands_for_a_value(monkeypatch):
    monkeypatch.setattr(rich_utils, "MAX_WIDTH", 400)
    shown = " ".join(clusterucb("run", "--help-all").out.split())
    for text in (
        "--kmeans-backend NAME What computes k-means: torch, or keops (needs clusterucb[keops] and a",
        "`hub:org/name[:config][:split]`",
        "--model DIR|FILE|ID A causal",
        "--out DIR The run",
        "--rank N LoRA rank",
        "--pool FILE... Rows",
    ):
        assert text in shown


def test_without_a_command_there_is_help():
    shown = clusterucb()
    assert "Usage: clusterucb" in shown.out + shown.err


@pytest.mark.parametrize("wrong", [["run", "--topp", "0.1"], ["runn"], ["run", "a", "b"]])
def test_a_wrong_option_or_command_is_status_2_without_a_traceback(wrong):
    shown = clusterucb(*wrong)
    assert shown.status == 2
    assert "Traceback" not in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("run --pool a b c --out o", "run --pool a --pool b --pool c --out o"),
        ("run --pool a --pool b", "run --pool a --pool b"),
        ("run --pool=a --target t u", "run --pool=a --target t --target u"),
        ("run --pool=a b --out o", "run --pool=a --pool b --out o"),
        (
            "run x.yaml --target-modules q_proj v_proj -q",
            "run x.yaml --target-modules q_proj --target-modules v_proj -q",
        ),
        ("run --out o x.yaml", "run --out o x.yaml"),
        ("run --pool a b -- x.yaml", "run --pool a --pool b -- x.yaml"),
    ],
)
def test_an_option_takes_several_files(given, meant):
    assert repeat_list_options(given.split()) == meant.split()


def test_python_m_is_the_same_program():
    shown = process("-m", "clusterucb", "--version")
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, VERSION, "")
    shown = process("-m", "clusterucb", "run")
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr.startswith("clusterucb: which run directory?")
    assert len(shown.stderr.splitlines()) == 1


def test_no_command_before_its_work_imports_torch():
    """Nor transformers, nor datasets: help, version and refused settings answer at once."""
    code = """
import sys
from pathlib import Path
import clusterucb
from clusterucb.cli.main import main
for arguments in (["--help"], ["--version"], ["run", "--help"], ["run"], ["run", "none.yaml"],
                  ["run", "--out", "none", "--budget", "2"],
                  ["compare", "--help"], ["compare", "--methods", "none"], ["compare"],
                  ["doctor", "--help"], ["doctor"],
                  ["plan", "--help"], ["plan"], ["plan", "--tokens-per-second", "0"],
                  ["simulate", "--help"],
                  ["simulate", "none", "--out", "none", "--budgets", "2"]):
    try:
        main(arguments)
    except SystemExit:
        pass
heavy = {"torch", "transformers", "datasets", "peft", "accelerate", "pyarrow", "plotly"} & set(sys.modules)
assert not heavy, heavy
"""
    shown = process("-c", code)
    assert shown.returncode == 0, shown.stderr


def test_results_go_to_standard_output_and_progress_to_standard_error(settings):
    shown = clusterucb("warmup", *options(settings))
    assert shown.out == f"{settings['out']}/warmup\n"
    assert "warm up: 3/3 steps" in shown.err
    again = clusterucb("warmup", "--out", settings["out"])
    assert (again.status, again.out) == (0, shown.out)


def test_quiet_shows_nothing_but_errors(settings, finished_settings):
    shown = clusterucb("warmup", *options(settings), "--quiet")
    assert shown == (0, "", "")
    for step in sorted(STEPS | {"evaluate"}):
        assert clusterucb(step, "--out", finished_settings["out"], "-q") == (0, "", "")
    assert clusterucb("cluster", "--out", settings["out"], "-q").complaint


def test_the_end_of_a_run_shows_selection_loss_and_cost(finished_run):
    shown = finished_run("clusterucb").shown
    for text in ("Selected rows by source", "pool-a", "period 3", "Loss on 5 held-out rows", "adapter"):
        assert text in shown
    for text in ("Cost", "warmup", "select 2", "evaluate", "total"):
        assert text in shown


def test_the_last_lines_of_a_run_say_what_happened_what_it_cost_and_where_to_look(finished_run):
    run, shown = finished_run("clusterucb").folder, finished_run("clusterucb").shown
    losses, bill = read(run / "evaluation.json"), read(run / "summary.json")["bill"]
    before, after = (losses[name]["loss"] for name in ("base", "adapter"))
    *_, happened, cost, full, alone, unit, look = shown.splitlines()
    assert happened.startswith(
        "10 of 100 rows were selected, 3 times, and trained on. The loss on 5 held-out"
    )
    assert f"from {before:.4f} to {after:.4f}, row by row by 0." in happened
    assert cost.startswith(f"In all {bill['passes']:.2f} passes over the pool, ")
    for part in ("warmup", "selecting", "training", "evaluation"):
        assert f"{part} {bill['parts'][part]['passes']:.2f}" in cost
    assert f"{bill['score_all']['passes']:.2f} passes over the pool, about" in full
    assert f"{bill['train_only']['passes']:.2f} passes over the pool, about" in alone
    assert unit.startswith("One pass over the pool is the gradients of its 100 rows,")
    assert look == f"Everything is in {run}. To look at it: python -m webbrowser {run}/report.html"


def test_evaluate_shows_both_losses(finished_settings):
    shown = clusterucb("evaluate", "--out", finished_settings["out"]).out.splitlines()
    assert [line.split()[0] for line in shown[:2]] == ["base", "adapter"]
    assert "(holdout, 5 rows)" in shown[0]
