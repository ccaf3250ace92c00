"""The papers' eleven tasks: rows to prompts and candidates, and how answers are judged."""

from lezo.tasks.boolq import BoolQ
from lezo.tasks.cb import CB
from lezo.tasks.copa import Copa
from lezo.tasks.drop import DROP
from lezo.tasks.multirc import MultiRC
from lezo.tasks.record import ReCoRD
from lezo.tasks.rte import RTE
from lezo.tasks.squad import SQuAD
from lezo.tasks.sst2 import SST2
from lezo.tasks.task import Example, Task
from lezo.tasks.wic import WIC
from lezo.tasks.wsc import WSC

_ALL = (SST2(), RTE(), CB(), BoolQ(), WSC(), WIC(), MultiRC(), Copa(), ReCoRD(), SQuAD(), DROP())
TASKS: dict[str, Task] = {task.name: task for task in _ALL}

__all__ = ["TASKS", "Example", "Task"]
