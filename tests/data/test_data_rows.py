import pytest
from data_helpers import CHATML, byte_tokenizer, chat_record, talk
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.data.chat import Template, Tulu
from clusterucb.data.rows import SHAPES, Message, parse_messages, shape_of, text_digest
from clusterucb.errors import InputError
from file_helpers import refusal

WHERE = "pool.jsonl, line 12"
QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
ASKED = {"from": "human", "value": "q"}


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
        ("conversations", {"conversations": [ASKED, {"from": "gpt", "value": "a"}]}),
        ("conversations", {"conversations": [QUESTION, ANSWER]}),
        ("messages", {"messages": [ASKED, ANSWER]}),
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
    "unknown role 'tool' in message 2 of messages; known: system, developer, user, human, assistant": {
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
    "half a surrogate pair, or a byte that is not UTF-8, '\\ud83d', at character 2": {
        "prompt": "x\ud83d",
        "completion": "a",
    },
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


TURNS = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
SHAREGPT = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]


def answered(*more, **keys):
    """TURNS with these keys at the answer, and what follows."""
    return {"messages": [TURNS[0], {**TURNS[1], **keys}, *more]}


PARTS = [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]


@pytest.mark.parametrize(
    ("record", "turns"),
    [
        ({"system": "Be brief.", "messages": TURNS}, ["system: Be brief.", "user: 2+2?", "assistant: 4"]),
        (
            {"system": "In French.", "conversations": SHAREGPT},
            ["system: In French.", "user: 2+2?", "assistant: 4"],
        ),
        (
            {"instruction": "Of Spain?", "output": "Madrid.", "history": [["Of France?", "Paris."]]},
            ["user: Of France?", "assistant: Paris.", "user: Of Spain?", "assistant: Madrid."],
        ),
        ({"system": "", "history": [], "messages": TURNS}, ["user: 2+2?", "assistant: 4"]),
        (
            {"system_prompt": "Be brief.", "prompt": "q", "completion": "a"},
            ["system: Be brief.", "user: q", "assistant: a"],
        ),
        (
            {"messages": [{"role": "developer", "content": "d"}, *TURNS]},
            ["system: d", "user: 2+2?", "assistant: 4"],
        ),
        ({"messages": [{"role": "user", "content": PARTS}, TURNS[1]]}, ["user: 2+2?", "assistant: 4"]),
    ],
)
def test_what_stands_in_columns_of_its_own_is_a_part_of_the_conversation(record, turns):
    assert parse_messages(record, "row") == talk(*turns)


FEW_SHOTS = [*TURNS, {"role": "user", "content": "3+3?"}]


@pytest.mark.parametrize(
    ("record", "learnt"),
    [
        ({"prompt": FEW_SHOTS, "completion": [{"role": "assistant", "content": "6"}]}, ["6"]),
        (answered(*TURNS, weight=0), ["4"]),
        (answered(TURNS[0], {**TURNS[1], "weight": 1}, train=False), ["4"]),
        (answered(weight=None), ["4"]),
        (answered(*TURNS, loss_weight=0.0), ["4"]),
    ],
    ids=["few shots in a prompt", "weight 0", "not to train on", "no weight", "LLaMA-Factory's"],
)
def test_answers_that_are_not_to_be_learnt_are_not(record, learnt):
    messages = parse_messages(record, "row")
    assert [m.content for m in messages if m.learnt] == learnt
    tokenizer = byte_tokenizer(chat_template=CHATML)
    for chat, end in ((Tulu("</s>"), "</s>"), (Template(tokenizer), "<|im_end|>")):
        rendered = chat.render(messages)
        assert [rendered.text[a:b] for a, b in rendered.spans] == [text + end for text in learnt]
        assert all(message.content in rendered.text for message in messages)


TOOL = {"type": "function", "function": {"name": "weather", "arguments": {}}}
IMAGE = [{"type": "image_url", "image_url": {"url": "u"}}]
DETAIL = [{"begin_offset": 0, "end_offset": 0}]


def before(**turn):
    """A record with this turn before TURNS, or before SHAREGPT."""
    if "role" in turn:
        return {"messages": [turn, *TURNS]}
    return {"conversations": [turn, *SHAREGPT]}


CHANGES = {  # by the format that has the key
    "half to learn": ("message 2 of messages, weight is 0.5", answered(weight=0.5)),
    "history of no pairs": (
        "pair 1 of column history is 'a'",
        {"history": ["a"], "instruction": "i", "output": "o"},
    ),
    "two systems": ("a system turn", {"system": "a", **before(role="system", content="b")}),
    "nothing to learn": ("expected at least one to learn from", answered(weight=0)),
    "OpenAI tools": ("tools is [", {"tools": [TOOL], "messages": TURNS}),
    "OpenAI functions": ("functions is [", {"functions": [{"name": "f"}], "messages": TURNS}),
    "OpenAI tool call": ("tool_calls is [", answered(tool_calls=[TOOL])),
    "OpenAI tool call alone": ("tool_calls is [", before(role="assistant", tool_calls=[TOOL])),
    "OpenAI function call": (
        "message 2 of messages: function_call is {",
        answered(function_call={"name": "f"}),
    ),
    "OpenAI function's answer": ("unknown role 'function'", before(role="function", content="x")),
    "OpenAI image": ("content of message 1 of messages (user) is [", before(role="user", content=IMAGE)),
    "trl tools": ("tools is [", {"tools": [TOOL], "prompt": TURNS[:1], "completion": TURNS[1:]}),
    "trl settings of the template": (
        "chat_template_kwargs is {",
        {"chat_template_kwargs": {"enable_thinking": False}, "messages": TURNS},
    ),
    "trl images": ("images is [", {"images": ["a.png"], "messages": TURNS}),
    "trl unwanted answer": ("not wanted", {"prompt": "q", "completion": "a", "label": False}),
    "trl thought": ("thinking is 'hm'", answered(thinking="hm")),
    "Qwen thought": ("reasoning_content is 'hm'", answered(reasoning_content="hm")),
    "axolotl parts to train on": (
        "train_detail is [",
        {"conversations": [SHAREGPT[0], {**SHAREGPT[1], "train_detail": DETAIL}]},
    ),
    "LLaMA-Factory tools as text": ("tools is '[{", {"tools": '[{"name": "f"}]', "conversations": SHAREGPT}),
    "LLaMA-Factory call": (
        "unknown from 'function_call'",
        before(**{"from": "function_call", "value": "{}"}),
    ),
    "LLaMA-Factory observation": (
        "unknown from 'observation'",
        before(**{"from": "observation", "value": "x"}),
    ),
    "LLaMA-Factory preference": (
        "chosen is {",
        {"conversations": [*SHAREGPT, SHAREGPT[0]], "chosen": SHAREGPT[1], "rejected": SHAREGPT[1]},
    ),
    "LLaMA-Factory unwanted answer": ("not wanted", {"conversations": SHAREGPT, "kto_tag": False}),
    "Dolly's context": ("context is 'c'", {"instruction": "i", "context": "c", "output": "o"}),
}


@pytest.mark.parametrize(("said", "record"), CHANGES.values(), ids=CHANGES)
def test_a_key_that_makes_no_sense_or_changes_the_conversation_and_has_no_place_in_it_costs_the_row(
    said, record
):
    message = refusal(parse_messages, record, WHERE)
    assert message.startswith(f"{WHERE}: ")
    assert said in message


@pytest.mark.parametrize("nothing", [None, "", " ", [], {}, "[]", float("nan"), False])
def test_such_a_key_that_says_nothing_is_passed_over(nothing):
    keys = ("tools", "functions", "images", "chat_template_kwargs", "system", "history")
    record = {
        **dict.fromkeys(keys, nothing),
        **answered(tool_calls=nothing, reasoning_content=nothing, weight=1),
    }
    assert parse_messages(record, WHERE) == talk("user: 2+2?", "assistant: 4")


def test_keys_that_say_nothing_of_the_conversation_stay_unread():
    keys = {"id": 3, "source": "web", "score": 0.5, "label": True, "prompt_id": "x"}
    keys |= {"chosen": TURNS, "rejected": TURNS}
    turns = [{**turn, "name": "ann", "id": "t"} for turn in TURNS]
    assert parse_messages({**keys, "messages": turns}, WHERE) == talk("user: 2+2?", "assistant: 4")
