import typing
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

import file_helpers
from clusterucb.config import Config, load, reconcile, settings
from clusterucb.errors import ConfigError

NEEDED = {"model": "m", "pool": ["p.jsonl"], "target": ["t.jsonl"], "out": "run"}


@pytest.fixture
def write(tmp_path):
    return lambda text: file_helpers.write(tmp_path / "run.yaml", text)


def yaml_with(**more):
    return yaml.safe_dump({**NEEDED, **more})


def complaint(path, options=None):
    with pytest.raises(ConfigError) as error:
        load(path, options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_yaml_round_trip(write):
    options = {"top_p": "0.1", "target_modules": ["all-linear"], "k": 7, "seed": 3, "store_dtype": "1bit"}
    config = load(None, {**NEEDED, **options})
    assert load(write(config.to_yaml())) == config


def test_every_default_is_valid_by_its_own_rules():
    config = load(None, NEEDED)
    assert Config.model_validate(config.model_dump()) == config


def test_what_depends_on_the_job_is_left_open_by_default():
    config = load(None, NEEDED)
    left = {setting.name for setting in settings() if setting.auto}
    assert left == {setting.name for setting in settings() if setting.default == "auto" and setting.auto}
    assert {"top_p", "batch_size", "lr", "rank", "warmup_steps", "k", "budget"} <= left
    assert all(setting.of(config) is None for setting in settings() if setting.auto)
    assert config.selection.policy == "linear_ucb"
    assert config.features == "words"


@pytest.mark.parametrize("name", [setting.name for setting in settings() if setting.auto])
def test_auto_can_be_said_and_is_written(write, name):
    config = load(None, {**NEEDED, name: "auto"})
    assert config == load(None, NEEDED)
    assert f"{name}: auto\n" in config.to_yaml()
    assert load(write(config.to_yaml())) == config


def test_leaf_names_are_unique_over_all_sections():
    names = [setting.name for setting in settings()]
    assert len(names) == len(set(names))


def test_every_setting_has_a_help_text():
    assert [setting.name for setting in settings() if not setting.help] == []


def test_settings_cover_every_leaf():
    leaves = set()
    for name, info in Config.model_fields.items():
        section = info.annotation
        is_section = isinstance(section, type) and issubclass(section, BaseModel)
        leaves |= set(section.model_fields) if is_section else {name}
    assert {setting.name for setting in settings()} == leaves


def test_no_setting_is_optional_in_name_only():
    assert all(typing.get_origin(setting.annotation) is not dict for setting in settings())


def test_options_go_over_the_file(write):
    path = write(yaml_with(selection={"top_p": 0.1}, seed=1))
    config = load(path, {"top_p": "0.15"})
    assert (config.selection.top_p, config.seed) == (0.15, 1)


def test_one_file_may_stand_without_a_list(write):
    config = load(write(yaml_with(pool="a.jsonl", target="t.jsonl", holdout="h.jsonl")))
    assert (config.pool, config.target, config.holdout) == (["a.jsonl"], ["t.jsonl"], ["h.jsonl"])


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("p.jsonl", "t.jsonl", "h.jsonl"):
        Path(name).touch()
    for name in ("m", "a"):
        Path(name).mkdir()
    given = {**NEEDED, "holdout": ["h.jsonl"], "adapter": "a"}
    config = load(None, given).with_absolute_paths()
    for name, value in given.items():
        there = [str(tmp_path / path) for path in value] if isinstance(value, list) else str(tmp_path / value)
        assert getattr(config, name) == there


def test_what_is_no_path_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load(None, {**NEEDED, "model": "org/name", "pool": ["hub:org/data"]}).with_absolute_paths()
    assert (config.model, config.pool) == ("org/name", ["hub:org/data"])


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"selections": {}}, "unknown key 'selections'; did you mean 'selection'?"),
        ({"selection": {"topp": 1}}, "unknown key selection.topp; did you mean 'top_p'?"),
        ({"top_p": 0.1}, "unknown key 'top_p'; it belongs under `selection:`"),
        ({"xyzzy": 0.1}, "unknown key 'xyzzy'; the keys are model, out, chat"),
        ({"selection": 5}, "key 'selection' is 5, expected a section of settings"),
    ],
)
def test_an_unknown_key_is_named_with_its_file_and_the_nearest_key(write, tree, said):
    path = write(yaml_with(**tree))
    assert complaint(path).startswith(f"{path}: {said}")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top_p": "0"}, "selection.top_p is '0': input should be greater than 0"),
        ({"top_p": "1.5"}, "selection.top_p is '1.5': input should be less than or equal to 1"),
        ({"top_p": "nan"}, "selection.top_p is 'nan'"),
        ({"budget": "0"}, "selection.budget is '0'"),
        ({"budget": "-0.2"}, "selection.budget is '-0.2'"),
        ({"budget": "1.01"}, "selection.budget is '1.01'"),
        ({"budget": "inf"}, "selection.budget is 'inf'"),
        ({"budget": "most"}, "selection.budget is 'most': input should be a valid number"),
        ({"ucb_p": "0"}, "selection.ucb_p is '0'"),
        ({"csp": "-0.1"}, "selection.csp is '-0.1'"),
        ({"k": "0"}, "clustering.k is '0': input should be greater than or equal to 1"),
        ({"k": "-3"}, "clustering.k is '-3'"),
        ({"k": "2.5"}, "clustering.k is '2.5': input should be a valid integer"),
        ({"formula": "sgd"}, "gradients.formula is 'sgd': input should be 'less' or 'adam'"),
        ({"store_dtype": "int4"}, "store_dtype is 'int4': input should be 'float16', 'int8' or '1bit'"),
        ({"kmeans_backend": "faiss"}, "kmeans_backend is 'faiss': input should be 'torch' or 'keops'"),
        ({"chat": "chatml"}, "chat is 'chatml': input should be 'auto', 'tulu' or 'template'"),
        ({"dropout": "1"}, "lora.dropout is '1'"),
        ({"lr": "0"}, "training.lr is '0'"),
        ({"lr": "nan"}, "training.lr is 'nan'"),
        ({"lr": "inf"}, "training.lr is 'inf'"),
        ({"beta": "nan"}, "selection.beta is 'nan'"),
        ({"seed": "-1"}, "seed is '-1'"),
        ({"draw_batch": "0"}, "selection.draw_batch is '0'"),
        ({"draw_batch_arms": "all"}, "selection.draw_batch_arms is 'all': input should be 'one' or 'many'"),
        ({"draw_order": "sorted"}, "selection.draw_order is 'sorted'"),
        ({"rounds": "0"}, "selection.rounds is '0'"),
        ({"method": "bm26"}, "method is 'bm26'"),
        ({"perplexity": "high"}, "perplexity is 'high': input should be 'highest' or 'lowest'"),
        (
            {"features": "losses"},
            "features is 'losses': input should be 'words', 'gradients', 'top', 'hidden' or 'head'",
        ),
        ({"near_duplicates": "0"}, "selection.near_duplicates is '0': input should be greater than 0"),
        ({"near_duplicates": "1.1"}, "selection.near_duplicates is '1.1'"),
        ({"less_weights": "-1,1,1,1"}, "less.less_weights.0 is '-1': input should be greater than"),
        *(
            ({"less_weights": weights}, "expected one number for each of the 4 less_checkpoints, not all 0")
            for weights in ("1,2", "0,0,0,0", "1,2,3,4,5")
        ),
        ({"pool": []}, "pool is []"),
        ({"out": ""}, "out is ''"),
        ({"target_modules": []}, "lora.target_modules is []"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_key(options, said):
    assert said in complaint(None, {**NEEDED, **options})


def test_a_missing_setting_says_how_to_give_it():
    assert "'pool' is missing; give --pool" in complaint(None, {"model": "m", "target": ["t"], "out": "o"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: m\npool: [a, b\ntarget: t\n", ", line 3: not valid YAML"),
        ("a: b: c\n", ", line 1: not valid YAML"),
        ("", ": expected settings as `key: value` lines"),
        ("- model\n", ": expected settings as `key: value` lines"),
        ("1: m\n", ": unknown key 1"),
    ],
)
def test_a_broken_file_is_named_with_its_line(write, text, said):
    path = write(text)
    assert complaint(path).startswith(f"{path}{said}")


def test_a_file_that_is_not_text_is_named(write):
    path = write(b"\xff\xfe\x00")
    assert str(path) in complaint(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    assert "there is no such configuration file" in complaint(tmp_path / "none.yaml")
    assert f"{tmp_path}: cannot be read" in complaint(tmp_path)


def test_settings_that_differ_are_both_shown():
    old, new = (load(None, {**NEEDED, "seed": seed}) for seed in (1, 2))
    with pytest.raises(ConfigError, match=r"seed: .* made with 1 \(there\), now it is 2; .* --seed"):
        reconcile(old, new, "there")
    reconcile(old, old, "there")


@pytest.mark.parametrize(
    "change", [{"shard": "fsdp"}, {"device": "cuda:1"}, {"batch_tokens": 512}, {"micro_batch": 1}], ids=str
)
def test_how_and_where_a_run_is_computed_may_change(change):
    reconcile(load(None, NEEDED), load(None, {**NEEDED, **change}), "there")


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ({"load_in": "4bit"}, "load_in 4bit"),
        ({"features": "hidden"}, "features hidden"),
        ({"features": "top"}, "features top"),
        ({"features": "top", "method": "less"}, "features top"),
        ({"method": "rds"}, "method rds"),
        ({"method": "head"}, "method head"),
    ],
)
def test_what_cannot_be_sharded_is_refused(other, name):
    with pytest.raises(ConfigError, match=f"shard fsdp: does not go with {name}; leave one of the two out"):
        load(None, {**NEEDED, "shard": "fsdp", **other})
    load(None, {**NEEDED, **other})


def test_one_path_spelled_in_two_ways_is_one_setting(settings, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    plain = load(None, {**settings, "out": "run"}).with_absolute_paths()
    assert load(None, {**settings, "out": "elsewhere/../run"}).with_absolute_paths() == plain
