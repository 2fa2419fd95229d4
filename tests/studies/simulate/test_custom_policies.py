"""Policies of one's own, by `module:callable`."""

import sys

import numpy as np
import pytest

from clusterucb.errors import ConfigError
from clusterucb.selection.bandit import select
from clusterucb.selection.policies import UCBBeta
from clusterucb.studies.simulate.grid import named_policies

MODULE = """
import numpy as np

class Optimist:
    def __init__(self, bonus=2.0):
        self.bonus = bonus
    def __call__(self, arms):
        return arms.mean + self.bonus * arms.std

class Needy:
    def __init__(self, bonus):
        pass

def largest(arms):
    return arms.largest

def make():
    return largest

def short(arms):
    return arms.mean[:1]

def broken(arms):
    return 1 / 0

constant = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module in the working directory."""
    (tmp_path / "my_policies_here.py").write_text(MODULE)
    (tmp_path / "my_broken_module.py").write_text("x = 1\nimport numpy.nothing_of_the_kind\n")
    (tmp_path / "my_syntax.py").write_text("def (\n")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield "my_policies_here"
    assert sys.path == path
    sys.modules.pop("my_policies_here", None)


def drawn(policy):
    rng = np.random.default_rng(0)
    clusters, scores = rng.integers(0, 5, 200), rng.normal(size=200)
    return select(clusters, lambda rows: scores[rows], policy, seed=1).drawn.tolist()


def test_a_class_is_called_a_function_is_the_policy_and_an_installed_module_is_found(mine):
    installed = "clusterucb.selection.policies:UCB1"
    names = [f"{mine}:Optimist", "ucb1", f"{mine}:largest", installed]
    found = named_policies(names)
    assert list(found) == names
    assert drawn(found[f"{mine}:Optimist"]) == drawn(UCBBeta(2.0))
    assert drawn(found[f"{mine}:largest"]) == drawn(lambda arms: arms.largest)
    assert drawn(found[installed]) == drawn(found["ucb1"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ucb_betta", "did you mean 'ucb_beta'"),
        ("no_such_x:P", r"failed \(ModuleNotFoundError: No module named 'no_such_x'\); expected MODULE:NAME"),
        (":P", "importing it failed .*expected MODULE:NAME, installed or in "),
        ("MINE:", "importing it failed"),
        ("MINE:Optimust", r"failed \(AttributeError: module 'MINE' has no attribute 'Optimust'"),
        ("MINE:constant", "'int' object is not callable.*expected .* of a class .* or of a function"),
        ("MINE:Needy", "calling the class failed"),
        ("MINE:make", "scoring two arms failed .*TypeError: make"),
        ("MINE:broken", r"my_policies_here.py:24 \(ZeroDivisionError: division by zero\)"),
        ("MINE:short", r"returned shape \(1,\) for two arms: expected \(2,\)"),
        ("my_broken_module:P", r"my_broken_module.py:2 \(ModuleNotFoundError: No module named 'numpy.no"),
        ("my_syntax:P", "importing it failed.*SyntaxError"),
    ],
)
def test_a_policy_that_cannot_be_had_is_one_line(mine, name, said):
    with pytest.raises(ConfigError, match=said.replace("MINE", mine)) as caught:
        named_policies(["ucb1", name.replace("MINE", mine)])
    assert "\n" not in str(caught.value)
