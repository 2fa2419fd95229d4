"""Killed or interrupted at any moment, the same command goes on and ends with the same result, bit for bit.

A command that is to die runs in a child of a server: one process that has imported everything and forks
for each command, as a fresh process takes seconds to import. `python tests/test_kill.py` is that server.
"""

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli_helpers import clusterucb, options, result

KILLED = -signal.SIGKILL


def be_ready(*more):
    """Import all that a command needs, and `more`, and say so: what is forked then has it."""
    import clusterucb.quiet

    import clusterucb.cli.main

    for module in (
        *("bm25s", "clusterucb.recipes", "clusterucb.cli.tables", "clusterucb.run.session", "accelerate"),
        *("transformers.models.llama.modeling_llama", "peft.tuners.lora.model", "transformers.trainer"),
        *more,
    ):
        importlib.import_module(module)
    clusterucb.cli.main.quiet_libraries()
    clusterucb.features.store.FLUSH_SECONDS = 0  # so that a kill finds rows that are done
    print("ready", flush=True)


def serve():
    """Run each line of standard input, a command as JSON, in a child; answer with how it ended."""
    be_ready()
    for line in sys.stdin:
        job = json.loads(line)
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                code = child(job)
            finally:
                os._exit(code)
        if job.get("after") is not None:
            time.sleep(job["after"])
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        took = time.monotonic() - started
        said = Path(job["log"]).read_text() if Path(job["log"]).exists() else ""
        print(json.dumps({"status": status, "said": said, "took": took}), flush=True)


def child(job):
    """One command, with its screen in a file; it signals itself where the job says."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    if job.get("at"):
        trap(**job["at"])
    try:
        module, _, name = job.get("main", "clusterucb.cli.main:main").partition(":")
        getattr(importlib.import_module(module), name)(job["arguments"])
        return 0
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:  # noqa: BLE001 - the test is to see it
        import traceback

        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def trap(where, call=1, when="before", signal_number=signal.SIGKILL, path=None, torn=False, error=None):
    """Signal this process before or after a call of the function at `where`, "module:Name.method".

    path: only calls whose first path-like argument ends so are counted.
    torn: a file that is being written is left with half of what it is to hold.
    error: raise what the system says by this number instead.
    """
    module, _, name = where.partition(":")
    owner = importlib.import_module(module)
    *outer, last = name.split(".")
    for part in outer:
        owner = getattr(owner, part)
    real, calls = getattr(owner, last), 0

    def trapped(*args, **kwargs):
        nonlocal calls
        named = [str(a) for a in (*args, *kwargs.values()) if isinstance(a, (str, Path))]
        if path is None or any(n.endswith(path) for n in named):
            calls += 1
        else:
            return real(*args, **kwargs)
        if calls == call and when == "before":
            if error:
                raise OSError(error, os.strerror(error))
            if torn:
                data = bytes(args[1])
                real(args[0], data[: len(data) // 2], *args[2:])  # where the whole of it belongs
            os.kill(os.getpid(), signal_number)
        returned = real(*args, **kwargs)
        if calls == call and when == "after":
            os.kill(os.getpid(), signal_number)
        return returned

    setattr(owner, last, trapped)


class Server:
    def __init__(self, log):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def __call__(self, arguments, **job):
        job = {"arguments": arguments, "log": str(self.log), **job}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server") / "screen.txt")
    with server.process:
        yield server
        server.process.stdin.close()


@pytest.fixture
def arguments(settings):
    """Saves within a period, and flushes after every batch of gradients."""
    return ["run", *options(settings, save_steps=2, batch_tokens=512)]


@pytest.fixture(scope="module")
def uninterrupted(server, shared_settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    ended = server(["run", *options(shared_settings, out=out, save_steps=2, batch_tokens=512)])
    assert ended["status"] == 0, ended["said"]
    return result(out)


def finish(server, arguments, out, uninterrupted):
    ended = server(arguments)
    assert ended["status"] == 0, ended["said"]
    assert result(out) == uninterrupted
    assert list(Path(out).rglob("*.part")) == []
    assert not (Path(out) / "training").exists()
    assert not (Path(out) / "warmup.states").exists()


def publication(path, when="before"):
    return {"where": "pathlib:Path.replace", "path": path, "when": when}


MOMENTS = [  # what the attempt is doing, the newest artifact there is then, and where it dies
    ("making its folder", "", {"where": "clusterucb.data.tokens:Tokens.write"}),
    ("writing tokens", "", {"where": "clusterucb.run.session:encode", "call": 50}),
    (
        "writing the initial adapter",
        "pool",
        {"where": "clusterucb.run.session:save_adapter", "when": "after"},
    ),
    ("a step of the warm-up", "initial", {"where": "torch.optim:AdamW.step", "call": 2}),
    ("writing a checkpoint of the warm-up", "initial", {"where": "torch:save", "path": "scheduler.pt"}),
    ("writing the warmup checkpoint", "initial", {"where": "clusterucb.run.artifacts:save_moments"}),
    ("dropping the trainer's states", "warmup", publication("run/warmup.part", "after")),
    ("storing a feature", "warmup", {"where": "os:pwrite", "call": 70, "torn": True}),
    ("marking features as done", "warmup", {"where": "os:fsync", "call": 6}),
    ("a batch of gradients", "warmup", {"where": "clusterucb.gradients.featurizer:row_gradients", "call": 3}),
    ("ending the store", "warmup", {"where": "clusterucb.features.store:FeatureWriter.finish"}),
    ("writing the clusters", "features", {"where": "clusterucb.features.kmeans:Clusters.save"}),
    ("writing the first selection", "clusters.safetensors", {"where": "clusterucb.data.pool:Pool.write"}),
    ("a step of period 1", "rounds/1", {"where": "torch.optim:AdamW.step", "call": 3}),
    ("evaluating period 1", "rounds/1", {"where": "clusterucb.evaluation.loss:row_losses"}),
    ("writing its loss", "rounds/1", publication("periods/1.json.part")),
    ("writing a checkpoint", "training/checkpoint-2", {"where": "torch:save", "path": "optimizer.pt"}),
    ("leaving period 1", "rounds/1", publication("checkpoint-3/whole.json.part", "after")),
    (
        "target directions",
        "training/checkpoint-3",
        {"where": "clusterucb.steps.reselection:target_directions"},
    ),
    ("drawing", "rounds/1", {"where": "clusterucb.features.influence:ScoreLog.add", "call": 2}),
    ("writing a selection", "rounds/1", {"where": "clusterucb.data.pool:Pool.write"}),
    ("going from selecting to training", "rounds/2", publication("rounds/2.part", "after")),
    ("a step of period 2", "rounds/2", {"where": "torch.optim:AdamW.step", "call": 2}),
    ("saying that a checkpoint is whole", "rounds/2", publication("checkpoint-6/whole.json.part")),
    ("the last draws", "rounds/2", {"where": "clusterucb.features.influence:ScoreLog.add", "call": 3}),
    ("dropping old checkpoints", "rounds/3", {"where": "transformers.trainer:rotate_checkpoints"}),
    ("writing the adapter", "rounds/3", {"where": "clusterucb.run.artifacts:save_moments"}),
    ("dropping the states of training", "adapter", publication("run/adapter.part", "after")),
    ("evaluating", "adapter", {"where": "clusterucb.evaluation.loss:row_losses", "call": 2}),
    ("writing the summary", "evaluation.json", publication("summary.json.part")),
    ("writing the report", "summary.json", publication("report.html.part")),
]
ARTIFACTS = ["", "pool", "initial", "warmup", "features", "clusters.safetensors", "rounds/1", "rounds/2"]
ARTIFACTS += ["rounds/3", "adapter", "evaluation.json", "summary.json", "report.html"]


def test_killed_in_every_step_it_ends_the_same(server, arguments, settings, uninterrupted):
    """Each attempt goes on from the one before and dies at its moment."""
    out = Path(settings["out"])
    for moment, there, at in MOMENTS:
        killed = server(arguments, at=at)
        assert killed["status"] == KILLED, (moment, killed)
        assert (out / there).exists(), moment
        if moment == "drawing":
            with (out / "rounds/2.part/scores.jsonl").open("ab") as log:
                log.write(b'{"weights": "')  # as a kill in the middle of a write leaves it
        if there in ARTIFACTS:
            assert not (out / ARTIFACTS[ARTIFACTS.index(there) + 1]).exists(), moment
    finish(server, arguments, out, uninterrupted)


LESS = {"method": "less", "less_warmup": 0.1, "less_checkpoints": 3, "target_length": 64}  # 10 rows, 3 steps
LESS_MOMENTS = {
    "clusterucb": [
        ("a step of the second epoch", "", {"where": "torch.optim:AdamW.step", "call": 5}),
        ("writing the second checkpoint", "warmup", {"where": "clusterucb.run.artifacts:save_moments"}),
        ("before the trainer's own state", "warmup", publication("run/warmup-2.part", "after")),
        ("dropping the trainer's states", "warmup-2", publication("run/warmup-3.part", "after")),
        (
            "a batch of gradients",
            "warmup-3",
            {"where": "clusterucb.steps.features:FeatureWriter.write", "call": 3},
        ),
        (
            "directions",
            "clusters.safetensors",
            {"where": "clusterucb.steps.reselection:target_directions", "call": 2},
        ),
        (
            "drawing",
            "clusters.safetensors",
            {"where": "clusterucb.features.influence:ScoreLog.add", "call": 2},
        ),
    ],
    "none": [
        ("features at the second checkpoint", "warmup-3", {"where": "os:pwrite", "call": 330, "torn": True}),
        ("ending the second store", "features", publication("run/features-2.part", "before")),
        ("writing the selection", "features-3", {"where": "clusterucb.data.pool:Pool.write"}),
    ],
}


@pytest.mark.parametrize("bandit", LESS_MOMENTS)
def test_less_killed_in_every_step_ends_the_same(server, settings, tmp_path, bandit):
    changes = {**LESS, "bandit": bandit, "save_steps": 2, "batch_tokens": 512}
    assert server(["run", *options(settings, **changes, out=tmp_path / "whole")])["status"] == 0
    arguments, out = ["run", *options(settings, **changes)], Path(settings["out"])
    for moment, there, at in LESS_MOMENTS[bandit]:
        killed = server(arguments, at=at)
        assert killed["status"] == KILLED, (moment, killed)
        assert (out / there).exists(), moment
        if moment == "drawing":  # what the attempt before had computed was not computed again
            assert (out / "rounds/1.part/directions-warmup-2.safetensors").exists()
    finish(server, arguments, out, result(tmp_path / "whole"))


def test_dynamic_without_a_bandit_killed_while_scoring_ends_the_same(server, settings, tmp_path):
    changes = {"bandit": "none", "k": None, "periods": 2, "batch_tokens": 512}
    assert server(["run", *options(settings, **changes, out=tmp_path / "whole")])["status"] == 0
    arguments = ["run", *options(settings, **changes)]
    at = {"where": "clusterucb.features.influence:ScoreLog.add", "call": 3}
    assert server(arguments, at=at)["status"] == KILLED
    assert len((Path(settings["out"]) / "rounds/2.part/scores.jsonl").read_text().splitlines()) == 2
    finish(server, arguments, settings["out"], result(tmp_path / "whole"))


HIDDEN = [  # what exists then, and where the attempt dies
    ("warmup", {"where": "os:pwrite", "call": 70, "torn": True}),
    ("features.part/uncentred", {"where": "clusterucb.steps.hidden:forward_pool", "call": 5}),
    ("features.part/uncentred", {"where": "clusterucb.steps.hidden:represent_pool", "when": "after"}),
    ("features.part/uncentred/manifest.json", {"where": "os:pwrite", "call": 150, "torn": True}),
    ("features.part/manifest.json", {"where": "shutil:rmtree", "path": "uncentred"}),
    ("features.part/manifest.json", publication("run/features.part")),
    ("clusters.safetensors", {"where": "clusterucb.features.influence:ScoreLog.add", "call": 2}),
    ("rounds/1.part/scores.jsonl", {"where": "clusterucb.data.pool:Pool.write"}),
    ("rounds/1", {"where": "clusterucb.features.influence:ScoreLog.add", "call": 2}),
]


def test_clustered_by_hidden_states_and_killed_it_ends_the_same(server, settings, tmp_path):
    changes = {"features": "hidden", "periods": 2, "batch_tokens": 512}
    assert server(["run", *options(settings, **changes, out=tmp_path / "whole")])["status"] == 0
    arguments, out = ["run", *options(settings, **changes)], Path(settings["out"])
    for there, at in HIDDEN:
        killed = server(arguments, at=at)
        assert killed["status"] == KILLED, (there, killed)
        assert (out / there).exists(), at
    finish(server, arguments, out, result(tmp_path / "whole"))
    assert not (out / "features/uncentred").exists()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["total"]["pool_forwards"] == 100
    assert summary["total"]["pool_gradients"] == 2 * 20


def drawn_features(folder):
    """Of each round, row to feature."""
    from clusterucb.features.drawn import DrawnFeatures

    rounds = sorted(Path(folder).glob("rounds/*"))
    blocks = {path.name: DrawnFeatures(path).blocks() for path in rounds}
    return {
        name: {
            row: feature.tobytes()
            for rows, found in of
            for row, feature in zip(rows.tolist(), found, strict=True)
        }
        for name, of in blocks.items()
    }


def test_drawn_row_by_row_and_killed_it_ends_the_same(server, settings, tmp_path):
    """Also the features of drawn rows, by which the next period knows these rows."""
    changes = {"policy": "linear_ucb", "batch_tokens": 256, "rounds": 4}
    assert server(["run", *options(settings, **changes, out=tmp_path / "whole")])["status"] == 0
    arguments, out = ["run", *options(settings, **changes)], Path(settings["out"])
    log, add = "clusterucb.features.influence:ScoreLog.add", "clusterucb.features.drawn:DrawnWriter.add"
    for there, at in (
        ("rounds/1", {"where": log, "call": 3}),
        ("rounds/2.part/drawn.i64", {"where": add, "call": 2, "when": "after"}),
        ("rounds/2.part/scores.jsonl", {"where": "clusterucb.data.pool:Pool.write"}),
        ("rounds/2", {"where": log, "call": 2}),
    ):
        killed = server(arguments, at=at)
        assert killed["status"] == KILLED, (there, killed)
        assert (out / there).exists(), at
    finish(server, arguments, out, result(tmp_path / "whole"))
    assert drawn_features(out) == drawn_features(tmp_path / "whole")


def test_killed_between_the_epochs_of_a_period_it_ends_the_same(server, settings, tmp_path):
    """The rows of the period that training is resumed in are those that were selected for it."""
    changes = {"epochs_per_period": 2, "periods": 2}
    assert server(["run", *options(settings, **changes, out=tmp_path / "whole")])["status"] == 0
    arguments = ["run", *options(settings, **changes)]
    killed = server(arguments, at=publication("checkpoint-9/whole.json.part", "after"))
    assert killed["status"] == KILLED
    finish(server, arguments, settings["out"], result(tmp_path / "whole"))


def test_killed_after_every_publication_it_ends_the_same(server, arguments, settings, uninterrupted):
    """Each attempt dies as soon as it has renamed something that the one before had not."""
    published, call, attempts = set(), 1, 0
    while attempts < 100:
        attempts += 1
        ended = server(arguments, at={"where": "pathlib:Path.replace", "call": call, "when": "after"})
        if ended["status"] == 0:
            break
        assert ended["status"] == KILLED, ended
        paths = Path(settings["out"]).rglob("*")
        found = {path for path in paths if ".part" not in str(path)}
        published, call = found, call + 1 if found <= published else 1
    assert 20 < attempts < 100
    finish(server, arguments, settings["out"], uninterrupted)


def test_killed_at_random_times_it_ends_the_same(server, arguments, settings, uninterrupted):
    clock = random.Random(7)
    for _ in range(4):
        server(arguments, after=clock.uniform(0.1, 1.2))
    finish(server, arguments, settings["out"], uninterrupted)


INTERRUPTIONS = [
    ("reading the pool", {"where": "clusterucb.data.pool:parse_messages", "call": 70}),
    ("loading the model", {"where": "clusterucb.run.session:load_model"}),
    ("a step of the warm-up", {"where": "torch.optim:AdamW.step", "call": 2}),
    (
        "the backward pass of a batch",
        {"where": "clusterucb.gradients.projection:CountSketch.add_to", "call": 30},
    ),
    ("k-means", {"where": "clusterucb.features.kmeans:Clusters.save"}),
    ("drawing", {"where": "clusterucb.features.influence:ScoreLog.add", "call": 2}),
    ("writing a checkpoint", {"where": "torch:save", "path": "optimizer.pt", "call": 2}),
    ("evaluating", {"where": "clusterucb.evaluation.loss:row_losses"}),
]


def test_interrupted_in_every_step_it_says_how_to_go_on_and_does(server, arguments, settings, uninterrupted):
    for moment, at in INTERRUPTIONS:
        ended = server(arguments, at={**at, "signal_number": signal.SIGINT})
        assert ended["status"] == 130, (moment, ended)
        assert ended["said"].splitlines()[-1] == (
            "clusterucb: interrupted; run the same command again to go on"
        ), moment
        assert "Traceback" not in ended["said"]
        assert ended["took"] < 10
    finish(server, arguments, settings["out"], uninterrupted)


BASELINES = {
    "random": [{"where": "clusterucb.data.pool:Pool.write", "when": "after"}],
    "bm25": [{"where": "clusterucb.steps.baselines:write_round", "when": "after"}],
    "rds": [
        {"where": "os:pwrite", "call": 70, "torn": True},
        {"where": "clusterucb.steps.hidden:forward_pool", "call": 5},
        {"where": "clusterucb.features.store:FeatureWriter.finish"},
        {"where": "clusterucb.data.pool:Pool.write"},
        {"where": "shutil:rmtree", "path": "rounds/1/hidden"},
    ],
    "loss": [
        {"where": "clusterucb.steps.baselines:forward_pool", "call": 3},
        {"where": "clusterucb.features.influence:ScoreLog.add", "call": 5, "when": "after"},
    ],
}


@pytest.mark.parametrize("method", BASELINES)
def test_a_baseline_killed_in_its_selection_selects_the_same(server, shared_settings, method, tmp_path):
    commands = {
        name: ["select", *options(shared_settings, out=tmp_path / name, method=method, batch_tokens=512)]
        for name in ("whole", "killed")
    }
    assert server(commands["whole"])["status"] == 0
    for at in BASELINES[method]:
        ended = server(commands["killed"], at=at)
        assert ended["status"] == KILLED, (at, ended)
    assert server(commands["killed"])["status"] == 0
    whole, killed = (selected(tmp_path / name) for name in commands)
    assert killed == whole


def selected(folder):
    """The files of round 1, without the time that it took."""
    found = {path.name: path.read_bytes() for path in (folder / "rounds/1").iterdir() if path.is_file()}
    found["summary.json"] = {k: v for k, v in json.loads(found["summary.json"]).items() if k != "cost"}
    logged = [json.loads(line)["scores"] for line in found.get("scores.jsonl", b"").splitlines()]
    assert not list(folder.rglob("*.part"))
    assert not (folder / "rounds/1/hidden").exists()
    return {**found, "scores.jsonl": logged}


def test_a_run_directory_in_use_is_refused(model_folder, settings):
    holding = (
        "import sys; from clusterucb.run.directory import RunDir\n"
        "with RunDir(sys.argv[1]).owned(): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holding, settings["out"]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as other:
        assert other.stdout.readline() == b"held\n"
        for command in ("run", "train"):
            said = clusterucb(command, *options(settings)).complaint
            assert said == (
                f"{settings['out']}: in use by process {other.pid}; wait for it, or end it and run this again"
            )
        other.stdin.close()
    assert not (Path(settings["out"]) / "config.yaml").exists()
    assert "is not there yet" in clusterucb("gradients", *options(settings)).complaint


def test_a_killed_process_leaves_the_run_directory_free(server, settings, arguments):
    assert server(arguments, at={"where": "clusterucb.run.session:encode", "call": 50})["status"] == KILLED
    assert (Path(settings["out"]) / ".owner").exists()
    assert "is not there yet" in clusterucb("train", *options(settings)).complaint


if __name__ == "__main__":
    serve()
