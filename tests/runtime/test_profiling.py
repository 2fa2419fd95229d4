"""Where the time goes: every moment counts once, for the innermost open stage; the sum is the wall time."""

import re
import time

import pytest

from cli_helpers import clusterucb, options
from clusterucb.runtime import profiling
from clusterucb.runtime.profiling import OTHER, profiled, stage


class Clock:
    """A clock that stands still but when told to go on."""

    def __init__(self):
        self.now = 5.0

    def perf_counter(self):
        return self.now

    def go_on(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(profiling, "time", clock)
    return clock


def test_a_moment_counts_for_the_innermost_stage(clock):
    with profiled() as profile:
        with stage("outer"):
            clock.go_on(0.25)
            with stage("inner"):
                clock.go_on(0.5)
            clock.go_on(1)
        clock.go_on(2)
    clock.go_on(4)
    assert profile.seconds == {"inner": 0.5, "outer": 1.25, OTHER: 2.0}


def test_the_stages_add_up_to_the_wall_time():
    started = time.perf_counter()
    with profiled() as profile:
        inside = time.perf_counter()
        for _ in range(200):
            with stage("a"), stage("b"):
                pass
        left = time.perf_counter()
    ended = time.perf_counter()
    assert left - inside <= sum(profile.seconds.values()) <= ended - started


def test_an_error_leaves_its_stage(clock):
    with profiled() as profile:
        with pytest.raises(ValueError, match="x"), stage("a"):
            raise ValueError("x")
        clock.go_on(1)
    assert profile.seconds == {OTHER: 1.0, "a": 0.0}


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
