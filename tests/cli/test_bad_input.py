"""All that a person can get wrong or meet: one clear line, exit status 2, and what was computed is kept."""

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from builders import build_model, build_tokenizer
from cli_helpers import clusterucb, done, lines, options, result
from forks import publication, tensors

GOOD = {"messages": [{"role": "user", "content": "add"}, {"role": "assistant", "content": "cat"}]}


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def turns(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


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


# --- Rows


ROWS = {
    "broken JSON": (['{"messages": ['], "line 3: "),
    "unknown columns": ([{"text": "a"}], "line 3: unknown columns 'text'; expected one of: messages; prompt"),
    "unknown role": (
        [turns(("user", "a"), ("robot", "b"))],
        "line 3: unknown role 'robot' in message 2 of messages; known: system, user, assistant",
    ),
    "ids repeated": (
        [{**GOOD, "id": "x"}, GOOD, {**GOOD, "id": "x"}],
        "line 5: id 'x' is that of pool.jsonl, line 3 too",
    ),
}


@pytest.mark.parametrize(
    ("role", "kind"),
    [*(("pool", kind) for kind in ROWS), ("target", "unknown role"), ("holdout", "unknown columns")],
)
def test_a_bad_row_is_named_with_its_file_and_line(complaint, tmp_path, kind, role):
    rows, said = ROWS[kind]
    path = write(tmp_path / f"{role}.jsonl", GOOD, GOOD, *rows)
    met = complaint(**{role: [str(path)]}, subtask=None)
    assert met.startswith(f"{role}.jsonl, line ")
    assert said.replace("pool.jsonl", f"{role}.jsonl") in met
    assert not (tmp_path / "run/config.yaml").exists()


@pytest.mark.parametrize("role", ["pool", "target", "holdout"])
def test_a_bad_file_is_named(complaint, tmp_path, role):
    missing = tmp_path / "none.jsonl"
    assert complaint(**{role: [str(missing)]}) == f"{missing}: no such file; check the path"
    empty = write(tmp_path / "empty.jsonl")
    assert "empty.jsonl: empty, no row in it" in complaint(**{role: [str(empty)]})
    twice = str(write(tmp_path / "a.jsonl", GOOD))
    assert f"{twice}: given twice" in complaint(**{role: [twice, twice]})


def test_the_subtask_column_must_be_there(complaint):
    said = complaint(subtask="topic")
    assert said.startswith("target.jsonl, line 1: no subtask column 'topic'; its columns are 'messages', 'n'")


def test_held_out_rows_that_are_in_target_or_pool_are_refused(complaint, settings, tmp_path):
    held = lines(settings["holdout"][0])
    for role in ("target", "pool"):
        row = {**lines(settings[role][0])[2], "n": "another column does not make another row"}
        path = write(tmp_path / "held.jsonl", *held, row)
        said = complaint(holdout=[str(path)])
        assert said.startswith(f"held.jsonl:6: this held-out row is also in the {role} (")
        assert Path(settings[role][0]).name + ":3" in said


def test_a_target_row_that_does_not_fit_is_named(complaint, settings, tmp_path):
    long = turns(("user", "add"), ("assistant", " ".join(["quiz"] * 40)))
    path = write(tmp_path / "long.jsonl", GOOD, long)
    said = complaint(target=[str(path)], subtask=None, target_length=20)
    assert said.startswith("long.jsonl:2: answer of ")
    assert said.endswith("does not fit into 20; raise --target-length or take the row out")


def test_a_pool_without_a_row_that_fits_is_refused(complaint, tmp_path):
    assert "no row of the pool can be used" in complaint(gradient_length=2)


# --- Settings


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"k": 101}, "k is 101, but the pool has 100 usable rows; lower k"),
        ({"k": 21}, "budget 0.2 is 20 of 100 rows, but the cold start takes 21"),
        ({"budget": 0.01, "top_p": 0.01}, "budget 0.01 is below csp 0.02"),
        ({"budget": 0.05}, "budget 0.05 is below top_p 0.1"),
        ({"budget": 2}, "selection.budget is '2'"),
        ({"top_p": 0.005}, "top_p is 0.005: selects none of 100 rows; raise it to 0.01"),
        ({"policy": "ucb_betta"}, "'ucb_betta'): must be one of ucb_beta, ucb1"),
        ({"device": "abacus"}, "device 'abacus': not usable here"),
        ({"pool": None}, "'pool' is missing; give --pool"),
    ],
)
def test_a_setting_that_cannot_hold_is_named(complaint, changes, said):
    assert said in complaint(**changes)


def test_target_modules_that_match_nothing(complaint):
    said = complaint(target_modules=["query", "key"])
    assert said.startswith("target_modules query key: ")
    assert "this model's linear layers are called down_proj, gate_proj, k_proj" in said


def test_what_was_wrong_can_be_put_right_in_the_same_run_directory(complaint, settings):
    """The settings are the run's only from where all of them have held."""
    complaint(pool=["none.jsonl"])
    complaint(k=101)
    complaint(policy="ucb2")
    complaint(target_modules=["query"])
    done("warmup", *options(settings))
    assert "k: this run directory was made with 5" in complaint(k=101)


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


def test_no_run_directory(settings):
    assert "which run directory? give --out DIR" in clusterucb("run").complaint
    assert "out is ''" in clusterucb("run", *options(settings, out="")).complaint


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
    changes = {"csp": 0.3, "budget": 0.3, "k": 30}
    said = clusterucb("run", *options(settings, **changes)).complaint
    assert "is 30 of 100 rows, but the cold start takes " in said
    assert not (Path(settings["out"]) / "rounds").exists()


def test_a_run_directory_that_is_a_file(complaint, tmp_path):
    file = write(tmp_path / "file", "x")
    for out in (file, file / "below"):
        assert "the run directory must be a folder" in complaint(out=out)
    assert file.read_text() == "x\n"


# --- Models, tokenizers, adapters, checkpoints


@pytest.fixture
def model(model_folder, tmp_path):
    """A copy of the model's folder, to be broken."""
    return shutil.copytree(model_folder, tmp_path / "model")


def test_a_model_that_is_not_there(complaint, tmp_path):
    missing = tmp_path / "none"
    assert f"{missing}: there is no such folder or GGUF file" in complaint(model=missing)
    assert "none.gguf: there is no such GGUF file" in complaint(model=tmp_path / "none.gguf")


def test_a_model_folder_without_a_tokenizer(complaint, model):
    for path in model.glob("*token*"):
        path.unlink()
    for path in model.glob("chat_template*"):
        path.unlink()
    assert complaint(model=model).startswith(f"{model}: has no tokenizer (expected tokenizer.json)")


def test_a_tokenizer_without_a_template_under_chat_template(complaint, model):
    for path in model.glob("chat_template*"):
        path.unlink()
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(model)
    said = complaint(model=model, chat="template")
    assert said == "chat 'template': the tokenizer has no chat template; use --chat tulu"


@pytest.mark.parametrize("damage", ["missing", "torn", "garbage"])
def test_model_weights_that_cannot_be_read(complaint, model, damage):
    weights = model / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    if damage != "missing":
        weights.write_bytes(content[: len(content) // 2] if damage == "torn" else b"garbage")
    assert complaint(model=model).startswith(f"{model}: cannot be loaded as a causal language model (")


def test_a_broken_model_configuration(complaint, model):
    (model / "config.json").write_text("{")
    assert str(model) in complaint(model=model)


def test_an_adapter_that_is_none_or_of_another_model(complaint, finished_settings, tmp_path):
    assert f"{tmp_path}: expected a folder with adapter_config.json" in complaint(adapter=tmp_path)
    adapter = shutil.copytree(Path(finished_settings["out"]) / "adapter", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "r": 2}))
    assert f"{adapter}: does not fit this model (" in complaint(adapter=adapter)
    (adapter / "adapter_config.json").write_text("{")
    assert str(adapter) in complaint(adapter=adapter)


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


@pytest.fixture
def poisoned(model):
    """A model that gives NaN for every text with a capital Z; no row has one."""
    net = build_model()
    (token,) = build_tokenizer()("Z", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        net.model.embed_tokens.weight[token] = float("nan")
    net.save_pretrained(model)
    return model


BAD = turns(("user", "cat Z dog"), ("assistant", "sun"))


def test_a_pool_row_whose_loss_is_no_number_is_named(complaint, settings, poisoned, tmp_path):
    rows = lines(settings["pool"][0])
    pool = write(tmp_path / "pool.jsonl", *rows[:30], BAD, *rows[30:])
    said = complaint(model=poisoned, pool=[str(pool)], warmup_steps=20, out=tmp_path / "warmup")
    assert said.startswith("training step ")
    assert "the loss is nan on pool.jsonl:" in said
    assert ":31" in said
    changes = {"warmup_steps": 1, "out": tmp_path / "gradients"}  # a warm-up of 4 rows, without this one
    said = complaint(model=poisoned, pool=[str(pool)], **changes)
    assert said.startswith("pool.jsonl:31: its loss is nan")
    assert "take the row out of the file" in said
    assert (tmp_path / "gradients/warmup/adapter_model.safetensors").exists()


def test_a_target_row_whose_loss_is_no_number_is_named(complaint, poisoned, tmp_path):
    target = write(tmp_path / "target.jsonl", GOOD, BAD)
    said = complaint(model=poisoned, target=[str(target)], subtask=None)
    assert said.startswith("target.jsonl:2: its loss is nan")


def test_a_held_out_row_whose_loss_is_no_number_is_named(complaint, settings, poisoned, tmp_path):
    held = write(tmp_path / "held.jsonl", turns(("user", "red"), ("assistant", "sun")), BAD)
    said = complaint(model=poisoned, holdout=[str(held)], periods=1)
    assert said.startswith("held.jsonl:2: its loss under the base model is nan")
    assert not (Path(settings["out"]) / "evaluation.json").exists()
    assert (Path(settings["out"]) / "adapter/adapter_model.safetensors").exists()


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
    ({"where": "os:pwrite", "call": 50}, "features"),
    ({"where": "os:fsync"}, "features"),
    (tensors("directions/1.safetensors.part", "numpy"), "directions/1.safetensors"),
    ({**publication("clusters.safetensors"), "call": 2}, "clusters.safetensors"),
    (tensors("rounds/1.part/selection.safetensors", "numpy"), "rounds/1"),
    ({"where": "pathlib:Path.open", "path": "rounds/2.part/scores.jsonl"}, "rounds/2"),
    ({**publication("evaluation.json"), "call": 2}, "evaluation.json"),
]


@pytest.mark.whole
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


@pytest.mark.whole
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
