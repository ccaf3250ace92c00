"""Which reading makes sense? The riddles of `wsc`, `wic` and `copa`."""

from __future__ import annotations

from lezo.tasks.sample.draw import Draw, Row
from lezo.tasks.sample.people import MEN, NAMES, WOMEN

RIDDLES = (  # of two people: what happened, and whom the pronoun means (0 the first, 1 the second)
    ("{0} thanked {1} because {2} had given good advice.", 1),
    ("{0} thanked {1} because {2} had been given good advice.", 0),
    ("{0} paid {1} because {2} had repaired the roof.", 1),
    ("{0} asked {1} for help because {2} was lost.", 0),
    ("{0} asked {1} for the way because {2} knew the town.", 1),
    ("{0} could not catch {1} because {2} was too fast.", 1),
    ("{0} could not catch {1} because {2} was too slow.", 0),
    ("{0} did not hear {1} because {2} spoke too softly.", 1),
    ("{0} did not hear {1} because {2} was fast asleep.", 0),
    ("{0} carried {1} because {2} had a broken leg.", 1),
    ("{0} begged {1} for food because {2} was hungry.", 0),
    ("{0} borrowed a coat from {1} because {2} was cold.", 0),
    ("{0} lent {1} a coat because {2} was cold.", 1),
    ("{0} begged {1} for mercy because {2} was afraid.", 0),
)  # fmt: skip
SENSES = {  # of each word two, with sentences about a name
    "bank": (("{} sat on the bank of the river", "The bank by the lake was muddy under {}"),
             ("{} keeps the money in a bank", "The bank gave {} a loan")),
    "bat": (("A bat flew out of the cave past {}", "{} saw a bat asleep in the barn"),
            ("{} hit the ball with a bat", "The wooden bat of {} broke in the game")),
    "bark": (("{} heard the bark of a dog", "A loud bark woke {} at night"),
             ("{} touched the rough bark of the tree", "The bark of the oak was cut by {}")),
    "letter": (("{} posted a letter to a friend", "A long letter came for {} on Monday"),
               ("{} wrote the first letter of the word", "Every letter of the alphabet is known to {}")),
    "match": (("{} won the match last night", "The match was lost by {} and the team"),
              ("{} lit the fire with a match", "A wet match did not burn for {}")),
    "spring": (("{} plants roses in spring", "Every spring {} goes to the hills"),
               ("{} fixed a steel spring in the clock", "The spring of the bed broke under {}")),
    "ring": (("{} wore a gold ring", "The ring on the hand of {} was a gift"),
             ("{} heard the ring of the phone", "A short ring of the bell called {}")),
    "wave": (("A wave wet the feet of {}", "{} watched a wave hit the rocks"),
             ("{} left with a wave of the hand", "A friendly wave from the train cheered {}")),
    "note": (("{} sang a high note", "The last note of the song moved {}"),
             ("{} left a note on the door", "A short note from the office reached {}")),
    "palm": (("{} rested under a palm on the beach", "A tall palm grew by the house of {}"),
             ("{} held a coin in the palm", "The palm of the left hand of {} was dirty")),
}  # fmt: skip
EVENTS = (  # a cause and what came of it
    ("{} dropped the glass.", "The glass of {} broke."),
    ("{} forgot the umbrella.", "{} got wet in the rain."),
    ("{} ran for an hour.", "{} was out of breath."),
    ("{} won the prize.", "The friends of {} cheered."),
    ("{} missed the bus.", "{} came late to work."),
    ("{} watered the plants.", "The garden of {} was green."),
    ("{} ate too much cake.", "{} had a stomach ache."),
    ("{} stayed up all night.", "{} fell asleep at noon."),
    ("{} lost the keys.", "{} could not open the door."),
    ("{} studied hard.", "{} passed the exam."),
    ("{} touched the stove.", "{} burned a finger."),
    ("{} told a joke.", "Everybody near {} laughed."),
    ("{} saved some money.", "{} bought a new bike."),
    ("{} lit the fire.", "The room of {} grew warm."),
    ("{} opened the window.", "Fresh air reached {}."),
    ("{} called the dog.", "The dog ran to {}."),
)


def wsc(draw: Draw, idx: int) -> Row:
    """One row of `wsc`: the name is the pronoun's (1) or the other person's (0); indices count words."""
    (names, pronoun), label = draw.pick(((WOMEN, "she"), (MEN, "he"))), idx % 2
    pair, (riddle, meant) = draw.several(names, 2), draw.pick(RIDDLES)
    text = riddle.format(*pair, pronoun)
    name, words = pair[meant if label else 1 - meant], text.split(" ")
    return {
        "text": text, "span1_text": name, "span2_text": pronoun,
        "span1_index": words.index(name), "span2_index": words.index(pronoun), "label": label, "idx": idx,
    }  # fmt: skip


def wic(draw: Draw, idx: int) -> Row:
    """One row of `wic`: two sentences with the word in one sense (1) or in two (0)."""
    word, label = draw.pick(tuple(SENSES)), idx % 2
    senses = draw.shuffled(SENSES[word])
    templates = draw.shuffled(senses[0]) if label else [draw.pick(sense) for sense in senses]
    first, second = (f"{template.format(draw.pick(NAMES))}." for template in templates)
    return {"word": word, "sentence1": first, "sentence2": second, "label": label, "idx": idx}


def copa(draw: Draw, idx: int) -> Row:
    """One row of `copa`: the event that brought the premise about ("cause") or came of it ("effect")."""
    name, (right, wrong), label = draw.pick(NAMES), draw.several(EVENTS, 2), idx % 2
    side = draw.below(2)  # of the choices: 0 causes, 1 effects
    choices = [right[side].format(name), wrong[side].format(name)]
    first, second = reversed(choices) if label else choices
    return {
        "premise": right[1 - side].format(name), "choice1": first, "choice2": second,
        "question": ("cause", "effect")[side], "label": label, "idx": idx,
    }  # fmt: skip
