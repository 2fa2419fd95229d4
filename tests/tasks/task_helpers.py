"""Small invented files in the official shapes, and packages and a hub that are not there."""

import csv
import io
import json

from clusterucb.tasks import files as installed
from file_helpers import Hub, write

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


def write_mmlu(folder, split, subjects):
    for subject, rows in subjects.items():
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        write(folder / split / f"{subject}_{split}.csv", text.getvalue())


def write_bbh(folder, examples="."):
    for task, text in BBH_PROMPTS.items():
        write(folder / "cot-prompts" / f"{task}.txt", text)
    for task, found in BBH_EXAMPLES.items():
        content = {"canary": "not shown", "examples": found}
        write(folder / examples / f"{task}.json", json.dumps(content, indent=1))


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
    articles = []
    for id, context, question, answers in items:
        spans = [{"text": text, "answer_start": 0} for text in answers]
        asked = {"id": id, "question": question, "answers": spans}
        articles.append({"paragraphs": [{"context": context, "qas": [asked]}]})
    return {"version": "TyDiQA-GoldP-1.1-for-SQuAD-1.1", "data": articles}


def write_tydiqa(folder, train=None, dev=None):
    for split, items in (("train", train or tydiqa_train()), ("dev", dev or tydiqa_dev())):
        text = json.dumps(squad(items), ensure_ascii=False)
        write(folder / f"tydiqa-goldp-v1.1-{split}.json", text)


def write_all(folder, *, asked_are_targets=False):
    """Every benchmark, each in the folder of its name; the questions to ask may be those of the targets."""
    write(folder / "gsm8k" / "train.jsonl", GSM8K_TRAIN)
    write(folder / "gsm8k" / "test.jsonl", GSM8K_TRAIN if asked_are_targets else GSM8K_TEST)
    write_mmlu(folder / "mmlu", "dev", MMLU_DEV)
    write_mmlu(folder / "mmlu", "test", MMLU_DEV if asked_are_targets else MMLU_TEST)
    write_bbh(folder / "bbh")
    write_tydiqa(folder / "tydiqa", dev=tydiqa_train() if asked_are_targets else None)
    write(folder / "humaneval" / "HumanEval.jsonl.gz", HUMANEVAL)
    return folder


def hub_of_all(monkeypatch):
    """What `write_all` writes, as the hub has it; BBH without its prompts."""
    sets = Hub(monkeypatch).sets
    sets["openai/gsm8k", "main", "train"], sets["openai/gsm8k", "main", "test"] = GSM8K_TRAIN, GSM8K_TEST
    sets["openai/openai_humaneval", None, "test"] = HUMANEVAL
    for task, found in BBH_EXAMPLES.items():
        sets["SaylorTwift/bbh", task, "test"] = found
    for split, subjects in (("dev", MMLU_DEV), ("test", MMLU_TEST)):
        sets["cais/mmlu", "all", split] = [
            {"question": row[0], "subject": subject, "choices": row[1:5], "answer": "ABCD".index(row[5])}
            for subject, rows in subjects.items()
            for row in rows
        ]
    for split, items in (("train", tydiqa_train()), ("validation", tydiqa_dev())):
        sets["google-research-datasets/tydiqa", "secondary_task", split] = [
            {"id": id, "context": context, "question": question, "answers": {"text": texts}}
            for id, context, question, texts in items
        ]


def install(monkeypatch, **packages):
    """Let these packages lie in these folders (None: not installed)."""
    found = installed._package
    monkeypatch.setattr(
        installed, "_package", lambda name: packages[name] if name in packages else found(name)
    )


def write_harness(folder):
    """An lm-eval of which only the shots are there."""
    samples = json.dumps(HARNESS_GSM8K)
    text = (
        f"dataset_path: openai/gsm8k\ndoc_to_text: !function utils.ask\nfewshot_config:\n  samples: {samples}"
    )
    write(folder / "tasks" / "gsm8k" / "gsm8k-cot.yaml", text)
    shots = [{"input": f"{n} + 0", "target": f"It is {n}. So the answer is {n}."} for n in range(3)]
    config = {"description": "Add numbers.\n\n", "fewshot_config": {"sampler": "first_n", "samples": shots}}
    write(folder / "tasks" / "bbh" / "cot_fewshot" / "sums.yaml", json.dumps(config))
    write(folder / "tasks" / "bbh" / "cot_fewshot" / "_bbh.yaml", "group: bbh\n")
    return folder
