"""ReCoRD: which entity of the passage fills the query's placeholder? (GPT-3 style prompt)"""

from collections.abc import Iterator

from lezo.tasks.row import Row, RowError
from lezo.tasks.task import Example, Task, super_glue


class ReCoRD(Task):
    name = "record"
    hub = super_glue("record", 100730, 10000)
    loss = "lm"

    def examples(self, row: Row) -> Iterator[Example]:
        if "qas" not in row:  # the hub's flat form
            yield _example(
                row.text("passage"), row.text("query"), row.texts("entities"), row.texts("answers")
            )
            return
        passage = row.nested("passage")
        text = passage.text("text")
        entities = sorted({_spanned(span, text) for span in passage.rows("entities")})
        for question in row.rows("qas"):
            answers = sorted({answer.text("text") for answer in question.rows("answers")})
            yield _example(text, question.text("query"), entities, answers)


def _example(passage: str, query: str, entities: list[str], answers: list[str]) -> Example:
    missing = [answer for answer in answers if answer not in entities]
    if missing or not answers:
        raise RowError(
            f"column 'answers' has {missing or 'nothing'}, expected entities of the passage: {entities}"
        )
    prompt = passage.replace("@highlight\n", "- ") + "\n-"
    filled = tuple(" " + query.replace("@placeholder", entity) for entity in entities)
    return Example(prompt, filled, tuple(entities.index(answer) for answer in answers), blank="-")


def _spanned(span: Row, text: str) -> str:
    start, end = span.integer("start"), span.integer("end")  # `end` is inclusive in the release
    if not 0 <= start <= end < len(text):
        raise RowError(f"entity span {start}..{end} lies outside the passage of {len(text)} characters")
    return text[start : end + 1]
