"""WSC: does the pronoun refer to the noun? In the form of the hub's `wsc.fixed`."""

from collections.abc import Iterator

from lezo.tasks.row import Row
from lezo.tasks.task import Example, Task, choice, super_glue

_LEFT_AS_RELEASED = ("Kamenev and Zinoviev", "Kamenev, Zinoviev, and Stalin")


class WSC(Task):
    name = "wsc"
    hub = super_glue("wsc.fixed", 554, 104)

    def examples(self, row: Row) -> Iterator[Example]:
        text = row.text("text")
        spans = row.nested("target") if "target" in row else row
        pronoun, noun = _span(spans, "span2", text).lower(), _span(spans, "span1", text)
        question = f'does the pronoun "{pronoun}" refer to {noun}? Yes or No?'
        prompt = f"{text}\nIn the previous sentence, {question}\n"
        return choice(prompt, ("No", "Yes"), row.label("label", ("False", "True")))


def _span(spans: Row, which: str, text: str) -> str:
    """The span as the fixed release has it: made a substring of the text where the first one is not."""
    span = spans.text(f"{which}_text")
    if not span or span in text or span in _LEFT_AS_RELEASED:
        return span
    words, index = text.split(), spans.integer(f"{which}_index")
    lower = 0 <= index < len(words) and words[index][0].islower()
    first = span[0].lower() if lower else span[0].upper()
    return (first + span[1:]).rstrip(".").replace("\n", " ")
