"""How an answer is judged: 1 or 0 for a choice, token F1 or exact match for a generated text."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NO_ANSWER = ("CANNOTANSWER", "no answer")


def normalised(text: str) -> str:
    """Lower-cased, without ASCII punctuation and articles, white space collapsed."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 where the normalised prediction is one of the normalised references."""
    return float(any(normalised(prediction) == normalised(reference) for reference in references))


def f1(prediction: str, references: Sequence[str]) -> float:
    """The best multiset token F1 over the references, as the published evaluation has it.

    Two empty texts score 0, and the two "no answer" references ask for an exact match.
    """
    if references[0] in _NO_ANSWER:
        return exact_match(prediction, references)
    return max(_token_f1(prediction, reference) for reference in references)


def accuracy(prediction: int | None, gold: Sequence[int]) -> float:
    """1.0 where the chosen candidate is among the right ones; None chose none."""
    return float(prediction in gold)


PERPLEXITY = "perplexity"
"""The exponential of the mean loss of a token: 1 at best, lower is better, and no fraction as all others are."""


def perplexity(loss: float) -> float:
    """Of a loss in nats a token; of one beyond all sense, or NaN, infinity."""
    return math.exp(loss) if loss < 200 else math.inf


TEXT_METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {"f1": f1, "em": exact_match}


def _token_f1(prediction: str, reference: str) -> float:
    predicted, expected = normalised(prediction).split(), normalised(reference).split()
    shared = sum((Counter(predicted) & Counter(expected)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(expected)
    return 2 * precision * recall / (precision + recall)
