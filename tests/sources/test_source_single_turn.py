import json

import pytest
from source_helpers import converted, pair, prepared

from clusterucb.data.pool import Pool
from clusterucb.sources import prepare
from file_helpers import official_files

ADD = {"instruction": " Add the numbers. ", "input": "2, 3\n", "output": "5 "}
GREET = {"instruction": "Grüße jemanden 😀", "input": "", "output": "Guten Tag!"}
CLOSED = {"instruction": "Who?", "context": "Ann ran.", "response": "Ann", "category": "closed_qa"}
OPEN = {"instruction": "Why?", "context": "", "response": "Because.", "category": "open_qa"}
PROMPT = {"inputs": "Is it so?\nAnswer:\n\n", "targets": " yes\n", "_task_name": "invented"}
WORKED = {"question": "How many? ", "answer": "Half is 6/2=<<6/2=3>>3.\nAll: $1,000<<1>>.\n#### 1,003"}


@pytest.mark.parametrize(
    ("name", "record", "turns"),
    [
        ("gpt4_alpaca", ADD, pair("Add the numbers.\n\n2, 3", "5")),
        ("gpt4_alpaca", {**GREET, "text": "Below is"}, pair("Grüße jemanden 😀", "Guten Tag!")),
        ("code_alpaca", ADD, pair("Add the numbers.\n\n2, 3", "5")),
        ("dolly", CLOSED, pair("Who?\n\nAnn ran.", "Ann")),
        ("dolly", OPEN, pair("Why?", "Because.")),
        ("flan_v2", PROMPT, pair("Is it so?\nAnswer:", " yes\n")),
        ("cot", PROMPT, pair("Is it so?\nAnswer:", " yes\n")),
        ("gsm8k", WORKED, pair("How many?", "Half is 6/2=3.\nAll: $1,000.\nThe answer is 1003.")),
        ("gsm8k", {"question": "x", "answer": "a #### b\n#### -4"}, pair("x", "a #### b\nThe answer is -4.")),
        ("gsm8k", {"question": "x", "answer": "#### 7"}, pair("x", "The answer is 7.")),
    ],
)
def test_a_row_becomes_one_question_and_one_answer(name, record, turns):
    assert converted(name, [record]) == ([("0", turns)], [])


COT = {
    "Is ice cold?\tyes\tIce is frozen. So it is cold.": "Ice is frozen. So it is cold. So the answer is yes.",
    "Sum?\\nOptions:\\n(A) 3\t(A)\t1 + 2 = 3": "1 + 2 = 3\nSo the answer is (A).",
    "Sum?\t3\t1 + 1 = 2.\\n2 + 1 = 3.": "1 + 1 = 2.\n2 + 1 = 3.\nSo the answer is 3.",
    "Sum?\t3.\t1 gallon\\\\nand 2 make \\70": "1 gallon\nand 2 make \\70\nSo the answer is 3.",
}


@pytest.mark.parametrize("file", ["logic_train.tsv", "logic_train.tsv.gz"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_flans_tables_say_the_rationale_and_then_the_answer(tmp_path, file, newline):
    _, rows = prepared("cot", file, newline.join(COT), tmp_path)
    assert [turns[1][1] for _, turns in rows] == list(COT.values())
    assert rows[1] == ("cot_1", pair("Sum?\nOptions:\n(A) 3", COT["Sum?\\nOptions:\\n(A) 3\t(A)\t1 + 2 = 3"]))


@pytest.mark.parametrize(
    ("name", "record", "reason"),
    [
        ("code_alpaca", {"instruction": "Do.", "input": "", "output": " \n"}, "empty output"),
        ("code_alpaca", {"instruction": "Do.", "input": "x", "output": None}, "empty output"),
        ("gpt4_alpaca", {"instruction": " ", "input": "x", "output": "y"}, "empty instruction"),
        ("dolly", {"instruction": "", "context": "", "response": "y"}, "empty instruction"),
        ("dolly", {"instruction": "x", "context": "", "response": ""}, "empty output"),
        ("flan_v2", {"inputs": "\n", "targets": "x"}, "empty instruction"),
        ("flan_v2", {"inputs": "x", "targets": " "}, "empty output"),
        ("cot", {"inputs": "x", "answer": " ", "rationale": "z"}, "empty answer"),
        ("cot", {"inputs": "x", "answer": "y", "rationale": "\\n"}, "empty rationale"),
        ("cot", {"inputs": "\\n", "answer": "y", "rationale": "z"}, "empty instruction"),
        ("gsm8k", {"question": "x", "answer": "It is 4."}, "no final answer"),
        ("gsm8k", {"question": "x", "answer": "It is 4. #### \n"}, "no final answer"),
        ("gsm8k", {"question": "x", "answer": "### 4"}, "no final answer"),
        ("gsm8k", {"question": "x", "answer": ""}, "empty output"),
        ("gsm8k", {"question": " ", "answer": "#### 4"}, "empty instruction"),
    ],
)
def test_a_row_of_no_use_is_dropped_and_counted(name, record, reason):
    assert converted(name, [record]) == ([], [reason])


@pytest.mark.parametrize(
    ("output", "reason"), [("", "empty output"), ("x\ud83d", "broken Unicode")], ids=["empty", "half a pair"]
)
@pytest.mark.parametrize("file", ["a.json", "a.jsonl"])
def test_dropped_rows_keep_their_number_and_are_reported(tmp_path, output, reason, file):
    text = json.dumps([ADD, {**GREET, "output": output}, GREET])
    text = text if file == "a.json" else text[1:-1].replace("}, {", "}\n{")
    report, rows = prepared("code_alpaca", file, text, tmp_path)
    assert [row for row, _ in rows] == ["code_alpaca_0", "code_alpaca_2"]
    assert report.dropped == {reason: 1}


@pytest.mark.whole
@pytest.mark.parametrize(
    ("name", "folder", "read", "dropped"),
    [
        ("gsm8k", ".", 7473, {}),
        ("code_alpaca", ".", 2017, {"empty output": 2}),
        ("cot", "flan_cot", 33443, {}),
    ],
)
def test_the_official_files_convert_whole(tmp_path, name, folder, read, dropped):
    report = prepare(name, official_files() / folder, tmp_path)
    assert (report.read, report.dropped) == (read, dropped)
    assert report.written == read - sum(dropped.values()) == len(Pool.read(tmp_path / f"{name}.jsonl"))
    if name == "cot":
        assert len(report.files) == 7
