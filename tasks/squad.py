"""SQuAD v1.1: answer a question with a span of its passage, generated."""

from collections.abc import Iterator

from lezo.tasks.row import Row
from lezo.tasks.task import Example, Hub, Task


class SQuAD(Task):
    name = "squad"
    hub = Hub("rajpurkar/squad", None, "7b6d24c440a36b6815f21b70d25016731768db1f", 87599, 10570)
    loss = "lm"
    metric = "f1"
    generates = True

    def examples(self, row: Row) -> Iterator[Example]:
        answers = row.nested("answers").texts("text")
        title, context, question = row.text("title"), row.text("context"), row.text("question").strip()
        prompt = f"Title: {title}\nContext: {context}\nQuestion: {question}\nAnswer:"
        yield Example(prompt, (f" {answers[0]}\n",), (0,), tuple(answers))
