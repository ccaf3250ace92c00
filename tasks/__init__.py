"""The papers' eleven tasks: rows to prompts and candidates, and how answers are judged."""

from tasks.boolq import BoolQ
from tasks.cb import CB
from tasks.copa import Copa
from tasks.drop import DROP
from tasks.multirc import MultiRC
from tasks.record import ReCoRD
from tasks.rte import RTE
from tasks.squad import SQuAD
from tasks.sst2 import SST2
from tasks.task import Example, Task
from tasks.wic import WIC
from tasks.wsc import WSC

_ALL = (SST2(), RTE(), CB(), BoolQ(), WSC(), WIC(), MultiRC(), Copa(), ReCoRD(), SQuAD(), DROP())
TASKS: dict[str, Task] = {task.name: task for task in _ALL}

__all__ = ["TASKS", "Example", "Task"]
