import io
import itertools
import re

import pytest

from clusterucb.runtime import screen as progress
from clusterucb.runtime.screen import Screen


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def every_advance_shows(monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)


def test_without_a_terminal_a_track_is_plain_lines(every_advance_shows):
    stream = io.StringIO()
    with Screen(stream=stream).track("warm up", 4, "steps") as advance:
        advance(1, "loss 2.000")
        advance(3)
    lines = stream.getvalue().splitlines()
    assert "\x1b" not in stream.getvalue()
    assert lines[0].startswith("warm up: 1/4 steps, ")
    assert lines[0].endswith("s left  loss 2.000")
    assert lines[-1].startswith("warm up: 4/4 steps, ")


def test_lines_come_seldom():
    stream = io.StringIO()
    with Screen(stream=stream).track("warm up", 1000, "steps") as advance:
        for _ in range(1000):
            advance(1)
    assert len(stream.getvalue().splitlines()) == 1


def test_a_track_that_ends_early_has_nothing_left(every_advance_shows):
    stream = io.StringIO()
    with Screen(stream=stream).track("k-means", 20, "iterations") as advance:
        advance(3)
    assert "s left" in stream.getvalue().splitlines()[0]
    last = stream.getvalue().splitlines()[-1]
    assert last.startswith("k-means: 3/20 iterations")
    assert "left" not in last


def test_what_was_done_before_is_no_part_of_the_rate(every_advance_shows, monkeypatch):
    """A resumed step's time left is that of the rows that are left, by the speed of now."""
    clock = itertools.count(step=0.5)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    with Screen(stream=stream).track("gradients", 1000, "rows", 900) as advance:
        advance(10, "pool.jsonl:7")
    found = re.fullmatch(
        r"gradients: 910/1000 rows, ([\d.]+)/s, (\d+) s, about (\d+) s left  pool.jsonl:7",
        stream.getvalue().splitlines()[0],
    )
    rate, _, left = map(float, found.groups())
    assert 1 < rate < 20  # ten rows in some ticks of half a second
    assert left == pytest.approx(90 / rate, rel=0.5)


def test_a_failed_track_claims_no_end():
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Screen(stream=stream).track("x", 2, "rows"):
        raise KeyboardInterrupt
    assert stream.getvalue() == ""


@pytest.mark.parametrize(("total", "before", "count"), [(4, 0, 4), (1000, 900, 910)])
def test_on_a_terminal_a_track_is_a_bar_that_begins_where_a_killed_command_was(total, before, count):
    stream = Terminal()
    with Screen(stream=stream).track("warm up", total, "steps", before) as advance:
        advance(count - before, "loss 2.000")
    for text in ("\x1b[", "warm up", f"{count}/{total}", "loss 2.000"):
        assert text in stream.getvalue()


def test_a_bar_inside_another_shares_its_display():
    """A terminal has one live display; a second one is an error in older versions of rich."""
    stream = Terminal()
    screen = Screen(stream=stream)
    with screen.track("train", 8, "steps") as train:
        train(4)
        for period in (2, 3):
            with screen.track(f"select for period {period}", 20, "rows") as select:
                select(20)
        train(4)
    shown = stream.getvalue()
    for text in ("train", "8/8", "select for period 2", "select for period 3", "20/20"):
        assert text in shown


def test_a_bar_ends_with_an_error_and_the_next_one_begins():
    screen = Screen(stream=Terminal())
    with pytest.raises(ValueError, match="broken"), screen.track("a", 2, "rows"):
        raise ValueError("broken")
    with screen.track("b", 2, "rows") as advance:
        advance(2)


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["file", "terminal"])
def test_quiet_shows_nothing(stream, every_advance_shows):
    screen = Screen(quiet=True, stream=stream)
    screen.say("3 rows cannot be used")
    with screen.track("warm up", 4, "steps") as advance:
        advance(4, "loss 2.000")
    assert stream.getvalue() == ""


def test_a_line_is_shown_as_it_is():
    """Square brackets are no markup, and a long line is not broken."""
    stream = io.StringIO()
    line = "rows/[red]/x: " + 300 * "a"
    Screen(stream=stream).say(line)
    assert stream.getvalue() == line + "\n"
