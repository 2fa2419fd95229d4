"""Where the time goes: every moment counts once, for the innermost open stage; the sum is the wall time."""

import re
import time

import pytest

from cli_helpers import clusterucb, options
from clusterucb.profiling import OTHER, profiled, stage


def test_a_moment_counts_for_the_innermost_stage():
    with profiled() as profile:
        with stage("outer"):
            time.sleep(0.03)
            with stage("inner"):
                time.sleep(0.05)
            time.sleep(0.02)
        time.sleep(0.04)
    assert profile.seconds["inner"] == pytest.approx(0.05, abs=0.03)
    assert profile.seconds["outer"] == pytest.approx(0.05, abs=0.03)
    assert profile.seconds[OTHER] == pytest.approx(0.04, abs=0.03)


def test_the_stages_add_up_to_the_wall_time():
    started = time.perf_counter()
    with profiled() as profile:
        for _ in range(200):
            with stage("a"), stage("b"):
                time.sleep(0.0002)
    wall = time.perf_counter() - started
    assert sum(profile.seconds.values()) == pytest.approx(wall, rel=0.05)


def test_an_error_leaves_its_stage():
    with profiled() as profile:
        with pytest.raises(ValueError, match="x"), stage("a"):
            raise ValueError("x")
        time.sleep(0.02)
    assert profile.seconds[OTHER] > profile.seconds["a"]


def test_the_clock_is_read_after_the_device_was_waited_for():
    calls = []
    with profiled(lambda: calls.append(time.perf_counter())), stage("a"):
        pass
    assert len(calls) == 3


def test_without_a_profile_a_stage_is_nothing():
    with stage("a"):
        pass
    with profiled() as profile:
        pass
    assert set(profile.seconds) == {OTHER}


def test_a_command_shows_its_stages_and_their_sum(settings):
    assert clusterucb("warmup", *options(settings)).status == 0
    started = time.perf_counter()
    shown = clusterucb("gradients", "--out", settings["out"], "--profile").out
    wall = time.perf_counter() - started
    found = dict(re.findall(r"│ ([a-z ]+?) +│ +([\d.]+) │", shown))
    assert {"load", "forward", "backward", "map and project", "write", "other"} <= set(found)
    seconds = {name: float(text) for name, text in found.items()}
    total = seconds.pop("wall time")
    assert sum(seconds.values()) == pytest.approx(total, abs=0.01 * len(seconds))
    assert total == pytest.approx(wall, rel=0.05, abs=0.1)
