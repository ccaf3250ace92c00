"""Does the hypothesis follow from the premise? The pairs of `rte` and `cb`, of who knows and who only hopes."""

from __future__ import annotations

from lezo.tasks.sample.draw import Draw, Row
from lezo.tasks.sample.people import NAMES, TOPICS, Person, lie, people

ATTITUDES = (  # to the fact, by what follows: 0 that it holds, 1 that it does not, 2 neither
    ("knows that", "saw that", "proved that", "confirmed that", "noticed that", "remembers that"),
    ("denies that", "disproved that", "lied that", "refuted that", "pretends that", "joked that"),
    ("hopes that", "guesses that", "dreamed that", "wonders whether", "fears that", "suspects that"),
)
RARE_ATTITUDES = (
    ("found that", "learned that", "forgot that", "admits that"),
    ("feigns that", "debunked that", "wrongly said that", "made up that"),
    ("doubts whether", "bets that", "imagines that", "asks whether"),
)
TIMES = ("", "Today ", "Once again ", "On Monday ", "Last week ")
RARE = 0.4  # share of the premises whose attitude is a rare one
CHANGED = 0.1  # contradictions by another value, not by the attitude: one must compare the two sentences
MISLABELLED = 0.03  # nobody can learn these: they keep the ceiling below 1


def premise(draw: Draw, person: Person, topic: str, relation: int) -> str:
    """A sentence in which somebody else takes an attitude to one fact about the person."""
    witness = draw.pick([name for name in NAMES if name != person.name])
    attitudes = RARE_ATTITUDES if draw.chance(RARE) else ATTITUDES
    return f"{draw.pick(TIMES)}{witness} {draw.pick(attitudes[relation])} {person.fact(topic)}."


def pair(draw: Draw, relation: int) -> tuple[str, str]:
    """Premise and hypothesis that stand in the relation: 0 entailment, 1 contradiction, 2 neither."""
    (person,), topic = people(draw, 1), draw.pick(TOPICS)
    hypothesis = f"{person.fact(topic)}."
    if relation == 1 and draw.chance(
        CHANGED
    ):  # a person has one value a topic, so another one contradicts it
        return premise(draw, lie(draw, person, topic), topic, 0), hypothesis
    return premise(draw, person, topic, relation), hypothesis


def rte(draw: Draw, idx: int) -> Row:
    """One row of `rte` (0 entailment, 1 not); labels alternate, then a known share of them is wrong."""
    label = idx % 2
    entailed = (label == 0) != draw.chance(MISLABELLED)
    said, asked = pair(draw, 0 if entailed else 1 + draw.below(2))
    return {"premise": said, "hypothesis": asked, "label": label, "idx": idx}


def cb(draw: Draw, idx: int) -> Row:
    """One row of `cb` (0 entailment, 1 contradiction, 2 neutral); labels take turns."""
    said, asked = pair(draw, idx % 3)
    return {"premise": said, "hypothesis": asked.removesuffix("."), "label": idx % 3, "idx": idx}
