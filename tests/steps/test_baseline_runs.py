"""Whole runs of the baselines on a tiny model, by the command."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from test_bm25 import slow_scores
from test_rds import slow_representation
from test_round_robin import slow_round_robin

from cli_helpers import clusterucb, lines, options, read, result
from clusterucb.config import load
from clusterucb.data.words import plain_words
from clusterucb.run.session import Session

METHODS = ("random", "bm25", "rds", "loss")


@pytest.fixture
def session_of(finished_baseline):
    """A session over a finished run: to ask for rows and model."""
    return lambda method: Session(load(finished_baseline(method) / "config.yaml"))


def selection(folder):
    return load_file(Path(folder) / "rounds/1/selection.safetensors")


@pytest.mark.parametrize("method", METHODS)
def test_a_baseline_selects_once_and_then_all_is_as_in_any_run(finished_baseline, method, baseline_settings):
    folder = finished_baseline(method)
    summary = read(folder / "summary.json")
    assert (summary["method"], summary["bandit"], summary["rows"]) == (method, "none", 100)
    assert [found["selected"] for found in summary["selected"]] == [10]
    assert list(summary["steps"]) == ["select 1", "train", "evaluate"]
    assert summary["steps"]["train"]["rows"] == 2 * 10  # the same rows in both periods
    assert "full_dynamic" not in summary
    assert {path.name for path in folder.iterdir()}.isdisjoint({"warmup", "features", "clusters.safetensors"})
    assert [path.name for path in (folder / "rounds").iterdir()] == ["1"]
    assert not list(folder.rglob("*.part"))
    evaluation = read(folder / "evaluation.json")
    assert evaluation["base"]["losses"] != evaluation["adapter"]["losses"]

    pool = [line for path in baseline_settings["pool"] for line in Path(path).read_bytes().splitlines()]
    chosen = (folder / "rounds/1/selected.jsonl").read_bytes().splitlines()
    arrays = selection(folder)
    assert chosen == [pool[row] for row in arrays["rows"].tolist()]
    sidecar = lines(folder / "rounds/1/selected.ids.jsonl")
    assert [entry["score"] for entry in sidecar] == arrays["scores"].tolist()
    assert sorted(arrays["drawn"].tolist()) == list(range(100))
    assert (np.diff(arrays["drawn_scores"]) <= 0).all()


@pytest.mark.parametrize("method", ["random", "bm25", "loss"])
def test_the_rows_with_the_largest_scores_are_kept(finished_baseline, method):
    arrays = selection(finished_baseline(method))
    scores = dict(zip(arrays["drawn"].tolist(), arrays["drawn_scores"].tolist(), strict=True))
    best = sorted(sorted(scores, key=lambda row: (-scores[row], row))[:10])
    assert arrays["rows"].tolist() == best
    assert arrays["scores"].tolist() == [scores[row] for row in best]


def test_losses_are_each_rows_own_cross_entropy(finished_baseline, session_of, baseline_settings, tmp_path):
    session = session_of("loss")
    model, expected = session.model.eval(), []
    for row in session.inputs.pooled.tokens:
        assert len(row) <= 40
        ids = torch.from_numpy(row.ids.astype(np.int64))
        labels = ids.where(torch.from_numpy(np.array(row.labels)), -100)
        with torch.no_grad(), model.disable_adapter():
            expected.append(float(model(input_ids=ids[None], labels=labels[None]).loss))
    arrays = selection(finished_baseline("loss"))
    np.testing.assert_allclose(arrays["drawn_scores"], np.array(expected)[arrays["drawn"]], rtol=1e-4)

    lowest = tmp_path / "lowest"
    given = options(baseline_settings, method="loss", perplexity="lowest", out=lowest)
    assert clusterucb("select", *given).status == 0
    kept = selection(lowest)
    assert sorted(kept["rows"].tolist()) == sorted(np.argsort(expected)[:10].tolist())
    np.testing.assert_allclose(kept["scores"], -np.array(expected)[kept["rows"]], rtol=1e-4)


def test_bm25_scores_are_those_of_the_rows_texts(finished_baseline, session_of):
    session = session_of("bm25")

    def words(rows):
        return [plain_words("\n".join(message.content for message in row.messages)) for row in rows]

    scores = slow_scores(
        words(session.inputs.pool), words(session.inputs.target), session.inputs.target.codes.tolist()
    )
    arrays = selection(finished_baseline("bm25"))
    np.testing.assert_allclose(arrays["drawn_scores"], np.array(scores)[arrays["drawn"]], rtol=1e-5)


def test_rds_is_round_robin_over_cosines_of_weighted_means(finished_baseline, session_of):
    """Kept as float16, hidden states differ by 1 in 2000."""
    session = session_of("rds")
    pool = [slow_representation(session.model, row) for row in session.inputs.pooled.tokens]
    target = [slow_representation(session.model, row) for row in session.inputs.targeted.tokens]
    similarities = np.array(target) @ np.array(pool).T
    expected = dict(slow_round_robin(similarities, 10))
    arrays = selection(finished_baseline("rds"))
    assert arrays["rows"].tolist() == sorted(expected)
    np.testing.assert_allclose(arrays["scores"], [expected[row] for row in sorted(expected)], atol=1e-3)
    np.testing.assert_allclose(arrays["drawn_scores"], similarities.max(0)[arrays["drawn"]], atol=1e-3)


def test_costs_are_forward_passes_and_no_gradients(finished_baseline, session_of):
    pool = {method: int(session_of(method).pooled.lengths.sum()) for method in ("rds", "loss")}
    target = sum(len(row) for row in session_of("rds").targeted.tokens)
    counted = {
        method: read(finished_baseline(method) / "summary.json")["steps"]["select 1"] for method in METHODS
    }
    seconds = [cost.pop("seconds") for cost in counted.values()]
    assert min(seconds) >= 0
    none = {"pool_gradients": 0, "target_gradients": 0}
    assert counted == {
        "random": {"rows": 0, "tokens": 0, "pool_forwards": 0, **none},
        "bm25": {"rows": 100, "tokens": 0, "pool_forwards": 0, **none},
        "rds": {"rows": 100, "tokens": pool["rds"] + target, "pool_forwards": 100, **none},
        "loss": {"rows": 100, "tokens": pool["loss"], "pool_forwards": 100, **none},
    }


def test_another_repeat_or_seed_draws_other_random_rows(finished_baseline, baseline_settings, tmp_path):
    drawn = [selection(finished_baseline("random"))["rows"].tolist()]
    for name, change in {"repeat": {"repeat": 1}, "seed": {"seed": 1}, "same": {}}.items():
        given = options(baseline_settings, method="random", out=tmp_path / name, **change)
        assert clusterucb("select", *given).status == 0
        drawn.append(selection(tmp_path / name)["rows"].tolist())
    first, *others, same = drawn
    assert same == first
    assert first not in others
    assert others[0] != others[1]


@pytest.mark.parametrize("method", ["random", "rds"])
def test_step_by_step_gives_the_same_as_run(finished_baseline, baseline_settings, method, tmp_path):
    folder = tmp_path / "run"
    for number, step in enumerate(("select", "train", "evaluate")):
        given = options(baseline_settings, method=method, out=folder) if number == 0 else ["--out", folder]
        outcome = clusterucb(step, *given)
        assert outcome.status == 0, outcome
        assert Path(outcome.out.splitlines()[-1]).exists()
    assert result(folder) == result(finished_baseline(method))


def test_a_second_run_computes_nothing_and_says_the_same(finished_baseline, monkeypatch):
    monkeypatch.setattr("clusterucb.run.session.load_model", lambda *_: pytest.fail("loaded"))
    said = {
        "rds": "0 pool gradients, 100 forward passes of pool rows",
        "random": "0 pool gradients, 0 forward",
    }
    for method, line in said.items():
        outcome = clusterucb("run", "--out", finished_baseline(method))
        assert outcome.status == 0, outcome
        assert line in outcome.out


@pytest.mark.parametrize("method", METHODS)
def test_rows_that_cannot_be_used_or_are_kept_out_are_never_selected(baseline_settings, method, tmp_path):
    """One row has an answer that is too long, one repeats a held-out row; all others are selected."""
    rows = [row for path in baseline_settings["pool"] for row in lines(path)][:12]
    long = {"role": "assistant", "content": " ".join(["quiz"] * 80)}
    rows[4] = {"messages": [{"role": "user", "content": "lamp"}, long]}
    held_out = next(row for row in lines(baseline_settings["holdout"][0]))
    rows[7] = {"messages": held_out["messages"]}
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = options(baseline_settings, method=method, pool=[str(pool)], out=tmp_path / "run", top_p=1.0)
    outcome = clusterucb("select", *given, "--decontaminate")
    assert outcome.status == 0, outcome
    kept = [entry["id"] for entry in lines(tmp_path / "run/rounds/1/selected.ids.jsonl")]
    excluded = {entry["id"] for entry in lines(tmp_path / "run/pool/excluded.jsonl")}
    assert excluded == {"pool.jsonl:5", "pool.jsonl:8"}
    assert kept == [f"pool.jsonl:{i}" for i in range(1, 13) if i not in (5, 8)]


def test_a_run_of_another_adapter_scores_with_it(finished_baseline, baseline_settings, tmp_path):
    """The rows are judged by the model that training starts from."""
    given = {**baseline_settings, "method": "loss", "rank": None, "alpha": None, "out": tmp_path / "run"}
    trained = finished_baseline("random") / "adapter"
    assert clusterucb("select", *options(given, adapter=trained)).status == 0
    assert (
        selection(tmp_path / "run")["scores"].tolist()
        != selection(finished_baseline("loss"))["scores"].tolist()
    )


@pytest.mark.parametrize("step", ["warmup", "gradients", "cluster"])
def test_steps_that_a_baseline_does_not_have_say_so(finished_baseline, step):
    folder = finished_baseline("bm25")
    assert clusterucb(step, "--out", folder).complaint == (
        f"method bm25 has no step {step}, as it needs no gradient: run `clusterucb select --out {folder}`"
    )


def test_a_row_whose_loss_is_not_finite_is_named(baseline_settings, tmp_path, monkeypatch):
    from clusterucb.gradients.per_sample import row_losses

    def broken(model, batch):
        found = row_losses(model, batch)
        found[batch.label_counts == batch.label_counts.max()] = np.nan
        return found

    monkeypatch.setattr("clusterucb.steps.baselines.row_losses", broken)
    said = clusterucb("run", *options(baseline_settings, method="loss", out=tmp_path / "run")).complaint
    name, _, rest = said.partition(": ")
    assert name.startswith("pool-")
    assert rest.startswith("what the model computes of it is not a finite number; try --dtype float32")
    assert not (tmp_path / "run/rounds/1").exists()


def test_bad_settings_are_refused_before_a_model_is_loaded(baseline_settings, tmp_path, monkeypatch):
    monkeypatch.setattr("clusterucb.run.session.load_model", lambda *_: pytest.fail("loaded"))

    def complaint(**changes):
        return clusterucb("select", *options(baseline_settings, out=tmp_path / "run", **changes)).complaint

    assert "perplexity is 'high': input should be 'highest' or 'lowest'" in complaint(
        method="loss", perplexity="high"
    )
    assert "method is 'bm26'" in complaint(method="bm26")
    assert "selects none of 100 rows" in complaint(method="rds", top_p=0.001)


def test_settings_of_the_bandit_do_not_bind_a_baseline(baseline_settings, tmp_path):
    """More rows than the budget, and more clusters than rows."""
    given = options(baseline_settings, method="random", out=tmp_path / "run", top_p=0.5, k=1000)
    assert clusterucb("select", *given).status == 0
    assert len(selection(tmp_path / "run")["rows"]) == 50


def test_hidden_states_of_another_model_are_refused(baseline_settings, tmp_path, model_folder, monkeypatch):
    """An interrupted selection does not go on with another model's hidden states or losses."""
    from builders import build_model

    copy = shutil.copytree(model_folder, tmp_path / "model")
    for method, module in {"rds": "forward.hidden", "loss": "baselines.select"}.items():
        given = options(baseline_settings, model=copy, method=method, out=tmp_path / method)
        calls = iter(range(3))

        def stopping(*args, real=None, calls=calls):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return real(*args)

        from clusterucb.run.inputs import forward_pool

        with monkeypatch.context() as patch:
            patch.setattr(f"clusterucb.{module}.forward_pool", lambda *a: stopping(*a, real=forward_pool))
            assert clusterucb("select", *given).status == 130
        build_model(seed=1).save_pretrained(copy)
        said = clusterucb("select", *given).complaint
        assert "was made with" in said
        shutil.rmtree(copy)
        shutil.copytree(model_folder, copy)


def test_it_works_from_python_too(finished_baseline, baseline_settings, tmp_path):
    from clusterucb.recipes import procedure

    session = Session(load(None, {**baseline_settings, "method": "bm25", "out": str(tmp_path / "run")}))
    assert procedure(session)["method"] == "bm25"
    assert result(tmp_path / "run") == result(finished_baseline("bm25"))
