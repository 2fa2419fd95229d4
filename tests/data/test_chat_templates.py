"""The templates of today's models: what is learnt of a conversation, whatever the template writes around it.

The stock templates are those that trl ships; others are written here, each for one thing that templates do.
"""

import importlib.util
from datetime import datetime
from pathlib import Path

import pytest
from data_helpers import CHATML, byte_tokenizer, talk
from transformers.utils import chat_template_utils

from clusterucb.data.chat import Template, chat_format, encode, fingerprint
from clusterucb.data.rows import Message
from clusterucb.errors import InputError

TRL = importlib.util.find_spec("trl")
STOCK = sorted(Path(TRL.origin).with_name("chat_templates").glob("*.jinja")) if TRL else []
MARKED = [path for path in STOCK if "endgeneration" in path.read_text()]
UNMARKED = [path for path in STOCK if path not in MARKED]
DAY = datetime(2024, 2, 9)
TALKS = {
    "single": talk("user: What is 2 + 2?", "assistant: It is 4."),
    "two": talk("user: Capital of France?", "assistant: Paris.", "user: Spain?", "assistant: Madrid it is."),
    "system": talk("system: Be brief.", "user: Two plus two?", "assistant: 4"),
    "thought": talk("user: 2 + 2?", "assistant: <think>\nadd them\n</think>\n\nIt is 4."),
    "thoughts": talk(
        "user: 2 + 2?", "assistant: <think>\nadd them\n</think>\n\nIt is 4.",
        "user: 3 + 3?", "assistant: <think>\nadd these\n</think>\n\nSix.",
    ),
}  # fmt: skip
ENDINGS = {  # of a turn within the conversation, and of its last one
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "cohere2": "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "diffusion_gemma": "<turn|>",
    "gemma4": "<turn|>",
    "gemma": "<end_of_turn>",
    "glm4moe": "",  # the next turn's beginning ends it
    "gptoss": ("<|end|>", "<|return|>"),
    "idefics3": "<end_of_utterance>",
    "lfm2": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llava_next": "</s>",
    "muse_glimmer": "<|eot|>",
    "nemotron": "<|im_end|>",
    "phi3": "<|end|>",
    "qwen": "<|im_end|>",
    "smolvlm": "<end_of_utterance>",
}
NO_SYSTEM = ("gemma.jinja", "gemma_training.jinja")
DROPS_THOUGHTS = ("deepseek",)  # of the last turn, too: such a row cannot be learnt whole


def ending(path, *, last):
    """What ends a turn under a stock template."""
    name = max((name for name in ENDINGS if path.stem.startswith(name)), key=len)
    both = ENDINGS[name]
    return both if isinstance(both, str) else both[last]


def learnt(rendered):
    return [rendered.text[start:end] for start, end in rendered.spans]


@pytest.mark.parametrize("name", ["single", "two", "system"])
@pytest.mark.parametrize("path", UNMARKED, ids=lambda path: path.stem)
def test_what_is_learnt_is_each_answer_and_the_end_of_its_turn(path, name):
    template = Template(byte_tokenizer(chat_template=path.read_text()))
    messages = TALKS[name]
    if name == "system" and path.name in NO_SYSTEM:
        with pytest.raises(InputError, match="System role not supported"):
            template.render(messages)
        return
    answers = [message.content for message in messages if message.role == "assistant"]
    wanted = [a + ending(path, last=a == answers[-1]) for a in answers]
    assert learnt(template.render(messages)) == wanted


@pytest.mark.parametrize("path", STOCK, ids=lambda path: path.stem)
def test_the_tokens_are_those_of_the_templates_own_rendering(path):
    tokenizer = byte_tokenizer(chat_template=path.read_text())
    template = Template(tokenizer)
    for name in ("single", "two"):
        whole = tokenizer.apply_chat_template(template._messages([(m.role, m.content) for m in TALKS[name]]))
        ids = getattr(whole, "input_ids", whole)
        assert encode(TALKS[name], tokenizer, template, "row").ids.tolist() == list(ids)


@pytest.mark.parametrize("name", TALKS)
@pytest.mark.parametrize("path", MARKED, ids=lambda path: path.stem)
def test_a_template_that_marks_what_is_learnt_is_taken_at_its_word(path, name):
    tokenizer = byte_tokenizer(chat_template=path.read_text())
    template, messages, refused = Template(tokenizer), TALKS[name], None
    if name == "system" and path.name in NO_SYSTEM:
        refused = "System role not supported"
    elif name.startswith("thought") and path.stem == "deepseekv3_training":
        refused = "leaves out a part"
    if refused:
        with pytest.raises(InputError, match=refused):
            encode(messages, tokenizer, template, "row")
        return
    found = encode(messages, tokenizer, template, "row")
    whole = tokenizer.apply_chat_template(
        template._messages([(m.role, m.content) for m in messages]),
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    assert found.ids.tolist() == list(whole["input_ids"])
    assert found.labels.tolist() == [bool(mark) for mark in whole["assistant_masks"]]


@pytest.mark.parametrize("path", UNMARKED, ids=lambda path: path.stem)
def test_a_thought_is_learnt_where_it_is_shown_and_never_the_templates_empty_one(path):
    template = Template(byte_tokenizer(chat_template=path.read_text()))
    if path.stem.startswith(DROPS_THOUGHTS):
        with pytest.raises(InputError, match=r"leaves out a part of message 2 \(assistant\)"):
            template.render(TALKS["thought"])
        return
    (single,) = learnt(template.render(TALKS["thought"]))
    first, last = learnt(template.render(TALKS["thoughts"]))
    for text, thought, answer in ((single, "add them", "It is 4."), (last, "add these", "Six.")):
        assert text.split() == f"<think> {thought} </think> {answer}".split() or "".join(text.split()) == (
            "".join(f"<think>{thought}</think>{answer}{ending(path, last=True)}".split())
        )
    whole = "".join(f"<think>addthem</think>Itis4.{ending(path, last=False)}".split())
    assert "".join(first.split()) in (whole, f"Itis4.{ending(path, last=False)}")


DATED = [path for path in STOCK if "strftime_now" in path.read_text()]


@pytest.mark.parametrize("path", DATED, ids=lambda path: path.stem)
def test_a_template_that_writes_the_date_is_given_one_and_else_renders_the_same(path, monkeypatch):
    class Clock(datetime):
        @classmethod
        def now(cls):
            return DAY

    tokenizer = byte_tokenizer(chat_template=path.read_text())
    found = Template(tokenizer, DAY).render(TALKS["two"]).text
    assert found != Template(tokenizer).render(TALKS["two"]).text
    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    assert found == Template(tokenizer).render(TALKS["two"]).text


@pytest.mark.parametrize(
    "template",
    [
        "{{ strftime_now('%d %b %Y') }}",
        '{% if strftime_now is defined %}{{ strftime_now( "%d %b %Y" ) }}{% endif %}',
        "{% set form = '%d %b %Y' %}{% macro day(f) %}{{ strftime_now(f) }}{% endmacro %}{{ day(form) }}",
        "{%- for m in messages %}{%- if loop.first -%}{{ strftime_now('%d ') + strftime_now('%b %Y') }}"
        "{%- endif %}{%- endfor %}",
    ],
    ids=["plainly", "where there is a clock", "in a macro", "in a loop"],
)
def test_the_date_is_the_given_one_wherever_a_template_writes_it(template):
    tokenizer = byte_tokenizer(chat_template=template + CHATML)
    chat = chat_format("auto", tokenizer, lambda: DAY)
    assert chat.render(TALKS["single"]).text.startswith("09 Feb 2024<|im_start|>user")
    assert chat.prompt(TALKS["single"]).startswith("09 Feb 2024<|im_start|>user")
    assert learnt(chat.render(TALKS["single"])) == ["It is 4.<|im_end|>"]
    another = chat_format("auto", tokenizer, lambda: datetime(2024, 2, 10))
    assert fingerprint(tokenizer, chat) != fingerprint(tokenizer, another)


def test_no_clock_is_asked_where_no_date_is_written():
    assert chat_format("auto", byte_tokenizer(chat_template=CHATML), lambda: pytest.fail("asked")).day is None


EMPTY_THOUGHT = CHATML.replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}",
)
PARTS = CHATML.replace("{{ m.content }}", "{% for p in m.content %}{{ p.text }}{% endfor %}")
NO_GENERATION_PROMPT = CHATML.partition("{% if add_generation_prompt")[0]
ORDINARY_END = CHATML.replace("<|im_end|>", "### End")
TWO_ENDS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% if loop.last %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
)
ONLY_LAST = CHATML.replace("{% for m in messages %}", "{% for m in messages[-2:] %}")
FORGETFUL = CHATML.replace("{{ m.content }}", "{% if m.role != 'system' %}{{ m.content }}{% endif %}")


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (EMPTY_THOUGHT, "<|im_end|>"),
        (PARTS, "<|im_end|>"),
        (NO_GENERATION_PROMPT, "<|im_end|>"),
        (ORDINARY_END, "### End"),
        (TWO_ENDS, "<|return|>"),
    ],
    ids=["empty thought", "content in parts", "no generation prompt", "an ordinary end", "two ends"],
)
def test_what_a_template_writes_around_an_answer_is_not_learnt_but_its_end(template, end):
    found = learnt(Template(byte_tokenizer(chat_template=template)).render(TALKS["two"]))
    assert found == ["Paris." + end.replace("return", "end"), "Madrid it is." + end]


def test_behind_an_empty_thought_what_is_given_of_an_answer_is_not_learnt():
    messages = (Message("user", "2 + 2?"), Message("assistant", "The answer is: B", "The answer is:"))
    assert learnt(Template(byte_tokenizer(chat_template=EMPTY_THOUGHT)).render(messages)) == [" B<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "messages", "role"),
    [
        (FORGETFUL, TALKS["system"], "system"),
        (FORGETFUL, talk("system: brief", "user: What is brief?", "assistant: brief"), "system"),
        (ONLY_LAST, talk("user: a", "assistant: a") * 2, "user"),
    ],
    ids=["left out", "its words stand elsewhere", "the same message again"],
)
def test_a_message_that_the_template_leaves_out_costs_the_row(template, messages, role):
    tokenizer = byte_tokenizer(chat_template=template)
    words = rf"^p:1: .*leaves out a part of message 1 \({role}\).*--chat tulu"
    with pytest.raises(InputError, match=words):
        encode(messages, tokenizer, Template(tokenizer), "p:1")


@pytest.mark.parametrize("parts", ["user", "assistant", "system"])
def test_each_role_is_given_its_content_as_the_template_shows_it(parts):
    template = CHATML.replace(
        "{{ m.content }}",
        f"{{% if m.role == '{parts}' %}}{{% for p in m.content %}}{{{{ p.text }}}}{{% endfor %}}"
        "{% else %}{{ m.content }}{% endif %}",
    )
    rendered = Template(byte_tokenizer(chat_template=template)).render(TALKS["system"])
    assert rendered.text == Template(byte_tokenizer(chat_template=CHATML)).render(TALKS["system"]).text
    assert learnt(rendered) == ["4<|im_end|>"]


CUTTING = {
    "cut": "{{ m.content[:8] }}",
    "loud": "{{ m.content | upper }}",
    "as JSON": "{{ m.content | tojson }}",
    "escaped": "{{ m.content | e }}",
    "first line": "{{ m.content.split('\n')[0] }}",
}


@pytest.mark.parametrize("shown", CUTTING.values(), ids=CUTTING)
def test_content_that_is_shown_otherwise_costs_the_row(shown):
    template = Template(byte_tokenizer(chat_template=CHATML.replace("{{ m.content }}", shown)))
    asked = talk('user: Is "a" <\n b, and why so?', "assistant: YES")
    answered = talk("user: OK?", 'assistant: it is "a" <\n b')
    for messages, part in ((asked, r"1 \(user\)"), (answered, r"2 \(assistant\)")):
        with pytest.raises(InputError, match=f"leaves out a part of message {part}"):
            template.render(messages)


def test_an_answer_that_repeats_what_stands_around_it_is_found_in_its_place():
    for word in ("assistant", "<|im_start|>", "\n", " assistant\n", "user"):
        messages = (Message("user", word), Message("assistant", f"x{word}x"), Message("user", word))
        messages += (Message("assistant", f"{word}."),)
        found = learnt(Template(byte_tokenizer(chat_template=CHATML)).render(messages))
        assert [text.strip() for text in found] == [f"x{word}x<|im_end|>", f"{word}.<|im_end|>".strip()]
