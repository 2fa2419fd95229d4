"""What benchmarks/target_end.py says of an adapter: losses of answers and ends apart, and its table."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from target_end import judged, report

from clusterucb.config import load
from clusterucb.evaluation.loss import losses
from clusterucb.run.session import Session
from file_helpers import write


@pytest.fixture(scope="module")
def session(shared_settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("judged") / "run"
    return Session(load(None, {**shared_settings, "out": str(out)}))


def test_answer_and_end_together_are_the_loss_of_the_evaluation(session):
    model, rows = session.model, session.inputs.evaluation_tokens
    found = judged(session, session.dir.initial)
    labels = np.array([row.labels.sum() for row in rows])
    ends = 1  # <|im_end|>
    together = (np.array(found["answer"]) * (labels - ends) + np.array(found["end"]) * ends) / labels
    np.testing.assert_allclose(together, losses(model, rows), rtol=1e-4)


def test_the_table_sets_both_ways_beside_each_other(tmp_path):
    def kept(path, answer, rows=None):
        write(
            tmp_path / path,
            json.dumps(rows or {"answer": [answer, answer + 2], "end": [0.5, 0.5], "right": []}),
        )

    chosen = {
        "rows": np.array([0, 2]),
        "drawn": np.array([2, 0, 1]),
        "drawn_scores": np.array([0.2, 0.9, 0.1]),
    }
    for target in ("mmlu", "gsm8k"):
        kept(f"{target}/base.json", 7.0)
        for way, answer in (("learn", 1.0), ("leave", 2.0), ("random", 3.0)):
            kept(f"{target}/{way}/0/selected.json", 0, {"rows": ["a.jsonl:1", f"{way}.jsonl:2"]})
            for name in ("directions", "rounds/1"):
                (tmp_path / target / way / "0" / name).mkdir(parents=True)
            aim = np.array([[3.0, 4.0 if way == "learn" else -4.0]])
            save_file({"directions": aim}, tmp_path / target / way / "0/directions/1.safetensors")
            save_file(chosen, tmp_path / target / way / "0/rounds/1/selection.safetensors")
            for repeat in range(2):
                kept(f"{target}/{way}/{repeat}/judged.json", answer + repeat)
    text = report(tmp_path)
    assert "| nothing (the base) | 8.0000 | 0.5000 |  |  |" in text
    assert "| leave | 3.5000 ± 0.7071 | 0.5000 ± 0.0000 |  | a 1, leave 1 |" in text
    assert "over 2 held-out rows: answer +1.0000 ± 0.0000, end +0.0000 ± 0.0000; " in text
    assert (
        "directions -0.2800, Spearman of all rows' influence 1.0000, 2 of 2 selected rows the same." in text
    )
