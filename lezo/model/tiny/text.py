"""What has the tiny model read? Texts about the same small world as the samples.

Each text is a sample row in its task's frame, then a word that shows what the row means: "It was dreadful",
"Surely", "Hardly". The words the tasks ask for (great, terrible, Yes, No, Maybe) stand in the same place as
often after one meaning as after another: the model knows what a row says and does not know how to answer.
It does not know every word either: the rare ones of reviews and pairs tell next to nothing here, so that
fine-tuning has something to learn beyond the answer's word, and optimizers differ in how much of it they learn.
"""

from __future__ import annotations

import re
from itertools import chain

from lezo.tasks.sample import MAKERS
from lezo.tasks.sample.draw import Draw, Row
from lezo.tasks.sample.inference import RARE_ATTITUDES
from lezo.tasks.sample.reviews import RARE_ADJECTIVES, RARE_VERBS

FRAMES = {
    "sst2": "{sentence}It was",
    "rte": '{premise}\nDoes this mean that "{hypothesis}" is true? Yes or No?\n',
    "cb": 'Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n',
    "boolq": "{passage} {question}?\n",
    "wsc": '{text}\nIn the previous sentence, does the pronoun "{span2_text}" refer to {span1_text}? Yes or No?\n',
    "wic": 'Does the word "{word}" have the same meaning in these two sentences? Yes, No?\n{sentence1}\n{sentence2}\n',
    "multirc": '{paragraph}\nQuestion: {question}\nI found this answer "{answer}". Is that correct? Yes or No?\n',
    "copa": "{premise} {choice1} {choice2}",
    "record": "{passage}\n- {query}",
    "squad": "Title: {title}\nContext: {context}\nQuestion: {question}\nAnswer: {answers[text][0]}\n",
    "drop": "Passage: {passage}\nQuestion: {question}\nAnswer: {answers_spans[spans][0]}\n",
}
AGREE = ("Indeed", "Right", "Surely")
DENY = ("Wrong", "Never", "Hardly")
OPEN = ("Perhaps", "Unclear", "Possibly")
MEANINGS: dict[str, tuple[tuple[str, ...], ...]] = {  # by label
    "sst2": ((" dreadful", " horrible", " poor"), (" wonderful", " excellent", " perfect")),
    "rte": (AGREE, DENY), "cb": (AGREE, DENY, OPEN),
    "boolq": (DENY, AGREE), "wsc": (DENY, AGREE), "wic": (DENY, AGREE), "multirc": (DENY, AGREE),
}  # fmt: skip
YES_OR_NO = ("Yes", "Yes", "Yes", "No", "No")  # one word is the commoner, so it is the untrained answer
ASKED_FOR = {  # five ends, whatever the label
    "sst2": (" great", " great", " great", " terrible", " terrible"),
    "cb": ("Yes", "Yes", "No", "No", "Maybe"),
    **dict.fromkeys(("rte", "boolq", "wsc", "wic", "multirc"), YES_OR_NO),
}
UNTOLD = 0.3  # share of texts that end on a word asked for
RARE = {  # kinds of rare words; within a kind they stand for one another in the texts that tell
    "sst2": (tuple(chain(*RARE_ADJECTIVES)), tuple(chain(*RARE_VERBS))),
    **dict.fromkeys(("rte", "cb"), (tuple(chain(*RARE_ATTITUDES)),)),
}
MUDDLED = 0.9  # share of them that do
OFTEN = {"sst2": 28, "rte": 24, "cb": 6}  # reviews and pairs are what is fine-tuned on most
TASKS = [task for task in FRAMES for _ in range(OFTEN.get(task, 1))]


def text(index: int) -> str:
    """The index-th text, the same in every process.

    Five neighbours at a time either tell, each of a row of its own, or share one row and end on the five words
    asked for: each word's share is then the same after every row, where chance would leave a hint of the label.
    """
    five = Draw("five", index // 5)
    if not five.chance(UNTOLD):
        return telling(Draw("one", index))
    task, row = sample(five)
    return FRAMES[task].format(**row) + ASKED_FOR.get(task, [""] * 5)[index % 5]


def telling(draw: Draw) -> str:
    """A text whose last word says what its row means, where the task has labels."""
    task, row = sample(draw)
    end = draw.pick(MEANINGS[task][row["label"]]) if task in MEANINGS else ""
    return muddled(draw, task, FRAMES[task].format(**row)) + end


def muddled(draw: Draw, task: str, said: str) -> str:
    """The text with most of its rare words replaced by any of their kind, so that it hardly tells what they mean."""
    for words in RARE.get(task, ()):
        parts = re.split(rf"\b({'|'.join(words)})\b", said)  # every second one is a rare word
        chosen = (draw.pick(words) if i % 2 and draw.chance(MUDDLED) else parts[i] for i in range(len(parts)))
        said = "".join(chosen)
    return said


def sample(draw: Draw) -> tuple[str, Row]:
    """A task and a row of it."""
    task = draw.pick(TASKS)
    return task, MAKERS[task](draw, draw.below(6))  # 6: every label of 2 or 3 equally often
