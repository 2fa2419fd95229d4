"""Every setting of a run, one model a step: strict, from YAML or options and back.

A setting has one name everywhere: `selection: {top_p: 0.05}` in YAML is `--top-p 0.05` on the command
line. Options are made from these classes, so a new field is a new option, and the docstring under a field is
its help text. What is `auto` is decided for the job, before anything runs (run/sizing.py); the defaults of
policy and features are the method that was best where it was measured (docs/fidelity.md).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError
from pydantic.fields import FieldInfo

from clusterucb.errors import ConfigError, did_you_mean

BENCHMARKS = ("mmlu", "bbh", "tydiqa", "gsm8k", "humaneval")
"""Targets and evaluations by name (see clusterucb.tasks)."""

Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Names = Annotated[list[str], Field(min_length=1)]


def _split(given: Any) -> Any:
    """`mmlu,bbh` as two names, `0.4, 0.6` as two numbers; in a list, too."""
    items = given if isinstance(given, list) else [given]
    parts = (item.replace(",", " ").split() if isinstance(item, str) else [item] for item in items)
    return [*chain.from_iterable(parts)]


T = TypeVar("T")
AUTO: Any = None
_READS_AUTO = BeforeValidator(lambda value: None if value == "auto" else value)
if TYPE_CHECKING:
    Auto: TypeAlias = Annotated[T, "auto"]  # who reads it comes after it was decided
else:
    Auto = Annotated[T | None, _READS_AUTO, PlainSerializer(lambda value: "auto" if value is None else value)]
"""A setting that may be left to the program: `auto`, None here, until it is decided."""
TaskNames = Annotated[list[str], BeforeValidator(_split)]
Weights = Annotated[list[Annotated[float, Field(ge=0)]], BeforeValidator(_split)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Lora(_Strict):
    """The adapter that is trained, and whose gradients are compared."""

    rank: Auto[Positive] = AUTO
    """LoRA rank r."""
    alpha: Auto[Positive] = AUTO
    """LoRA alpha; updates are scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """LoRA dropout while training; gradients for selection are taken without it."""
    target_modules: Names = ["q_proj", "k_proj", "v_proj", "o_proj"]
    """Names of the layers that get an adapter, or all-linear."""
    exclude_modules: list[str] = []
    """Names of parts whose layers get none, such as vision_tower; by default, parts that no text passes."""


class Warmup(_Strict):
    """The short training before the first gradients."""

    warmup_steps: Auto[Positive] = AUTO
    """Optimizer steps on random pool rows."""


class Gradients(_Strict):
    """Features of pool rows and directions of the target."""

    gradient_length: Annotated[int, Field(ge=2)] = 2048
    """Tokens of a pool row that its gradient sees; the prompt gives way from the left."""
    target_length: Annotated[int, Field(ge=2)] = 1400
    """Tokens of a target row that its gradient sees."""
    target_end: Literal["auto", "learn", "leave"] = "auto"
    """Whether a target row's gradient is of its end token, too: learn, leave, or auto (leave for benchmarks,
    as LESS does, and learn for rows of your own)."""
    formula: Literal["less", "adam"] = "less"
    """Adam direction: less (eps inside the root, uncorrected) or adam (the true update)."""
    projection: Literal["countsketch", "rademacher"] = "countsketch"
    """Random projection: countsketch (fast) or rademacher (dense, the reference)."""
    dim: Positive = 8192
    """Dimensions of a feature."""
    batch_tokens: Positive | None = None
    """Padded tokens of a micro-batch, at most; by default 4,096, and on a GPU as many as fit, up to 32,768.
    Halved when memory runs out."""
    store_dtype: Literal["float16", "int8", "1bit"] = "float16"
    """How features are kept: float16, or estimates in half (int8) or a sixteenth (1bit) of the room."""


class Clustering(_Strict):
    """Spherical k-means over the features."""

    features: Auto[Literal["words", "gradients", "top", "hidden", "head"]] = AUTO
    """What rows are compared by, and dynamic clusters: gradients, or those of the upper half of the layers
    (top); for the clusters, words; or, by a forward pass of each row, hidden states, or gradients of a linear
    map before the vocabulary head (head). auto is words where the method leaves the choice (an index has
    hidden states there), else gradients."""
    k: Auto[Positive] = AUTO
    """Clusters, the bandit's arms."""
    centre: bool = True
    """Take what all features share, their mean, from each before clustering; the paper clusters them raw."""
    iterations: Positive = 20
    """Iterations of k-means."""
    kmeans_backend: Literal["torch", "keops"] = "torch"
    """What computes k-means: torch, or keops (needs clusterucb[keops] and a compiler)."""


class Selecting(_Strict):
    """The bandit and its budget."""

    policy: str = "linear_ucb"
    """What is drawn: row by row, linear_ucb, cluster_less or landmarks; or by clusters, ucb_beta (the
    paper's), ucb1, ucb_threshhard, ucb_threshnormal or random."""
    beta: Annotated[float, Field(ge=0)] = 1.0
    """Standard deviations above the mean in ucb_beta and linear_ucb."""
    ucb_p: Fraction = 0.25
    """The share of draws above the threshold in ucb_threshhard and ucb_threshnormal."""
    csp: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Cold start: the share of every cluster that is drawn first, at least one row of each."""
    budget: Auto[Fraction] = AUTO
    """The share of the pool whose gradient may be computed in one re-selection, cold start included; auto is
    all of --budget-cap, or with linear_ucb no more than it takes."""
    budget_cap: Auto[Fraction] = AUTO
    """With budget auto: the share of the pool that is never exceeded."""
    auto_change: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """With budget auto: drawing ends once no larger share of the selection is expected to change."""
    top_p: Auto[Fraction] = AUTO
    """The share of the pool that is selected."""
    aim: Literal["mean", "nearest", "round_robin", "subspace"] = "mean"
    """What rows are compared with: the mean of the target's rows, the nearest, all in turn (round_robin), or
    their mean inside the subspace of the target's gradients."""
    keep: Literal["auto", "now", "sum", "mean", "once", "static"] = "auto"
    """What dynamic trains on in a period: the best rows now, by the sum or moving mean of influence over the
    periods, rows trained on least often first (once), or those of the first period throughout (static). auto
    goes by what features without gradients show: now, of which half is for rows of the task itself, or mean
    where none is near."""
    near_duplicates: Fraction = 1.0
    """The cosine of stored features above which a row gives way to the next best one if a better row is
    selected; at 1 none does."""
    draw_batch: Auto[Positive] = AUTO
    """Rows drawn at once."""
    draw_batch_arms: Literal["one", "many"] = "one"
    """one: rows drawn at once are all of the best arm. many: of several arms, as if drawn one by one."""
    rounds: Auto[Positive] = AUTO
    """In how many parts linear_ucb draws the budget; it learns after each."""
    draw_order: Literal["uniform", "stale"] = "uniform"
    """Rows of an arm are drawn uniformly, or (stale) best first by stored features and the target now."""

    @property
    def cap(self) -> float:
        """The largest share of the pool that is drawn in one re-selection."""
        return self.budget_cap if self.budget is None else self.budget

    @property
    def by_row(self) -> bool:
        """Whether rows are drawn by what is known of each, not by their clusters alone."""
        return self.policy in ("linear_ucb", "cluster_less", "landmarks")


class Less(_Strict):
    """LESS: one selection by the gradients at several checkpoints of a longer warmup."""

    less_warmup: Fraction = 0.05
    """The share of the pool, drawn at random, that LESS warms up on."""
    less_checkpoints: Positive = 4
    """Epochs of LESS's warmup, with a checkpoint after each."""
    less_weights: Weights = []
    """A weight for each of LESS's checkpoints; by default the mean learning rate of its epoch."""


class Baselines(_Strict):
    """The methods to compare with that need no gradient."""

    perplexity: Literal["highest", "lowest"] = "highest"
    """Which rows the method loss selects: those of the highest or of the lowest loss."""


class Training(_Strict):
    """Training of the adapter, period by period."""

    periods: Positive = 4
    """Training periods; each begins with a selection."""
    epochs_per_period: Auto[Positive] = AUTO
    """Passes over the selected rows in one period."""
    lr: Auto[Annotated[float, Field(gt=0)]] = AUTO
    """Peak learning rate of one linear schedule over all periods."""
    lr_warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of all steps in which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's weight decay."""
    batch_size: Auto[Positive] = AUTO
    """Rows of one optimizer step."""
    micro_batch: Positive | None = None
    """Rows on the device at once in training, at most; by default as many as --batch-tokens hold."""
    train_length: Annotated[int, Field(ge=2)] = 4096
    """Tokens of a row in training; the prompt gives way from the left."""
    save_steps: Positive = 50
    """Optimizer steps between two saved states, besides one at every period's end."""
    shard: Literal["none", "fsdp"] = "none"
    """What each of several processes holds: none, all of the model; fsdp, a part of every weight (FSDP 2)."""
    report_to: Literal["none", "tensorboard", "wandb", "mlflow"] = "none"
    """Where the trainer logs each step: tensorboard (logs/ in the run directory), wandb, mlflow or none."""


class Evaluation(_Strict):
    """Benchmarks, besides the loss on held-out rows. They change nothing that is trained."""

    tasks: TaskNames = []
    """Benchmarks for base and adapter: mmlu, bbh, tydiqa, gsm8k, humaneval, or one form, as mmlu_5shot."""
    limit: Positive | None = None
    """Questions of each subtask at most, drawn by the seed; all without it."""
    samples: Positive = 20
    """Programs that the model writes for each HumanEval problem."""
    eval_batch: Positive | None = None
    """Questions answered at once; by default as many as 16,384 tokens hold; halved when memory runs out."""
    engine: Literal["hf", "vllm"] = "hf"
    """What runs the model: hf (transformers) or vllm."""
    allow_code_execution: bool = False
    """Run the programs that the model writes for HumanEval, each in a sandbox."""


class Common(_Strict):
    """What training and evaluation share."""

    model: str
    """A causal language model: a folder, a GGUF file or a hub id."""
    out: Annotated[str, Field(min_length=1)]
    """The run directory."""
    chat: Literal["auto", "tulu", "template"] = "auto"
    """Chat format: tulu, template (the tokenizer's own), or auto (template where there is one)."""
    data_dir: str | None = None
    """Folder with the benchmarks' official files; without it they come from the Hugging Face hub."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of everything random."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the base model's weights; auto is bfloat16 where the device is fast at it."""
    load_in: Literal["dtype", "8bit", "4bit"] = "dtype"
    """How the base's linear layers are kept: in dtype, or quantised, 8bit or 4bit (extra quant)."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    adapter: str | None = None
    """A LoRA adapter to go on from, instead of a new one; in `evaluate`, the one to compare with its base."""
    evaluation: Evaluation = Evaluation()

    @property
    def data_folder(self) -> Path | None:
        """The folder with official files; None stands for the hub."""
        return Path(self.data_dir) if self.data_dir else None


class Config(Common):
    """All settings of a run."""

    method: Literal["dynamic", "less", "random", "bm25", "rds", "head", "loss"] = "dynamic"
    """How rows are selected: dynamic (in every period anew), less (once), random, bm25, rds, head, loss."""
    bandit: Literal["clusterucb", "none"] = "clusterucb"
    """Whose gradients dynamic and less compute: a budgeted share (clusterucb) or all rows' (none)."""
    repeat: Annotated[int, Field(ge=0)] = 0
    """Number of a repetition: other draws and training, with the same adapter, warmup, features, clusters."""
    pool: Names
    """Rows to choose from: .jsonl, .json, .parquet files (also .gz) or `hub:org/name[:config][:split]`."""
    index: str | None = None
    """An index to begin at, whose checkpoint, features and clusters serve any target: a folder of `index`,
    another run's directory, or `hub:org/name`."""
    target: list[str] = []
    """A few rows of the task to get better at, in the pool's formats; or benchmarks by name, as gsm8k.
    Several tasks are kept apart by names: `law=law.jsonl art=art.jsonl`."""
    target_shares: Weights = []
    """Shares of the selected rows, one for each of several targets, by the order of their names; by default
    all have the same."""
    subtask: str | None = None
    """The column that groups the target's rows into subtasks; without it they are one."""
    target_rows: Positive | None = None
    """Rows of a benchmark that has more than a target needs (gsm8k 64, humaneval 16 unless given)."""
    holdout: list[str] = []
    """Rows of the task kept from selection, on whose loss the adapter is evaluated; or benchmarks by name."""
    holdout_rows: Positive = 100
    """Questions of a benchmark whose right answers are held out, drawn by the seed."""
    decontaminate: bool = False
    """Keep pool rows out that nearly repeat an evaluation question, a held-out row or a target row."""
    lora: Lora = Lora()
    warmup: Warmup = Warmup()
    gradients: Gradients = Gradients()
    clustering: Clustering = Clustering()
    selection: Selecting = Selecting()
    less: Less = Less()
    baselines: Baselines = Baselines()
    training: Training = Training()

    def model_post_init(self, _: Any, /) -> None:
        """Refuse settings that contradict each other."""
        weights, checkpoints = self.less.less_weights, self.less.less_checkpoints
        if weights and (len(weights) != checkpoints or not sum(weights)):
            raise ConfigError(
                f"less_weights {', '.join(map(str, weights))}: expected one number for each of the "
                f"{checkpoints} less_checkpoints, not all 0"
            )
        self._check_features()
        self._check_aim()
        self._check_targets()
        self._check_shard()

    @property
    def features(self) -> str:
        """What features of all rows are of; auto is words wherever the method leaves the choice."""
        free = self.method == "dynamic" and self.bandit == "clusterucb"
        return self.clustering.features or ("words" if free else "gradients")

    def _check_features(self) -> None:
        """Refuse features without gradients where the method needs the gradients of all rows anyway."""
        others = self.clustering.features in ("words", "hidden", "head")
        if others and self.method in ("dynamic", "less") and (self.method == "less" or self.bandit == "none"):
            raise ConfigError(
                f"features {self.clustering.features}: method {self.method} with bandit {self.bandit} takes "
                f"the gradients of all rows anyway; use --features gradients, or --method dynamic with "
                f"--bandit clusterucb"
            )

    def _check_aim(self) -> None:
        """Refuse an aim whose influence cannot be added up as the method, or the keep rule, adds it."""
        aim, keep, less = self.selection.aim, self.selection.keep, self.method == "less"
        if self.in_turns and self.method == "dynamic" and keep not in ("auto", "now", "static"):
            raise ConfigError(
                f"keep {keep}: rows taken in turn, by aim round_robin or for several targets, have no one "
                "influence to add up; use --keep now or static"
            )
        if self.in_turns and (less or self.method == "dynamic") and self.selection.near_duplicates < 1:
            raise ConfigError(
                f"near_duplicates {self.selection.near_duplicates}: rows taken in turn, by aim round_robin "
                "or for several targets, have no one order of best rows; use --near-duplicates 1"
            )
        if less and (aim == "subspace" or (aim == "round_robin" and self.bandit != "none")):
            raise ConfigError(
                f"aim {aim}: method less with bandit {self.bandit} adds influence up over checkpoints; use "
                "--aim nearest, --method dynamic or, with round_robin, --bandit none"
            )

    def _check_targets(self) -> None:
        """Refuse targets of which some have no name, shares that are not theirs, and aims of one target."""
        names, shares = {name for name, _ in self.targets}, self.target_shares
        if len(names) > 1 and self.selection.aim != "mean":
            raise ConfigError(
                f"aim {self.selection.aim}: several targets are kept apart by the mean of the rows of each; "
                "use --aim mean, or make a run for each"
            )
        if shares and (len(shares) != len(names) or "" in names or not all(shares)):
            raise ConfigError(
                f"target_shares {', '.join(map(str, shares))}: expected a number above 0 for each of several "
                "targets, as in --target law=law.jsonl art=art.jsonl --target-shares 2,1"
            )

    def _check_shard(self) -> None:
        """Refuse what runs a part of the model only, or weights that cannot be cut."""
        features, method = self.clustering.features, self.method
        others = features not in ("gradients", "words", AUTO)
        unfit = {
            f"load_in {self.load_in}": self.load_in != "dtype",
            f"features {features}": others and method in ("dynamic", "less"),
            f"method {method}": method in ("rds", "head"),
        }
        found = [name for name, is_set in unfit.items() if is_set]
        if found and self.training.shard == "fsdp":
            raise ConfigError(f"shard fsdp: does not go with {found[0]}; leave one of the two out")

    @property
    def targets(self) -> list[tuple[str, str]]:
        """Name and file, or benchmark, of each part of the target; the name is "" where there is one task.

        Raises ConfigError where some have a name and others have none.
        """
        found = [_named(value) for value in self.target]
        if len({bool(name) for name, _ in found}) > 1:
            raise ConfigError(
                f"target {' '.join(self.target)}: some have a name (NAME=FILE), some none; name all, or none"
            )
        return found

    @property
    def own_target(self) -> bool:
        """Whether the target is of the person's own rows, and not of benchmarks."""
        return not any(path in BENCHMARKS for _, path in self.targets)

    @property
    def in_turns(self) -> bool:
        """Whether rows are taken in turn, of those that were drawn: by target rows, or several targets."""
        return self.selection.aim == "round_robin" or len({name for name, _ in self.targets}) > 1

    @property
    def without_target(self) -> Config:
        """What an index of these settings is made with: once for many targets, so that it can afford more."""
        kind = self.clustering.features
        if kind is None and self.features == "words":
            kind = "hidden" if self.training.shard == "none" else "gradients"
        return self.with_settings({**_OF_A_RUN, "index": None, "features": kind})

    def with_settings(self, given: Mapping[str, Any]) -> Config:
        """These settings with others, by names, put over them. Raises ConfigError if they are at odds."""
        return Config.model_validate(_put_over(self.model_dump(), given))

    def filled(self, decided: Config, index: bool = False) -> Config:
        """These settings, with what is `auto` in them as it was `decided`; or that of an index alone."""
        left = (
            setting
            for setting in settings()
            if setting.auto and setting.of(self) is None and (setting.of_an_index or not index)
        )
        return self.with_settings({setting.name: setting.of(decided) for setting in left})

    def with_absolute_paths(self) -> Config:
        """The same settings, valid from any working directory."""

        def absolute(rows: list[str]) -> list[str]:
            parts = map(_named, rows)
            return [f"{name}{'=' * bool(name)}{_absolute(path)}" for name, path in parts]

        single = ("model", "adapter", "data_dir", "index")
        found: dict[str, Any] = {name: _absolute(path) for name in single if (path := getattr(self, name))}
        found["out"] = os.path.normpath(Path(self.out).absolute())
        found["pool"] = [*map(_absolute, self.pool)]
        found |= {"target": absolute(self.target), "holdout": absolute(self.holdout)}
        return self.model_copy(update=found)

    def to_yaml(self) -> str:
        """YAML that `load` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _absolute(path: str) -> str:
    """A path that exists, without the working directory; anything else, such as a hub id, as it is."""
    there = path not in BENCHMARKS and Path(path).exists()
    return os.path.normpath(Path(path).absolute()) if there else path


def _named(value: str) -> tuple[str, str]:
    """`NAME=FILE` as both; a file whose own name is like that has no name."""
    name, equals, path = value.partition("=")
    if not equals or not re.fullmatch(r"[\w.-]+", name) or Path(value).exists():
        return "", value
    return name, path


AnyConfig = TypeVar("AnyConfig", bound=Common)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where libyaml is there


class Setting(NamedTuple):
    """One leaf of the configuration, as an option sees it."""

    name: str
    section: str | None
    annotation: Any
    default: Any
    required: bool
    help: str
    auto: bool = False

    @property
    def of_an_index(self) -> bool:
        """Whether features of pool rows depend on it."""
        return self.name in _OF_AN_INDEX or self.section in ("lora", "warmup")

    def of(self, config: Common) -> Any:
        """Its value in some settings."""
        return getattr(getattr(config, self.section) if self.section else config, self.name)


@cache
def settings(kind: type[Common] = Config) -> tuple[Setting, ...]:
    """Every leaf setting of `kind`; names are unique over all sections."""
    return tuple(_settings(kind))


def _settings(kind: type[Common]) -> Iterator[Setting]:
    for name, info in kind.model_fields.items():
        section = _fields(info)
        for leaf, field in (section or {name: info}).items():
            where = name if section else None
            auto = _READS_AUTO in field.metadata
            default = "auto" if auto else field.default
            about = field.description or ""
            yield Setting(leaf, where, field.annotation, default, field.is_required(), about, auto)


def _fields(info: FieldInfo) -> dict[str, FieldInfo]:
    """The settings of a section; none of what is a setting itself."""
    kind = info.annotation
    return kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else {}


def load(path: str | Path | None, options: Mapping[str, Any] | None = None) -> Config:
    """A run's configuration from a YAML file, with options (by leaf name) put over it.

    Raises ConfigError for unreadable YAML, an unknown key (names the nearest), a value out of range.
    """
    return load_as(Config, path, options)


def load_as(
    kind: type[AnyConfig], path: str | Path | None, options: Mapping[str, Any] | None = None
) -> AnyConfig:
    """What `load` does for the settings of `kind`; a run's other settings in the file are passed over."""
    tree = _read_yaml(Path(path)) if path else {}
    origin = str(path) if path else "options"
    _refuse_unknown_keys(tree, origin)
    _put_over(tree, options or {})
    for name in ("pool", "target", "holdout"):
        if isinstance(tree.get(name), str):
            tree[name] = [tree[name]]
    tree = {key: value for key, value in tree.items() if key in kind.model_fields}
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_one_line(error, origin)) from None


def sectioned(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their names as the tree that YAML has."""
    return _put_over({}, given)


def _put_over(tree: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of settings with others, by their names, in their sections."""
    for setting in settings():
        if setting.name in given:
            room = tree.setdefault(setting.section, {}) if setting.section else tree
            room[setting.name] = given[setting.name]
    return tree


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _LOADER)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected settings as `key: value` lines")
    return tree


def _refuse_unknown_keys(tree: Mapping[str, Any], origin: str) -> None:
    sections = {name: _fields(info) for name, info in Config.model_fields.items()}
    homes = {leaf: f"it belongs under `{name}:`" for name, leaves in sections.items() for leaf in leaves}
    for key, value in tree.items():
        if key not in sections:
            hint = homes.get(key) or did_you_mean(str(key), sections, "the keys are")
            raise ConfigError(f"{origin}: unknown key {key!r}; {hint}")
        if not (known := sections[key]):
            continue
        if not isinstance(value, dict):
            raise ConfigError(f"{origin}: key {key!r} is {value!r}, expected a section of settings")
        if unknown := [leaf for leaf in value if leaf not in known]:
            hint = did_you_mean(str(unknown[0]), known, "the keys are")
            raise ConfigError(f"{origin}: unknown key {key}.{unknown[0]!s}; {hint}")


def _one_line(error: ValidationError, origin: str) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"{origin}: {key!r} is missing; give --{key.replace('_', '-')} or set it in the configuration"
    return f"{origin}: {key} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


_MAY_DIFFER = ("data_dir", "shard", "device", "batch_tokens", "micro_batch", "index")


def reconcile(saved: Config, given: Config, where: str) -> None:
    """Refuse settings that contradict those a run directory was made with; what is `auto` is as it was.

    Raises ConfigError that names the first which differs, with both values.
    """
    for setting in settings():
        if setting.section == "evaluation" or setting.name in _MAY_DIFFER:
            continue  # what was made of them is in the run directory, or is the same but for rounding
        _refuse_other(setting, saved, given, f"this run directory was made with {{}} ({where})", "--out")


def reconcile_index(made: Config, given: Config, where: str) -> None:
    """Refuse settings under which a run would have made another index than this, as `reconcile` does.

    Model and pool may lie elsewhere by now: what is in them is compared when they are read.
    """
    needless = set() if given.method in ("dynamic", "less") else {"method", "features"}
    for setting in settings():
        if setting.of_an_index and setting.name not in needless:
            _refuse_other(setting, made, given, f"the index was made with {{}} ({where})", "--index")


_OF_AN_INDEX = {"adapter", "chat", "seed", "load_in", "method", "less_warmup", "less_checkpoints", "features"}
_OF_AN_INDEX |= {"gradient_length", "train_length", "formula", "projection", "dim", "store_dtype"}
_OF_A_RUN: dict[str, Any] = {
    "target": [],
    "subtask": None,
    "target_rows": None,
    "target_shares": [],
    "holdout": [],
    "repeat": 0,
    "tasks": [],
}


def load_index(folder: Path, options: Mapping[str, Any] | None = None) -> Config:
    """The settings that an index, or the index of a run, was made with, and of a run there those given alone.

    Raises ConfigError if there is no index.
    """
    path = folder / "config.yaml"
    if not path.exists():
        raise ConfigError(
            f"--index {folder}: no config.yaml there; expected a folder of `clusterucb index`, or a run's"
        )
    return load(path, {**_OF_A_RUN, "out": str(folder), "index": None, **(options or {})})


def _refuse_other(setting: Setting, saved: Config, given: Config, was: str, another: str) -> None:
    old, new = setting.of(saved), setting.of(given)
    if old != new and not (setting.auto and new is None):
        before = "auto" if setting.auto and old is None else repr(old)
        raise ConfigError(
            f"{setting.name}: {was.format(before)}, now it is {new!r}; "
            f"use another {another}, or leave --{setting.name.replace('_', '-')} as it was"
        )
