"""The benchmarks as questions: targets to select for, and what is asked in the evaluation."""

from __future__ import annotations

from collections.abc import Mapping

from clusterucb.tasks.bbh import TASK as BBH
from clusterucb.tasks.gsm8k import TASK as GSM8K
from clusterucb.tasks.humaneval import TASK as HUMANEVAL
from clusterucb.tasks.mmlu import TASK as MMLU
from clusterucb.tasks.task import Task
from clusterucb.tasks.tydiqa import TASK as TYDIQA

TASKS: Mapping[str, Task] = {task.name: task for task in (MMLU, BBH, TYDIQA, GSM8K, HUMANEVAL)}
"""Every benchmark, by name."""
