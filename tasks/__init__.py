"""The papers' eleven tasks, and those of installed packages: rows to prompts and candidates, and metrics."""

from typing import Any

from lezo.tasks.boolq import BoolQ
from lezo.tasks.cb import CB
from lezo.tasks.copa import Copa
from lezo.tasks.drop import DROP
from lezo.tasks.multirc import MultiRC
from lezo.tasks.record import ReCoRD
from lezo.tasks.registry import Registry
from lezo.tasks.rte import RTE
from lezo.tasks.squad import SQuAD
from lezo.tasks.sst2 import SST2
from lezo.tasks.task import Example, Task
from lezo.tasks.wic import WIC
from lezo.tasks.wsc import WSC

_ALL = (SST2(), RTE(), CB(), BoolQ(), WSC(), WIC(), MultiRC(), Copa(), ReCoRD(), SQuAD(), DROP())


def as_task(value: Any) -> Task:
    """A task, or its class, as a task. Raises TypeError for anything else."""
    task = value() if isinstance(value, type) and issubclass(value, Task) else value
    if not isinstance(task, Task):
        raise TypeError("expected a lezo.tasks.Task, or its class")
    return task


def _task(name: str, value: Any) -> Task:
    if (task := as_task(value)).name != name:
        raise TypeError(f"expected a lezo.tasks.Task, or its class, whose name is {name!r}")
    return task


TASKS = Registry[Task]("lezo.tasks", {task.name: task for task in _ALL}, _task)

__all__ = ["TASKS", "Example", "Task", "as_task"]
