"""Who lives in the small world of the samples? People, the facts about them, and questions about those."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lezo.tasks.sample.draw import Draw

WOMEN = ("Anna", "Maria", "Clara", "Lucy", "Emma", "Julia")
MEN = ("Tom", "Paul", "Peter", "Mark", "David", "Simon")
NAMES = WOMEN + MEN
VALUES = {
    "town": ("Oslo", "Paris", "Rome", "Madrid", "Berlin", "Vienna", "London", "Dublin"),
    "job": ("baker", "teacher", "doctor", "farmer", "painter", "singer", "lawyer", "driver"),
    "colour": ("red", "blue", "green", "black", "white", "yellow", "brown", "grey"),
    "thing": ("coat", "car", "boat", "hat", "house", "piano", "bike", "lamp"),
}
TOPICS = tuple(VALUES)


@dataclass(frozen=True)
class Person:
    """What the world knows of one inhabitant: a value for each topic."""

    name: str
    town: str
    job: str
    colour: str
    thing: str

    def fact(self, topic: str) -> str:
        """What is so on the topic, a sentence without its full stop."""
        return {
            "town": f"{self.name} lives in {self.town}",
            "job": f"{self.name} is a {self.job}",
            "colour": f"{self.name} has a {self.colour} {self.thing}",
            "thing": f"{self.name} owns a {self.thing}",
        }[topic]

    def is_it_so(self, topic: str) -> str:
        """A yes-no question whether the fact holds, without its question mark."""
        return {
            "town": f"does {self.name} live in {self.town}",
            "job": f"is {self.name} a {self.job}",
            "colour": f"does {self.name} have a {self.colour} {self.thing}",
            "thing": f"does {self.name} own a {self.thing}",
        }[topic]

    def what_is(self, topic: str) -> str:
        """A question that the person's value of the topic answers."""
        return {
            "town": f"Where does {self.name} live?",
            "job": f"What is the job of {self.name}?",
            "colour": f"What colour is the {self.thing} of {self.name}?",
            "thing": f"What does {self.name} own?",
        }[topic]

    def profile(self) -> str:
        """Every fact in one sentence."""
        return f"{self.name}, a {self.job} from {self.town}, has a {self.colour} {self.thing}."


def people(draw: Draw, n: int) -> list[Person]:
    """n inhabitants who differ in every value."""
    columns = [draw.several(values, n) for values in (NAMES, *VALUES.values())]
    return [Person(*row) for row in zip(*columns, strict=True)]


def lie(draw: Draw, person: Person, topic: str) -> Person:
    """The person with another value of the topic."""
    wrong = [value for value in VALUES[topic] if value != getattr(person, topic)]
    return replace(person, **{topic: draw.pick(wrong)})
