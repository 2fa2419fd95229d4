import errno
import gzip
import itertools
import json
import tracemalloc

import huggingface_hub
import pytest
from source_helpers import pair, prepared, read_out, refusal

import file_helpers
from clusterucb.errors import StorageError
from clusterucb.sources import conversion, prepare
from clusterucb.sources.catalogue import SOURCES
from file_helpers import Hub, write


def tree(name, asked):
    reply = {"message_id": f"r{name}", "parent_id": name, "text": "a", "role": "assistant"}
    prompt = {"message_id": name, "text": asked, "role": "prompter", "replies": [reply]}
    return {"message_tree_id": name, "tree_state": "ready_for_export", "prompt": prompt}


CHAT = [{"from": "human", "value": "Say a."}, {"from": "gpt", "value": "a"}]
RAW = {
    "flan_v2": [{"inputs": "Say a.", "targets": "a", "task": "t"}],
    "cot": [{"inputs": "Say a.", "targets": "a"}],
    "dolly": [{"instruction": "Say a.", "context": "", "response": "a", "category": "qa"}],
    "oasst1": [tree("q", "Say a.")],
    "gpt4_alpaca": [{"instruction": "Say a.", "input": "", "output": "a"}],
    "sharegpt": [{"id": "s", "conversations": CHAT}],
    "gsm8k": [{"question": "Say a.", "answer": "a\n#### 1"}],
    "code_alpaca": [{"instruction": "Say a.", "input": "", "output": "a"}],
}
NAMES = list(RAW)
EXPECTED = {name: pair("Say a.", "a\nThe answer is 1." if name == "gsm8k" else "a") for name in NAMES}


def official(name, folder, packed=""):
    """Write the first complete set of official files."""
    for pattern in SOURCES[name].layouts[0]:
        write(folder / f"{pattern.replace('*', '2023-04-12')}{packed}", RAW[name])
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_official_files_in_either_folder_packed_or_not_give_the_same_bytes(tmp_path, name):
    written = []
    for place, packed in itertools.product((name, "."), ("", ".gz", "")):
        folder = tmp_path / str(len(written))
        official(name, folder / place, packed)
        report = prepare(name, folder, folder / "out")
        written.append((report.sha256, (folder / "out" / f"{name}.jsonl").read_bytes()))
        assert [turns for _, turns in read_out(folder / "out", name)] == [EXPECTED[name]] * report.read
    assert len(set(written)) == 1


def test_a_folder_of_its_own_goes_before_a_file_of_the_same_name(tmp_path):
    write(tmp_path / "train.jsonl", RAW["dolly"])
    write(tmp_path / "gsm8k" / "train.jsonl", RAW["gsm8k"])
    assert prepare("gsm8k", tmp_path, tmp_path / "out").written == 1


def test_the_plain_file_goes_before_the_packed_one_and_the_best_set_before_the_others(tmp_path):
    for file in ("code_alpaca_20k.json", "code_alpaca_20k.json.gz", "code_alpaca_2k.json"):
        write(tmp_path / file, RAW["code_alpaca"])
    assert prepare("code_alpaca", tmp_path, tmp_path / "out").files == ("code_alpaca_20k.json",)


def test_all_files_of_a_set_are_read_and_numbered_on(tmp_path):
    write(tmp_path / "b_train.tsv", "Q?\tyes\tIt is.\n")
    write(tmp_path / "a_train.tsv.gz", "P?\tno\tIt is not.\n")
    report = prepare("cot", tmp_path, tmp_path / "out")
    assert report.files == ("a_train.tsv.gz", "b_train.tsv")
    assert read_out(tmp_path / "out", "cot")[1] == ("cot_1", pair("Q?", "It is. So the answer is yes."))


def test_half_a_set_is_refused_and_can_be_had_by_its_name(tmp_path):
    half = write(tmp_path / "sg_90k_part1_html_cleaned.json", RAW["sharegpt"])
    said = refusal("sharegpt", tmp_path)
    assert "sg_90k_part1_html_cleaned.json and sg_90k_part2_html_cleaned.json" in said
    assert prepare("sharegpt", half, tmp_path / "out").written == 1


def test_missing_files_are_named_with_their_page_and_what_is_there(tmp_path):
    write(tmp_path / "notes.txt", "x")
    write(tmp_path / "gsm8k" / "test.jsonl", RAW["gsm8k"])
    said = refusal("gsm8k", tmp_path)
    assert "expected train.jsonl (also as .gz)" in said
    assert "found gsm8k, gsm8k/test.jsonl, notes.txt" in said
    assert "https://github.com/openai/grade-school-math" in said
    (tmp_path / "empty").mkdir()
    assert "found nothing" in refusal("gsm8k", tmp_path / "empty")
    assert "no such file or folder; expected train.jsonl" in refusal("gsm8k", tmp_path / "none")


@pytest.mark.parametrize("name", NAMES)
def test_another_data_sets_rows_are_refused_by_line_and_columns(tmp_path, name):
    other = "gsm8k" if name != "gsm8k" else "dolly"
    said = refusal(name, write(tmp_path / "a.jsonl", RAW[other]))
    assert f"a.jsonl, line 1: columns {', '.join(repr(column) for column in RAW[other][0])}." in said
    assert f"A row of {name} has {SOURCES[name].looks}: is this its file" in said


def test_a_later_row_of_another_shape_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", [*RAW["cot"], {"inputs": "x", "answer": "y", "rationale": "z"}])
    assert "a.jsonl, line 2: columns 'inputs', 'answer', 'rationale'" in refusal("cot", path)


GZIP = "truncated or corrupt gzip file"
CUT_TABLE = gzip.compress(b"".join(b"Q%d?\tyes\tIt is.\n" % i for i in range(2000)))[:-3000]


@pytest.mark.parametrize(
    ("name", "file", "data", "said"),
    [
        ("gsm8k", "train.jsonl", b'{"question": "a", "answer": "#### 1"}\n{"q": "b', "line 2: broken JSON"),
        ("gsm8k", "train.jsonl", b'{"question": 7, "answer": "#### 1"}', "question is 7, expected a string"),
        ("gsm8k", "a.jsonl", b'{"question": "x", "answer": "y"}\n' * 3, "to learn from; no final answer: 3"),
        ("flan_v2", "a.jsonl", b'{"inputs": "", "targets": ""}', "a.jsonl: no row of flan_v2 to learn"),
        ("cot", "a.tsv", b"Q?\tyes\tIt is.\nQ?\tyes\n", "a.tsv, line 2: 2 columns, expected 3 between tabs"),
        ("cot", "a.tsv", b"Q?\tyes\t\xff", "a.tsv, line 1: not UTF-8 (byte 0xff at 8)"),
        ("cot", "a.tsv", b"", "a.tsv: empty"),
        ("cot", "a.tsv.gz", b"no gzip", f"a.tsv.gz: a {GZIP}"),
        ("cot", "a.tsv.gz", CUT_TABLE, f"a.tsv.gz: a {GZIP}"),
    ],
)
def test_a_damaged_or_useless_file_is_refused_by_name_and_line(tmp_path, name, file, data, said):
    (tmp_path / file).write_bytes(data)
    message = refusal(name, tmp_path / file)
    assert file in message
    assert said in message


def test_a_refused_file_leaves_an_earlier_result_alone(tmp_path):
    report, rows = prepared("gsm8k", "train.jsonl", RAW["gsm8k"], tmp_path)
    bad = write(tmp_path / "bad.jsonl", f"{json.dumps(RAW['gsm8k'][0])}\nx")
    assert "line 2" in file_helpers.refusal(prepare, "gsm8k", bad, tmp_path / "out")
    assert read_out(tmp_path / "out", "gsm8k") == rows
    assert json.loads((tmp_path / "out" / "gsm8k.json").read_text())["sha256"] == report.sha256
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gsm8k.json", "gsm8k.jsonl"]


def test_the_report_says_what_was_read_and_from_where(tmp_path):
    report, _ = prepared("dolly", "a.jsonl", [*RAW["dolly"], {**RAW["dolly"][0], "response": ""}], tmp_path)
    said = json.loads((tmp_path / "out" / "dolly.json").read_text())
    assert said["licence"] == "CC BY-SA 3.0"
    assert (said["read"], said["written"], said["dropped"]) == (2, 1, {"empty output": 1})
    assert (said["files"], said["sha256"]) == (["a.jsonl"], report.sha256)
    assert str(tmp_path) not in json.dumps(said)


def test_the_raw_file_is_never_written_over(tmp_path):
    path = write(tmp_path / "gsm8k.jsonl", RAW["gsm8k"])
    said = file_helpers.refusal(prepare, "gsm8k", path, tmp_path)
    assert "is the file to be written, too" in said
    assert len(path.read_bytes().splitlines()) == 1


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(conversion, "_line", full)
    with pytest.raises(StorageError, match="No space left"):
        prepare("gsm8k", write(tmp_path / "train.jsonl", RAW["gsm8k"]), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "origin", "asked"),
    [
        ("dolly", "hub", ("databricks/databricks-dolly-15k", None, "train")),
        ("gpt4_alpaca", "hub", ("vicgalle/alpaca-gpt4", None, "train")),
        ("code_alpaca", "hub", ("sahil2801/CodeAlpaca-20k", None, "train")),
        ("gsm8k", "hub", ("openai/gsm8k", "main", "train")),
        ("oasst1", "hub:me/mine", ("me/mine", None, "train")),
    ],
)
def test_a_table_of_the_hub_is_asked_for_by_name(tmp_path, monkeypatch, name, origin, asked):
    Hub(monkeypatch).sets[asked] = RAW[name]
    report = prepare(name, origin, tmp_path)
    assert report.files == (SOURCES[name].hub if origin == "hub" else origin,)
    assert [turns for _, turns in read_out(tmp_path, name)] == [EXPECTED[name]]


@pytest.mark.parametrize("name", ["flan_v2", "cot", "oasst1", "sharegpt"])
def test_files_of_the_hub_give_the_same_rows_as_files_at_hand(tmp_path, monkeypatch, name):
    def fetch(repository, file, repo_type):
        assert (f"hub:{repository}", repo_type) == (SOURCES[name].hub, "dataset")
        return str(write(tmp_path / "hub" / file, RAW[name]))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    report = prepare(name, "hub", tmp_path / "out")
    assert report.files == tuple(f"{SOURCES[name].hub}/{file}" for file in SOURCES[name].hub_files)
    assert prepare(name, tmp_path / "hub", tmp_path / "again").sha256 == report.sha256


@pytest.mark.parametrize("error", [ConnectionError("Offline\nreally"), ValueError("x"), RuntimeError("y")])
def test_a_hub_that_does_not_answer_is_said_in_one_line(tmp_path, monkeypatch, error):
    def fetch(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    said = refusal("sharegpt", "hub")
    assert "hub:anon8231489123/ShareGPT_Vicuna_unfiltered: ShareGPT_V3" in said
    assert f"cannot be fetched ({type(error).__name__}: " in said
    assert SOURCES["sharegpt"].url in said


def peak(name, folder, count):
    """Most bytes of Python memory while `count` rows of 300 characters are prepared."""
    long = "x" * 300
    rows = {
        "gsm8k": ({"question": f"How many is {i}? {long}", "answer": f"{i}\n#### {i}"} for i in range(count)),
        "oasst1": (tree(f"t{i}", long) for i in range(count)),
    }
    path = write(folder / "rows.jsonl", [*rows[name]])
    tracemalloc.start()
    prepare(name, path, folder / "out")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


@pytest.mark.parametrize(("name", "row"), [("gsm8k", 40), ("oasst1", 160)])  # the latter's ids are kept
def test_memory_does_not_grow_with_the_texts(tmp_path, name, row):
    peak(name, tmp_path, 10)  # what is loaded once
    assert peak(name, tmp_path, 3_000) - peak(name, tmp_path, 300) < 2_700 * row


FIGS = [{"question": f"How many are {n} figs?", "answer": f"{n}\n#### {n}"} for n in range(200)]


def drawn(folder, rows, seed=0):
    report = prepare("gsm8k", write(folder / "train.jsonl", FIGS), folder / "out", rows=rows, seed=seed)
    return report, [int(key.removeprefix("gsm8k_")) for key, _ in read_out(folder / "out", "gsm8k")]


def test_so_many_rows_are_drawn_by_the_seed_in_the_files_order_and_the_others_are_counted(tmp_path):
    report, numbers = drawn(tmp_path, 30)
    assert (report.read, report.written, report.dropped) == (200, 30, {"not drawn": 170})
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 30
    assert drawn(tmp_path, 30)[1] == numbers != drawn(tmp_path, 30, seed=1)[1]


def test_every_row_is_drawn_equally_often(tmp_path):
    counts = [0] * len(FIGS)
    for seed in range(60):
        for number in drawn(tmp_path, 100, seed)[1]:
            counts[number] += 1
    assert sum(counts) == 6000
    assert all(abs(count - 30) < 5 * 15**0.5 for count in counts)  # five deviations of a binomial


def test_fewer_rows_than_asked_for_are_all_taken(tmp_path):
    assert drawn(tmp_path, 500)[0] == drawn(tmp_path, None)[0]
