"""SST-2: is a film review's sentence negative or positive?"""

from collections.abc import Iterator

from lezo.tasks.row import Row
from lezo.tasks.task import Example, Hub, Task, choice


class SST2(Task):
    name = "sst2"
    hub = Hub("nyu-mll/glue", "sst2", "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c", 67349, 872)

    def examples(self, row: Row) -> Iterator[Example]:
        gold = row.label("label", ("negative", "positive"))
        return choice(
            f"{row.text('sentence').strip()} It was", (" terrible", " great"), gold, blank=" It was"
        )
