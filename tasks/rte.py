"""RTE: does the premise entail the hypothesis?"""

from collections.abc import Iterator

from lezo.tasks.row import Row
from lezo.tasks.task import Example, Task, choice, super_glue


class RTE(Task):
    name = "rte"
    hub = super_glue("rte", 2490, 277)

    def examples(self, row: Row) -> Iterator[Example]:
        gold = row.label("label", ("entailment", "not_entailment"))
        question = f'Does this mean that "{row.text("hypothesis")}" is true? Yes or No?'
        return choice(f"{row.text('premise')}\n{question}\n", ("Yes", "No"), gold)
