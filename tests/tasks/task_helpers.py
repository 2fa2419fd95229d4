"""Small invented files in the official shapes, and packages and a hub that are not there."""

import csv
import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from clusterucb.errors import ConfigError, InputError
from clusterucb.tasks import files as installed

GSM8K_TRAIN = [
    {
        "question": f"Ann has {n} pens and buys 3. How many?",
        "answer": f"{n}+3=<<{n}+3={n + 3}>>{n + 3}.\n#### {n + 3}",
    }
    for n in range(100)
]
GSM8K_TEST = [
    {"question": "Bo has 2 cows.\nHow many legs?", "answer": "A cow has 4.\n2*4=<<2*4=8>>8 legs.\n#### 8"},
    {"question": "What costs 2 of $600? ", "answer": "2*600 = $<<2*600=1200>>1,200.\n#### 1,200"},
]
HARNESS_GSM8K = [
    {"question": "One and one?", "target": "1 + 1 = 2. The answer is 2."},
    {"question": "Two and two?", "target": "2 + 2 = 4. The answer is 4."},
    {"question": "Six less five?", "target": "6 - 5 = 1. The answer is 1."},
]

MMLU_DEV = {
    "world_religions": [
        ["Which, if any?", "one", "two, too", 'a "third"', "4", "C"],
        ["A longer\nquestion?", "0.50", "1", "2", "3", "A"],
    ],
    "anatomy": [["Where is the heel?", "head", "foot", "hand", "hip", "B"]],
}
MMLU_TEST = {
    "anatomy": [["Where is the nail?", "toe", "ear", "eye", "lip", "A"]],
    "world_religions": [["How many?", "1", "2", "3", "4", "D"], ["Who?", "he", "she", "it", "they", "B"]],
}

CANARY = "SOME LINE THAT SHOULD NOT BE SHOWN. canary GUID 0\n-----\n"
SUMS = CANARY + (
    "Add numbers.\n\n"
    "Q: 1 + 1\nA: Let's think step by step.\nOne more than 1 is 2. So the answer is 2.\n\n"
    "Q: 2 + 2\n\n(in words: two and two)\nA: Let's think step by step.\nIt is 4. So the answer is 4.\n\n"
    "Q: 3 - 5\nOptions:\n(A) -2\n(B) 2\nA: Let's think step by step.\n3 - 5 = -2.\n\nSo the answer is (A)."
)
SORTING = CANARY + (
    "Sort words.\n\nIn the alphabet's order.\n\n"
    "Q: b a\nA: Let's think step by step. So the answer is a b.\n\n"
    "Q: d c\nA: Let's think step by step. So the answer is c d.\n\n"
    "Q: f e\nA: Let's think step by step. So the answer is e f."
)
BBH_PROMPTS = {"sums": SUMS, "sorting": SORTING}
BBH_EXAMPLES = {
    "sums": [{"input": "4 + 4", "target": "8"}, {"input": "1 - 6", "target": "-5"}],
    "sorting": [{"input": "h g", "target": "g h"}],
}

LANGUAGES = [
    *("arabic", "bengali", "english", "finnish", "indonesian"),
    *("korean", "russian", "swahili", "telugu"),
]

HUMANEVAL = [
    {
        "task_id": f"HumanEval/{n}",
        "prompt": f'\n\ndef add{n}(x):\n    """Add {n}."""\n',
        "entry_point": f"add{n}",
        "canonical_solution": f"    y = x + {n}\n    return y\n\n",
        "test": f"\n\ndef check(candidate):\n    assert candidate(1) == {n + 1}\n",
    }
    for n in range(20)
]


def refusal(call, *args, error=InputError):
    """The one line that the call raises; an iterator is run to its end."""
    with pytest.raises((InputError, ConfigError)) as caught:
        list(call(*args) or ())
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_mmlu(folder, split, subjects):
    for subject, rows in subjects.items():
        path = folder / split / f"{subject}_{split}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)


def write_bbh(folder, examples="."):
    (folder / "cot-prompts").mkdir(parents=True)
    (folder / examples).mkdir(exist_ok=True)
    for task, text in BBH_PROMPTS.items():
        (folder / "cot-prompts" / f"{task}.txt").write_text(text, encoding="utf-8")
    for task, found in BBH_EXAMPLES.items():
        content = {"canary": "not shown", "examples": found}
        (folder / examples / f"{task}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def tydiqa_train():
    """(id, context, question, answers) of each language: a long passage, then two that would do."""
    return [
        (f"{language}-{number}-0", context, f"{language} train {number}?", [f"answer {number} "])
        for number, length in enumerate([3000, 40, 30])
        for language in LANGUAGES
        for context in [f"{language} {number} ".ljust(length, "x")]
    ]


def tydiqa_dev():
    return [
        (f"{language}--12-{n}", f"{language} passage {n}.", f"{language} dev {n}?", ["The Cat sat", "cat"])
        for n in range(2)
        for language in LANGUAGES
    ]


def squad(items):
    """SQuAD's shape; each item an article of its own."""
    return {
        "version": "TyDiQA-GoldP-1.1-for-SQuAD-1.1",
        "data": [
            {
                "paragraphs": [
                    {"context": context, "qas": [{"id": id, "question": question, "answers": spans}]}
                ]
            }
            for id, context, question, answers in items
            for spans in [[{"text": text, "answer_start": 0} for text in answers]]
        ],
    }


def write_tydiqa(folder, train=None, dev=None):
    folder.mkdir(parents=True, exist_ok=True)
    for split, items in (("train", train or tydiqa_train()), ("dev", dev or tydiqa_dev())):
        path = folder / f"tydiqa-goldp-v1.1-{split}.json"
        path.write_text(json.dumps(squad(items), ensure_ascii=False), encoding="utf-8")


def write_all(folder):
    """Every benchmark, each in the folder of its name."""
    write_lines(folder / "gsm8k" / "train.jsonl", GSM8K_TRAIN)
    write_lines(folder / "gsm8k" / "test.jsonl", GSM8K_TEST)
    write_mmlu(folder / "mmlu", "dev", MMLU_DEV)
    write_mmlu(folder / "mmlu", "test", MMLU_TEST)
    write_bbh(folder / "bbh")
    write_tydiqa(folder / "tydiqa")
    write_lines(folder / "humaneval" / "HumanEval.jsonl.gz", HUMANEVAL)
    return folder


def install(monkeypatch, **packages):
    """Let these packages lie in these folders (None: not installed)."""
    found = installed._package
    monkeypatch.setattr(
        installed, "_package", lambda name: packages[name] if name in packages else found(name)
    )


def write_harness(folder):
    """An lm-eval of which only the shots are there."""
    gsm8k = folder / "tasks" / "gsm8k" / "gsm8k-cot.yaml"
    gsm8k.parent.mkdir(parents=True)
    gsm8k.write_text(
        "dataset_path: openai/gsm8k\ndoc_to_text: !function utils.ask\nfewshot_config:\n  samples: "
        + json.dumps(HARNESS_GSM8K)
    )
    bbh = folder / "tasks" / "bbh" / "cot_fewshot"
    bbh.mkdir(parents=True)
    (bbh / "_bbh.yaml").write_text("group: bbh\n")
    shots = [{"input": f"{n} + 0", "target": f"It is {n}. So the answer is {n}."} for n in range(3)]
    config = {"description": "Add numbers.\n\n", "fewshot_config": {"sampler": "first_n", "samples": shots}}
    (bbh / "sums.yaml").write_text(json.dumps(config))
    return folder


class Hub:
    """Data sets that `datasets.load_dataset` has, by name, config and split."""

    def __init__(self, monkeypatch):
        self.sets = {}
        self.asked = []
        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=self.load))

    def load(self, name, config=None, split=None):
        self.asked.append((name, config, split))
        return self.sets[name, config, split]


def real_data():
    """The folder with the official files next to the repository; skips the test where it is not."""
    folder = Path(__file__).parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the official files are not next to the repository")
    return folder
