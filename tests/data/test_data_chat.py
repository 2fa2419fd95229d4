import numpy as np
import pytest
from data_helpers import CHATML, LLAMA2, NO_END, byte_tokenizer, metaspace_tokenizer, talk
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.data.chat import Encoded, Template, Tulu, chat_format, encode, fingerprint, fit
from clusterucb.data.rows import Message
from clusterucb.errors import ConfigError, InputError

STRIPPING = CHATML.replace("m.content", "m.content | trim")
REWRITING = CHATML.replace(
    "{{ m.content }}",
    "{{ m.content if loop.last or m.role != 'assistant' else m.content.split('</think>')[-1] }}",
)
BYTES = byte_tokenizer()
TRIMMED = byte_tokenizer(trim_offsets=True)
METASPACE = metaspace_tokenizer()
TEMPLATED = {
    name: byte_tokenizer(chat_template=template)
    for name, template in {"chatml": CHATML, "llama2": LLAMA2, "stripping": STRIPPING}.items()
}
TALKS = {
    "single": talk("user: What is 2 + 2?", "assistant: It is 4."),
    "system": talk("system: Be brief.", "user: What is 2 + 2?", "assistant: 4"),
    "multi": talk(
        "user: The capital of France?", "assistant: Paris.", "user: And code?",
        "assistant: def add(a, b):\n    return a + b", "user: Thanks", "assistant: naïve 😀",
    ),
    "question after": talk("user: a", "assistant: b c", "user: d"),
    "padded": talk("user:  What ", "assistant:  \n 4 is  it \n"),
    "tricky": talk("user: say </s> <|im_end|>", "assistant: a</s>b<|im_end|>c", "user: x", "assistant: <s>"),
    "repeats": talk("user: assistant", "assistant: assistant", "user: assistant", "assistant: assistant"),
}  # fmt: skip


def labelled_pieces(encoded, tokenizer):
    """Text of each run of labels, decoded from its ids: knows nothing of offsets."""
    runs, previous = [], False
    for token, label in zip(encoded.ids.tolist(), encoded.labels.tolist(), strict=True):
        if label:
            runs = [*runs, []] if not previous else runs
            runs[-1].append(token)
        previous = label
    return [tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in runs]


def answers(messages):
    return [m.content for m in messages if m.role == "assistant"]


def check(messages, tokenizer, chat, expected):
    encoded = encode(messages, tokenizer, chat, "row")
    pieces = labelled_pieces(encoded, tokenizer)
    if tokenizer is METASPACE:  # it puts a space of its own after every special token
        pieces, expected = ([p.replace(" ", "") for p in both] for both in (pieces, expected))
    assert pieces == expected
    assert not encoded.labels[0]
    assert encoded.ids.dtype == np.int32
    assert encoded.labels.dtype == np.bool_
    assert len(encoded) == len(encoded.labels)


FORMATS = {  # tokenizer, setting of chat, and what an answer ends with; all but ChatML strip it
    "tulu": (BYTES, "tulu", "</s>"),
    "trimmed offsets": (TRIMMED, "tulu", "</s>"),
    "metaspace": (METASPACE, "tulu", "</s>"),
    "chatml": (TEMPLATED["chatml"], "auto", "<|im_end|>"),
    "stripping": (TEMPLATED["stripping"], "template", "<|im_end|>"),
}


@pytest.mark.parametrize("name", TALKS)
@pytest.mark.parametrize("kind", FORMATS)
def test_labels_cover_exactly_the_answer_as_it_is_shown_and_its_end_token(kind, name):
    tokenizer, setting, end = FORMATS[kind]
    shown = [a if kind == "chatml" else a.strip() for a in answers(TALKS[name])]
    check(TALKS[name], tokenizer, chat_format(setting, tokenizer), [a + end for a in shown])


@pytest.mark.parametrize("name", TALKS)
def test_labels_cover_the_answer_and_its_end_in_a_llama_2_template(name):
    """And the space before the answer, where it is one token with its first word."""
    tokenizer = TEMPLATED["llama2"]
    encoded = encode(TALKS[name], tokenizer, chat_format("auto", tokenizer), "row")
    pieces = [piece.removeprefix(" ") for piece in labelled_pieces(encoded, tokenizer)]
    assert pieces == [f"{a.strip()} </s>" for a in answers(TALKS[name])]


LLAMA2_FORMAT = {"llama2": (TEMPLATED["llama2"], "auto", " </s>")}


@pytest.mark.parametrize("kind", ["tulu", "chatml", "stripping", "llama2"])
def test_what_is_given_of_an_answer_has_no_label(kind):
    tokenizer, setting, end = (FORMATS | LLAMA2_FORMAT)[kind]
    messages = (Message("user", "2 + 2?"), Message("assistant", "The answer is: 4", "The answer is:"))
    check(messages, tokenizer, chat_format(setting, tokenizer), [" 4" + end])


@pytest.mark.parametrize("kind", ["tulu", "chatml", "stripping"])
def test_the_text_before_the_labels_is_the_prompt_and_what_is_given(kind):
    chat = Tulu("</s>", "<s>") if kind == "tulu" else Template(TEMPLATED[kind])
    question, given = Message("user", "Complete\n\ndef f():"), "Here it is:\n\n\ndef f():\n"
    rendered = chat.render((question, Message("assistant", given + "    return 1", given)))
    ((start, _),) = rendered.spans
    assert rendered.text[:start] == chat.prompt([question]) + given


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), st.sampled_from(["tulu", "chatml"]))
def test_labels_cover_exactly_the_answers_whatever_they_say(pairs, kind):
    messages = [Message(role, text) for q, a in pairs for role, text in (("user", q), ("assistant", a))]
    tokenizer, setting, end = FORMATS[kind]
    shown = [a.strip() if kind == "tulu" else a for _, a in pairs]
    check(messages, tokenizer, chat_format(setting, tokenizer), [a + end for a in shown])


@given(
    st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4),
    st.sampled_from([Tulu("</s>", "<s>"), "template"]),
)
def test_spans_are_ordered_disjoint_and_follow_the_prompt_of_their_turn(pairs, chat):
    chat = Template(TEMPLATED["stripping"]) if chat == "template" else chat
    messages = [Message(role, text) for q, a in pairs for role, text in (("user", q), ("assistant", a))]
    rendered = chat.render(messages)
    edges = [edge for span in rendered.spans for edge in span]
    assert edges == sorted(set(edges))
    assert edges[-1] <= len(rendered.text)
    for turn, (start, _) in enumerate(rendered.spans):
        assert rendered.text[:start] == chat.prompt(messages[: 2 * turn + 1])


def test_labels_agree_with_tokenising_prefix_by_prefix():
    exact = (TEMPLATED[name] for name in ("chatml", "stripping"))  # their prompts end where the answer begins
    for tokenizer, chat in [(BYTES, Tulu("</s>")), *((t, Template(t)) for t in exact)]:
        messages = TALKS["multi"]
        encoded = encode(messages, tokenizer, chat, "row")
        expected = np.zeros(len(encoded), bool)
        for i in range(1, len(messages), 2):
            before = tokenizer(chat.prompt(messages[:i]), add_special_tokens=False)["input_ids"]
            through = chat.render(messages[: i + 1])
            until = tokenizer(through.text[: through.spans[-1][1]], add_special_tokens=False)["input_ids"]
            expected[len(before) : len(until)] = True
        assert np.array_equal(encoded.labels, expected)


def test_the_tulu_text_is_that_of_open_instruct():
    messages = talk("system: s ", "user:  u", "assistant: a", "user: v", "assistant: b")
    rendered = Tulu("</s>", "<s>").render(messages)
    first = "<s><|system|>\ns\n<|user|>\nu\n<|assistant|>\na</s>\n"
    assert rendered.text == first + "<|user|>\nv\n<|assistant|>\nb</s>"
    assert [rendered.text[a:b] for a, b in rendered.spans] == ["a</s>", "b</s>"]


def test_a_prompt_ends_where_the_model_is_to_answer():
    answered = talk("user: u", "assistant: a", "user: v", "assistant: w")
    tulu = "<|user|>\nu\n<|assistant|>\na</s>\n<|user|>\nv\n<|assistant|>\n"
    chatml = "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
    for messages in (answered[:3], answered):
        assert Tulu("</s>").prompt(messages) == tulu
        asked = chatml + "<|im_start|>user\nv<|im_end|>\n<|im_start|>assistant\n"
        assert Template(TEMPLATED["chatml"]).prompt(messages) == asked


def test_tulu_begins_with_the_begin_token_where_the_tokenizer_puts_one_by_itself():
    assert chat_format("tulu", METASPACE) == Tulu("</s>", "<s>")
    assert chat_format("tulu", BYTES) == Tulu("</s>", "")
    ids = encode(TALKS["single"], METASPACE, chat_format("tulu", METASPACE), "row").ids
    assert (ids == METASPACE.bos_token_id).sum() == 1
    assert ids[0] == METASPACE.bos_token_id


def test_a_template_without_end_token_labels_the_content_alone():
    tokenizer = byte_tokenizer(chat_template=NO_END)
    rendered = Template(tokenizer).render(TALKS["multi"])
    assert [rendered.text[a:b] for a, b in rendered.spans] == answers(TALKS["multi"])


def test_an_end_token_without_a_role_of_its_own_is_found():
    tokenizer = byte_tokenizer(chat_template=CHATML.replace("<|im_end|>", "<|eot|>"))
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken("<|eot|>", special=True)])
    assert "<|eot|>" not in tokenizer.all_special_tokens
    check(TALKS["single"], tokenizer, Template(tokenizer), ["It is 4.<|eot|>"])


def test_where_thoughts_of_earlier_turns_are_dropped_the_whole_conversation_counts():
    tokenizer = byte_tokenizer(chat_template=REWRITING)
    messages = talk("user: a", "assistant: <think>x</think>b", "user: c", "assistant: <think>y</think>d")
    check(messages, tokenizer, Template(tokenizer), ["b<|im_end|>", "<think>y</think>d<|im_end|>"])


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (LLAMA2, "TemplateError: roles must alternate user, assistant"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ messages[9].content.strip() }}", "UndefinedError"),
    ],
)
def test_a_template_that_fails_is_refused_in_one_line_that_names_the_row(template, said):
    tokenizer = byte_tokenizer(chat_template=template)
    with pytest.raises(InputError) as caught:
        encode(talk("user: a", "user: b", "assistant: c"), tokenizer, Template(tokenizer), "pool.jsonl:3")
    message = str(caught.value)
    assert message.startswith("pool.jsonl:3: ")
    assert said in message
    assert "\n" not in message


def test_auto_is_the_template_where_there_is_one_and_tulu_elsewhere():
    assert chat_format("auto", TEMPLATED["chatml"]).name == "template"
    assert chat_format("tulu", TEMPLATED["chatml"]).name == "tulu"
    assert chat_format("auto", BYTES).name == "tulu"


def test_a_chat_setting_that_cannot_be_is_a_config_error():
    with pytest.raises(ConfigError, match=r"'chatml': unknown; expected one of auto, tulu, template"):
        chat_format("chatml", BYTES)
    with pytest.raises(ConfigError, match="no chat template; use --chat tulu"):
        chat_format("template", BYTES)
    with pytest.raises(ConfigError, match="no end token"):
        chat_format("tulu", byte_tokenizer(eos_token=None))


def test_a_tokenizer_that_is_not_fast_is_a_config_error():
    class Slow:
        is_fast = False

    with pytest.raises(ConfigError, match="Slow: not a fast one"):
        chat_format("auto", Slow())
    with pytest.raises(ConfigError, match="Slow: not a fast one"):
        encode(TALKS["single"], Slow(), Tulu("</s>"), "row")


def test_the_fingerprint_follows_tokenizer_format_and_template_but_not_earlier_calls():
    tokenizer = byte_tokenizer(chat_template=CHATML, pad_token="</s>")
    template, tulu = Template(tokenizer), Tulu("</s>")
    before = fingerprint(tokenizer, template)
    assert before == fingerprint(byte_tokenizer(chat_template=CHATML, pad_token="</s>"), template)
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)
    assert fingerprint(tokenizer, template) == before
    tulu_before = fingerprint(tokenizer, tulu)
    tokenizer.chat_template = CHATML + " "
    assert fingerprint(tokenizer, tulu) == tulu_before
    other = [fingerprint(tokenizer, Template(tokenizer)), fingerprint(tokenizer, Tulu("</s>", "<s>"))]
    tokenizer.add_tokens(["new"])
    other.append(fingerprint(tokenizer, tulu))
    assert len({before, tulu_before, *other}) == 5


def test_a_text_longer_than_the_models_length_is_not_cut_and_not_warned_about(caplog):
    tokenizer = byte_tokenizer(model_max_length=4)
    assert len(encode(TALKS["multi"], tokenizer, Tulu("</s>"), "row")) > 20
    assert not caplog.records


def row(pattern):
    """`row("..AA..")`: A a label, . none; ids count up."""
    return Encoded(np.arange(len(pattern), dtype=np.int32), np.array([c == "A" for c in pattern]))


@pytest.mark.parametrize(
    ("before", "length", "after", "first"),
    [
        ("..AA..", 6, "..AA..", 0),
        ("..AA..", 5, "..AA.", 0),
        ("..AA..", 4, "..AA", 0),
        ("..AA..", 3, ".AA", 1),
        (".AA..AA", 6, "....AA", 1),
        (".AA..AA", 5, "...AA", 2),
        (".AA..AA", 7, ".AA..AA", 0),
        ("..AA..AA", 7, ".AA..AA", 1),
    ],
)
def test_the_prompt_gives_way_from_the_left(before, length, after, first):
    fitted = fit(row(before), length)
    assert "".join("A" if label else "." for label in fitted.labels) == after
    assert fitted.ids.tolist() == list(range(first, first + len(after)))


def test_an_answer_that_does_not_fit_is_told_with_its_length():
    assert fit(row("..AAA"), 3) == "answer of 3 tokens does not fit into 3"
    assert fit(row(".AAAAAAA...AA"), 2) == "answer of 2 tokens does not fit into 2"
    assert fit(row("....."), 3) == fit(row(""), 3) == "no label token"


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 32))
def test_fit_never_cuts_the_last_answer_nor_exceeds_the_length_nor_adds_labels(labels, length):
    labels = [False, *labels]
    before = row("".join("A" if label else "." for label in labels))
    after = fit(before, length)
    pattern = "".join("A" if label else "." for label in labels).rstrip(".")
    answer = len(pattern) - len(pattern.rstrip("A"))
    if isinstance(after, str):
        assert not answer or answer + 1 > length
        return
    assert len(after) == min(len(before), length)
    start = int(after.ids[0])
    assert after.ids.tolist() == list(range(start, start + len(after)))
    assert not after.labels[0]
    assert not np.any(after.labels & ~before.labels[after.ids])
    last = range(len(pattern) - answer, len(pattern))
    assert all(after.labels[i - start] for i in last)
    lost = np.flatnonzero(before.labels[after.ids] & ~after.labels)
    assert lost.tolist() == list(range(len(lost)))  # only a cut answer, at the very start, is unlabelled
    assert np.array_equal(before.labels, labels)  # the input is left as it was


def test_the_first_token_is_no_label_even_of_an_answer_that_begins_the_text():
    tokenizer = byte_tokenizer(chat_template="{% for m in messages %}{{ m.content }}</s>{% endfor %}")
    encoded = encode(talk("assistant: abc"), tokenizer, Template(tokenizer), "row")
    assert encoded.labels.tolist() == [False] + [True] * (len(encoded) - 1)


def test_an_answer_that_opens_the_conversation_is_labelled_too():
    messages = talk("assistant: Hello! How can I help?", "user: a", "assistant: b")
    for chat, end in [(Tulu("</s>"), "</s>"), (Template(TEMPLATED["chatml"]), "<|im_end|>")]:
        check(messages, TEMPLATED["chatml"], chat, ["Hello! How can I help?" + end, "b" + end])


def test_turns_after_the_last_answer_are_left_out():
    messages = TALKS["question after"]
    for chat in (Tulu("</s>"), Template(TEMPLATED["chatml"])):
        assert chat.render(messages) == chat.render(messages[:2])
