"""COPA: which of two sentences is the premise's cause or effect?"""

from collections.abc import Iterator

from lezo.tasks.row import Row
from lezo.tasks.task import Example, Task, super_glue

_CONJUNCTIONS = ("because", "so")


class Copa(Task):
    name = "copa"
    num_dev = 100  # the train set is small
    hub = super_glue("copa", 400, 100)
    loss = "lm"

    def examples(self, row: Row) -> Iterator[Example]:
        conjunction = _CONJUNCTIONS[row.label("question", ("cause", "effect"))]
        premise = row.text("premise").rstrip().removesuffix(".")
        answers = tuple(" " + _continued(row.text(column)) for column in ("choice1", "choice2"))
        gold = row.label("label", ("choice1", "choice2"))
        yield Example(f"{premise} {conjunction}", answers, (gold,), blank=conjunction)


def _continued(choice: str) -> str:
    """The choice as the second half of a sentence: its first word lower-cased, unless it is "I"."""
    first, *rest = choice.split(" ")
    return " ".join([first if first == "I" else first.lower(), *rest])
