"""WiC: does a word mean the same in two sentences?"""

from collections.abc import Iterator

from lezo.tasks.row import Row
from lezo.tasks.task import Example, Task, choice, super_glue


class WIC(Task):
    name = "wic"
    hub = super_glue("wic", 5428, 638)

    def examples(self, row: Row) -> Iterator[Example]:
        word, first, second = row.text("word"), row.text("sentence1"), row.text("sentence2")
        question = f'Does the word "{word}" have the same meaning in these two sentences? Yes, No?'
        gold = row.label("label", ("False", "True"))
        return choice(f"{question}\n{first}\n{second}\n", ("No", "Yes"), gold)
