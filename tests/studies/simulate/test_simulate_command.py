"""`clusterucb simulate` as a person types it: on a run of ours, on feature folders, on LESS's files."""

import html
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file, save_file

import clusterucb as cu
from cli_helpers import clusterucb, done, lines
from clusterucb.features.store import FeatureStore, FeatureWriter
from clusterucb.run.directory import RunDir
from clusterucb.selection.policies import POLICIES, policy

SMALL = ("--seeds", 2, "--budgets", "0.2,0.5", "--k", 5, "--top-p", 0.1)
KINDS = dict.fromkeys(("k", "seed", "spent", "arm", "size", "draws"), int) | {"problem": str, "policy": str}
simulate = partial(done, "simulate")


def table(folder, name="simulation.csv", policy=None):
    """A table of a simulation, of one policy or of all; floats as Python reads them."""
    found = pd.read_csv(folder / name, dtype=str)
    found = found.astype({column: KINDS.get(column, float) for column in found})
    return found if policy is None else found[found["policy"] == policy]


def features(folder, rows=80, dim=24, seed=0, made_with=None):
    """A feature folder of ours."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4, dim))[rng.integers(0, 4, rows)] + 0.5 * rng.normal(size=(rows, dim))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
    directions = rng.normal(size=(2, dim)).astype(np.float32)
    with FeatureWriter(folder, rows, dim, made_with or {"pool": "p"}) as writer:
        writer.write(np.arange(rows), x, np.zeros(rows))
        save_file({"directions": directions}, folder / "directions.safetensors")
        writer.finish({})
    return folder


def write_less(folder, rows):
    """A gradient file where LESS puts it."""
    file = folder / f"dim{rows.shape[1]}/all_orig.pt"
    file.parent.mkdir(parents=True)
    torch.save(torch.from_numpy(rows).half(), file)
    return folder


@pytest.fixture
def store(tmp_path):
    return features(tmp_path / "fresh")


def expected(*problem, **more):
    """What simulate() says of a problem, with the settings of SMALL."""
    grid = cu.Grid(budgets=(0.2, 0.5), ks=(5,), seeds=(0, 1), top_p=0.1, **more)
    return cu.simulate([cu.Problem(*problem)], {name: policy(name) for name in POLICIES}, grid)


def ours(features, directions):
    """Features and influence of a store, by numpy alone."""
    x, directions = np.asarray(FeatureStore(features).features), load_file(directions)["directions"]
    return x, (x.astype(np.float64) @ directions.T.astype(np.float64)).max(1).astype(np.float32).astype(float)


def store_of(folder):
    return ours(folder, folder / "directions.safetensors")


def check(folder, outcomes):
    """simulation.csv and draws.csv read back equal the outcomes."""
    runs = table(folder)
    wanted = pd.DataFrame([vars(o) for o in outcomes])[list(runs)]
    pd.testing.assert_frame_equal(runs, wanted, check_exact=True)
    arms = [(o, arm) for o in outcomes for arm in range(o.k)]
    drawn = [
        (o.policy, o.budget, o.seed, arm, o.arms.sizes[arm], o.draws[arm], o.arms.influence[arm])
        for o, arm in arms
    ]
    columns = ["policy", "budget", "seed", "arm", "size", "draws", "mean_influence"]
    wanted = pd.DataFrame(drawn, columns=columns)
    pd.testing.assert_frame_equal(table(folder, "draws.csv")[columns], wanted, check_exact=True)


def test_a_run_of_ours_is_a_store_and_stays_as_it_was(finished_settings, tmp_path):
    run = Path(finished_settings["out"])
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    shown = simulate(run, "--out", tmp_path / "out", *SMALL)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    x, scores = ours(run / "features", RunDir(run).directions_at(1))
    check(tmp_path / "out", expected(str(run), scores, x))
    assert str(tmp_path / "out") in shown.out
    kept = [line["score"] for line in lines(run / "rounds/1/selected.ids.jsonl")]  # by the run itself
    assert sorted(kept) == sorted(scores)[-10:]


def test_the_files_are_the_same_each_time_and_nothing_half_made_stays(store, tmp_path):
    for name in ("a", "b"):
        assert simulate(store, "--out", tmp_path / name, *SMALL, "--quiet")[1:] == ("", "")
    for file in ("simulation.csv", "draws.csv", "simulation.html"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert list(tmp_path.rglob("*.part")) == []


def test_several_stores_are_problems_of_their_own_with_every_k_and_csp(store, tmp_path):
    other = features(tmp_path / "other", seed=1)
    more = ("--k", "3,5", "--csp", "0,0.1", "--policies", "random", "--seeds", 1, "--top-p", 0.1)
    shown = simulate(store, other, "--out", tmp_path / "out", *more, "--budgets", 0.5)
    found = table(tmp_path / "out", policy="random")[["problem", "k", "csp"]]
    runs = [[str(folder), k, csp] for folder in (store, other) for k in (3, 5) for csp in (0.0, 0.1)]
    assert found.to_numpy().tolist() == runs
    assert shown.out.count("recall in %") == 8
    assert (tmp_path / "out/simulation.html").read_text().count("Plotly.newPlot(") == 8


def test_clusters_from_an_older_store_and_its_ranking_as_stale(store, tmp_path):
    old = features(tmp_path / "old", seed=1, dim=16)
    shown = simulate(store, "--clusters-from", old, "--out", tmp_path / "out", *SMALL)
    (_, scores), (x, stale) = store_of(store), store_of(old)
    check(tmp_path / "out", expected(str(store), scores, x, stale))
    assert len(table(tmp_path / "out", policy="stale")) == 1
    assert "no draw" in shown.out


@pytest.mark.parametrize("dim", [24, 16])
def test_linear_ucb_is_run_for_each_budget_with_old_features_on_new_directions(store, tmp_path, dim):
    """Or with what the old ones say of themselves, where these directions do not fit them."""
    old = features(tmp_path / "old", seed=1, dim=dim)
    simulate(store, "--clusters-from", old, "--policies", "linear_ucb", "--out", tmp_path / "out", *SMALL)
    (_, scores), (x, stale) = store_of(store), store_of(old)
    estimate = stale if dim == 16 else ours(old, store / "directions.safetensors")[1]
    known = cu.Known(estimate, x.astype(np.float32), np.zeros(80, np.int64))
    labels, top = cu.spherical_kmeans(x, 5, centre=True).labels, np.argsort(-scores)[:8]
    found = table(tmp_path / "out", policy="linear_ucb")
    assert len(found) == 4
    for line in found.itertuples():
        run = {"budget": line.budget, "top_p": 0.1, "seed": line.seed}
        own = cu.linear_ucb(labels, known, lambda r: scores[r], **run)
        assert line.recall == np.isin(top, own.rows).mean()
        assert line.spent == own.spent == line.budget * 80
        assert line.captured == pytest.approx(scores[own.rows].mean() / scores[top].mean())


def test_less_files_are_one_problem(tmp_path):
    rng = np.random.default_rng(0)
    a, b, t, old = (rng.normal(size=(n, 16)) for n in (50, 30, 12, 80))
    parts = {"dolly2": a, "cot2": b, "dolly1": old[:50], "cot1": old[50:]}
    *stores, old_dolly, old_cot = (write_less(tmp_path / name, rows) for name, rows in parts.items())
    target, out = write_less(tmp_path / "mmlu", t), tmp_path / "out"
    arguments = (*stores, "--target", target, "--subtasks", 3, "--out", out, *SMALL)

    def half(x):
        x = x.astype(np.float16).astype(np.float64)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    def influence(pool):  # as LESS computes it: row by row, then means
        return (pool @ half(t).T).reshape(80, 3, 4).mean(2).max(1)

    pool = half(np.concatenate([a, b]))
    simulate(*arguments)
    found, reference = table(out), expected(str(target), influence(pool), pool.astype(np.float32))
    assert set(found["problem"]) == {str(target)}
    assert found["recall"].tolist() == [o.recall for o in reference]
    assert found["advantage"].tolist() == pytest.approx([o.advantage for o in reference])
    from_old = ("--clusters-from", old_dolly, "--clusters-from", old_cot)
    simulate(*arguments, *from_old)
    assert "stale" not in set(table(out)["policy"])
    simulate(*arguments, *from_old, "--clusters-target", target)
    reference = expected(str(target), influence(pool), half(old).astype(np.float32), influence(half(old)))
    assert table(out)["recall"].tolist() == [o.recall for o in reference]
    assert table(out)["policy"].iloc[-1] == "stale"


def test_the_plot_asks_nothing_of_the_network_and_shows_hostile_names_as_text(store, tmp_path):
    hostile = tmp_path / "<img src=x onerror=alert(1)>&'\"<script>"
    shutil.copytree(store, hostile)
    simulate(hostile, store, "--out", tmp_path / "out", *SMALL, "--quiet")
    page = (tmp_path / "out/simulation.html").read_text()
    own = re.sub(r"<script[^>]*>/\*\*.*?</script>", "", page, flags=re.DOTALL)  # but plotly's library
    assert len(own) < len(page) / 10
    assert not re.search(r"(src|href)\s*=\s*[\"']?\s*(https?:)?//", own)
    assert "<script src" not in page
    assert "<link" not in own
    assert "default-src 'none'" in own
    assert "<img" not in own
    name = html.escape(str(hostile))
    assert name.replace("<", "\\u003c").replace("/", "\\u002f").replace("&", "&") in own
    assert table(tmp_path / "out")["problem"][0] == str(hostile)


def test_the_table_says_means_and_deviations(store, tmp_path):
    shown = simulate(store, "--out", tmp_path / "out", *SMALL).out
    recalls = 100 * table(tmp_path / "out", policy="ucb1").query("budget == 0.2")["recall"]
    cell = f"{recalls.mean():.1f}±{recalls.std():.1f}"
    assert re.search(rf"ucb1 +│ +{re.escape(cell)} ", shown)
    assert "over 2 seeds" in shown
    alone = simulate(store, "--out", tmp_path / "out", *SMALL, "--seeds", 1).out
    assert "one seed" in alone
    assert "±" not in alone


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "simulate needs STORE... and --out DIR; see --help"),
        (("--out", "o"), "simulate needs STORE"),
        (("none", "--out", "o"), "none: no such file or folder; expected a run directory with features"),
        ((".", "--out", "o"), ".: no store; expected"),
        (("STORE", "--out", "o", "--budgets", "0.1,x"), "--budgets 0.1,x: expected numbers"),
        (("STORE", "--out", "o", "--budgets", ","), "--budgets ',': expected at least one"),
        (("STORE", "--out", "o", "--k", "5.5"), "--k 5.5: expected whole numbers"),
        (("STORE", "--out", "o", "--top-p", "0"), "top_p=0.0): must be above 0"),
        (("STORE", "STORE", "--out", "o"), "is there twice"),
        (("STORE", "--out", "o", "--target", "LESS"), "has the target's directions in it"),
        (("STORE", "LESS", "--out", "o"), "LESS's gradients, beside a store of ours"),
        (("STORE", "--clusters-from", "LESS", "--out", "o"), "LESS's gradients, beside a store of ours"),
        (("STORE", "--clusters-from", "SHORT", "--out", "o"), "SHORT: has 70 rows, STORE has 80"),
        (("STORE", "--clusters-from", "OTHER", "--out", "o"), "was made with pool 'q', this run has 'p'"),
        (("STORE", "--clusters-from", "OTHER", "--clusters-from", "OTHER", "--out", "o"), "more than once"),
        (("DAMAGED", "--out", "o"), "is damaged"),
        (("UNDIRECTED", "--out", "o"), "is damaged"),
        (("LESS", "--out", "o"), "LESS's gradients need --target"),
        (("LESS", "--target", "none", "--out", "o"), "none: expected LESS's gradients of a task"),
        (("LESS", "--target", "WIDE", "--out", "o"), "rows of 6 dimensions, but those of"),
        (("LESS", "--target", "LESS", "--clusters-from", "WIDE", "--out", "o"), "has 4 rows"),
        (("LESS", "--target", "LESS", "--clusters-target", "LESS", "--out", "o"), "give both"),
        (("STORE", "--out", "FILE"), "the run directory must be a folder"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    features(tmp_path / "STORE")
    features(tmp_path / "SHORT", rows=70)
    features(tmp_path / "OTHER", made_with={"pool": "q"})
    (features(tmp_path / "DAMAGED") / "features.f16").unlink()
    (features(tmp_path / "UNDIRECTED") / "directions.safetensors").write_bytes(b"x")
    write_less(tmp_path / "LESS", np.random.default_rng(0).normal(size=(20, 4)))
    write_less(tmp_path / "WIDE", np.random.default_rng(0).normal(size=(4, 6)))
    (tmp_path / "FILE").write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert said in clusterucb("simulate", *arguments).complaint
    left = [path.name for path in sorted(tmp_path.rglob("*")) if path not in before]
    assert set(left) <= {"o", ".lock"}


def test_the_working_directory_has_a_store_named_as_a_command_and_a_policy_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    features(tmp_path / "run")
    (tmp_path / "policy_of_mine.py").write_text("import clusterucb as cu\nSame = cu.UCBBeta\n")
    simulate("--policies", "ucb_beta, policy_of_mine:Same", "run", "--out", "out", *SMALL)
    names = ("ucb_beta", "policy_of_mine:Same")
    one, other = (table(tmp_path / "out", policy=name) for name in names)
    assert set(one["problem"]) == {"run"}
    assert len(one) == 4
    assert one["recall"].tolist() == other["recall"].tolist()
