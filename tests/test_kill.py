"""Killed or interrupted at any moment, the same command goes on and ends with the same result."""

import json
import os
import random
import signal
from pathlib import Path

import pytest

from cli_helpers import clusterucb, lines, options, read, result
from clusterucb.run.directory import RunDir
from forks import FORWARD, LOOKS, publication, tensors

pytestmark = pytest.mark.whole

BACKWARD, STEP = "torch:Tensor.backward", "torch.optim:AdamW.step"


def writing(path):
    return {"where": "pathlib:Path.open", "path": path}


class Dying:
    """A command that dies again and again, and what it would have come to."""

    def __init__(self, server, finished, out, **changes):
        self.server, self.finished, self.out = server, finished, Path(out)
        self.arguments = ["run", *options(finished.elsewhere(out, **changes))]

    def dies(self, at, there="", not_there=None):
        self.server.dies(self.arguments, at)
        assert (self.out / there).exists(), at
        assert not_there is None or not (self.out / not_there).exists(), at

    def ends_the_same(self):
        self.server.ends(self.arguments)
        assert result(self.out) == result(self.finished.folder)
        assert list(self.out.rglob("*.part")) == []
        assert not list(self.out.glob("*.states")) + list(self.out.glob("training"))


@pytest.fixture
def dying(server, finished_run, tmp_path):
    """The name of a method to its run that is to die."""
    return lambda name, **changes: Dying(server, finished_run(name), tmp_path / "run", **changes)


MOMENTS = [  # what the attempt is doing, the newest artifact there is then, and where it dies
    ("making the pool's folder", "", writing("pool.part/ids.bin")),
    ("writing tokens", "", {"where": "numpy:save", "path": "pool.part/rows.npy"}),
    (
        "writing the initial adapter",
        "pool",
        {**tensors("initial.part/adapter_model.safetensors"), "when": "after"},
    ),
    ("a step of the warm-up", "initial", {"where": STEP, "call": 2}),
    ("writing a checkpoint of the warm-up", "initial", {"where": "torch:save", "path": "scheduler.pt"}),
    ("writing the warmup checkpoint", "initial", tensors("warmup.part/moments.safetensors.part")),
    ("directions", "warmup", tensors("directions/1.safetensors.part", "numpy")),
    ("storing a feature", "directions/1.safetensors", {"where": "os:pwrite", "call": 70, "torn": True}),
    ("marking features as done", "directions/1.safetensors", {"where": "os:fsync", "call": 6}),
    ("a batch of gradients", "directions/1.safetensors", {"where": BACKWARD, "call": 3}),
    ("ending the store", "directions/1.safetensors", publication("features.part/manifest.json")),
    ("writing the clusters", "features", publication("clusters.safetensors")),
    ("writing the first selection", "clusters.safetensors", writing("rounds/1.part/selected.jsonl")),
    ("a step of period 1", "rounds/1", {"where": STEP, "call": 3}),
    ("evaluating period 1", "rounds/1", {"where": FORWARD, "call": LOOKS + 2}),
    ("writing its loss", "rounds/1", publication("periods/1.json")),
    ("writing a checkpoint", "training/checkpoint-2", {"where": "torch:save", "path": "optimizer.pt"}),
    ("leaving period 1", "rounds/1", publication("checkpoint-3/whole.json", "after")),
    ("target directions", "training/checkpoint-3", {"where": BACKWARD}),
    ("drawing", "rounds/1", {"where": BACKWARD, "call": 4}),
    ("writing a selection", "rounds/1", writing("rounds/2.part/selected.jsonl")),
    ("a step of period 2", "rounds/2", {"where": STEP, "call": 2}),
    ("saying that a checkpoint is whole", "rounds/2", publication("checkpoint-6/whole.json")),
    ("drawing again", "rounds/2", {"where": BACKWARD, "call": 5}),
    ("dropping old checkpoints", "rounds/3", {"where": "shutil:rmtree", "path": "checkpoint-4"}),
    ("writing the adapter", "rounds/3", tensors("adapter.part/moments.safetensors.part")),
    ("evaluating", "adapter", {"where": FORWARD, "call": LOOKS + 2}),
    ("writing the summary", "evaluation.json", publication("summary.json")),
    ("writing the report", "summary.json", publication("report.html")),
]
ARTIFACTS = ["", "pool", "initial", "warmup", "directions/1.safetensors", "features", "clusters.safetensors"]
ARTIFACTS += ["rounds/1", "rounds/2", "rounds/3", "adapter", "evaluation.json", "summary.json", "report.html"]


def test_killed_in_every_step_it_ends_the_same(dying):
    """Each attempt goes on from the one before and dies at its moment."""
    run = dying("clusterucb")
    for moment, there, at in MOMENTS:
        newer = ARTIFACTS[ARTIFACTS.index(there) + 1] if there in ARTIFACTS else None
        run.dies(at, there, newer)
        if moment == "drawing":
            log = run.out / "rounds/2.part/scores.jsonl"
            assert lines(log), moment
            with log.open("ab") as torn:
                torn.write(b'{"weights": "')  # as a kill in the middle of a write leaves it
    run.ends_the_same()


LESS = {
    "less_clusterucb": [
        ("a step of the second epoch", "", {"where": STEP, "call": 7}),
        ("writing the second checkpoint", "warmup", tensors("warmup-2.part/moments.safetensors.part")),
        ("before the trainer's own state", "warmup", publication("run/warmup-2", "after")),
        ("dropping the trainer's states", "warmup-2", publication("run/warmup-3", "after")),
        ("a batch of gradients", "warmup-3", {"where": BACKWARD, "call": 3}),
        ("the last directions", "directions/2.safetensors", publication("directions/3.safetensors")),
        ("drawing", "clusters.safetensors", {"where": BACKWARD, "call": 4}),
        ("drawing, from what was drawn", "rounds/1.part/scores.jsonl", {"where": BACKWARD, "call": 4}),
    ],
    "less": [
        ("features at the second checkpoint", "features", {"where": "os:pwrite", "call": 340, "torn": True}),
        ("ending the second store", "features", publication("run/features-2")),
        ("writing the selection", "features-3", writing("rounds/1.part/selected.jsonl")),
    ],
}


@pytest.mark.parametrize("name", LESS)
def test_less_killed_in_every_step_ends_the_same(dying, name):
    run = dying(name)
    for _moment, there, at in LESS[name]:
        run.dies(at, there)
    run.ends_the_same()


def test_dynamic_without_a_bandit_killed_while_scoring_ends_the_same(dying):
    run = dying("dynamic")
    run.dies(publication("training/checkpoint-3/whole.json", "after"))
    run.dies({"where": BACKWARD, "call": 4}, "rounds/2.part/scores.jsonl")
    assert lines(run.out / "rounds/2.part/scores.jsonl")
    run.ends_the_same()


HIDDEN = [  # what exists then, and where the attempt dies
    ("warmup", {"where": "os:pwrite", "call": 70, "torn": True}),
    ("features.part/uncentred", {"where": FORWARD, "call": LOOKS + 3}),
    ("features.part/uncentred", publication("uncentred/manifest.json", "after")),
    ("features.part/uncentred/manifest.json", {"where": "os:pwrite", "call": 150, "torn": True}),
    ("features.part/manifest.json", {"where": "shutil:rmtree", "path": "uncentred"}),
    ("features.part/manifest.json", publication("run/features")),
    ("rounds/1.part/scores.jsonl", {"where": BACKWARD, "call": 3}),
    ("rounds/1.part/scores.jsonl", writing("rounds/1.part/selected.jsonl")),
    ("rounds/2.part/scores.jsonl", {"where": BACKWARD, "call": 8}),
]


WORDS = [
    ("features.part", writing("features.part/words.npz.part")),
    ("features.part/words.npz", {"where": "os:pwrite", "call": 70, "torn": True}),
    ("features.part/manifest.json", publication("run/features")),
    ("features", writing("rounds/1.part/selected.jsonl")),
    ("rounds/2.part/scores.jsonl", {"where": BACKWARD, "call": 8}),
]


BY_LIKENESS = {  # where the attempts die, forward passes and gradients of pool rows
    "clusterucb_hidden": (HIDDEN, 100, 3 * 20),
    "linear_ucb_words": (WORDS, 0, 2 * 20),
}


@pytest.mark.parametrize("name", BY_LIKENESS)
def test_by_hidden_states_or_words_and_killed_it_ends_the_same(dying, name):
    run, (moments, forwards, gradients) = dying(name), BY_LIKENESS[name]
    for there, at in moments:
        run.dies(at, there)
    run.ends_the_same()
    assert not (run.out / "features/uncentred").exists()
    total = read(run.out / "summary.json")["total"]
    assert (total["pool_forwards"], total["pool_gradients"]) == (forwards, gradients)


def drawn_features(folder):
    """Of each round, row to feature."""
    from clusterucb.features.drawn import DrawnFeatures

    def of(path):
        blocks = DrawnFeatures(path).blocks()
        return {
            row: x.tobytes() for rows, found in blocks for row, x in zip(rows.tolist(), found, strict=True)
        }

    return {path.name: of(path) for path in Path(folder).glob("rounds/*")}


def test_drawn_row_by_row_and_killed_it_ends_the_same(dying):
    """Also the features of drawn rows, by which the next period knows these rows."""
    run = dying("linear_ucb")
    run.dies({"where": BACKWARD, "call": 4}, "initial")
    run.dies(publication("training/checkpoint-3/whole.json", "after"))
    run.dies({"where": BACKWARD, "call": 6}, "rounds/2.part/drawn.i64")
    log = run.out / "rounds/2.part/scores.jsonl"
    *logged, _ = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(logged))  # as a kill between a row's feature and its score leaves it
    run.dies(writing("rounds/2.part/selected.jsonl"))
    run.dies({"where": BACKWARD, "call": 9}, "rounds/3.part/drawn.i64")
    run.ends_the_same()
    assert drawn_features(run.out) == drawn_features(run.finished.folder)


def test_killed_between_the_epochs_of_a_period_it_ends_the_same(server, run_settings, tmp_path):
    """The rows of the period that training is resumed in are those that were selected for it."""
    whole, killed = (
        ["run", *options(run_settings, out=tmp_path / name, epochs_per_period=2, periods=2)]
        for name in ("whole", "killed")
    )
    server.ends(whole)
    server.dies(killed, publication("checkpoint-9/whole.json", "after"))
    server.ends(killed)
    assert result(tmp_path / "killed") == result(tmp_path / "whole")


def test_killed_after_every_publication_it_ends_the_same(dying):
    """Each attempt dies as soon as it has given something a name that the one before had not."""
    run, published, call, attempts = dying("clusterucb"), set(), 1, 0
    while run.server(run.arguments, at={**publication("", "after"), "new": True, "call": call})["status"]:
        attempts += 1
        assert attempts < 50
        found = {path for path in run.out.rglob("*") if ".part" not in str(path)}
        published, call = found, call + 1 if found <= published else 1
    assert attempts > 20
    run.ends_the_same()


def test_killed_at_random_times_it_ends_the_same(dying):
    run, clock = dying("clusterucb"), random.Random(7)
    for _ in range(4):
        run.server(run.arguments, after=clock.uniform(0.1, 1.2))
    run.ends_the_same()


INTERRUPTIONS = [
    ("reading the pool", {"where": "json:loads", "call": 70}),
    ("loading the model", {"where": "transformers:AutoModelForCausalLM.from_pretrained"}),
    ("a step of the warm-up", {"where": STEP, "call": 2}),
    ("the backward pass of a batch", {"where": "torch:bmm", "call": 30}),
    ("k-means", publication("clusters.safetensors")),
    ("drawing", {"where": BACKWARD, "call": 8}),
    ("writing a checkpoint", {"where": "torch:save", "path": "optimizer.pt", "call": 2}),
    ("evaluating", publication("evaluation.json")),
]


def test_interrupted_in_every_step_it_says_how_to_go_on_and_does(dying):
    run = dying("clusterucb")
    for moment, at in INTERRUPTIONS:
        ended = run.server(run.arguments, at={**at, "signal_number": signal.SIGINT})
        assert ended["status"] == 130, (moment, ended)
        said = ended["said"].splitlines()
        assert said[-1] == "clusterucb: interrupted; run the same command again to go on", moment
        assert "Traceback" not in ended["said"]
        assert ended["took"] < 10
    run.ends_the_same()


PASSES = [
    {"where": "os:pwrite", "call": 70, "torn": True},
    {"where": FORWARD, "call": LOOKS + 3},
    publication("hidden/manifest.json"),
    writing("rounds/1.part/selected.jsonl"),
    {"where": "shutil:rmtree", "path": "rounds/1/hidden"},
]
BASELINES = {
    "random": [writing("rounds/1.part/selected.jsonl")],
    "bm25": [publication("rounds/1.part/summary.json", "after")],
    "rds": PASSES,
    "head": PASSES,
    "loss_highest": [{"where": FORWARD, "call": LOOKS + 3}, {"where": FORWARD, "call": LOOKS + 3}],
}


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_killed_in_its_selection_selects_the_same(server, finished_run, name, tmp_path):
    finished = finished_run(name)
    command = ["select", *options(finished.elsewhere(tmp_path / "run"))]
    for at in BASELINES[name]:
        server.dies(command, at)
    server.ends(command)
    assert selected(tmp_path / "run") == selected(finished.folder)


def selected(folder):
    """The files of round 1, without the time that it took."""
    found = {path.name: path.read_bytes() for path in (folder / "rounds/1").iterdir() if path.is_file()}
    found["summary.json"] = {k: v for k, v in json.loads(found["summary.json"]).items() if k != "cost"}
    logged = [json.loads(line)["scores"] for line in found.get("scores.jsonl", b"").splitlines()]
    assert not list(folder.rglob("*.part"))
    assert not (folder / "rounds/1/hidden").exists()
    return {**found, "scores.jsonl": logged}


def test_a_run_directory_in_use_is_refused(settings):
    out = Path(settings["out"])
    with RunDir(out).owned():
        for command in ("run", "train"):
            said = clusterucb(command, *options(settings)).complaint
            assert (
                said == f"{out}: in use by process {os.getpid()}; wait for it, or end it and run this again"
            )
    assert not (out / "config.yaml").exists()
    assert "is not there yet" in clusterucb("gradients", *options(settings)).complaint


def test_a_killed_process_leaves_the_run_directory_free(dying):
    run = dying("clusterucb")
    run.dies(writing("pool.part/ids.bin"), ".owner")
    assert "is not there yet" in clusterucb("train", *run.arguments[1:]).complaint
