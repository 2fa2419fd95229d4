"""Which evaluations a person means by the names given."""

from __future__ import annotations

from collections.abc import Iterable

from clusterucb.errors import ConfigError, did_you_mean
from clusterucb.tasks import TASKS
from clusterucb.tasks.task import Task, Variant


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
