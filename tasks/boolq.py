"""BoolQ: a yes/no question about a passage (the published default template, number 2)."""

from collections.abc import Iterator

from lezo.tasks.row import Row
from lezo.tasks.task import Example, Hub, Task, choice


class BoolQ(Task):
    name = "boolq"
    # not SuperGLUE's copy, whose passages begin with the article's title
    hub = Hub("google/boolq", None, "35b264d03638db9f4ce671b711558bf7ff0f80d5", 9427, 3270)

    def examples(self, row: Row) -> Iterator[Example]:
        column = "answer" if "answer" in row else "label"
        gold = 0 if row.label(column, ("False", "True")) else 1
        prompt = f"{row.text('passage')} {_as_question(row.text('question'))}\n"
        return choice(prompt, ("Yes", "No"), gold)


def _as_question(text: str) -> str:
    marked = text if text.endswith("?") else text + "?"
    return marked[0].upper() + marked[1:]
