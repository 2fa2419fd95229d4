"""Results of benchmarks as a person sees them."""

import io

import pytest
from rich.console import Console

from clusterucb.cli.tables import show_benchmarks


def numbers(value, error, questions=3):
    return {"value": value, "standard_error": error, "questions": questions}


def result(**changes):
    metrics = {
        "exact_match": {
            "base": numbers(0.123, 0.0456),
            "adapter": numbers(0.5, None),
            "difference": numbers(0.377, 0.01),
        }
    }
    return {"questions": 14042, "shots": 8, "left_out": [], "cut": 0, "metrics": metrics, **changes}


def shown(results, **options):
    console = Console(file=io.StringIO(), **options)
    show_benchmarks({"benchmarks": results}, console)
    return console.file.getvalue()


def cells(line):
    return [cell.strip() for cell in line.replace("┃", "│").strip("│\n").split("│")]


def test_numbers_are_in_percent_with_their_errors():
    rows = [cells(line) for line in shown({"gsm8k": result()}).splitlines() if "exact_match" in line]
    assert rows == [["gsm8k, 8-shot", "exact_match", "14042", "12.3 ± 4.6", "50.0", "+37.7 ± 1.0"]]


def test_a_name_that_says_its_shots_is_not_followed_by_them():
    assert "mmlu_5shot │" in shown({"mmlu_5shot": result(shots=5)}).replace("  ", " ")


def test_a_difference_has_its_sign():
    metrics = {"acc": dict.fromkeys(("base", "adapter", "difference"), numbers(-0.02, 0.01))}
    (row,) = (cells(line) for line in shown({"x": result(metrics=metrics)}).splitlines() if "acc" in line)
    assert row[3:] == ["-2.0 ± 1.0"] * 3


@pytest.mark.parametrize("terminal", [True, False])
def test_a_narrow_screen_loses_nothing(terminal):
    """A terminal folds the names; what goes to a file has no width."""
    name = "humaneval_pass10_and_more"
    text = shown({name: result()}, width=80, force_terminal=terminal, color_system=None)
    rows = [cells(line) for line in text.splitlines() if line.startswith("│")]
    assert "".join(row[0] for row in rows).replace(" ", "") == f"{name},8-shot"
    assert "".join(row[1] for row in rows) == "exact_match"
    assert [row[3:] for row in rows if row[3]] == [["12.3 ± 4.6", "50.0", "+37.7 ± 1.0"]]
    assert terminal == (len(rows) > 1)


def test_what_limits_the_results_is_said():
    sandbox = {"network": "none", "files": "landlock", "processes": "none"}
    text = shown({"humaneval_pass1": result(left_out=["a", "b"], cut=7, sandbox=sandbox)})
    assert text.splitlines()[-3:] == [
        "humaneval_pass1: 2 questions are left out, as they were in the target",
        "humaneval_pass1: 7 prompts are longer than the model's window and lost their beginning",
        "humaneval_pass1: programs were run without protection of network, processes on this system",
    ]


def test_nothing_is_remarked_where_there_is_nothing_to_say():
    assert shown({"gsm8k": result(sandbox={"network": "namespace"})}).splitlines()[-1].startswith("└")
