import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_helpers import converted, pair, prepared

from clusterucb.errors import InputError
from clusterucb.sources.sharegpt import clean

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


DROPPED = {
    "system turn": chat("system: Be kind.", "human: a", "gpt: b"),
    "bing turn": chat("human: a", "bing: b"),
    "bard turn": chat("human: a", "bard: b"),
    "unknown sender": chat("human: a", "ghost: b", "system: c"),
    "no reply": chat("human: a"),
    "empty conversation": {"id": "x", "conversations": []},
    "opening assistant turn": chat("gpt: a"),
}


@pytest.mark.parametrize(("reason", "record"), DROPPED.items())
def test_a_chat_of_no_use_is_dropped_and_counted(reason, record):
    assert converted("sharegpt", [record]) == ([], [reason])


def test_a_chat_without_a_sender_is_dropped_and_counted():
    record = {"id": "x", "conversations": [{"from": None, "value": "a"}]}
    assert converted("sharegpt", [record]) == ([], ["unknown sender"])


def test_turns_of_no_use_are_cut_and_counted():
    record = chat("gpt: z", "human: a", "gpt: b", "human: \u200b ", "human: c")
    assert converted("sharegpt", [record]) == (
        [("x", pair("a", "b"))],
        ["empty turn", "opening assistant turn", "closing user turn"],
    )
    record["conversations"][1]["value"] = None
    assert converted("sharegpt", [record])[1] == ["empty turn"] * 2 + [
        "opening assistant turn",
        "opening assistant turn",
        "no reply",
    ]


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
    with pytest.raises(InputError) as caught:
        converted("sharegpt", [{"id": "x", "conversations": conversations}])
    assert said in str(caught.value)


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


PAGE = (
    '<div class="markdown prose w-full break-words dark:prose-invert light"><p>Use <code>a &lt; b</code> '
    "&amp; <strong>go</strong>:</p>"
    '<pre><div class="bg-black rounded-md"><div class="flex"><span>python</span><button class="flex">'
    '<svg></svg>Copy code</button></div><div class="p-4"><code class="hljs">def f():\n\n\n    return '
    '<span class="hljs-number">1</span>\n</code></div></div></pre>'
    "<ol><li><p>One.</p></li><li>Two<ul><li>in</li></ul></li></ol><h2>End</h2><p>Line<br>break</p>"
    "<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table></div>"
)
PAGE_TEXT = """Use `a < b` & **go**:

```python
def f():


    return 1
```

1. One.
2. Two
  - in

## End

Line
break

a | b
1 | 2"""


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_html_of_an_exported_page_becomes_text(role):
    assert clean(PAGE, role) == PAGE_TEXT


def test_html_that_is_an_answer_as_a_whole_becomes_text():
    assert clean("<p>One &gt; two.</p>\n<p>Three.</p>", "assistant") == "One > two.\n\nThree."
    assert clean("<p>See</p><pre>x\n</pre>", "assistant") == "See\n\n```\nx\n```"
    assert clean('<div class="markdown"><pre><code>cut', "assistant") == "```\ncut\n```"


@pytest.mark.parametrize(
    ("text", "role"),
    [
        ("<div id=a>\n  <p>Hi</p>\n</div>", "user"),
        ('<div class="x">Hi</div> is not centred, why?', "user"),
        ("```html\n<div>Hi</div>\n```", "assistant"),
        ("<p> is the tag of a paragraph &amp; <div> of a block.", "assistant"),
        ("<pre>x</pre>", "assistant"),
        ("Wrap it: <div>a</div>", "assistant"),
        ("a\u200db \u200c is joined", "user"),
    ],
)
def test_code_that_shows_html_and_joiners_stay(text, role):
    assert clean(text, role) == text


@pytest.mark.parametrize(
    ("text", "cleaned"),
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
def test_the_words_of_the_button_and_invisible_marks_go(text, cleaned):
    assert clean(text, "assistant") == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "Press the Copy code button.",
        "Copy code from there.",
        "The menu is:\n- Copy code\n- Paste",
        "The button says, in two words:\nCopy code",
        "```\nx\n```\nCopy code",
    ],
)
def test_words_about_copying_code_stay(text):
    assert clean(text, "assistant") == text


@given(
    st.text(alphabet="<>/divpCopy code`\n &;python\"='", max_size=60), st.sampled_from(["user", "assistant"])
)
def test_any_text_can_be_cleaned_and_is_stripped(text, role):
    assert clean(text, role) == clean(text, role).strip()
