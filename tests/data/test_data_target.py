import numpy as np
import pytest
from data_helpers import chat_record

from clusterucb.data import target as target_module
from clusterucb.data.pool import Pool
from clusterucb.data.target import Target, overlap
from file_helpers import refusal, write


def test_subtasks_of_any_sizes_in_any_order_are_grouped(tmp_path):
    names = ["law", "art", "law", "zoo", "law"]
    path = write(tmp_path / "t.jsonl", [chat_record(str(i), subject=n) for i, n in enumerate(names)])
    target = Target.read(path, "subject")
    assert target.subtasks == ["art", "law", "zoo"]
    assert target.codes.tolist() == [1, 0, 1, 2, 1]
    assert target.codes.dtype == np.int64
    assert [row.id for row in target] == [f"t.jsonl:{i}" for i in range(1, 6)]
    assert len(target) == len(target.rows) == 5


def test_without_a_column_all_rows_are_one_group(tmp_path):
    target = Target.read([write(tmp_path / "t.jsonl.gz", [chat_record("a"), chat_record("b")])])
    assert (target.subtasks, target.codes.tolist()) == (["target"], [0, 0])


def test_subtasks_may_be_numbers(tmp_path):
    path = write(tmp_path / "t.jsonl", [chat_record("a", n=2), chat_record("b", n=1)])
    target = Target.read(path, "n")
    assert (target.subtasks, target.codes.tolist()) == (["1", "2"], [1, 0])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, "no subtask column 'kind'; its columns are 'messages'."),
        ({"kind": None}, "no subtask column"),
        ({"kind": [1]}, "is [1]"),
        ({"kind": " "}, "is ' '"),
    ],
)
def test_a_row_without_its_subtask_is_refused_by_line(tmp_path, value, said):
    path = write(tmp_path / "t.jsonl", [chat_record("a", kind="x"), chat_record("b", **value)])
    message = refusal(Target.read, path, "kind")
    assert message.startswith("t.jsonl, line 2: ")
    assert said in message


def test_the_fingerprint_follows_rows_and_subtask_column(tmp_path):
    path = write(tmp_path / "t.jsonl", [chat_record("a", k="x")])
    prints = {Target.read(path).fingerprint, Target.read(path, "k").fingerprint}
    write(path, [chat_record("b", k="x")])
    prints |= {Target.read(path).fingerprint, Target.read(path, "k").fingerprint}
    assert len(prints) == 4


def test_overlap_names_every_pair_of_rows_with_the_same_text(tmp_path):
    pool = Pool.read(write(tmp_path / "p.jsonl", [chat_record(q) for q in "abcab"]))
    target = Target.read(write(tmp_path / "t.jsonl", [chat_record(q + " ") for q in "bxa"]))
    pairs = [(1, 3), (2, 1), (4, 3), (5, 1)]
    assert overlap(pool, target) == [(f"p.jsonl:{i}", f"t.jsonl:{j}") for i, j in pairs]
    assert overlap(target, pool) == [("t.jsonl:1", "p.jsonl:2"), ("t.jsonl:1", "p.jsonl:5"),
                                     ("t.jsonl:3", "p.jsonl:1"), ("t.jsonl:3", "p.jsonl:4")]  # fmt: skip


def test_equal_hashes_of_other_texts_are_no_overlap(tmp_path, monkeypatch):
    monkeypatch.setattr(target_module, "text_digest", lambda messages: 1)
    a = Target.read(write(tmp_path / "a.jsonl", [chat_record("a"), chat_record("b")]))
    b = Target.read(write(tmp_path / "b.jsonl", [chat_record("c"), chat_record("b")]))
    assert overlap(a, b) == [("a.jsonl:2", "b.jsonl:2")]


def test_a_subtask_that_is_nan_is_missing(tmp_path):
    write(tmp_path / "t.jsonl", '{"prompt": "q", "completion": "a", "subject": NaN}\n')
    assert "line 1: no subtask column 'subject'" in refusal(Target.read, tmp_path / "t.jsonl", "subject")
