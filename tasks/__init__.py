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


def _task(name: str, value: Any) -> Task:
    task = value() if isinstance(value, type) else value
    if not isinstance(task, Task) or task.name != name:
        raise TypeError(f"expected a lezo.tasks.Task, or its class, whose name is {name!r}")
    return task


TASKS = Registry[Task]("lezo.tasks", {task.name: task for task in _ALL}, _task)

__all__ = ["TASKS", "Example", "Task"]
