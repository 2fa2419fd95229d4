import pytest
from data_helpers import chat_record, talk
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.data.rows import SHAPES, Message, parse_messages, shape_of, text_digest
from clusterucb.errors import InputError
from file_helpers import refusal

WHERE = "pool.jsonl, line 12"
QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("shape", "record"),
    [
        ("messages", {"messages": [QUESTION, ANSWER]}),
        ("prompt/completion", {"prompt": "q", "completion": "a"}),
        ("prompt/completion", {"prompt": [QUESTION], "completion": [ANSWER]}),
        ("prompt/completion", {"prompt": [QUESTION], "completion": "a"}),
        (
            "prompt/completion",
            {"messages": None, "prompt": "q", "completion": "a"},
        ),  # parquet fills with null
        ("instruction/output", {"instruction": "q", "output": "a"}),
        ("instruction/output", {"instruction": "q", "input": " ", "output": "a", "extra": 3}),
        ("instruction/output", {"instruction": "q", "input": None, "output": "a"}),
        (
            "conversations",
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        ),
    ],
)
def test_the_same_conversation_comes_out_of_every_shape(shape, record):
    assert shape_of(record, WHERE) == shape
    assert parse_messages(record, WHERE) == talk("user: q", "assistant: a")


def test_the_given_beginning_of_an_answer_is_kept():
    answer = {"role": "assistant", "content": "A: 4", "given": "A:"}
    assert parse_messages({"messages": [QUESTION, answer]}, WHERE)[1] == Message("assistant", "A: 4", "A:")
    assert parse_messages({"messages": [QUESTION, {**answer, "given": None}]}, WHERE)[1].given == ""


@pytest.mark.parametrize(
    ("turn", "complaint"),
    [
        ({"role": "user", "content": "ab", "given": "a"}, "given of message 1 of messages (user): only"),
        ({"role": "assistant", "content": "ab", "given": "b"}, "is 'b', expected the text that the content"),
        ({"role": "assistant", "content": " ab", "given": " a"}, "is ' a', expected the text"),
        ({"role": "assistant", "content": "ab", "given": 3}, "is 3, expected the text"),
        ({"role": "assistant", "content": "ab \n", "given": "ab"}, "the whole content, expected something"),
    ],
)
def test_a_given_text_that_is_no_beginning_of_an_answer_is_refused(turn, complaint):
    message = refusal(parse_messages, {"messages": [turn, ANSWER]}, WHERE)
    assert message.startswith(WHERE)
    assert complaint in message


def test_a_non_empty_input_joins_the_instruction_after_a_blank_line():
    record = {"instruction": "Sum up.", "input": "Long text", "output": "a"}
    assert parse_messages(record, WHERE)[0] == Message("user", "Sum up.\n\nLong text")


@pytest.mark.parametrize("name", ["gpt", "assistant", "chatgpt", "bard", "bing"])
def test_sharegpt_names_of_models_are_the_assistant(name):
    turns = [{"from": "system", "value": "s"}, {"from": "user", "value": "q"}, {"from": name, "value": "a"}]
    messages = parse_messages({"conversations": turns}, WHERE)
    assert messages == talk("system: s", "user: q", "assistant: a")


BAD = {
    "unknown columns 'question', 'answer'": {"question": "q", "answer": "a"},
    "unknown columns (none)": {},
    "unknown role 'tool' in message 2 of messages; known: system, user, assistant": {
        "messages": [QUESTION, {"role": "tool", "content": "x"}, ANSWER]
    },
    "unknown role ['user']": {"messages": [{"role": ["user"], "content": "x"}]},
    "unknown from 'alien'": {"conversations": [{"from": "alien", "value": "x"}]},
    "no assistant turn (met: user)": {"messages": [QUESTION]},
    "no assistant turn (met: no messages)": {"messages": []},
    "content of message 2 of messages (assistant) is empty": {
        "messages": [QUESTION, {"role": "assistant", "content": " \n"}]
    },
    "column output is empty": {"instruction": "q", "output": ""},
    "column completion is 3": {"prompt": "q", "completion": 3},
    "column input is 7": {"instruction": "q", "input": 7, "output": "a"},
    "content of message 1 of messages (user) is null": {"messages": [{"role": "user", "content": None}]},
    "messages is 'hello'": {"messages": "hello"},
    "messages is null": {"messages": None},
    "message 1 of messages is 'hello'": {"messages": ["hello"]},
    "message 1 of messages is {'role': 'user'}": {"messages": [{"role": "user"}]},
    "half a surrogate pair, '\\ud83d', at character 2": {"prompt": "x\ud83d", "completion": "a"},
}


@pytest.mark.parametrize(("said", "record"), BAD.items(), ids=BAD.keys())
def test_a_bad_row_is_named_in_one_line_with_what_was_met(said, record):
    message = refusal(parse_messages, record, WHERE)
    assert message.startswith(f"{WHERE}: ")
    assert said in message


def test_unknown_columns_list_the_four_shapes():
    message = refusal(shape_of, {"text": "x"}, WHERE)
    assert all(column in message for columns in SHAPES.values() for column in columns)


WORDS = st.text(max_size=5) | st.sampled_from(["user", "gpt", "assistant"])
KEYS = st.sampled_from(["role", "content", "from", "value"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
COLUMNS = st.sampled_from([column for columns in SHAPES.values() for column in columns] + ["input", "other"])


@given(st.dictionaries(COLUMNS, JSON, max_size=5))
def test_any_record_is_parsed_or_refused_but_never_crashes(record):
    try:
        messages = parse_messages(record, WHERE)
    except InputError as error:
        assert str(error).startswith(WHERE)  # noqa: PT017
    else:
        assert all(m.role in ("system", "user", "assistant") and m.content.strip() for m in messages)


TEXT = st.text(min_size=1, max_size=8).filter(str.strip)


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), TEXT), max_size=4), TEXT)
def test_messages_come_back_as_they_were_written(turns, answer):
    turns = [*turns, ("assistant", answer)]
    record = {"messages": [{"role": role, "content": content} for role, content in turns]}
    assert [(m.role, m.content) for m in parse_messages(record, WHERE)] == turns


def test_the_text_digest_forgets_outer_space_only():
    digest = text_digest(parse_messages(chat_record("q", "a"), WHERE))
    assert digest == text_digest(parse_messages({"instruction": " q", "output": "a"}, WHERE))
    assert digest == text_digest(parse_messages(chat_record(" q", "a\n"), WHERE))
    assert digest != text_digest(parse_messages(chat_record("qa", "a"), WHERE))
    assert digest != text_digest(talk("system: q", "assistant: a"))
