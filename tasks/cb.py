"""CommitmentBank: does the text commit its author to the hypothesis?"""

from collections.abc import Iterator

from lezo.tasks.row import Row
from lezo.tasks.task import Example, Task, choice, super_glue


class CB(Task):
    name = "cb"
    num_dev = 100  # the train set is small
    hub = super_glue("cb", 250, 56)

    def examples(self, row: Row) -> Iterator[Example]:
        gold = row.label("label", ("entailment", "contradiction", "neutral"))
        question = f'Can we infer that "{row.text("hypothesis")}"? Yes, No, or Maybe?'
        return choice(f"Suppose {row.text('premise')} {question}\n", ("Yes", "No", "Maybe"), gold)
