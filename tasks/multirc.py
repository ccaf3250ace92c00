"""MultiRC: is this answer to a question about a paragraph right? One example an answer."""

from collections.abc import Iterator

from lezo.tasks.row import Row
from lezo.tasks.task import Example, Task, choice, super_glue


class MultiRC(Task):
    name = "multirc"
    hub = super_glue("multirc", 27243, 4848)

    def examples(self, row: Row) -> Iterator[Example]:
        if "passage" not in row:  # the hub's flat form
            yield from _example(row.text("paragraph"), row.text("question"), row.text("answer"), row)
            return
        passage = row.nested("passage")
        for question in passage.rows("questions"):
            for answer in question.rows("answers"):
                words = passage.text("text"), question.text("question"), answer.text("text")
                yield from _example(*words, answer)


def _example(paragraph: str, question: str, answer: str, labelled: Row) -> Iterator[Example]:
    claim = f'I found this answer "{answer}". Is that correct? Yes or No?'
    gold = labelled.label("label", ("False", "True"))
    return choice(f"{paragraph}\nQuestion: {question}\n{claim}\n", ("No", "Yes"), gold)
