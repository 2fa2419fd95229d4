"""Whole runs of the baselines on a tiny model, by the command."""

import json
import shutil

import numpy as np
import pytest
from step_helpers import selection
from test_rds import slow_representation

from builders import build_model
from cli_helpers import clusterucb, done, kept_out, lines, options, read
from clusterucb.config import load
from clusterucb.features.head import head_gradients
from clusterucb.gradients import per_sample
from clusterucb.gradients.batches import collate
from clusterucb.run.session import Session
from clusterucb.selection.round_robin import round_robin
from clusterucb.steps.bm25 import bm25_scores
from forks import FORWARD, LOOKS

NAMES = ("random", "bm25", "rds", "head", "loss_highest", "loss_lowest")
LENGTH = 40  # of what a gradient, and a baseline, sees of a row


def session_of(finished):
    return Session(load(finished.folder / "config.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_baseline_selects_once_for_all_periods_and_needs_no_warmup(finished_run, name):
    folder = finished_run(name).folder
    summary = read(folder / "summary.json")
    assert (summary["method"], summary["bandit"]) == (name.split("_")[0], "none")
    assert {path.name for path in folder.iterdir()}.isdisjoint({"warmup", "features", "clusters.safetensors"})
    assert not list(folder.rglob("*.part"))
    evaluation = read(folder / "evaluation.json")
    assert evaluation["base"]["losses"] != evaluation["adapter"]["losses"]


def test_losses_are_each_rows_own_cross_entropy(finished_run):
    session = session_of(finished_run("loss_highest"))
    rows = session.inputs.pooled.tokens
    assert max(map(len, rows)) == LENGTH
    expected = per_sample.row_losses(session.model, collate(rows))
    for name, sign in (("loss_highest", 1), ("loss_lowest", -1)):
        found = selection(finished_run(name).folder)
        np.testing.assert_allclose(found["drawn_scores"], sign * expected[found["drawn"]], rtol=1e-4)


def test_bm25_scores_are_those_of_the_rows_texts(finished_run):
    finished = finished_run("bm25")
    inputs = session_of(finished).inputs

    def words(rows):
        return ["\n".join(message.content for message in row.messages) for row in rows]

    scores = bm25_scores(words(inputs.pool), words(inputs.target), inputs.target.codes)
    arrays = selection(finished.folder)
    np.testing.assert_allclose(arrays["drawn_scores"], scores[arrays["drawn"]], rtol=1e-5)


def test_rds_is_round_robin_over_cosines_of_weighted_means(finished_run):
    """Kept as float16, hidden states differ by 1 in 2000."""
    finished = finished_run("rds")
    session = session_of(finished)
    pool = [slow_representation(session.model, row) for row in session.inputs.pooled.tokens]
    target = [slow_representation(session.model, row) for row in session.inputs.targeted.tokens]
    similarities = np.array(target) @ np.array(pool).T
    taken = round_robin([similarities], 10)
    expected = dict(zip(taken.rows, taken.similarities, strict=True))
    arrays = selection(finished.folder)
    assert arrays["rows"].tolist() == sorted(expected)
    np.testing.assert_allclose(arrays["scores"], [expected[row] for row in sorted(expected)], atol=1e-3)
    np.testing.assert_allclose(arrays["drawn_scores"], similarities.max(0)[arrays["drawn"]], atol=1e-3)


def test_head_is_the_mean_cosine_of_centred_gradients_before_the_vocabulary_head(finished_run):
    """At the base model; the largest of the two subtasks'."""
    finished = finished_run("head")
    session = session_of(finished)
    sides = session.inputs.pooled.tokens, session.inputs.targeted.tokens
    pool, target = (head_gradients(session.model, collate(rows), 256, session.config.seed) for rows in sides)
    pool, target = pool - pool.mean(0), target - pool.mean(0)
    cosines = pool @ target.T / np.outer(*(np.linalg.norm(side, axis=1) for side in (pool, target)))
    codes = session.inputs.targeted.codes
    expected = np.maximum(*(cosines[:, codes == code].mean(1) for code in (0, 1)))
    arrays = selection(finished.folder)
    np.testing.assert_allclose(arrays["drawn_scores"], expected[arrays["drawn"]], atol=2e-3)
    assert set(np.argsort(-expected)[:8].tolist()) <= set(arrays["rows"].tolist())
    assert arrays["rows"].tolist() == sorted(arrays["drawn"][:10].tolist())


def test_tokens_are_those_of_forward_passes(finished_run):
    inputs = session_of(finished_run("rds")).inputs
    pool, target = int(inputs.pooled.lengths.sum()), int(inputs.targeted.lengths.sum())
    expected = {"random": (0, 0), "bm25": (100, 0), "loss_lowest": (100, pool)}
    expected |= dict.fromkeys(("rds", "head"), (100, pool + target))
    for name, counts in expected.items():
        cost = read(finished_run(name).folder / "summary.json")["steps"]["select 1"]
        assert (cost["rows"], cost["tokens"]) == counts


def test_random_numbers_decide_by_seed_and_repetition(finished_run, tmp_path):
    random = finished_run("random")
    found = selection(random.folder)["drawn_scores"]
    assert len(set(found.tolist())) == 100
    assert 0 <= found.min() < 0.1
    assert 0.9 < found.max() < 1
    drawn = [selection(random.folder)["rows"].tolist()]
    for name, change in {"repeat": {"repeat": 1}, "seed": {"seed": 1}}.items():
        done("select", *options(random.elsewhere(tmp_path / name, **change)))
        drawn.append(selection(tmp_path / name)["rows"].tolist())
    assert len(set(map(tuple, drawn))) == 3


@pytest.mark.parametrize("method", ["random", "bm25", "rds", "head", "loss"])
def test_rows_that_cannot_be_used_or_are_kept_out_are_never_selected(run_settings, method, tmp_path):
    """One row has an answer that is too long, one repeats a held-out row, one line is no row; all others are.

    Of one whose answer fits the prompt is cut.
    """
    rows = [row for path in run_settings["pool"] for row in lines(path)][:12]
    long, short = ({"role": "assistant", "content": " ".join(["quiz"] * n)} for n in (80, 1))
    rows[4] = {"messages": [{"role": "user", "content": "lamp"}, long]}
    rows[5] = {"messages": [{"role": "user", "content": " ".join(["lamp"] * 90)}, short]}
    rows[7] = {"messages": lines(run_settings["holdout"][0])[0]["messages"]}
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"messages": [\n')
    given = options(run_settings, method=method, pool=[str(pool)], out=tmp_path / "run", top_p=1.0)
    outcome = done("select", *given, "--decontaminate")
    assert "2 of 13 pool rows cannot be used" in outcome.err
    assert "(holdout 1) are kept out" in outcome.err
    kept = [entry["id"] for entry in lines(tmp_path / "run/rounds/1/selected.ids.jsonl")]
    unusable = {entry["id"]: entry["reason"] for entry in lines(tmp_path / "run/pool/excluded.jsonl")}
    assert unusable.keys() == {"pool.jsonl:5", "pool.jsonl:13"}
    assert unusable["pool.jsonl:13"].startswith("unfinished JSON at column 15")
    assert f"does not fit into {LENGTH}" in unusable["pool.jsonl:5"]
    assert [row["id"] for row in kept_out(tmp_path / "run")] == ["pool.jsonl:8"]
    assert kept == [f"pool.jsonl:{i}" for i in range(1, 13) if i not in (5, 8)]


def test_a_run_of_another_adapter_scores_with_it(finished_run, tmp_path):
    """The rows are judged by the model that training starts from."""
    loss = finished_run("loss_highest")
    changes = {"rank": None, "alpha": None, "adapter": finished_run("random").folder / "adapter"}
    done("select", *options(loss.elsewhere(tmp_path / "run", **changes)))
    ours, theirs = (selection(folder)["scores"].tolist() for folder in (tmp_path / "run", loss.folder))
    assert ours != theirs


def test_a_row_whose_loss_is_not_finite_is_named(run_settings, tmp_path, monkeypatch):
    def broken(model, batch):
        found = per_sample.row_losses(model, batch)
        found[batch.label_counts == batch.label_counts.max()] = np.nan
        return found

    monkeypatch.setattr("clusterucb.steps.baselines.row_losses", broken)
    said = clusterucb("run", *options(run_settings, method="loss", out=tmp_path / "run")).complaint
    name, _, rest = said.partition(": ")
    assert name.startswith("pool-")
    assert rest.startswith("what the model computes of it is not a finite number; try --dtype float32")
    assert not (tmp_path / "run/rounds/1").exists()


def test_settings_of_the_bandit_do_not_bind_a_baseline(finished_run, tmp_path):
    """More rows than the budget, and more clusters than rows."""
    done("select", *options(finished_run("random").elsewhere(tmp_path / "run", top_p=0.5, k=1000)))
    assert len(selection(tmp_path / "run")["rows"]) == 50


@pytest.mark.parametrize("name", ["rds", "head", "loss_highest"])
def test_what_an_interrupted_selection_has_of_another_model_is_refused(server, finished_run, tmp_path, name):
    finished = finished_run(name)
    copy = shutil.copytree(finished.settings["model"], tmp_path / "model")
    given = options(finished.elsewhere(tmp_path / "run", model=copy))
    server.dies(["select", *given], {"where": FORWARD, "call": LOOKS + 4})
    build_model(seed=1).save_pretrained(copy)
    assert "was made with" in clusterucb("select", *given).complaint
