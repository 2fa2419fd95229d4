import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_helpers import converted, pair, prepared

from file_helpers import refusal

FILE = "ShareGPT_V3_unfiltered_cleaned_split.json"


def chat(*turns, name="x"):
    """`chat("human: hi", "gpt: hello")` as a raw row."""
    parts = [turn.split(": ", 1) for turn in turns]
    return {"id": name, "conversations": [{"from": sender, "value": value} for sender, value in parts]}


def turns(*values):
    return [(("user", "assistant")[i % 2], value) for i, value in enumerate(values)]


def test_chats_become_messages(tmp_path):
    records = [
        chat("human: Hi ", "gpt: Hello!", "user: 2 + 2?", "chatgpt: 4", name="abc_0"),
        chat("human: Grüße 😀", "assistant: Hallo", name="abc_1"),
    ]
    report, rows = prepared("sharegpt", FILE, records, tmp_path)
    assert rows == [
        ("sharegpt_abc_0", turns("Hi", "Hello!", "2 + 2?", "4")),
        ("sharegpt_abc_1", pair("Grüße 😀", "Hallo")),
    ]
    assert (report.read, report.written, report.dropped) == (2, 2, {})


PAGE = '<div class="markdown prose w-full dark:prose-invert"><p>Use <code>a</code>:</p></div>'


@pytest.mark.parametrize(
    ("reason", "record"),
    [
        ("system turn", chat("system: Be kind.", "human: a", "gpt: b")),
        ("bing turn", chat("human: a", "bing: b")),
        ("bard turn", chat("human: a", "bard: b")),
        ("unknown sender", chat("human: a", "ghost: b", "system: c")),
        ("unknown sender", {"id": "x", "conversations": [{"from": None, "value": "a"}]}),
        ("no reply", chat("human: a")),
        ("empty conversation", {"id": "x", "conversations": []}),
        ("opening assistant turn", chat("gpt: a")),
        ("HTML turn", chat("human: a", f"gpt: {PAGE}")),
        ("HTML turn", chat(f"human: \u200b {PAGE}", "gpt: b")),
        ("HTML turn", chat("human: a", "gpt: <p>One &gt; two.</p>\n<p>Three.</p>", "human: c", "gpt: d")),
        ("HTML turn", chat("human: a", 'gpt: <div class="markdown"><pre><code>cut')),
    ],
)
def test_a_chat_of_no_use_is_dropped_and_counted(reason, record):
    assert converted("sharegpt", [record]) == ([], [reason])


def test_turns_of_no_use_are_cut_and_counted():
    record = chat("gpt: z", "human: a", "gpt: b", "human: \u200b ", "human: c")
    assert converted("sharegpt", [record]) == (
        [("x", pair("a", "b"))],
        ["empty turn", "opening assistant turn", "closing user turn"],
    )
    record["conversations"][1]["value"] = None
    dropped = ["empty turn"] * 2 + ["opening assistant turn"] * 2 + ["no reply"]
    assert converted("sharegpt", [record]) == ([], dropped)


def test_a_chat_is_split_where_a_role_speaks_twice():
    record = chat("human: a", "human: b", "gpt: c", "gpt: d", "human: e", "gpt: f", "human: g")
    assert converted("sharegpt", [record]) == (
        [("x_0", pair("b", "c")), ("x_1", pair("e", "f"))],
        ["no reply", "opening assistant turn", "closing user turn"],
    )


def test_repeated_and_missing_ids_become_unique_and_the_same_each_time():
    plain = chat("human: a", "gpt: b")
    split = chat("human: a", "gpt: b", "human: c", "human: d", "gpt: e", name="y")
    records = [plain, plain, {**plain, "id": "y_1"}, split, plain, {**plain, "id": None}, {**plain, "id": 7}]
    kept, _ = converted("sharegpt", records)
    assert [key for key, _ in kept] == ["x", "x_1", "y_1", "y_0", "y_1_3", "x_4", "5", "7"]
    assert converted("sharegpt", records)[0] == kept


@pytest.mark.parametrize(
    ("conversations", "said"),
    [
        ("hello", "row 1: conversations is 'hello', expected a list of {from, value}"),
        ([7], "row 1: turn 1 is 7, expected {from, value}"),
        ([{"from": "human"}], "row 1: turn 1 is {'from': 'human'}"),
        ([{"from": "human", "value": 7}], "row 1: value of turn 1 is 7, expected a string"),
    ],
)
def test_what_is_no_chat_is_refused(conversations, said):
    assert said in refusal(converted, "sharegpt", [{"id": "x", "conversations": conversations}])


@given(st.lists(st.tuples(st.sampled_from(["human", "gpt"]), st.sampled_from(["", " ", "text"]))))
def test_pieces_alternate_and_lose_no_reply_but_opening_ones(drawn):
    said = [(sender, f"{text}{i}" if text == "text" else text) for i, (sender, text) in enumerate(drawn)]
    record = {"id": "x", "conversations": [{"from": s, "value": t} for s, t in said]}
    kept, dropped = converted("sharegpt", [record])
    for _, piece in kept:
        assert [role for role, _ in piece] == ["user", "assistant"] * (len(piece) // 2)
        assert piece
    assert len({key for key, _ in kept}) == len(kept)
    replies = [text for sender, text in said if sender == "gpt" and text.strip()]
    learned = [text for _, piece in kept for role, text in piece if role == "assistant"]
    assert [text for text in replies if text in learned] == learned  # in order, each once
    assert len(replies) - len(learned) == dropped.count("opening assistant turn")
    lost = sum(map(dropped.count, ("opening assistant turn", "closing user turn", "no reply", "empty turn")))
    assert len(said) == lost + sum(len(piece) for _, piece in kept)


def cleaned(text, sender):
    """What is kept of a turn."""
    texts = ("Why?", text) if sender == "gpt" else (text, "So.")
    record = chat(f"human: {texts[0]}", f"gpt: {texts[1]}")
    (((_, messages),), dropped) = converted("sharegpt", [record])
    assert not dropped
    return messages[sender == "gpt"][1]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("```\npythonCopy code\nx = 1\n```", "```python\nx = 1\n```"),
        ("```\npythonCopy codex = 1\n```", "```python\nx = 1\n```"),
        ("```pythonCopy code\nx = 1\n```", "```python\nx = 1\n```"),
        ("```c++\nCopy code\nint x;\n```", "```c++\nint x;\n```"),
        ("```\nCopy code\nx\n```", "```\nx\n```"),
        ("See:\npython\nCopy code\nx = 1", "See:\npython\nx = 1"),
        ("See:\n\nbashCopy code\nls", "See:\n\nbash\nls"),
        ("```\nx\n```\njsCopy code\ny", "```\nx\n```\njs\ny"),
        ("\ufeffHi\u200b there", "Hi there"),
    ],
)
def test_the_words_of_the_button_and_invisible_marks_go(text, kept):
    assert cleaned(text, "gpt") == kept


@pytest.mark.parametrize(
    ("text", "sender"),
    [
        ("<div id=a>\n  <p>Hi</p>\n</div>", "human"),
        ('<div class="x">Hi</div> is not centred, why?', "human"),
        ("```html\n<div>Hi</div>\n```", "gpt"),
        ("<p> is the tag of a paragraph &amp; <div> of a block.", "gpt"),
        ("<pre>x</pre>", "gpt"),
        ("Wrap it: <div>a</div>", "gpt"),
        ("a\u200db \u200c is joined", "human"),
        ("Press the Copy code button.", "gpt"),
        ("Copy code from there.", "gpt"),
        ("The menu is:\n- Copy code\n- Paste", "gpt"),
        ("The button says, in two words:\nCopy code", "gpt"),
        ("```\nx\n```\nCopy code", "gpt"),
        ("```py\na\n```\nor\n```py\nb\n```", "gpt"),
    ],
)
def test_code_that_shows_html_joiners_and_words_about_copying_stay(text, sender):
    assert cleaned(text, sender) == text


@given(st.text(alphabet="<>/divpCopy code`\n &;python\"='", max_size=60), st.sampled_from(["human", "gpt"]))
def test_any_text_is_kept_stripped_or_dropped_and_counted(text, sender):
    kept, dropped = converted("sharegpt", [chat("human: a", "gpt: b", f"human: {text}", f"gpt: {text}")])
    assert bool(kept) or bool(dropped)
    for _, messages in kept:
        assert all(content == content.strip() != "" for _, content in messages)
