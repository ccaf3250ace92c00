"""Who asks what about whom? The conversations of `chat`: what is asked has just been said, and is answered in a sentence."""

from __future__ import annotations

from lezo.tasks.sample.draw import Draw, Row
from lezo.tasks.sample.people import TOPICS, people

SYSTEM = "You answer in one sentence."
GUIDED = 0.2  # share of conversations with a system message
SEVERAL = 0.4  # share with two questions


def chat(draw: Draw, idx: int) -> Row:
    """One conversation: two people are introduced, and one or two questions are asked and answered."""
    known = people(draw, 2)
    messages: list[Row] = []
    for topic in draw.several(TOPICS, 2 if draw.chance(SEVERAL) else 1):
        person = draw.pick(known)
        messages.append({"role": "user", "content": person.what_is(topic)})
        messages.append({"role": "assistant", "content": f"{person.fact(topic)}."})
    messages[0]["content"] = " ".join([*(person.profile() for person in known), messages[0]["content"]])
    if draw.chance(GUIDED):
        messages.insert(0, {"role": "system", "content": SYSTEM})
    return {"messages": messages, "id": idx}
