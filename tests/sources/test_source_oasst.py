import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_helpers import converted, prepared, refusal

import file_helpers
from clusterucb.sources.conversion import prepare
from file_helpers import write

FILE = "2023-04-12_oasst_ready.trees.jsonl.gz"


def message(name, role_of_depth, *replies, **columns):
    for reply in replies:
        reply["parent_id"] = name
    return {
        "message_id": name,
        "parent_id": None,
        "text": f"{name} says",
        "role": role_of_depth,
        "lang": "en",
        "deleted": False,
        "rank": None,
        **columns,
        "replies": list(replies),
    }


def asks(name, *replies, **columns):
    return message(name, "prompter", *replies, **columns)


def says(name, *replies, **columns):
    return message(name, "assistant", *replies, **columns)


def tree(root):
    return {"message_tree_id": root["message_id"], "tree_state": "ready_for_export", "prompt": root}


def flat(root):
    """The rows of a tree, parents first."""
    rows, stack = [], [root]
    while stack:
        node = stack.pop()
        columns = {key: value for key, value in node.items() if key != "replies"}
        rows.append({**columns, "message_tree_id": root["message_id"]})
        stack.extend(reversed(node["replies"]))
    return rows


def talk(*names):
    return [(("user", "assistant")[i % 2], f"{name} says") for i, name in enumerate(names)]


def example():
    return asks("q", says("b", rank=1), says("a", asks("q2", says("c")), asks("q3"), rank=0), says("n"))


def test_every_path_to_a_last_reply_is_a_conversation_in_the_order_of_ranks(tmp_path):
    report, rows = prepared("oasst1", FILE, [tree(example()), tree(asks("p", says("d")))], tmp_path)
    assert rows == [
        ("oasst1_c", talk("q", "a", "q2", "c")),
        ("oasst1_b", talk("q", "b")),
        ("oasst1_n", talk("q", "n")),
        ("oasst1_d", talk("p", "d")),
    ]
    assert (report.read, report.written, report.dropped) == (2, 4, {"no reply": 1})


ANSWERED = [("a", talk("q", "a"))]


def cut(**columns):
    return asks("q", says("a"), says("b", asks("q2", says("c")), **columns))


@pytest.mark.parametrize(
    ("root", "kept", "reason"),
    [
        (cut(deleted=True), ANSWERED, "deleted message"),
        (cut(text=" "), ANSWERED, "empty message"),
        (cut(role="system"), ANSWERED, "unknown role"),
        (cut(role="prompter"), ANSWERED, "roles out of turn"),
        (asks("q", says("a", asks("q2", says("b"), deleted=True))), ANSWERED, "deleted message"),
        (asks("q"), [], "no reply"),
        (asks("q", says("a"), deleted=True), [], "deleted message"),
        (says("a", asks("q")), [], "roles out of turn"),
    ],
)
def test_a_message_of_no_use_is_cut_off_with_all_below_it_and_counted(root, kept, reason):
    assert converted("oasst1", [tree(root)]) == (kept, [reason])


def test_a_message_met_twice_still_gets_an_id_of_its_own(tmp_path):
    twice = [tree(asks("q", says("a"))), tree(asks("q", says("a")))]
    assert [row for row, _ in prepared("oasst1", FILE, twice, tmp_path)[1]] == ["oasst1_a", "oasst1_a_1"]


@pytest.mark.parametrize("file", ["2023-04-12_oasst_ready.messages.jsonl.gz", "a.jsonl", "a.parquet"])
def test_flat_rows_give_the_same_bytes_as_trees(tmp_path, file):
    roots = [example(), asks("p", says("d"))]
    rows = [row for root in roots for row in flat(root)]
    ours = prepare("oasst1", write(tmp_path / file, rows), tmp_path / "flat")
    theirs = prepare("oasst1", write(tmp_path / FILE, list(map(tree, roots))), tmp_path / "trees")
    assert (ours.sha256, ours.dropped) == (theirs.sha256, theirs.dropped)


QUESTION, ANSWER = flat(asks("q", says("a")))
LOOP = [{**QUESTION, "message_id": "x", "parent_id": "y"}, {**ANSWER, "message_id": "y", "parent_id": "x"}]


@pytest.mark.parametrize(
    ("rows", "dropped"),
    [
        ([ANSWER, QUESTION], []),
        ([QUESTION, ANSWER, ANSWER], ["repeated message"]),
        ([QUESTION, ANSWER, *LOOP], ["unknown parent"] * 2),
        ([QUESTION, ANSWER, {**QUESTION, "message_id": "x", "parent_id": "gone"}], ["unknown parent"]),
    ],
    ids=["child before parent", "message given twice", "own ancestors", "parent not there"],
)
def test_flat_rows_in_disorder_lose_what_reaches_no_prompt_and_count_it(rows, dropped):
    assert converted("oasst1", rows) == (ANSWERED, dropped)


def test_a_file_whose_trees_are_torn_apart_is_refused(tmp_path):
    one, other = flat(asks("q", says("a"))), flat(asks("p", says("b")))
    path = write(tmp_path / "a.jsonl", [one[0], *other, one[1]])
    said = refusal("oasst1", path)
    assert "a.jsonl, line 4: tree 'q' was met before" in said
    assert "Sort the file by message_tree_id" in said


def test_a_long_thread_is_no_matter_of_recursion():
    thread = asks("m0")
    rows = [
        {**thread, "message_id": f"m{i}", "parent_id": f"m{i - 1}" if i else None, "message_tree_id": "m0",
         "role": ("prompter", "assistant")[i % 2]}
        for i in range(6000)
    ]  # fmt: skip
    ((key, turns),), dropped = converted("oasst1", rows)
    assert (key, len(turns), dropped) == ("m5999", 6000, [])


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (7, "row 1: a message is 7, expected {message_id, text, role, ...}"),
        ({"message_id": "q", "role": "prompter"}, "row 1: text of a message is null, expected a string"),
        (asks("q") | {"replies": "none"}, "row 1: replies is 'none', expected a list of messages"),
        (asks("q") | {"replies": [7]}, "row 1: a message is 7"),
    ],
)
def test_what_is_no_message_is_refused(prompt, said):
    rows = [{"message_tree_id": "q", "prompt": prompt}]
    assert said in file_helpers.refusal(converted, "oasst1", rows)


@st.composite
def trees(draw):
    """A random tree: each message hangs below an earlier one, in turn; some are deleted or ranked."""
    numbers = itertools.count(1)
    nodes = [(asks("0"), 0)]
    for _ in range(draw(st.integers(0, 25))):
        parent, depth = nodes[draw(st.integers(0, len(nodes) - 1))]
        columns = {
            "rank": draw(st.none() | st.integers(0, 3)),
            "deleted": draw(st.sampled_from([False, False, False, True])),
            "parent_id": parent["message_id"],
        }
        child = message(str(next(numbers)), ("assistant", "prompter")[depth % 2], **columns)
        parent["replies"].append(child)
        nodes.append((child, depth + 1))
    return nodes[0][0]


def live_leaves(node, depth=0):
    live = [reply for reply in node["replies"] if not reply["deleted"]]
    if live:
        return [leaf for reply in live for leaf in live_leaves(reply, depth + 1)]
    return [node["message_id"]] if depth % 2 else []


@given(trees(), st.randoms(use_true_random=False))
def test_each_live_last_reply_ends_one_conversation_in_trees_and_in_flat_rows(root, chance):
    kept, dropped = converted("oasst1", [tree(root)])
    assert sorted(key for key, _ in kept) == sorted(live_leaves(root))
    for _, turns in kept:
        assert [role for role, _ in turns] == ["user", "assistant"] * (len(turns) // 2)
        assert turns[0] == ("user", "0 says")
    rows = flat(root)
    assert converted("oasst1", rows) == (kept, dropped)
    chance.shuffle(rows)
    again, dropped_again = converted("oasst1", rows)
    assert sorted(again) == sorted(kept)
    assert sorted(dropped_again) == sorted(dropped)


def test_a_tree_file_cut_short_is_refused(tmp_path):
    path = write(tmp_path / FILE, [tree(asks(str(i), says(f"a{i}"))) for i in range(50)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    said = refusal("oasst1", path)
    assert f"{FILE}: a truncated or corrupt gzip file" in said
    assert "A row of oasst1 has message_tree_id + prompt" in said


def test_ranks_of_a_table_may_be_nan():
    root = asks("q", says("b", rank=float("nan")), says("a", rank=0.0))
    assert [key for key, _ in converted("oasst1", [tree(root)])[0]] == ["a", "b"]
