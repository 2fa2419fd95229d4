"""All that a person can get wrong or meet: one clear line, exit status 2, and what was computed is kept."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, GPT2Config, LlamaConfig

from builders import build_model, build_tokenizer
from cli_helpers import clusterucb, done, lines, options, result
from file_helpers import write
from forks import publication, tensors


def turns(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


GOOD, BAD = (turns(("user", f"cat {word} dog"), ("assistant", "sun")) for word in ("add", "Z"))


@pytest.fixture
def complaint(settings):
    """What `clusterucb run` says to changed settings."""

    def complaint(**changes):
        return clusterucb("run", *options(settings, **changes)).complaint

    return complaint


@pytest.fixture
def copy(finished_settings, tmp_path):
    """A copy of a finished run, and its settings."""
    folder = shutil.copytree(finished_settings["out"], tmp_path / "copy")
    return folder, {**finished_settings, "out": str(folder)}


def snapshot(folder):
    paths = [path for path in Path(folder).rglob("*") if path.is_file() and path.name != ".lock"]
    return {path: path.read_bytes() for path in paths}


# --- Files, settings, models and adapters


@pytest.fixture(scope="module")
def bad(tmp_path_factory, model_folder, shared_settings):
    """Files, models and adapters with a fault each."""
    bad = tmp_path_factory.mktemp("bad")
    (target,) = (lines(path) for path in shared_settings["target"])
    faults = {
        "role": turns(("user", "a"), ("robot", "b")),
        "long": turns(("user", "add"), ("assistant", " ".join(["quiz"] * 40))),
        "known": {**target[2], "n": "another column does not make another row"},
    }
    for name, row in faults.items():
        write(bad / f"{name}.jsonl", [GOOD, GOOD, row])
    write(bad / "good.jsonl", [GOOD])
    torn = shutil.copytree(model_folder, bad / "torn") / "model.safetensors"
    os.truncate(torn, torn.stat().st_size // 2)
    for name, config in other_models().items():
        AutoModelForCausalLM.from_config(config).save_pretrained(bad / name)
        build_tokenizer().save_pretrained(bad / name)
    return bad


def other_models():
    """Configurations of models that run, but not on every row, or not as causal ones."""
    heads = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    few, dynamic = {"max_position_embeddings": 32}, {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    return {
        "bert": BertConfig(vocab_size=320, **heads),
        "positions": GPT2Config(vocab_size=320, n_positions=32, n_embd=32, n_layer=1, n_head=4),
        "dynamic": LlamaConfig(vocab_size=320, **heads, **few, rope_parameters=dynamic),
        "embeddings": LlamaConfig(vocab_size=290, **heads),
    }


ONE, ROLES = {"subtask": None}, ("pool", "target", "holdout")
TOO_LONG = {**ONE, "target": "BAD/long.jsonl", "target_length": 20}
MISTAKES = [  # settings, with files and folders of `bad` as BAD/name, and what is said
    *(({**ONE, role: "BAD/none.jsonl"}, "BAD/none.jsonl: no such file; check the path") for role in ROLES),
    *(
        ({**ONE, role: "BAD/role.jsonl"}, "role.jsonl, line 3: unknown role 'robot' in message 2")
        for role in ("target", "holdout")
    ),
    (
        {"holdout": "BAD/known.jsonl"},
        "known.jsonl:3: this held-out row is also in the target (target.jsonl:3",
    ),
    (
        TOO_LONG,
        "long.jsonl:3: answer of 81 tokens does not fit into 20; raise --target-length or take the row",
    ),
    ({"gradient_length": 2}, "no row of the pool can be used"),
    ({"k": 101}, "k is 101, but the pool has 100 usable rows; lower k"),
    ({"k": 21}, "budget 0.2 is 20 of 100 rows, but the cold start takes 21"),
    ({"budget": 0.01, "top_p": 0.01}, "budget 0.01 is below csp 0.02"),
    ({"budget": 0.05}, "budget 0.05 is below top_p 0.1"),
    ({"top_p": 0.005}, "top_p is 0.005: selects none of 100 rows; raise it to 0.01"),
    ({"policy": "ucb_betta"}, "'ucb_betta'): must be one of ucb_beta, ucb1"),
    ({"out": "BAD/good.jsonl"}, "the run directory must be a folder"),
    ({"out": "BAD/good.jsonl/below"}, "the run directory must be a folder"),
    ({"model": "BAD/none"}, "BAD/none: there is no such folder or GGUF file"),
    ({"model": "BAD/torn"}, "BAD/torn: cannot be loaded as a causal language model ("),
    ({"adapter": "BAD"}, "BAD: expected a folder with adapter_config.json"),
    ({"model": "BAD/bert", "target_modules": ["query"]}, "BAD/bert: is not causal"),
    (
        {"model": "BAD/embeddings"},
        "BAD/embeddings: has embeddings of 290 tokens, its tokenizer 320, and there",
    ),
]


@pytest.mark.parametrize(("changes", "said"), MISTAKES)
def test_what_a_person_can_get_wrong_is_one_line(complaint, settings, bad, changes, said):
    def there(value):
        return value.replace("BAD", str(bad)) if isinstance(value, str) else value

    assert there(said) in complaint(**{name: there(value) for name, value in changes.items()})
    assert (Path(settings["out"]) / "config.yaml").exists() == (changes == TOO_LONG)
    assert not (Path(settings["out"]) / "features.part").exists()
    assert (bad / "good.jsonl").is_file()


def test_what_was_wrong_can_be_put_right_in_the_same_run_directory(complaint, settings):
    """The settings are the run's only from where all of them have held."""
    for changes in ({"pool": ["none.jsonl"]}, {"k": 101}, {"policy": "ucb2"}, {"target_modules": ["query"]}):
        complaint(**changes)
    done("warmup", *options(settings))
    assert "k: this run directory was made with 5" in complaint(k=101)


@pytest.mark.parametrize(
    ("model", "targets", "said"),
    [
        ("dynamic", ["q_proj"], "has rope_type dynamic: a row of more than 32 tokens"),
        ("positions", ["c_attn"], "has 32 positions, and there are"),
    ],
)
def test_lengths_that_are_lowered_as_told_are_taken(complaint, settings, bad, model, targets, said):
    changes = {"model": str(bad / model), "target_modules": targets}
    lowered = dict.fromkeys(("gradient_length", "target_length", "train_length"), 32)
    refused = complaint(**changes)
    assert refused.startswith(f"{bad / model}: {said}")
    assert "--gradient-length, --target-length and --train-length to 32" in refused
    done("warmup", *options(settings, **changes, **lowered))


@pytest.mark.parametrize(
    ("option", "old", "new"),
    [("seed", 0, 7), ("top_p", 0.1, 0.05), ("policy", "'ucb_beta'", "random"), ("k", 5, 6)],
)
def test_an_option_that_contradicts_the_saved_settings_shows_both(copy, option, old, new):
    folder, settings = copy
    before = snapshot(folder)
    for given in (options(settings, **{option: new}), ["--out", folder, *options({option: new})]):
        said = clusterucb("run", *given).complaint
        shown = f"{new!r}"
        assert said.startswith(
            f"{option}: this run directory was made with {old} ({folder}/config.yaml), now it is {shown}; "
        )
        assert f"leave --{option.replace('_', '-')} as it was" in said
    assert snapshot(folder) == before


def test_an_option_that_repeats_the_saved_settings_is_no_contradiction(copy):
    folder, _ = copy
    done("run", "--out", folder, "--top-p", "0.10", "--seed", "0")


MAKES = {
    "gradients": ("features*", "directions"),
    "cluster": ("clusters.*",),
    "select": ("rounds",),
    "train": ("adapter",),
    "evaluate": ("evaluation.json",),
}


@pytest.mark.parametrize(
    ("name", "step", "missing", "needed"),
    [
        ("clusterucb", "gradients", "warmup", "warmup"),
        ("clusterucb", "cluster", "features", "gradients"),
        ("clusterucb", "select", "features", "gradients"),
        ("clusterucb", "train", "rounds/1", "select"),
        ("clusterucb", "evaluate", "adapter", "train"),
        ("less_clusterucb", "select", "warmup-2", "warmup"),
        ("less", "select", "warmup-3", "warmup"),
        ("less", "select", "features-2", "gradients"),
    ],
)
def test_a_step_before_its_time_names_the_step_to_run(finished_run, tmp_path, name, step, missing, needed):
    out, gone = tmp_path / "run", (*MAKES[step], missing.split("/")[0])
    shutil.copytree(finished_run(name).folder, out, ignore=shutil.ignore_patterns(*gone))
    said = clusterucb(step, "--out", out).complaint
    assert said == f"{out / missing} is not there yet: run `clusterucb {needed} --out {out}` first"


def test_a_cold_start_that_the_budget_cannot_pay_is_refused_before_training(settings):
    said = clusterucb("run", *options(settings, csp=0.3, budget=0.3, k=30, centre=False)).complaint
    assert "is 30 of 100 rows, but the cold start takes " in said
    assert not (Path(settings["out"]) / "rounds").exists()


def test_a_checkpoint_that_is_none(copy, tmp_path):
    folder, _ = copy
    before = snapshot(folder)
    select = ("select", "--out", folder, "--checkpoint")
    assert "expected a folder with adapter_model.safetensors" in clusterucb(*select, tmp_path).complaint
    bare = shutil.copytree(folder / "warmup", tmp_path / "bare")
    (bare / "moments.safetensors").unlink()
    said = clusterucb(*select, bare).complaint
    assert said.startswith(f"{bare}: has no moments.safetensors, optimizer.pt or optimizer.bin")
    (bare / "optimizer.pt").write_bytes(b"garbage")
    assert "cannot be read as an optimizer's state" in clusterucb(*select, bare).complaint
    assert snapshot(folder) == before


# --- Numbers


@pytest.fixture(scope="module")
def poisoned(model_folder, tmp_path_factory):
    """A model that gives NaN for every text with a capital Z; no row has one."""
    net, model = build_model(), tmp_path_factory.mktemp("poisoned") / "model"
    shutil.copytree(model_folder, model)
    (token,) = build_tokenizer()("Z", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        net.model.embed_tokens.weight[token] = float("nan")
    net.save_pretrained(model)
    return model


@pytest.mark.parametrize(
    ("role", "changes", "said", "kept", "missing"),
    [
        ("pool", {"warmup_steps": 20}, "the loss is nan on ", "pool", "warmup"),
        ("pool", {"warmup_steps": 1}, "pool.jsonl:31: its loss is nan", "warmup", "features"),
        ("target", ONE, "target.jsonl:31: its loss is nan", "warmup", "features.part"),
        (
            "holdout",
            {"periods": 1},
            "holdout.jsonl:31: its loss under the base model is nan",
            "adapter",
            "evaluation.json",
        ),
    ],
)
def test_a_row_whose_loss_is_no_number_is_named(
    complaint, settings, poisoned, tmp_path, role, changes, said, kept, missing
):
    """A warm-up of one step has 4 rows, without this one."""
    rows = (
        lines(settings["pool"][0])
        if role == "pool"
        else [turns(("user", f"red {n}"), ("assistant", "sun")) for n in range(30)]
    )
    path = write(tmp_path / f"{role}.jsonl", [*rows[:30], BAD, *rows[30:]])
    met = complaint(model=poisoned, **{role: [str(path)]}, **changes)
    assert said in met
    assert f"{role}.jsonl:31" in met
    assert (Path(settings["out"]) / kept).exists()
    assert not (Path(settings["out"]) / missing).exists()


# --- What was made with something else


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def other_model(inputs):
    build_model(seed=1).save_pretrained(inputs / "model")


def other_tokenizer(inputs):
    edit(inputs / "model/tokenizer.json", '"<|im_start|>"', '"<|im_begin|>"')


def other_template(inputs):
    template = next((inputs / "model").glob("chat_template*"))
    template.write_text(template.read_text().replace("m['content']", "m['content'] | trim"))


def other_pool(inputs):
    edit(inputs / "pool-b.jsonl", '"n": 7}', '"n": 70}')


def other_target(inputs):
    edit(inputs / "target.jsonl", "s1", "s2")


CHANGES = {
    other_model: "model",
    other_tokenizer: "tokenizer and chat",
    other_template: "tokenizer and chat",
    other_pool: "pool",
    other_target: "target",
}


def test_a_store_made_with_other_inputs_is_refused(shared_settings, tmp_path):
    given, inputs, out = tmp_path / "given", tmp_path / "inputs", tmp_path / "run"
    shutil.copytree(shared_settings["model"], given / "model")
    moved = {"out": str(out), "model": str(inputs / "model")}
    for role in ("pool", "target", "holdout"):
        moved[role] = [str(inputs / Path(shutil.copy(path, given)).name) for path in shared_settings[role]]
    settings = {**shared_settings, **moved}
    shutil.copytree(given, inputs)
    for step in ("warmup", "gradients", "cluster"):
        done(step, *options(settings))
    before = snapshot(out)
    for change, key in CHANGES.items():
        change(inputs)
        said = clusterucb("run", *options(settings)).complaint
        assert f" was made with {key} " in said
        assert "this run has" in said
        assert "use another run directory, or delete " in said
        kept = snapshot(out)
        assert {path: kept.get(path) for path in before} == before
        shutil.rmtree(inputs)
        shutil.copytree(given, inputs)


@pytest.mark.parametrize(
    ("option", "value", "key"),
    [
        ("projection", "rademacher", "projection 'countsketch to 256 with seed 0'"),
        ("dim", 128, "projection 'countsketch to 256 with seed 0'"),
        ("seed", 1, "projection 'countsketch to 256 with seed 0'"),
        ("formula", "adam", "formula 'less'"),
        ("gradient_length", 48, "gradient_length 40"),
        ("chat", "tulu", "tokenizer and chat"),
        ("target_length", 100, "target_length 1400"),
    ],
)
def test_a_store_made_with_other_settings_is_refused_even_without_the_saved_ones(copy, option, value, key):
    folder, settings = copy
    (folder / "config.yaml").unlink()
    before = snapshot(folder)
    for step in ("gradients", "select", "run"):
        if step == "select":
            shutil.rmtree(folder / "rounds")
        said = clusterucb(step, *options(settings, **{option: value})).complaint
        assert f"was made with {key}" in said
    kept = {path: content for path, content in before.items() if "rounds" not in path.parts}
    assert {path: content for path, content in snapshot(folder).items() if path in kept} == kept


def test_another_adapter_is_refused(copy, tmp_path):
    """The run's initial adapter has rank 4."""
    folder, settings = copy
    (folder / "config.yaml").unlink()
    shutil.rmtree(folder / "adapter")
    said = clusterucb("train", *options(settings, rank=2)).complaint
    assert said.startswith(f"{folder}/initial: this adapter and the run's differ")


def test_a_damaged_store_is_refused(copy):
    folder, settings = copy
    shutil.rmtree(folder / "rounds")
    with (folder / "features/features.f16").open("r+b") as file:
        file.truncate(1000)
    said = clusterucb("select", *options(settings)).complaint
    assert said.startswith(f"{folder}/features/features.f16: expected 100 x 256 float16")


# --- The disk


WRITES = [  # where no room is left, and the artifact that is told
    ({"where": "numpy:save", "path": "pool.part/rows.npy"}, "pool"),
    (tensors("initial.part/adapter_model.safetensors"), "initial"),
    ({"where": "torch:save", "path": "scheduler.pt"}, ""),
    (tensors("warmup.part/moments.safetensors.part"), "warmup.part/moments.safetensors"),
    (tensors("directions/1.safetensors.part", "numpy"), "directions/1.safetensors"),
    ({"where": "os:pwrite", "call": 50}, "features"),
    ({"where": "os:fsync"}, "features"),
    ({**publication("clusters.safetensors"), "call": 2}, "clusters.safetensors"),
    (tensors("rounds/1.part/selection.safetensors", "numpy"), "rounds/1"),
    ({"where": "pathlib:Path.open", "path": "rounds/2.part/scores.jsonl"}, "rounds/2"),
    ({**publication("evaluation.json"), "call": 2}, "evaluation.json"),
]


def test_a_full_disk_is_one_line_in_every_step_and_the_run_goes_on(server, finished_run, tmp_path):
    finished, out = finished_run("clusterucb"), tmp_path / "run"
    command = ["run", *options(finished.elsewhere(out))]
    for at, artifact in WRITES:
        ended = server(command, at={**at, "error": errno.ENOSPC})
        assert ended["status"] == 2, (at, ended)
        said = ended["said"].splitlines()[-1]
        assert said.startswith(f"clusterucb: {out / artifact}: No space left on device; "), at
        assert said.endswith("what was finished is kept: make room and run the same command again")
        assert "Traceback" not in ended["said"]
    server.ends(command)
    assert result(out) == result(finished.folder)


def test_a_disk_that_is_really_full(finished_settings, tmp_path):
    """A file system of half a megabyte, made larger step by step."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    try:
        out = disk / "run"
        for size in (16, 64, 128, 208, 272):
            subprocess.run(["mount", "-o", f"remount,size={size}k", str(disk)], check=True)
            said = clusterucb("run", *options(finished_settings, out=out)).complaint
            assert said.startswith(str(disk))
            assert "no space left on" in said.lower()
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        done("run", *options(finished_settings, out=out))
        assert result(out) == result(finished_settings["out"])
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_run_directory_that_may_not_be_written(complaint, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("clusterucb.run.directory.FileLock.acquire", denied)
    assert "Permission denied" in complaint()
