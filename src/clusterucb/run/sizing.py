"""What is `auto`, decided for a job before anything runs: a list of rules, one a setting.

Each sees what those before it have decided. Sources of the rules:

    the paper   Wang et al. 2025, ClusterUCB, arXiv 2506.10288
    [1]         Schulman et al. 2025, "LoRA Without Regret", thinkingmachines.ai/blog/lora: ten times the rate
                of full fine-tuning, whatever the rank, with 1 / r scaling and alpha 32, of which alpha times
                the rate counts; small batches; as many weights as tokens. That full fine-tuning has 5e-5 at
                width 2000, and the powers of the width, are from the same authors' Tinker cookbook.
    [2]         Muennighoff et al. 2023, "Scaling Data-Constrained Language Models", arXiv 2305.16264
    [3]         docs/fidelity.md: what was measured here
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from clusterucb.config import Config, settings
from clusterucb.run.methods import budget_of, method_of
from clusterucb.selection.budget import default_k
from clusterucb.selection.share import share, smallest_share

STEPS = 60
"""Optimizer steps in all that an adapter gets, where the rows allow it."""
FITTED = 2000
"""About the least width of the models to which the powers below were fitted. They are not followed further
down: of SmolLM2-135M, of width 576, they make 1.3e-3, with which most selections trained worse [3]."""
SOURCES = "[1] LoRA Without Regret, thinkingmachines.ai/blog/lora  [2] arXiv 2305.16264  [3] docs/fidelity.md"


class Job(NamedTuple):
    """What is known of a job before anything runs.

    Attributes:
        rows: usable rows of the pool, N.
        tokens: of a row in training, on average.
        width: numbers of a token's hidden state.
        layers: of the model.
        family: of the model, as its configuration has it: llama, qwen2, ...
        processes: that train together.
        adapter: rank and alpha of the adapter that training goes on from, if it does.
    """

    rows: int
    tokens: float
    width: int
    layers: int
    family: str
    processes: int = 1
    adapter: tuple[int, int] | None = None

    @classmethod
    def of_rows(cls, rows: int) -> Job:
        """For what depends on the number of rows alone."""
        return cls(rows, tokens=0, width=1, layers=1, family="")


Decide = Callable[[Config, Job], Any]


class Rule(NamedTuple):
    """How a setting is decided, why so, and in which runs a person is told of it."""

    setting: str
    decide: Decide
    reason: str
    told: Callable[[Config], bool]


Rules: TypeAlias = tuple[Rule, ...]


class Decided(NamedTuple):
    """A setting that was `auto`."""

    setting: str
    value: Any
    reason: str


def rule(setting: str, told: Callable[[Config], bool] = lambda _config: True) -> Callable[[Decide], Rule]:
    """Make a function, whose docstring is the reason, the rule for a setting."""
    return lambda decide: Rule(setting, decide, decide.__doc__ or "", told)


def draws(config: Config) -> bool:
    """Whether a bandit draws rows."""
    return method_of(config).budgeted


def draws_by_row(config: Config) -> bool:
    """Whether it does row by row."""
    return draws(config) and config.selection.by_row


def draws_by_cluster(config: Config) -> bool:
    """Whether it does by clusters."""
    return draws(config) and not config.selection.by_row


def kept(config: Config, job: Job) -> int:
    """Rows of a selection."""
    return max(1, share(config.selection.top_p, job.rows))


@rule("top_p")
def rows_kept(config: Config, job: Job) -> float:
    """5 % of the pool, as in the paper; of a small one 64 rows, an eighth of it at most"""
    wanted = max(0.05, min(0.125, smallest_share(job.rows, 64)), smallest_share(job.rows))
    most = 1.0 if config.selection.by_row else config.selection.cap or 1.0
    return min(wanted, most)


@rule("batch_size")
def rows_of_a_step(config: Config, job: Job) -> int:
    """60 optimizer steps or more; from 2 rows, as LoRA does badly on large batches [1], to 128"""
    selected = kept(config, job)
    wanted = max(1, config.training.periods * selected // STEPS)
    size = min(selected, max(2, min(128, 1 << (wanted.bit_length() - 1))))
    return -(-size // job.processes) * job.processes  # each process gets as many rows


@rule("epochs_per_period")
def passes(config: Config, job: Job) -> int:
    """60 optimizer steps or more; four passes at most, as more of them teach little [2]"""
    steps = config.training.periods * math.ceil(kept(config, job) / config.training.batch_size)
    return min(4, math.ceil(STEPS / steps))


@rule("warmup_steps", told=lambda config: method_of(config).reselects)
def steps_before_gradients(config: Config, job: Job) -> int:
    """20, as in the paper, on a tenth of the pool at most"""
    return max(1, min(20, job.rows // 10 // config.training.batch_size))


@rule("rank")
def adapter_rank(config: Config, job: Job) -> int:
    """from 8 to 128: about as many weights as the selections have tokens [1]"""
    if job.adapter:
        return job.adapter[0]
    tokens = config.training.periods * kept(config, job) * job.tokens
    of_one = 8 * job.width * job.layers  # four matrices of attention in every layer, about square
    return next((rank for rank in (8, 16, 32, 64) if rank * of_one >= tokens), 128)


@rule("alpha")
def adapter_alpha(_config: Config, job: Job) -> int:
    """32, at which the learning rate does not depend on the rank [1]"""
    return job.adapter[1] if job.adapter else 32


@rule("lr")
def learning_rate(config: Config, job: Job) -> float:
    """ten times that of full fine-tuning: 5e-4 at alpha 32, less of a model wider than 2000 [1]"""
    power = 0.0775 if "qwen" in job.family else 0.781  # fitted for Qwen and for Llama
    return float(f"{5e-4 * min(1, FITTED / job.width) ** power * 32 / config.lora.alpha:.2g}")


@rule("features", told=lambda config: draws(config) and config.features != "gradients")
def features(config: Config, _job: Job) -> str:
    """they cost nothing, and selected no worse [3]"""
    return config.features


@rule("budget_cap", told=lambda config: draws_by_row(config) and config.selection.budget is None)
def rows_drawn(config: Config, _job: Job) -> float:
    """twice the rows that are kept [3]"""
    times = 2 if config.selection.by_row else 4
    return min(1.0, float(f"{times * config.selection.top_p:.6g}"))


@rule("budget", told=draws_by_cluster)
def whole_budget(config: Config, _job: Job) -> float | None:
    """four times the rows that are kept, as in the paper"""
    return None if config.selection.policy == "linear_ucb" else config.selection.budget_cap


@rule("k", told=draws)
def clusters(config: Config, job: Job) -> int:
    """the square root of the pool's rows, half of those drawn at most"""
    return default_k(job.rows, budget_of(config).spend(job.rows))


@rule("rounds", told=draws_by_row)
def parts_of_the_budget(config: Config, job: Job) -> int:
    """10, each of 8 rows or more; the same on any number of devices"""
    return max(1, min(10, share(config.selection.cap, job.rows) // 8))


@rule("draw_batch", told=draws_by_cluster)
def rows_drawn_at_once(config: Config, job: Job) -> int:
    """a thousandth of the budget, from 8 to 64; the same on any number of devices"""
    return max(8, min(64, share(config.selection.cap, job.rows) // 1000))


TRAINING: Rules = (
    *(rows_kept, rows_of_a_step, passes, steps_before_gradients),
    *(adapter_rank, adapter_alpha, learning_rate),
)
"""What all methods of a comparison share."""
DRAWS: Rules = (features, rows_drawn, whole_budget, clusters, parts_of_the_budget, rows_drawn_at_once)
"""What is of the selection's method; with `rows_kept` by the number of rows alone."""


def is_open(config: Config) -> bool:
    """Whether anything is still to be decided; a budget may stay `auto`, as linear_ucb's draws decide it."""
    values = {setting.name: setting.of(config) for setting in settings() if setting.auto}
    return any(value is None for name, value in values.items() if name != "budget")


def decide(config: Config, job: Job, rules: Rules = TRAINING + DRAWS) -> tuple[Config, list[Decided]]:
    """The settings with what was `auto` decided by these rules, and what a person is told of it.

    Raises ConfigError if what was given contradicts what follows from the rest.
    """
    homes = {setting.name: setting for setting in settings()}
    found = []
    for one in rules:
        if homes[one.setting].of(config) is not None:
            continue
        value = one.decide(config, job)
        config = config.with_settings({one.setting: value})
        if value is not None and one.told(config):
            found.append(Decided(one.setting, value, one.reason))
    if not is_open(config):
        budget_of(config)
    return config, found


def lines(config: Config, job: Job, decided: Sequence[Decided]) -> list[str]:
    """What was decided, as a short table for a person; nothing if nothing was."""
    if not decided:
        return []
    selected, settings_ = kept(config, job), config.training
    steps = settings_.periods * settings_.epochs_per_period * math.ceil(selected / settings_.batch_size)
    head = (
        f"decided for {job.rows} rows of {job.tokens:.0f} tokens and a model of width {job.width}: "
        f"{selected} rows a selection, {steps} optimizer steps (any can be set, --preset paper sets all)"
    )
    name, value = (max(len(str(one[i])) for one in decided) for i in (0, 1))
    rows = (f"  {one.setting:<{name}}  {one.value!s:<{value}}  {one.reason}" for one in decided)
    return [head, *rows, f"  {SOURCES}"]
