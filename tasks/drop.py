"""DROP: answer a question that needs reading and counting, generated; each span counts as an answer."""

from collections.abc import Iterator

from lezo.tasks.row import Row
from lezo.tasks.task import Example, Hub, Task


class DROP(Task):
    name = "drop"
    hub = Hub("ucinlp/drop", None, "95cda593fae71b60b5b19f82de3fcf3298c1239c", 77400, 9535)
    loss = "lm"
    metric = "f1"
    generates = True

    def examples(self, row: Row) -> Iterator[Example]:
        hub_form = "answers_spans" in row
        answers = row.nested("answers_spans").texts("spans") if hub_form else row.texts("answers")
        prompt = f"Passage: {row.text('passage')}\nQuestion: {row.text('question').strip()}\nAnswer:"
        yield Example(prompt, (f" {answers[0]}\n",), (0,), tuple(answers))
