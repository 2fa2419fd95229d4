import errno
import gzip
import json
import subprocess
import sys
import tracemalloc
from types import SimpleNamespace

import huggingface_hub
import pytest
from source_helpers import pair, prepared, read_out, refusal, write

from clusterucb.errors import ConfigError, InputError, StorageError
from clusterucb.sources import conversion
from clusterucb.sources.catalogue import SOURCES
from clusterucb.sources.conversion import Report, prepare
from clusterucb.sources.raw import open_raw
from clusterucb.sources.source import Source

RAW = {
    "flan_v2": [{"inputs": "Say a.", "targets": "a", "task": "t"}],
    "cot": [{"inputs": "Say a.", "targets": "a"}],
    "dolly": [{"instruction": "Say a.", "context": "", "response": "a", "category": "qa"}],
    "oasst1": [
        {
            "message_tree_id": "q",
            "tree_state": "ready_for_export",
            "prompt": {
                "message_id": "q",
                "text": "Say a.",
                "role": "prompter",
                "replies": [{"message_id": "r", "parent_id": "q", "text": "a", "role": "assistant"}],
            },
        }
    ],
    "gpt4_alpaca": [{"instruction": "Say a.", "input": "", "output": "a"}],
    "sharegpt": [
        {"id": "s", "conversations": [{"from": "human", "value": "Say a."}, {"from": "gpt", "value": "a"}]}
    ],
    "gsm8k": [{"question": "Say a.", "answer": "a\n#### 1"}],
    "code_alpaca": [{"instruction": "Say a.", "input": "", "output": "a"}],
}
NAMES = list(RAW)
EXPECTED = {name: pair("Say a.", "a\nThe answer is 1." if name == "gsm8k" else "a") for name in NAMES}
DROP_IN = {  # a row of no use
    "flan_v2": {"inputs": "", "targets": ""},
    "gsm8k": {"question": "x", "answer": "y"},
}


def official(name, folder, packed=""):
    """Write the first complete set of official files."""
    for number, pattern in enumerate(SOURCES[name].layouts[0]):
        rows = RAW[name] if number == 0 or name != "sharegpt" else []
        write(folder / f"{pattern.replace('*', '2023-04-12')}{packed}", rows)
    return folder


def test_the_table_has_the_eight_data_sets():
    assert sorted(SOURCES) == sorted(NAMES)
    for name, source in SOURCES.items():
        assert isinstance(source, Source)
        assert source.name == name
        assert source.hub.startswith("hub:")
        assert source.url.startswith("https://")
        assert all((source.title, source.licence, source.files, source.columns, source.looks))


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("below", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_folder_with_the_official_files_is_enough(tmp_path, name, below, packed):
    official(name, tmp_path / name if below else tmp_path, packed)
    report = prepare(name, tmp_path, tmp_path / "out")
    rows = read_out(tmp_path / "out", name)
    assert [turns for _, turns in rows] == [EXPECTED[name]] * report.read
    assert report.written == len(rows)


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
    path = write(tmp_path / "a.jsonl", RAW[other])
    said = refusal(name, path, tmp_path / "out")
    assert f"a.jsonl, line 1: columns {', '.join(repr(column) for column in RAW[other][0])}." in said
    assert f"A row of {name} has {SOURCES[name].looks}: is this its file" in said


def test_a_later_row_of_another_shape_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", [*RAW["cot"], {"inputs": "x", "answer": "y", "rationale": "z"}])
    assert "a.jsonl, line 2: columns 'inputs', 'answer', 'rationale'" in refusal("cot", path)


DAMAGED = {
    ("gsm8k", "train.jsonl", '{"question": "a", "answer": "#### 1"}\n{"question": "b'): "line 2: broken JSON",
    ("gsm8k", "train.jsonl", "<html>Not found</html>"): "line 1: broken JSON at column 1",
    ("gsm8k", "train.jsonl", "[1, 2]"): "line 1: a JSON list, expected an object",
    (
        "gsm8k",
        "train.jsonl",
        '{"question": 7, "answer": "#### 1"}',
    ): "column question is 7, expected a string",
    ("gsm8k", "train.jsonl", '{"question": "\udcff"}'): "line 1: not UTF-8",
    ("gsm8k", "train.jsonl", ""): "empty",
    ("dolly", "a.txt", "x"): "unknown suffix",
    ("code_alpaca", "a.json", '[{"instruction": "a", "input": "", "output": "b"},'): "line 1: broken JSON",
    ("sharegpt", "a.json", '[\n{"id": "a", "conversations": [{"from": "hu'): "line 2: broken JSON",
    ("oasst1", "a.trees.jsonl.gz", "no gzip"): "truncated or corrupt gzip",
    ("cot", "a.tsv", "Q?\tyes\tIt is.\nQ?\tyes\n"): "a.tsv, line 2: 2 columns, expected 3 between tabs",
    ("cot", "a.tsv", "one column\n"): "a.tsv, line 1: 1 columns, expected 3",
    ("cot", "a.tsv", "Q?\tyes\t\udcff"): "a.tsv, line 1: not UTF-8 (byte 0xff at 8)",
    ("cot", "a.tsv", ""): "a.tsv: empty",
    ("cot", "a.tsv.gz", "no gzip"): "a.tsv.gz: a truncated or corrupt gzip file",
}


@pytest.mark.parametrize(("case", "said"), DAMAGED.items(), ids=range(len(DAMAGED)))
def test_a_damaged_file_is_refused_by_name_and_line(tmp_path, case, said):
    name, file, data = case
    path = tmp_path / file
    path.write_bytes(data.encode("utf-8", "surrogateescape"))
    message = refusal(name, path, tmp_path / "out")
    assert file in message
    assert said in message


def test_a_table_cut_short_within_gzip_is_refused(tmp_path):
    data = gzip.compress(b"".join(b"Q%d?\tyes\tIt is.\n" % i for i in range(2000)))
    (tmp_path / "a.tsv.gz").write_bytes(data[: len(data) // 2])
    assert "truncated or corrupt gzip" in refusal("cot", tmp_path / "a.tsv.gz")


def test_a_table_that_cannot_be_opened_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.tsv: cannot be read \(No such file"):
        open_raw(SOURCES["cot"], tmp_path / "none.tsv")


def test_importing_the_sources_costs_no_heavy_import():
    code = (
        "import sys, clusterucb.sources\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'huggingface_hub'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", DROP_IN)
def test_a_file_without_a_usable_row_is_refused_with_the_reasons(tmp_path, name):
    path = write(tmp_path / "a.jsonl", [DROP_IN[name]] * 3)
    said = refusal(name, path, tmp_path / "out")
    assert f"a.jsonl: no row of {name} to learn from; " in said
    assert ": 3" in said


def test_a_refused_file_leaves_an_earlier_result_alone(tmp_path):
    report, rows = prepared("gsm8k", "train.jsonl", RAW["gsm8k"], tmp_path)
    with pytest.raises(Exception, match="line 2"):
        prepare("gsm8k", write(tmp_path / "bad.jsonl", f"{json.dumps(RAW['gsm8k'][0])}\nx"), tmp_path / "out")
    assert read_out(tmp_path / "out", "gsm8k") == rows
    assert json.loads((tmp_path / "out" / "gsm8k.json").read_text())["sha256"] == report.sha256
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gsm8k.json", "gsm8k.jsonl"]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_rows_give_the_same_bytes(tmp_path, name):
    reports = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        reports += [prepare(name, official(name, folder), folder / "out") for _ in range(2)]
    written = [
        [(tmp_path / folder / "out" / f"{name}.{suffix}").read_bytes() for suffix in ("jsonl", "json")]
        for folder in "ab"
    ]
    assert written[0] == written[1]
    assert reports == [reports[0]] * 4
    assert isinstance(reports[0], Report)


def test_the_report_says_what_was_read_and_from_where(tmp_path):
    report, _ = prepared("dolly", "a.jsonl", [*RAW["dolly"], {**RAW["dolly"][0], "response": ""}], tmp_path)
    said = json.loads((tmp_path / "out" / "dolly.json").read_text())
    assert said["licence"] == "CC BY-SA 3.0"
    assert (said["read"], said["written"], said["dropped"]) == (2, 1, {"empty output": 1})
    assert (said["files"], said["sha256"]) == (["a.jsonl"], report.sha256)
    assert str(tmp_path) not in json.dumps(said)


def test_progress_is_told_of_every_row(tmp_path):
    told = []

    class Track:
        def __init__(self, *asked):
            told.append(asked)

        def __enter__(self):
            return lambda amount, note="": told.append(amount)

        def __exit__(self, *_):
            told.append("end")

    write(tmp_path / "train.jsonl", RAW["gsm8k"] * 3)
    prepare("gsm8k", tmp_path, tmp_path / "out", progress=Track)
    assert told == [("prepare gsm8k", 3, "rows"), 1, 1, 1, "end"]


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match="unknown data set 'alpaca'; known: flan_v2, cot, dolly"):
        prepare("alpaca", tmp_path, tmp_path)


def test_the_raw_file_is_never_written_over(tmp_path):
    path = write(tmp_path / "gsm8k.jsonl", RAW["gsm8k"])
    with pytest.raises(Exception, match="is the file to be written, too"):
        prepare("gsm8k", path, tmp_path)
    assert len(path.read_bytes().splitlines()) == 1


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(conversion, "_line", full)
    with pytest.raises(StorageError, match="No space left"):
        prepare("gsm8k", write(tmp_path / "train.jsonl", RAW["gsm8k"]), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("dolly", ("databricks/databricks-dolly-15k", None, "train")),
        ("gpt4_alpaca", ("vicgalle/alpaca-gpt4", None, "train")),
        ("code_alpaca", ("sahil2801/CodeAlpaca-20k", None, "train")),
        ("gsm8k", ("openai/gsm8k", "main", "train")),
    ],
)
def test_a_table_of_the_hub_is_asked_for_by_name(tmp_path, monkeypatch, name, asked):
    def load_dataset(path, config, split):
        assert (path, config, split) == asked
        return iter(RAW[name])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    report = prepare(name, "hub", tmp_path)
    assert report.files == (SOURCES[name].hub,)
    assert [turns for _, turns in read_out(tmp_path, name)] == [EXPECTED[name]]


def test_another_table_of_the_hub_can_be_named(tmp_path, monkeypatch):
    asked = []
    datasets = SimpleNamespace(load_dataset=lambda *names, **_: asked.append(names) or iter(RAW["oasst1"]))
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    assert prepare("oasst1", "hub:me/mine", tmp_path).files == ("hub:me/mine",)
    assert asked == [("me/mine", None)]


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
    said = refusal("sharegpt", "hub", tmp_path)
    assert "hub:anon8231489123/ShareGPT_Vicuna_unfiltered: ShareGPT_V3" in said
    assert f"cannot be fetched ({type(error).__name__}: " in said
    assert SOURCES["sharegpt"].url in said


def peak(name, folder, count):
    """Most bytes of Python memory while `count` rows are prepared."""
    rows = {
        "gsm8k": lambda i: {"question": f"How many is {i}? " + "x" * 300, "answer": f"{i}\n#### {i}"},
        "oasst1": lambda i: {
            "message_tree_id": f"t{i}",
            "prompt": {
                "message_id": f"t{i}",
                "text": "x" * 300,
                "role": "prompter",
                "replies": [{"message_id": f"r{i}", "text": "y", "role": "assistant"}],
            },
        },
        "sharegpt": lambda i: {
            "id": f"s{i}",
            "conversations": [{"from": "human", "value": "x" * 300}, {"from": "gpt", "value": f"y{i}"}],
        },
    }[name]
    path = write(folder / f"{count}.jsonl", "".join(f"{json.dumps(rows(i))}\n" for i in range(count)))
    tracemalloc.start()
    prepare(name, path, folder / "out")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


@pytest.mark.parametrize(
    ("name", "few", "many"),
    [("gsm8k", 1_000, 10_000), ("oasst1", 300, 3_000), ("sharegpt", 300, 3_000)],  # the latter know all ids
)
def test_memory_does_not_grow_with_the_file(tmp_path, name, few, many):
    peak(name, tmp_path, 10)  # what is loaded once
    grown = peak(name, tmp_path, many) - peak(name, tmp_path, few)
    # A row takes 400 bytes and more, its place in the index 16 and its key 8; arrays have room to grow.
    assert grown < (many - few) * 40
    sizes = [(tmp_path / f"{count}.jsonl").stat().st_size for count in (few, many)]
    assert sizes[1] - sizes[0] > (many - few) * 350
