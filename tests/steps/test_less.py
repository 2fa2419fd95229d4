"""LESS, and the methods without a bandit, by command on a tiny model."""

import math
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.numpy import load_file
from step_helpers import going_on, selection, summary
from task_helpers import MMLU_DEV, write_all
from test_featurizer import slow_feature
from transformers import AutoModelForCausalLM

from builders import build_tokenizer
from cli_helpers import clusterucb, done, lines, options, read, result
from clusterucb.config import load
from clusterucb.features.influence import EndToEnd, stored_influence, weighted_directions
from clusterucb.features.store import FeatureStore
from clusterucb.run.session import Session
from clusterucb.steps.less import weights
from clusterucb.training.moments import load_moments
from file_helpers import write

CHECKPOINTS = 3
WARMUPS = ["warmup", "warmup-2", "warmup-3"]
STEPS = 5  # of one epoch: 20 of 100 rows, 4 a step


def selecting(finished, to, *more, before=(), **changes):
    """What is selected in a copy of a run, after steps `before`."""
    given = going_on(finished, to, *more, **changes)
    for step in (*before, "select"):
        done(step, *given)
    return to


def scores(folder):
    """Score by row, of all rows that were scored."""
    found = selection(folder)
    return dict(zip(found["drawn"].tolist(), found["drawn_scores"].tolist(), strict=True))


def same_selection(ours, theirs, number=1):
    ours, theirs = selection(ours, number), selection(theirs, number)
    names = ("rows", "scores", "drawn", "drawn_scores")
    return all(ours[name].tobytes() == theirs[name].tobytes() for name in names)


@pytest.fixture(scope="module")
def full(finished_run):
    """The original LESS."""
    return finished_run("less")


@pytest.fixture(scope="module")
def drawn(finished_run):
    """LESS with the bandit."""
    return finished_run("less_clusterucb")


@pytest.fixture(scope="module")
def dynamic(finished_run):
    """All rows scored in every period."""
    return finished_run("dynamic")


def schedule(step, steps, peak, share):
    """The learning rate of optimizer step `step`, from 0: up in a line, then down in a line."""
    rising = math.ceil(share * steps)
    return peak * (step / rising if step < rising else (steps - step) / (steps - rising))


def test_a_checkpoints_rate_is_the_mean_of_its_epochs_schedule(full):
    rates = [schedule(t, CHECKPOINTS * STEPS, full.settings["lr"], 0.03) for t in range(CHECKPOINTS * STEPS)]
    means = [sum(rates[e * STEPS : (e + 1) * STEPS]) / STEPS for e in range(CHECKPOINTS)]
    assert rates_of(full.folder) == pytest.approx(means, rel=1e-12)
    found = weights(Session(load(full.folder / "config.yaml")))
    assert found == pytest.approx(np.array(means) / sum(means))


def rates_of(folder):
    return [read(folder / name / "checkpoint.json")["learning_rate"] for name in WARMUPS]


def test_each_checkpoint_is_the_end_of_its_epoch(full):
    folder = full.folder
    adapters = [load_file(folder / name / "adapter_model.safetensors") for name in ("initial", *WARMUPS)]
    for before, after in pairwise(adapters):
        assert any(not np.array_equal(before[name], after[name]) for name in before)
    moments = [load_moments(folder / name / "moments.safetensors") for name in WARMUPS]
    assert [found.step for found in moments] == [STEPS, 2 * STEPS, 3 * STEPS]
    assert list(folder.rglob("*.part")) == []
    assert not (folder / "warmup.states").exists()


def slow_scores(folder, base, rows, target, codes):
    """LESS's scores by its formulas: one row at a time, by autograd and nothing else.

    Of rows, by the target's rows and their subtasks, all as ids and labels.
    """
    projection, rates = Session(load(folder / "config.yaml")).projection, rates_of(folder)
    summed = 0
    for name, rate in zip(WARMUPS, rates, strict=True):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, folder / name, is_trainable=True)
        moments = load_moments(folder / name / "moments.safetensors")
        assert (moments.betas, moments.eps) == ((0.9, 0.999), 1e-8)
        plain = np.stack([slow_feature(model, row, projection) for row in target]).astype(float)
        directions = np.array([plain[codes == code].mean(0) for code in np.unique(codes)])
        features = np.stack([slow_feature(model, row, projection, moments) for row in rows])
        summed = summed + rate / sum(rates) * (features @ directions.T)  # (N, S)
    return summed.max(1)


def less_tokens(tokenizer, prompt, completion):
    """As LESS's code has them: labels from where the prompt's own tokens end."""
    ids = tokenizer(prompt + completion, add_special_tokens=False)["input_ids"]
    given = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    return SimpleNamespace(ids=np.array(ids), labels=np.arange(len(ids)) >= given)


def test_lesss_formulas_on_lesss_tokens_select_the_same_rows(shared_settings, tmp_path):
    """End to end, from files: neither our tokens nor our labels, gradients, directions or scores are used.

    The checkpoints, their moments and rates, and the projection are the run's.
    """
    pool, data = lines(shared_settings["pool"][1])[:24], tmp_path / "official"
    write_all(data)
    changes = {"pool": write(tmp_path / "pool.jsonl", pool), "target": "mmlu", "data_dir": data}
    changes |= {"subtask": None, "holdout": None, "chat": "tulu", "out": tmp_path / "run", "top_p": 0.25}
    changes |= {"method": "less", "bandit": "none", "less_checkpoints": CHECKPOINTS, "less_warmup": 0.5}
    given = options(shared_settings, **changes, gradient_length=400, batch_tokens=512)
    for step in ("warmup", "gradients", "select"):
        done(step, *given)
    tokenizer = build_tokenizer()
    turn, end = "<|user|>\n{}\n<|assistant|>\n", tokenizer.eos_token
    rows = [
        less_tokens(tokenizer, turn.format(asked["content"]), answer["content"] + end)
        for asked, answer in (row["messages"] for row in pool)
    ]
    target, codes = [], []
    for code, (subject, questions) in enumerate(sorted(MMLU_DEV.items())):
        topic = subject.replace("_", " ")
        about = f"The following are multiple choice questions (with answers) about  {topic}."
        for question, *choices, letter in questions:
            listed = "".join(f"\n{name}. {text}" for name, text in zip("ABCD", choices, strict=True))
            prompt = turn.format(f"{about}\n\n{question}{listed}\nAnswer:") + "The answer is:"
            target.append(less_tokens(tokenizer, prompt, f" {letter}"))
            codes.append(code)
    slow = slow_scores(tmp_path / "run", shared_settings["model"], rows, target, np.array(codes))
    found = scores(tmp_path / "run")
    np.testing.assert_allclose([found[row] for row in range(24)], slow, atol=2e-4)
    assert np.std(slow) > 0.02  # so that the tolerance tells rows apart
    assert selection(tmp_path / "run")["rows"].tolist() == sorted(np.argsort(-slow)[:6].tolist())


def test_the_bandits_scores_are_those_of_the_full_method(full, drawn):
    every, some = scores(full.folder), scores(drawn.folder)
    np.testing.assert_allclose(list(some.values()), [every[row] for row in some], atol=1e-3)


def test_what_does_not_depend_on_the_bandit_is_the_same(full, drawn):
    with_bandit, without = result(drawn.folder), result(full.folder)
    shared = [name for name in without if name.startswith(("warmup", "initial", "features/", "directions"))]
    assert len(shared) == 1 + 3 * CHECKPOINTS + 1 + CHECKPOINTS
    assert all(with_bandit[name] == without[name] for name in shared)
    assert not (drawn.folder / "features-2").exists()
    assert not (full.folder / "clusters.safetensors").exists()


def test_less_with_budget_1_equals_the_full_method_exactly(full, tmp_path):
    changes = {"budget": 1.0, "bandit": None}
    folder = selecting(full, tmp_path / "run", "features-*", before=["cluster"], **changes)
    assert same_selection(folder, full.folder)
    assert summary(folder)["cost"]["pool_gradients"] == 2 * 100
    ours, theirs = ((at / "rounds/1/selected.jsonl").read_bytes() for at in (folder, full.folder))
    assert ours == theirs


@pytest.mark.parametrize("name", ["clusterucb", "clusterucb_hidden"])
def test_dynamic_with_budget_1_equals_the_full_method_exactly(name, finished_run, dynamic, tmp_path):
    """In every period, whatever the clusters are of, and so does training on it give the same adapter."""
    folder = tmp_path / "run"
    done("run", *options(finished_run(name).elsewhere(folder, budget=1.0)))
    assert all(same_selection(folder, dynamic.folder, number) for number in (1, 2, 3))
    ours, theirs = result(folder), result(dynamic.folder)
    own = ("selected.ids.jsonl", "draws.jsonl", "selection.safetensors")
    of_features = () if name == "clusterucb" else ("features/", "directions/")
    for filename, content in theirs.items():
        if not filename.endswith(own) and not filename.startswith(of_features):
            assert ours[filename] == content, filename


def test_without_a_bandit_a_selection_at_the_warmup_checkpoint_is_the_first_one(dynamic, tmp_path):
    """Fresh influence there is the stored one."""
    copy = shutil.copytree(dynamic.folder, tmp_path / "run")
    outcome = done("select", "--out", copy, "--checkpoint", copy / "warmup")
    there, first = Path(outcome.out.strip()).parent, copy / "rounds/1"
    assert read(there / "summary.json")["drawn"] == 100
    ours, theirs = (lines(at / "selected.ids.jsonl") for at in (there, first))
    assert [entry["id"] for entry in ours] == [entry["id"] for entry in theirs]
    ours, theirs = ([entry["score"] for entry in found] for found in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_tokens_are_those_of_the_rows_whose_gradients_are_taken(drawn, dynamic):
    """Of LESS's draws at both later checkpoints; of dynamic in every period."""
    session = Session(load(drawn.folder / "config.yaml"))
    lengths, target = session.inputs.pooled.lengths, int(session.inputs.targeted.lengths.sum())
    ours, theirs = (read(finished.folder / "summary.json") for finished in (drawn, dynamic))
    rows = selection(drawn.folder)["drawn"]
    assert ours["steps"]["select 1"]["tokens"] == 2 * int(lengths[rows].sum()) + 2 * target
    assert theirs["steps"]["select 2"]["tokens"] == int(lengths.sum()) + target
    bills = [found["bill"] for found in (ours, theirs)]
    assert [bill["one_pass"]["tokens"] for bill in bills] == [int(lengths.sum())] * 2
    assert [bill["score_all"]["times"] for bill in bills] == [3, 3]


def test_given_weights_are_used_in_the_place_of_rates(full, tmp_path):
    """With all weight on one checkpoint, its own influence decides."""
    for number, weight in ((1, "1,0,0"), (3, "0 0 2")):
        folder = selecting(full, tmp_path / str(number), less_weights=weight)
        directions = load_file(folder / f"directions/{number}.safetensors")["directions"]
        features = FeatureStore(folder / ("features" if number == 1 else "features-3")).features
        assert scores(folder) == dict(enumerate(stored_influence(features, directions).tolist()))
    config = load(None, full.elsewhere(tmp_path, less_weights="1, 1, 2"))
    assert weights(Session(config)) == [0.25, 0.25, 0.5]


def test_a_single_checkpoint_has_all_the_weight_though_its_rate_is_0(settings):
    """As a single step has under a rising schedule."""
    session = Session(load(None, settings))
    write(session.dir.warmup / "checkpoint.json", '{"learning_rate": 0}')
    assert weights(session) == [1.0]


def test_one_checkpoint_leaves_nothing_to_the_bandit(drawn, tmp_path):
    """All that it could draw is stored: every row is ranked, and no gradient is computed for it."""
    found = summary(selecting(drawn, tmp_path / "run", less_checkpoints=1))
    assert (found["drawn"], found["cost"]["pool_gradients"]) == (100, 0)


def test_another_repetition_draws_other_rows_at_the_same_checkpoints(drawn, tmp_path):
    assert set(scores(selecting(drawn, tmp_path / "run", repeat=1))) != set(scores(drawn.folder))


@examples(max_examples=40)
@given(st.integers(1, 20), st.integers(1, 4), st.integers(1, 4), st.integers(0, 999), st.integers(1, 7))
def test_influence_over_checkpoints_equals_the_formula(rows, subtasks, checkpoints, seed, block):
    rng = np.random.default_rng(seed)
    stores = [rng.normal(size=(rows, 6)).astype(np.float16) for _ in range(checkpoints)]
    directions = [rng.normal(size=(subtasks, 6)).astype(np.float32) for _ in range(checkpoints)]
    given = rng.random(checkpoints)
    found = stored_influence(EndToEnd(stores), weighted_directions(directions, given), block)
    for row in range(rows):
        products = [
            sum(
                float(w) * sum(float(a) * float(b) for a, b in zip(store[row], d[s], strict=True))
                for w, store, d in zip(given, stores, directions, strict=True)
            )
            for s in range(subtasks)
        ]
        assert found[row] == pytest.approx(max(products), rel=1e-6, abs=1e-6)


def test_select_at_a_checkpoint_is_dynamics_alone(full):
    folder = full.folder
    assert clusterucb("select", "--out", folder, "--checkpoint", folder / "warmup").complaint == (
        f"--checkpoint {folder / 'warmup'}: only method dynamic selects at any checkpoint, and this run's is "
        "less; leave --checkpoint out"
    )


def test_a_warmup_whose_only_rate_is_0_is_refused_before_training(drawn, tmp_path):
    given = options(drawn.elsewhere(tmp_path / "run", less_warmup=0.01, less_checkpoints=1))
    assert clusterucb("warmup", *given).complaint == (
        "less_checkpoints 1 of 1 rows is one optimizer step, whose learning rate is 0 under lr_warmup 0.03; "
        "raise --less-checkpoints or --less-warmup, or use --lr-warmup 0"
    )
    assert not (tmp_path / "run/config.yaml").exists()
    done("warmup", *given, "--lr-warmup", 0)
