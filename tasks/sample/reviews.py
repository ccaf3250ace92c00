"""Which sentences praise and which complain? The reviews of `sst2`."""

from __future__ import annotations

from lezo.tasks.sample.draw import Draw, Row

ADJECTIVES = (  # by label: 0 negative, 1 positive
    ("dull", "awful", "lazy", "clumsy", "bland", "boring", "messy", "weak", "sloppy", "tedious", "ugly", "stale"),
    ("lovely", "charming", "clever", "bright", "fresh", "funny", "moving", "gentle", "smart", "sweet", "superb", "neat"),
)  # fmt: skip
VERBS = (("hated", "regretted", "disliked", "mocked"), ("loved", "enjoyed", "admired", "praised"))
RARE_ADJECTIVES = (
    ("trite", "hollow", "drab", "limp", "crude", "shrill", "murky", "grating"),
    ("subtle", "rousing", "lush", "witty", "tender", "brisk", "vivid", "deft"),
)
RARE_VERBS = (("panned", "cursed"), ("savoured", "treasured"))
ASPECTS = (
    "film", "plot", "cast", "music", "story", "ending", "book", "show", "meal", "hotel", "staff", "service",
)  # fmt: skip
ADVERBS = ("really", "quite", "very", "rather", "simply")
WATCHERS = ("i", "we", "my friends", "the critics")
TIMES = ("on monday", "last night", "in town", "again", "this week", "as usual")
RARE = 0.5  # share of clauses whose sentiment is in a rare word
MIXED = 0.2  # the clause after "but" decides
MISLABELLED = 0.03  # nobody can learn these: they keep the ceiling below 1


def clause(draw: Draw, label: int) -> str:
    """One clause of the given sentiment."""
    adjectives, verbs = (RARE_ADJECTIVES, RARE_VERBS) if draw.chance(RARE) else (ADJECTIVES, VERBS)
    adjective, aspect = draw.pick(adjectives[label]), draw.pick(ASPECTS)
    if draw.chance(0.5):
        return f"the {aspect} was {draw.pick(ADVERBS)} {adjective}"
    if draw.chance(0.5):
        return f"{draw.pick(WATCHERS)} {draw.pick(verbs[label])} the {aspect} {draw.pick(TIMES)}"
    return f"it is a {adjective} {aspect}"


def sentence(draw: Draw, label: int) -> str:
    """Two clauses whose sentiment is the label, as the treebank writes: lower case, spaces round marks."""
    if draw.chance(MIXED):
        return f"{clause(draw, 1 - label)} , but {clause(draw, label)} . "
    return f"{clause(draw, label)} {draw.pick((',', 'and', ';'))} {clause(draw, label)} . "


def sst2(draw: Draw, idx: int) -> Row:
    """One row of `sst2` (0 negative, 1 positive); labels alternate, then a known share of them is wrong."""
    label = idx % 2
    written = 1 - label if draw.chance(MISLABELLED) else label
    return {"sentence": sentence(draw, written), "label": label, "idx": idx}
