"""The benchmarks as questions: targets to select for, and what is asked in the evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from clusterucb.errors import ConfigError, did_you_mean
from clusterucb.tasks.bbh import TASK as BBH
from clusterucb.tasks.gsm8k import TASK as GSM8K
from clusterucb.tasks.humaneval import TASK as HUMANEVAL
from clusterucb.tasks.mmlu import TASK as MMLU
from clusterucb.tasks.task import Task, Variant
from clusterucb.tasks.tydiqa import TASK as TYDIQA

TASKS: Mapping[str, Task] = {task.name: task for task in (MMLU, BBH, TYDIQA, GSM8K, HUMANEVAL)}
"""Every benchmark, by name."""


def chosen(names: Iterable[str]) -> dict[str, tuple[Task, Variant]]:
    """Variants by name, each with its task; a task's name means all of its variants.

    Raises ConfigError where no task and no variant has such a name.
    """
    known = {name: (task, variant) for task in TASKS.values() for name, variant in task.variants.items()}
    found: dict[str, tuple[Task, Variant]] = {}
    for name in names:
        if name in TASKS:
            found |= {variant: known[variant] for variant in TASKS[name].variants}
        elif name in known:
            found[name] = known[name]
        else:
            every = [*TASKS, *(variant for variant in known if variant not in TASKS)]
            hint = did_you_mean(name, every, "there are")
            raise ConfigError(f"tasks: unknown benchmark {name!r}; {hint}")
    return found
