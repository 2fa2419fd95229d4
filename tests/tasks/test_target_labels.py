"""What the target of a benchmark is learnt by: LESS's labels, which have no end token."""

import numpy as np
import pytest
from task_helpers import write_all

from builders import build_tokenizer
from clusterucb.data.chat import Tulu, encode
from clusterucb.data.rows import parse_messages
from clusterucb.tasks import TASKS

TULU = Tulu("</s>")
TOKENIZER = build_tokenizer()
ROWS = {"mmlu": None, "bbh": None, "tydiqa": None, "gsm8k": 1, "humaneval": 1}


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    folder = tmp_path_factory.mktemp("official")
    write_all(folder)
    return folder


@pytest.mark.parametrize("name", ROWS)
def test_a_target_row_is_learnt_by_its_answer_alone(official, name):
    for question in TASKS[name].targets(official, ROWS[name], 0):
        row = parse_messages(question.to_row(), "row")
        found, with_end = (encode(row, TOKENIZER, TULU, "row", ends=ends) for ends in (False, True))
        answer = (question.opening + question.answer).strip()
        text = f"<|user|>\n{question.ask.strip()}\n<|assistant|>\n{answer}</s>"
        assert found.ids.tolist() == TOKENIZER(text, add_special_tokens=False)["input_ids"]
        learnt = TOKENIZER.decode(found.ids[found.labels], clean_up_tokenization_spaces=False)
        assert learnt == answer[len(question.opening) :]
        end = np.flatnonzero(with_end.labels & ~found.labels)
        assert end[-1] == len(found) - 1
        assert TOKENIZER.decode(found.ids[end]) == "</s>"
