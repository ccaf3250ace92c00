"""What does the passage say? The readings of `boolq`, `multirc`, `record`, `squad` and `drop`."""

from __future__ import annotations

from lezo.tasks.sample.draw import Draw, Row
from lezo.tasks.sample.people import NAMES, TOPICS, Person, lie, people

PETS = ("cats", "dogs", "birds", "goats", "sheep", "hens")


def passage(known: list[Person]) -> str:
    """A sentence on each person."""
    return " ".join(person.profile() for person in known)


def boolq(draw: Draw, idx: int) -> Row:
    """One row of `boolq`: the question is in lower case and has no question mark, as in the hub's."""
    known, topic, label = people(draw, 2), draw.pick(TOPICS), idx % 2
    person = draw.pick(known)
    asked = person if label else lie(draw, person, topic)
    return {"question": asked.is_it_so(topic).lower(), "passage": passage(known), "label": label, "idx": idx}


def multirc(draw: Draw, idx: int) -> Row:
    """One row of `multirc`: a right answer, or a wrong one of the same topic."""
    known, topic, label = people(draw, 3), draw.pick(TOPICS), idx % 2
    person = draw.pick(known)
    answer = getattr(person if label else lie(draw, person, topic), topic)
    where = {"paragraph": idx, "question": idx, "answer": idx}
    return {
        "paragraph": passage(known), "question": person.what_is(topic), "answer": answer,
        "label": label, "idx": where,
    }  # fmt: skip


def record(draw: Draw, idx: int) -> Row:
    """One row of `record`: the passage tells all but one fact of each, two of them again as highlights."""
    known = people(draw, 3)
    person, topic = draw.pick(known), draw.pick(TOPICS)
    highlights = [f"@highlight\n{one.fact(draw.pick(TOPICS))}" for one in draw.several(known, 2)]
    hidden = person.fact(topic).replace(person.name, "@placeholder", 1)
    entities = sorted(value for one in known for value in (one.name, one.town))
    return {
        "passage": "\n".join([passage(known), *highlights]), "query": f"Everybody knows that {hidden}.",
        "entities": entities, "answers": [person.name], "idx": idx,
    }  # fmt: skip


def squad(draw: Draw, idx: int) -> Row:
    """One row of `squad`: the answer is one word of the context, `answer_start` its place in characters."""
    known, topic = people(draw, 3), draw.pick(TOPICS)
    person, context = draw.pick(known), passage(known)
    answer = getattr(person, topic)
    start = context.index(f" {answer}", context.index(person.name)) + 1
    return {
        "id": f"sample-{idx}", "title": f"The town of {draw.pick(known).town}", "context": context,
        "question": person.what_is(topic), "answers": {"text": [answer], "answer_start": [start]},
    }  # fmt: skip


def drop(draw: Draw, idx: int) -> Row:
    """One row of `drop`: a number to find, a difference to work out, or the one who has more."""
    (first, second), (pet, extra) = draw.several(NAMES, 2), draw.several(PETS, 2)
    more, less = draw.several(range(2, 12), 2)
    told = f"{first} keeps {more} {pet} and {draw.below(9) + 2} {extra}. {second} keeps {less} {pet}."
    question, answer, kind = draw.pick((
        (f"How many {pet} does {first} keep?", str(more), "number"),
        (f"How many {pet} lie between {first} and {second}?", str(abs(more - less)), "number"),
        (f"Who keeps more {pet}?", first if more > less else second, "span"),
    ))  # fmt: skip
    return {"passage": told, "question": question, "answers_spans": {"spans": [answer], "types": [kind]}}
