"""A whole run by one, two and four processes."""

from pathlib import Path

import pytest

from cli_helpers import options, result


def run(ranks, settings, processes, command="run", **changes):
    found = ranks([command, *options(settings, **changes)], processes)
    assert [rank["status"] for rank in found] == [0] * processes, found
    return found


def test_two_processes_end_a_run_as_one_does(ranks, settings, tmp_path):
    for size in (1, 2):
        found = run(ranks, settings, size, out=tmp_path / str(size))
        print(found)
    one, two = (result(tmp_path / name) for name in ("1", "2"))
    print({k: one[k] == two[k] for k in one})
    assert one.keys() == two.keys()
