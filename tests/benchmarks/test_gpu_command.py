"""`make gpu`, rehearsed on the CPU: its parts, its page, and that what fails costs the others nothing."""

import json
import sys

import gpu
import gpu_parts
import pytest


def called(monkeypatch, capsys, *arguments):
    """Exit status and last lines of the command."""
    monkeypatch.setattr(sys, "argv", ["gpu.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        gpu.main()
    return int(end.value.code), capsys.readouterr().out.splitlines()


def test_every_part_has_its_time():
    assert set(gpu.SECONDS) == set(gpu_parts.PARTS)


def test_missing_packages_are_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu, "NEEDED", ("torch", "no_such_package"))
    status, said = called(monkeypatch, capsys, "--out", tmp_path)
    assert (status, said) == (
        2,
        ["gpu: missing packages: no_such_package; install them, or name another Python by PYTHON="],
    )


def test_a_part_that_fails_or_hangs_costs_the_others_nothing(monkeypatch, capsys, tmp_path):
    parts = tmp_path / "benchmarks/gpu_parts.py"
    parts.parent.mkdir()
    parts.write_text(
        "import json, sys, time\nname, folder, result = sys.argv[1:]\n"
        "if name == 'sketch': raise ValueError('of the device')\n"
        "if name == 'job': time.sleep(60)\n"
        "checks = [{'name': 'n', 'passed': True, 'said': '', 'count': 3 if name == 'tests' else 1}]\n"
        "open(result, 'w').write(json.dumps({'gpu': False, 'checks': checks if name != 'machine' else []}))\n"
    )
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setitem(gpu.SECONDS, "job", 0.5)
    status, said = called(monkeypatch, capsys, "--only", "sketch", "tests", "job", "doctor")
    assert status == 1
    assert said[-4:] == [
        "FAILED sketch: status 1: ValueError: of the device",
        "FAILED job: not done in 0 s",
        str(tmp_path / "build/gpu/benchmarks-gpu.md"),
        "4 passed, 2 failed",
    ]


@pytest.mark.whole
def test_rehearsal_measures_what_the_page_then_shows(tmp_path):
    names = ("machine", "features", "k-means", "job", "doctor")
    found = {name: gpu_parts.PARTS[name](tmp_path) for name in names}
    assert [check for part in found.values() for check in part["checks"] if not check["passed"]] == []
    json.dumps(found)
    assert {"device", "driver", "commit"} <= set(found["machine"])
    shapes = [row["rows x tokens"] for row in found["features"]["rows"]]
    assert shapes == ["8 x 512", "32 x 128", "64 x 64", "1 x 512"]
    page = "\n".join(gpu.page(found))
    for said in ("a rehearsal without a GPU", "## Features", "## K-means", "## Job", "## Checks"):
        assert said in page
