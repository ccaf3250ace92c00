"""How answers are judged: choices by accuracy or macro F1, generated texts by token F1, exact match or ROUGE-L.

A metric of an installed package's own is ``module:function``: `installed_metric`.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from lezo.tasks.installed import installed
from lezo.tasks.task import TaskError

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


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """ROUGE-L, the best over the references: F1 of the longest common subsequence of words (Lin 2004, without stemming)."""
    return max(_rouge_l(_words(prediction), _words(reference)) for reference in references)


def macro_f1(predictions: Sequence[int | None], golds: Sequence[Sequence[int]]) -> float:
    """The mean over the labels that are predicted or right anywhere of their F1; None predicts none."""
    pairs = [(chosen, gold[0]) for chosen, gold in zip(predictions, golds, strict=True)]
    hits = Counter(gold for chosen, gold in pairs if chosen == gold)
    sizes = Counter(chosen for chosen, _ in pairs if chosen is not None) + Counter(gold for _, gold in pairs)
    return sum(2 * hits[label] / size for label, size in sizes.items()) / len(sizes)


class MetricError(ValueError):
    """A metric of somebody else's that gives no score; the message says what it did."""


@dataclass(frozen=True)
class Metric:
    """``each`` scores one answer, and all of them by the mean; else ``whole`` scores all at once."""

    each: Callable[[Any, Sequence[Any]], float] | None = None
    whole: Callable[[Sequence[Any], Sequence[Sequence[Any]]], float] | None = None

    def __call__(self, predictions: Sequence[Any], golds: Sequence[Sequence[Any]]) -> float:
        """The score of at least one answer; ``golds``: of each all that are right."""
        if self.whole is not None:
            return self.whole(predictions, golds)
        assert self.each is not None
        return sum(map(self.each, predictions, golds)) / len(predictions)


CHOICE_METRICS = {"accuracy": Metric(accuracy), "macro_f1": Metric(whole=macro_f1)}
TEXT_METRICS = {
    "f1": Metric(f1),
    "exact_match": Metric(exact_match),
    "em": Metric(exact_match),
    "rouge_l": Metric(rouge_l),
}


def metric_of(name: str, *, generates: bool) -> Metric:
    """A metric of generated texts or of choices by its name. Raises TaskError for one that there is not."""
    known = TEXT_METRICS if generates else CHOICE_METRICS
    if name in known:
        return known[name]
    if ":" in name:
        return installed_metric(name)
    what = "generated answers" if generates else "labels (of choices accuracy alone)"
    names = ", ".join([*(one for one in known if one != "em"), *([PERPLEXITY] if generates else [])])
    raise TaskError(
        f"task.metric={name}: expected one of {names} for {what}, or module:function of an installed package"
    )


@cache
def installed_metric(name: str) -> Metric:
    """``module:function`` of an installed package: ``function(predictions, references)`` gives a number, higher is better.

    Of generated texts ``predictions`` is a list of texts and ``references`` of each the list of accepted ones; of
    choices it is a list of the chosen candidates' numbers, from 0 on (None: none), and of each the list of right ones.
    Raises TaskError where it is not installed.
    """
    function = installed("task.metric", name)
    if not callable(function):
        raise TaskError(f"task.metric={name}: expected a function of predictions and references")
    return Metric(whole=partial(_scored, name, function))


def _scored(
    name: str, function: Callable[..., Any], predictions: Sequence[Any], golds: Sequence[Sequence[Any]]
) -> float:
    try:
        score = float(function([*predictions], [list(gold) for gold in golds]))
    except Exception as error:  # what others' functions do
        raise MetricError(f"task.metric={name}: {type(error).__name__}: {error}") from error
    if math.isnan(score) or not -1 <= score <= 1:
        raise MetricError(
            f"task.metric={name}: gave {score:g}, expected a number from -1 to 1, higher is better (0.85, not 85)"
        )
    return score


PERPLEXITY = "perplexity"
"""The exponential of the mean loss of a token: 1 at best, lower is better, and no fraction as all others are."""


def perplexity(loss: float) -> float:
    """Of a loss in nats a token; of one beyond all sense, or NaN, infinity."""
    return math.exp(loss) if loss < 200 else math.inf


def _token_f1(prediction: str, reference: str) -> float:
    predicted, expected = normalised(prediction).split(), normalised(reference).split()
    shared = sum((Counter(predicted) & Counter(expected)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(expected)
    return 2 * precision * recall / (precision + recall)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _rouge_l(predicted: Sequence[str], expected: Sequence[str]) -> float:
    """Row by row: of the words so far, the longest common subsequence with each beginning of ``expected``."""
    row = [0] * (len(expected) + 1)
    for word in predicted:
        above = row
        row = [0]
        for place, other in enumerate(expected):
            row.append(above[place] + 1 if word == other else max(above[place + 1], row[place]))
    shared = row[-1]
    return 2 * shared / (len(predicted) + len(expected)) if shared else 0.0
