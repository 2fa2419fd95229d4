import json

import pytest
from source_helpers import REAL, converted, needs_real, pair, prepared

from clusterucb.data.pool import Pool
from clusterucb.sources.conversion import prepare
from clusterucb.tasks.gsm8k import worked_answer

ALPACA = [
    {"instruction": " Add the numbers. ", "input": "2, 3\n", "output": "5 "},
    {"instruction": "Grüße jemanden 😀", "input": "", "output": "Guten Tag!"},
]
FROM_ALPACA = [pair("Add the numbers.\n\n2, 3", "5"), pair("Grüße jemanden 😀", "Guten Tag!")]


def ids(name, *numbers):
    return [f"{name}_{number}" for number in numbers]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("gpt4_alpaca", "alpaca_gpt4_data.json"),
        ("code_alpaca", "code_alpaca_20k.json"),
        ("code_alpaca", "code_alpaca_2k.json"),
    ],
)
def test_alpaca_rows_become_one_question_and_one_answer(tmp_path, name, file):
    report, rows = prepared(name, file, ALPACA, tmp_path)
    assert rows == list(zip(ids(name, 0, 1), FROM_ALPACA, strict=True))
    assert (report.read, report.written, report.dropped, report.files) == (2, 2, {}, (file,))


def test_gpt4_alpaca_of_the_hub_has_one_column_more(tmp_path):
    records = [{**record, "text": "Below is an instruction"} for record in ALPACA]
    assert [turns for _, turns in prepared("gpt4_alpaca", "a.jsonl", records, tmp_path)[1]] == FROM_ALPACA


def test_dolly_rows_carry_their_context_with_the_question(tmp_path):
    records = [
        {"instruction": "Who?", "context": "Ann ran.", "response": "Ann", "category": "closed_qa"},
        {"instruction": "Why?", "context": "", "response": "Because.", "category": "open_qa"},
    ]
    _, rows = prepared("dolly", "databricks-dolly-15k.jsonl", records, tmp_path)
    assert [turns for _, turns in rows] == [pair("Who?\n\nAnn ran.", "Ann"), pair("Why?", "Because.")]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("flan_v2", "tulu_v1_resampled_flan_100k.jsonl"),
        ("flan_v2", "flan_v2_resampled_100k.jsonl"),
        ("cot", "cot_zsopt.jsonl.gz"),
    ],
)
def test_finished_prompts_are_stripped_and_targets_stay_as_they_are(tmp_path, name, file):
    records = [{"inputs": "Is it so?\nAnswer:\n\n", "targets": " yes\n", "_task_name": "invented"}]
    _, rows = prepared(name, file, records, tmp_path)
    assert rows == [(f"{name}_0", pair("Is it so?\nAnswer:", " yes\n"))]


COT = {
    "Is ice cold?\tyes\tIce is frozen. So it is cold.": "Ice is frozen. So it is cold. So the answer is yes.",
    "Sum?\\nOptions:\\n(A) 3\t(A)\t1 + 2 = 3": "1 + 2 = 3\nSo the answer is (A).",
    "Sum?\t3\t1 + 1 = 2.\\n2 + 1 = 3.": "1 + 1 = 2.\n2 + 1 = 3.\nSo the answer is 3.",
    "Sum?\t3.\t1 gallon\\\\nand 2 make \\70": "1 gallon\nand 2 make \\70\nSo the answer is 3.",
}


@pytest.mark.parametrize("file", ["logic_train.tsv", "logic_train.tsv.gz"])
def test_flans_tables_say_the_rationale_and_then_the_answer(tmp_path, file):
    _, rows = prepared("cot", file, "".join(f"{line}\n" for line in COT), tmp_path)
    assert [turns[1][1] for _, turns in rows] == list(COT.values())
    assert rows[1][1][0] == ("user", "Sum?\nOptions:\n(A) 3")


def test_a_table_without_a_last_newline_or_with_carriage_returns_reads_the_same(tmp_path):
    _, rows = prepared("cot", "a.tsv", "Q?\tyes\tIt is.\r\nR?\tno\tIt is not.", tmp_path)
    assert rows == [
        ("cot_0", pair("Q?", "It is. So the answer is yes.")),
        ("cot_1", pair("R?", "It is not. So the answer is no.")),
    ]


def test_gsm8k_answers_lose_calculator_marks_and_end_in_words(tmp_path):
    records = [{"question": "How many? ", "answer": "Half is 6/2=<<6/2=3>>3.\nAll: $1,000<<1>>.\n#### 1,003"}]
    report, rows = prepared("gsm8k", "train.jsonl", records, tmp_path)
    assert rows == [("gsm8k_0", pair("How many?", "Half is 6/2=3.\nAll: $1,000.\nThe answer is 1003."))]
    assert report.name == "gsm8k"


@pytest.mark.parametrize(
    ("answer", "said"),
    [("a #### b\n#### -4", "a #### b\nThe answer is -4."), ("#### 7", "The answer is 7.")],
)
def test_the_last_mark_is_the_answers(answer, said):
    assert worked_answer(answer) == said


@pytest.mark.parametrize("answer", ["", "It is 4.", "It is 4. ####", "#### \n", "### 4"])
def test_an_answer_without_a_final_number_is_refused(answer):
    with pytest.raises(ValueError, match="no final answer"):
        worked_answer(answer)


DROPPED = [
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
    ("gsm8k", {"question": "x", "answer": ""}, "empty output"),
    ("gsm8k", {"question": " ", "answer": "#### 4"}, "empty instruction"),
]


@pytest.mark.parametrize(("name", "record", "reason"), DROPPED)
def test_a_row_of_no_use_is_dropped_and_counted(name, record, reason):
    assert converted(name, [record]) == ([], [reason])


def test_dropped_rows_keep_their_number_and_are_reported(tmp_path):
    bad = {"instruction": "Do.", "input": "", "output": ""}
    report, rows = prepared("code_alpaca", "a.json", [ALPACA[0], bad, ALPACA[1]], tmp_path)
    assert [row for row, _ in rows] == ids("code_alpaca", 0, 2)
    assert report.dropped == {"empty output": 1}
    assert json.loads((tmp_path / "out" / "code_alpaca.json").read_text())["dropped"] == report.dropped


def test_half_a_surrogate_pair_is_dropped_and_counted(tmp_path):
    rows = ({"instruction": "a", "input": "", "output": "x\ud83d"}, {**ALPACA[1], "instruction": "b"})
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    report, rows = prepared("code_alpaca", "a.jsonl", text, tmp_path)
    assert report.dropped == {"broken Unicode": 1}
    assert rows == [("code_alpaca_1", pair("b", "Guten Tag!"))]


@needs_real
@pytest.mark.parametrize(
    ("name", "folder", "read", "dropped"),
    [
        ("gsm8k", REAL, 7473, {}),
        ("code_alpaca", REAL, 2017, {"empty output": 2}),
        ("cot", REAL / "flan_cot", 33443, {}),
    ],
)
def test_the_official_files_convert_whole(tmp_path, name, folder, read, dropped):
    report = prepare(name, folder, tmp_path)
    assert (report.read, report.dropped) == (read, dropped)
    assert report.written == read - sum(dropped.values()) == len(Pool.read(tmp_path / f"{name}.jsonl"))
    if name == "cot":
        assert len(report.files) == 7
