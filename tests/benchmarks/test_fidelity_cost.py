"""Quality against cost in the fidelity study: the costs, the curves and the plot."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from fidelity_cost import cheapest, loss_curves, recall_curves, total_cost, write_svg
from fidelity_rows import HIDDEN, LINEAR_HIDDEN

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("policy", "budget", "cost"),
    [
        ("ucb_beta", 0.2, 1.6),
        ("linear_ucb", 0.05, 1.15),
        (HIDDEN, 0.2, 1 / 3 + 0.8),
        (LINEAR_HIDDEN, 0.05, 1 / 3 + 0.2),
        ("uniform", 0.2, 0.8),
        ("ucb_beta", 1.0, 4.0),
    ],
)
def test_total_cost_is_that_of_four_periods(policy, budget, cost):
    assert total_cost(policy, budget, 1_000, 4) == pytest.approx(cost)


def test_a_budget_is_whole_rows():
    assert total_cost("ucb_beta", 0.05, 90, 3) == pytest.approx(1 + 2 * 4 / 90)


def test_a_recall_curve_is_the_mean_of_all_runs_by_cost():
    def run(policy, budget, recall):
        return {"policy": policy, "budget": budget, "recall": recall}

    runs = [run("a", 0.4, 0.9), run("a", 0.1, 0.2), run("a", 0.1, 0.4), run("b", 0.1, 0.5)]
    curves = recall_curves(runs, ["a", "b"], 100, 4)
    assert [(pytest.approx(x), pytest.approx(y)) for x, y in curves["a"]] == [(1.3, 0.3), (2.2, 0.9)]
    assert [name for name, *_ in cheapest(curves, 0.5)] == ["a", "b"]
    assert list(cheapest(curves, 0.6)) == [("a", *curves["a"][1])]


def test_a_method_at_several_budgets_is_one_curve():
    def method(cost, loss):
        return {"of_full_dynamic": {"cost": cost}, "loss": {"mean": loss}}

    methods = {"m": method(0.4, 1.5), "m@0.05": method(0.1, 1.9), "rds": method(0.1, 1.8), "less": {}}
    assert loss_curves({"methods": methods}, 4) == {"m": [(0.4, 1.9), (1.6, 1.5)], "rds": [(0.4, 1.8)]}


def test_the_plot_has_each_curve_with_its_points_in_their_places(tmp_path):
    curves = {"a <b>": [(0.5, 0.1), (1.0, 0.9), (2.0, 0.95)], "c": [(1.0, 0.5)]}
    write_svg(tmp_path / "plot.svg", curves, "title & more", "recall")
    tree = ElementTree.parse(tmp_path / "plot.svg").getroot()
    lines = [line.get("points").split() for line in tree.iter(f"{SVG}polyline")]
    assert [len(points) for points in lines] == [3, 1]
    spots = [tuple(map(float, point.split(","))) for point in lines[0]]
    assert spots == sorted(spots, key=lambda spot: spot[0])
    assert spots == sorted(spots, key=lambda spot: -spot[1])  # down is larger
    assert (spots[2][0] - spots[1][0]) == pytest.approx(2 * (spots[1][0] - spots[0][0]), abs=0.2)
    texts = [text.text for text in tree.iter(f"{SVG}text")]
    assert {"a <b>", "c", "title & more", "recall"} <= set(texts)
    width, height = map(float, tree.get("viewBox").split()[2:])
    for circle in tree.iter(f"{SVG}circle"):
        assert 0 < float(circle.get("cx")) < width
        assert 0 < float(circle.get("cy")) < height
