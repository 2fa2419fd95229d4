"""Runs whose pages the tests read."""

import pytest
from report_helpers import HOSTILE, records, write_run


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory):
    """A run over a pool whose texts, sources, file names and reasons try to be more than text."""
    rows = [
        {"dataset": f"<b>{name}</b>", "instruction": text, "output": text[:3000] + name}
        for name, text in HOSTILE.items()
    ]
    files = {"po<b>ol&.jsonl": rows, "plain.jsonl": records(90, "plain")}
    hit = {"row": 20, "id": "plain.jsonl:11", "whose": "gsm8k", "probe": "gsm8k/<u>5</u>", "share": 0.9}
    folder = tmp_path_factory.mktemp("hostile") / "run <script>"
    return write_run(
        folder,
        files,
        contamination=[{**hit, "kept_out": False}],
        excluded=[30, 31],
        selection={"top_p": 0.15},
    )


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory):
    """A run of 300 rows of two sources."""
    files = {"a.jsonl": records(200, "a"), "b.jsonl": records(100, "b", 1)}
    return write_run(tmp_path_factory.mktemp("plain") / "run", files)
