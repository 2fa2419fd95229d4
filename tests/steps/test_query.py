"""`clusterucb query` and `Index.query`: the plain ranking, by what an index has stored."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import clusterucb as package
from builders import build_model, build_tokenizer, write_rows
from cli_helpers import clusterucb, done, lines, read
from clusterucb.errors import InputError, MismatchError
from clusterucb.features import ranking
from clusterucb.features.ranking import best_first, scores_of_all
from clusterucb.features.store import FeatureStore

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("rows", [1, 1024, 2500])
def test_every_row_has_its_best_score_for_every_target(rows):
    features = RNG.standard_normal((rows, 64)).astype(np.float16)
    directions, owners = RNG.standard_normal((5, 64)), np.array([0, 0, 1, 2, 2])
    found = scores_of_all(features, directions, owners)
    products = directions @ features.T.astype(np.float64)
    expected = [products[owners == target].max(0) for target in range(3)]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("directions", [1, 5, 16, 100])
def test_a_row_has_the_same_score_to_the_bit_wherever_it_lies(directions, monkeypatch):
    """Whatever the blocks and threads: so equal rows rank by their place, and rows of zeros have 0."""
    of_each, known = RNG.integers(0, 37, 700), RNG.standard_normal((37, 1000)).astype(np.float16)
    known[0], known[1] = 0, np.nextafter(known[2], np.float16(0))  # as near to another as rows can be
    aims, owners = RNG.standard_normal((directions, 1000)), np.arange(directions) // 2
    found = scores_of_all(known[of_each], aims, owners)
    alone = scores_of_all(known, aims, owners)
    np.testing.assert_array_equal(found, alone[:, of_each])
    assert (alone[:, 0] == 0).all()
    for block, threads in ((96, 1), (256, 3)):
        monkeypatch.setattr(ranking, "BLOCK", block)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            np.testing.assert_array_equal(scores_of_all(known[of_each], aims, owners), found)
        finally:
            torch.set_num_threads(before)
    for scores in found:
        expected = sorted(range(700), key=lambda row: (-scores[row], row))
        assert best_first(scores, 60).tolist() == expected[:60]
        assert best_first(scores, 700).tolist() == expected


@pytest.mark.parametrize("name", ["clusterucb", "less", "clusterucb_hidden", "linear_ucb_words"])
def test_it_ranks_as_the_first_selection_of_a_run_that_scores_all(finished_run, name, tmp_path):
    """For hidden states: as their own cosines do, as a run takes gradients of the rows that it draws.

    For words: as they do, but that rows of the task itself have half of a run's selection.
    """
    there = finished_run(name)
    index = package.Index.open(there.folder)
    found = index.query(there.settings["target"], subtask="subject")
    assert len(found.ids) == len(found.rows) == 10  # floor(0.1 * 100), as many as a run selects
    assert (np.diff(found.scores) <= 0).all()
    if name in ("clusterucb_hidden", "linear_ucb_words"):
        stored = np.asarray(FeatureStore(there.folder / "features").features, np.float64)
        aims = load_file(there.folder / "directions/1.safetensors")["directions"]
        np.testing.assert_allclose(found.scores, np.sort((stored @ aims.T).max(1))[::-1][:10], atol=1e-3)
        return
    round_1 = lines(there.folder / "rounds/1/selected.ids.jsonl")
    assert sorted(found.ids) == sorted(row["id"] for row in round_1)
    scores = {row["id"]: row["score"] for row in round_1}
    np.testing.assert_allclose(found.scores, [scores[name] for name in found.ids], atol=1e-5)
    found.write(tmp_path / "selected.jsonl")
    ours, theirs = tmp_path / "selected.jsonl", there.folder / "rounds/1/selected.jsonl"
    assert ours.read_bytes() == theirs.read_bytes()


def test_many_targets_in_one_pass_are_the_same_as_each_alone(finished_run, data_folder, tmp_path):
    index = package.Index.open(finished_run("clusterucb").folder)
    for n in range(3):
        write_rows(tmp_path / f"{n}.jsonl", n + 1, 20 + n)
    together = index.queries({f"t{n}": tmp_path / f"{n}.jsonl" for n in range(3)}, top=7)
    for n in range(3):
        alone, found = index.query(tmp_path / f"{n}.jsonl", 7), together[f"t{n}"]
        assert (found.target, found.ids, len(found.ids)) == (f"t{n}", alone.ids, 7)
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-5)
        assert found.nearest == alone.nearest


def test_a_row_is_nearest_to_the_target_row_that_repeats_it(finished_run, data_folder, tmp_path):
    rows = [lines(data_folder / "pool-a.jsonl")[n] for n in (3, 8)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = package.Index.open(finished_run("clusterucb").folder).query(tmp_path / "t.jsonl", top=100)
    near = dict(zip(found.ids, found.nearest, strict=True))
    assert [near[f"pool-a.jsonl:{n}"] for n in (4, 9)] == ["t.jsonl:1", "t.jsonl:2"]


def test_the_command_says_the_same_and_writes_nothing(finished_run, data_folder):
    there = finished_run("clusterucb").folder
    before = {path: path.stat().st_mtime_ns for path in there.rglob("*")}
    targets = [f"{name}={data_folder / name}.jsonl" for name in ("target", "holdout")]
    shown = done("query", there, "--target", *targets, "--top", 3, "--jsonl").out
    found = [json.loads(line) for line in shown.splitlines()]
    assert [row["target"] for row in found] == ["holdout"] * 3 + ["target"] * 3
    table = done("query", there, "--target", data_folder / "target.jsonl", "--top", 3).out
    assert "Best of 3 rows for the target" in table
    assert {path: path.stat().st_mtime_ns for path in there.rglob("*")} == before


def test_an_index_that_has_moved_is_read_with_model_and_pool_where_they_are_now(finished_run, tmp_path):
    """A query reads its target, and never the pool."""
    there = finished_run("clusterucb")
    copy = shutil.copytree(there.folder, tmp_path / "copy")
    for path in copy.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    target, model, config = there.settings["target"], there.settings["model"], copy / "config.yaml"
    config.chmod(0o644)
    config.write_text(config.read_text().replace(model, "/no/model").replace("pool-", "gone-"))
    with pytest.raises(InputError, match="/no/model"):
        package.Index.open(copy).query(target)
    found = package.Index.open(copy, model=model).query(target, 4)
    assert found.ids == package.Index.open(there.folder).query(target, 4).ids
    with pytest.raises(InputError, match=r"gone-a\.jsonl"):
        found.write(tmp_path / "s.jsonl")
    other = package.Index.open(copy, model=model, pool=there.settings["pool"][:1])
    with pytest.raises(MismatchError, match="was made with pool"):
        other.query(target, 4).write(tmp_path / "s.jsonl")


def test_another_base_is_refused_with_both_fingerprints(finished_run, tmp_path):
    there = finished_run("clusterucb")
    build_model(seed=5).save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    given = ["--model", tmp_path / "model", "--target", *there.settings["target"]]
    said = clusterucb("query", there.folder, *given).complaint
    made = read(there.folder / "warmup/checkpoint.json")["made_with"]["model"]
    assert f"was made with model '{made}', this run has '" in said


def test_what_is_no_index_is_named(tmp_path):
    said = clusterucb("run", "--index", tmp_path, "--out", tmp_path / "o").complaint
    assert f"--index {tmp_path}: no config.yaml there" in said
    assert not (tmp_path / "o").exists()
