"""A template that writes the date: a run that goes on after midnight reads its rows as it began."""

from datetime import datetime

import pytest
from transformers.utils import chat_template_utils

from builders import build_tokenizer
from clusterucb.config import load
from clusterucb.data.chat import fingerprint
from clusterucb.data.rows import Message
from clusterucb.run.session import Session
from clusterucb.runtime import files

DATED = (
    "Today is {{ strftime_now('%d %b %Y') }}.\n{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def dated(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = DATED
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def clock(monkeypatch):
    """Sets the day, for us and for transformers."""

    def set_to(year, month, day):
        class Clock(datetime):
            @classmethod
            def now(cls):
                return datetime(year, month, day, 23, 59)

        for module in (chat_template_utils, files):
            monkeypatch.setattr(module, "datetime", Clock)

    return set_to


def test_the_day_of_a_run_is_that_of_its_beginning(dated, clock, settings):
    """Pool, target and evaluation see the same; another run has its own."""

    def inputs(out):
        return Session(load(None, {**settings, "model": dated, "out": out})).inputs

    found = []
    for day in (9, 10):
        clock(2024, 2, day)
        now = inputs(settings["out"])
        texts = [now.chat.render([Message("user", "add"), Message("assistant", "sun")]).text]
        texts.append(now.chat.prompt([Message("user", "add")]))
        assert all(text.startswith("Today is 09 Feb 2024.") for text in texts)
        ids = [encoded.ids.tolist() for encoded in (*now.targeted.tokens, *now.evaluation_tokens)]
        found.append((texts, ids, fingerprint(now.tokenizer, now.chat), now.tokens_made_with))
    assert found[0] == found[1]
    assert inputs(settings["out"] + "-2").chat.prompt([Message("user", "add")]).startswith("Today is 10 Feb")
