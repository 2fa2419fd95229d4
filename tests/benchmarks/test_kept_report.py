"""The report of the study of what is kept: its table and the rule by which a default is chosen."""

import json

import pytest
from kept_report import chosen, errors, excesses, read, report


@pytest.fixture
def folder(tmp_path):
    """Two targets; dear is best on both, plain nearly so, far is not, and half ran on one of them alone."""
    runs = [
        ("dear", 2.0, {"a": [1.0, 1.2], "b": [2.0, 2.0]}),
        ("plain", 0.5, {"a": [1.1, 1.3], "b": [2.1, 2.1]}),
        ("cheap", 0.2, {"a": [1.1, 1.34], "b": [2.12, 2.12]}),
        ("far", 0.1, {"a": [1.0, 1.2], "b": [4.0, 4.0]}),
        ("half", 0.0, {"a": [9.0, 9.0]}),
    ]
    with (tmp_path / "whole.jsonl").open("w") as file:
        for method, cost, targets in runs:
            for target, losses in targets.items():
                for repeat in (0, 1):
                    line = {"target": target, "method": method, "repeat": repeat, "base": 5.0}
                    line |= {"loss": sum(losses) / 2, "losses": losses}
                    line["cost"] = {"warmup": cost / 2, "selecting": cost / 2, "training": 9.0}
                    file.write(json.dumps(line) + "\n")
    return tmp_path


def test_an_excess_is_in_per_cent_of_the_lowest_loss_of_any_method(folder):
    found = excesses(read(folder / "whole.jsonl"))
    assert found.loc["dear"].tolist() == [0.0, 0.0]
    assert found.loc["plain"].tolist() == pytest.approx([100 * 0.1 / 1.1, 5.0])
    assert found.loc["far"].tolist() == pytest.approx([0.0, 100.0])


def test_an_error_is_row_by_row_against_the_best(folder):
    found = errors(read(folder / "whole.jsonl"))
    assert found.loc["plain", "a"] == pytest.approx(0.0, abs=1e-9)  # every row is 0.1 above
    assert found.loc["cheap", "a"] == pytest.approx(100 * 0.02 / 1.1)  # 0.10 and 0.14


def test_the_rule_leaves_out_what_costs_too_much_and_takes_the_cheapest_within_the_error(folder):
    said = chosen(read(folder / "whole.jsonl"))
    assert said.startswith("Smallest worst excess at no more than 0.8 N: plain (9.1 %)")
    assert said.endswith("the cheapest of these is cheap (0.20 N).")


def test_the_table_has_every_method_by_cost_and_bold_what_is_lowest(folder):
    text = report(folder)
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == ["half", "far", "cheap", "plain", "dear"]
    assert rows[-1] == "| `dear` | 2.00 N | **1.100 ± 0.000** | **2.000 ± 0.000** | 0.0 % (a) |"
    assert rows[0] == "| `half` | 0.00 N | 9.000 ± 0.000 |  |  |"
    assert "dear" in (folder / "kept.svg").read_text()
