"""What is exported, as the programs that it is for read it: trl and datasets themselves, the other two by
readers written here from what their documents say (LLaMA-Factory's data/README.md, axolotl's data formats).
"""

import json

import pytest
import yaml

from cli_helpers import clusterucb, read
from clusterucb.data.rows import parse_messages
from clusterucb.errors import ConfigError, InputError
from clusterucb.run.directory import RunDir
from clusterucb.run.export import FORMATS, export
from file_helpers import write

ODD = 'Ünïcode \u2028 "quoted"\n\ttabs\r\n  spaces  and 日本 👍🏽 <|im_end|> {{ jinja }} '
TWO_TURNS = [
    {"role": "system", "content": f"be brief {ODD}"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": ODD},
    {"role": "user", "content": ODD},
    {"role": "assistant", "content": "bye"},
]
ROWS = {
    "m.jsonl:1": {"messages": TWO_TURNS, "dataset": "flan", "n": 1},
    "m.jsonl:2": {"messages": [*TWO_TURNS, {"role": "user", "content": "never answered"}]},
    "p.jsonl:1": {"prompt": f"ask {ODD}", "completion": ODD},
    "q.jsonl:1": {"prompt": TWO_TURNS[:2], "completion": TWO_TURNS[2:3]},
    "i.jsonl:1": {"instruction": "translate", "input": ODD, "output": "done"},
    "i.jsonl:2": {"instruction": "sing", "input": "", "output": ODD},
    "c.jsonl:1": {"conversations": [{"from": "human", "value": ODD}, {"from": "gpt", "value": "yes"}]},
}
UNEVEN = {"u.jsonl:1": {"messages": [TWO_TURNS[1], TWO_TURNS[1], TWO_TURNS[2]]}}
GIVEN = {
    "g.jsonl:1": {"messages": [TWO_TURNS[1], {"role": "assistant", "content": "It is B", "given": "It is"}]}
}


def run_with(folder, *rounds):
    """A run directory with these rounds, each a dict of rows by id."""
    run = RunDir(folder / "run")
    for number, rows in enumerate(rounds, 1):
        write(run.round(number) / "selected.jsonl", [*rows.values()])
        write(run.round(number) / "selected.ids.jsonl", [{"id": name, "round": number} for name in rows])
    return run.path


def expected(rows):
    """(role, text) of each turn of each row, through its last answer."""
    turns = [[(m.role, m.content) for m in parse_messages(row, "row")] for row in rows.values()]
    return [t[:-1] if t[-1][0] == "user" else t for t in turns]


def read_as_trl(folder):
    datasets = pytest.importorskip("datasets")
    files = {"data_files": str(folder / "selected.jsonl"), "cache_dir": str(folder.parent / "cache")}
    table = datasets.load_dataset("json", split="train", **files)
    assert table.column_names == ["messages"]
    return [[(turn["role"], turn["content"]) for turn in row] for row in table["messages"]]


def read_as_llamafactory(folder):
    """A dataset_dir, by its README: sharegpt with columns and tags; a system turn first, then user and
    assistant by turns; an example that is otherwise is skipped.
    """
    info = read(folder / "dataset_info.json")["clusterucb"]
    assert info["formatting"] == "sharegpt"
    tags, found = info["tags"], []
    roles = {tags[f"{role}_tag"]: role for role in ("user", "assistant", "system")}
    for line in (folder / info["file_name"]).read_bytes().split(b"\n")[:-1]:
        turns = json.loads(line)[info["columns"]["messages"]]
        named = [(roles[turn[tags["role_tag"]]], turn[tags["content_tag"]]) for turn in turns]
        spoken = named[1:] if named[0][0] == "system" else named
        if len(spoken) % 2 or any(role != ("user", "assistant")[i % 2] for i, (role, _) in enumerate(spoken)):
            continue
        found.append(named)
    return found


def read_as_axolotl(folder):
    """The `datasets:` of a configuration: a local file of a ds_type, its field and properties of messages."""
    (stub,) = yaml.safe_load((folder / "axolotl.yaml").read_text(encoding="utf-8"))["datasets"]
    assert (stub["type"], stub["ds_type"]) == ("chat_template", "json")
    assert stub["roles_to_train"] == ["assistant"]
    properties, found = stub["message_property_mappings"], []
    with open(stub["path"], "rb") as lines:  # noqa: PTH123 (as a path out of a configuration)
        for line in lines:
            turns = json.loads(line)[stub["field_messages"]]
            found.append([(turn[properties["role"]], turn[properties["content"]]) for turn in turns])
    return found


READERS = {"trl": read_as_trl, "llamafactory": read_as_llamafactory, "axolotl": read_as_axolotl}


@pytest.mark.parametrize("form", FORMATS)
def test_rows_of_every_shape_arrive_with_every_turn_and_character(tmp_path, form):
    exported = export(run_with(tmp_path, ROWS), form)
    assert exported.folder == tmp_path / "run/exports" / form
    assert READERS[form](exported.folder) == expected(ROWS)
    assert (exported.rows, exported.left_out, exported.learnt) == (len(ROWS), {}, 0)


def test_trl_takes_it_for_a_conversation(tmp_path):
    trl = pytest.importorskip("trl", reason="trl is not installed (extra dev)")
    from builders import build_tokenizer

    exported = export(run_with(tmp_path, ROWS), "trl")
    for line in (exported.folder / "selected.jsonl").read_bytes().split(b"\n")[:-1]:
        row = json.loads(line)
        assert trl.is_conversational(row)
        text = trl.apply_chat_template(row, build_tokenizer())["text"]
        assert all(turn["content"] in text for turn in row["messages"])


def test_all_rounds_have_each_row_once_and_one_round_its_own(tmp_path):
    names = list(ROWS)
    first, second = ({n: ROWS[n] for n in names[:4]}, {n: ROWS[n] for n in reversed(names[2:])})
    run = run_with(tmp_path, first, second)
    every = export(run, "trl")
    assert (every.rounds, every.rows) == ([1, 2], 7)
    order = [*names[:4], *(n for n in second if n not in first)]
    assert read_as_trl(every.folder) == expected({n: ROWS[n] for n in order})
    one = export(run, "trl", number=2)
    assert one.folder == tmp_path / "run/exports/trl-round-2"
    assert read_as_trl(one.folder) == expected(second)
    assert read(one.folder / "export.json")["rounds"] == [2]


def test_what_llamafactory_would_skip_is_left_out_and_told(tmp_path):
    """The others take such rows."""
    run = run_with(tmp_path, ROWS | UNEVEN)
    exported = export(run, "llamafactory")
    assert read_as_llamafactory(exported.folder) == expected(ROWS)
    assert exported.left_out.keys() == UNEVEN.keys()
    assert read(exported.folder / "export.json")["left_out"] == exported.left_out
    assert export(run, "axolotl").rows == len(ROWS) + 1
    said = clusterucb("export", run, "--format", "llamafactory").out
    assert said.startswith(
        "1 rows that llamafactory would skip are left out, first u.jsonl:1: turns are user, user,"
    )
    with pytest.raises(InputError, match=r"llamafactory can read none of its 1 rows; first u\.jsonl:1"):
        export(run_with(tmp_path / "other", UNEVEN), "llamafactory")


def test_a_given_beginning_of_an_answer_is_told(tmp_path):
    run = run_with(tmp_path, GIVEN)
    assert export(run, "axolotl").learnt == 1
    assert "1 rows have a given beginning" in clusterucb("export", run, "--format", "axolotl").out


def test_again_it_is_made_anew_and_nothing_else_is_touched(tmp_path):
    run = run_with(tmp_path, ROWS)
    first = export(run, "axolotl", out=tmp_path / "given").folder
    assert sorted(path.name for path in first.iterdir()) == ["axolotl.yaml", "export.json", "selected.jsonl"]
    write(tmp_path / "given.part/selected.jsonl", "torn")  # of an attempt that was killed
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    export(run, "axolotl", out=tmp_path / "given")
    assert {path.name: path.read_bytes() for path in first.iterdir()} == before
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match=r"mine: is there already and is no export; give another --out"):
        export(run, "axolotl", out=tmp_path / "mine")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["run"], "export needs DIR and --format"),
        (["run", "--format", "alpaca"], "'alpaca': unknown; expected one of trl, llamafactory, axolotl"),
        (["run", "--format", "trl", "--round", 3], "no round 3 is there; it has 1"),
        (["none", "--format", "trl"], "no selection is there; run `clusterucb select` first"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, given, words):
    run_with(tmp_path, ROWS)
    monkeypatch.chdir(tmp_path)
    assert words in clusterucb("export", *given).complaint
