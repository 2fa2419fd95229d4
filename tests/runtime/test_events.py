"""The log of events, and its document."""

import io
import json
import re
from datetime import datetime
from pathlib import Path

import pytest

from cli_helpers import clusterucb, lines, read
from clusterucb.errors import InputError, StorageError
from clusterucb.runtime import screen as progress
from clusterucb.runtime.screen import EventLog, Screen, logged
from clusterucb.version import __version__

DOCUMENT = Path(__file__).parents[2] / "docs" / "logging.md"


def documented():
    """The fields of each event, as the document has them."""
    found = {}
    for section in re.split(r"^### ", DOCUMENT.read_text(), flags=re.MULTILINE)[1:]:
        name, body = section.split("\n", 1)
        body = body.split("\n## ")[0]
        cells = re.findall(r"^\| (`[^|]*) \|", body, re.MULTILINE)
        found[name.strip("`")] = {field for cell in cells for field in re.findall(r"`(\w+)`", cell)}
    return found


@pytest.fixture
def every_advance_is_told(monkeypatch):
    monkeypatch.setattr(progress, "EVENT_SECONDS", 0)


@pytest.fixture(scope="module")
def events(finished_settings):
    """Of a whole run."""
    return lines(Path(finished_settings["out"]).parent / "events.jsonl")


def named(events, name):
    return [event for event in events if event["event"] == name]


def test_every_documented_event_occurs_and_no_other(events, tmp_path, every_advance_is_told, capsys):
    file = tmp_path / "events.jsonl"
    assert clusterucb("cluster", "--out", tmp_path / "none", "--json-log", file, "--model", "m").complaint
    with EventLog(file) as log:
        screen = Screen(quiet=True, log=log)
        screen.say("a line")  # quiet, it is told all the same
        with screen.track("x", 2, "rows") as advance:
            advance(1)
    met = events + lines(file)
    assert {event["event"] for event in met} == set(documented())
    assert named(met, "message")[-1]["text"] == "a line"
    assert capsys.readouterr().err == ""


def test_every_event_has_the_fields_of_its_document(events):
    fields = documented()
    for event in events:
        assert set(event) == {"time", "event"} | fields[event["event"]], event


def test_times_are_utc_and_never_fall(events):
    times = [datetime.fromisoformat(event["time"]) for event in events]
    assert times == sorted(times)
    assert all(time.utcoffset().total_seconds() == 0 for time in times)


def test_a_run_tells_all_that_its_files_hold(events, finished_settings):
    run = Path(finished_settings["out"])
    (begun,), (ended,) = named(events, "command_begun"), named(events, "command_ended")
    assert events[0] is begun
    assert events[-1] is ended
    assert (begun["command"], begun["version"], ended["status"]) == ("run", __version__, 0)
    draws = [
        {
            "round": number,
            "draw": draw["step"],
            "cluster": draw["arm"],
            "cold": draw["cold"],
            "rows": len(draw["ids"]),
            "mean": pytest.approx(sum(draw["scores"]) / len(draw["scores"])),
            "largest": max(draw["scores"]),
        }
        for number in (2, 3)
        for draw in lines(run / f"rounds/{number}/draws.jsonl")
    ]
    told = [{k: v for k, v in draw.items() if k not in ("time", "event")} for draw in named(events, "draw")]
    assert told == draws
    for number, selected in enumerate(named(events, "selected"), 1):
        assert selected.items() >= read(run / f"rounds/{number}/summary.json").items()
    (summary,) = named(events, "summary")
    assert summary.items() >= read(run / "summary.json").items()


def test_a_step_begins_and_ends_with_its_counts(events):
    begun = [(event["step"], event["total"]) for event in named(events, "step_begun")]
    ended = [(event["step"], event["total"]) for event in named(events, "step_ended")]
    assert sorted(begun) == sorted(ended)
    assert {step for step, _ in begun} >= {"warm up", "gradients at warmup", "select, round 2", "train"}
    for event in named(events, "step_ended"):
        assert event["finished"]
        if not event["step"].startswith("k-means"):  # may need fewer iterations
            assert event["done"] == event["total"], event
    (train,) = (event for event in named(events, "step_ended") if event["step"] == "train")
    assert set(train["numbers"]) == {"loss", "learning_rate", "grad_norm"}


def test_progress_is_told_seldom_with_rate_and_time_left(tmp_path, monkeypatch):
    clock = iter(range(0, 10_000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    file = tmp_path / "events.jsonl"
    with EventLog(file) as log, Screen(quiet=True, log=log).track("x", 100, "rows", 40) as advance:
        advance(10, "row a", loss=2.0)
        advance(10)
    (first, *_) = told = named(lines(file), "progress")
    assert (first["done"], first["note"], first["numbers"]) == (50, "row a", {"loss": 2.0})
    assert first["rate"] == pytest.approx(10 / first["seconds"], rel=0.5)  # not (40 + 10) / seconds
    assert first["seconds_left"] > 0
    assert told[-1]["numbers"] == {"loss": 2.0}
    monkeypatch.setattr(progress, "EVENT_SECONDS", float("inf"))
    with EventLog(file) as log, Screen(quiet=True, log=log).track("y", 100, "rows") as advance:
        for _ in range(100):
            advance(1)
    assert [event for event in named(lines(file), "progress") if event["step"] == "y"] == []


def test_a_step_that_fails_is_told_as_unfinished_with_the_error(tmp_path):
    file = tmp_path / "events.jsonl"

    def fail():
        with logged(file, "run") as log, Screen(quiet=True, log=log).track("x", 2, "rows") as advance:
            advance(1)
            raise ZeroDivisionError("division by zero")

    with pytest.raises(ZeroDivisionError):
        fail()
    told = lines(file)
    names = ["command_begun", "step_begun", "step_ended", "error", "command_ended"]
    assert [event["event"] for event in told] == names
    assert (told[2]["done"], told[2]["finished"]) == (1, False)
    assert (told[3]["kind"], told[3]["message"]) == ("ZeroDivisionError", "division by zero")
    assert told[4]["status"] == 1


@pytest.mark.parametrize(
    ("error", "status", "errors"),
    [(InputError("x"), 2, 1), (KeyboardInterrupt(), 130, 1), (SystemExit(1), 1, 0), (ValueError(), 1, 1)],
)
def test_the_status_is_the_exit_status(tmp_path, error, status, errors):
    with pytest.raises(type(error)), logged(tmp_path / "log", "run"):
        raise error
    told = lines(tmp_path / "log")
    assert told[-1]["status"] == status
    assert len(named(told, "error")) == errors


def test_the_one_line_of_an_error_is_in_the_log(tmp_path):
    file = tmp_path / "folder" / "events.jsonl"
    complaint = clusterucb("run", tmp_path / "none.yaml", "--json-log", file, "-q").complaint
    (error,) = named(lines(file), "error")
    assert (error["kind"], error["message"]) == ("ConfigError", complaint)


def test_commands_append_and_a_torn_line_stands_alone(tmp_path):
    file = tmp_path / "events.jsonl"

    def tell(text):
        with EventLog(file) as log:
            log.write("message", text=text)

    tell("first")
    with file.open("ab") as torn:
        torn.write(b'{"time": "20')
    tell("second")
    tell("third")
    found = file.read_text().splitlines()
    assert found[1] == '{"time": "20'
    assert [json.loads(found[i])["text"] for i in (0, 2, 3)] == ["first", "second", "third"]


def test_numbers_that_json_has_not_are_null(tmp_path):
    with EventLog(tmp_path / "log") as log:
        log.write("message", a=float("inf"), b={"c": [float("nan"), 1.5]})
    (event,) = lines(tmp_path / "log")
    assert (event["a"], event["b"]) == (None, {"c": [None, 1.5]})


def test_a_log_that_cannot_be_opened_is_one_line(tmp_path):
    said = clusterucb("run", "--out", tmp_path / "run", "--json-log", tmp_path).complaint
    assert said == f"--json-log {tmp_path}: cannot be opened (Is a directory); expected a file to append to"


def test_a_full_disk_ends_the_command_once(tmp_path):
    class Full(io.BytesIO):
        def write(self, _data):
            raise OSError(28, "No space left on device")

    log = EventLog(tmp_path / "log")
    log._file.close()
    log._file = Full()
    with pytest.raises(StorageError, match="No space left on device; make room"):
        log.write("message", text="x")
    log.write("message", text="y")  # the error's own line, and what follows
