"""Do two settings differ over the seeds that both have? Paired differences and Student's t-test of them. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lezo.report.groups import Group, Spread, gathered, spread

LEVEL = 0.05  # two means differ where p is lower
PAIRS = 3  # common seeds from which on a test says something
BOLD = (
    "Bold: the best mean test score of each task and model, and those that do not differ from it: two-sided paired t-test over common "
    f"seeds, p at least {LEVEL}, not corrected for several comparisons. With fewer than {PAIRS} common seeds there is no test, and of the two the best mean alone is bold. "
    "Learning rates that dev losses did not choose take no part."
)


@dataclass(frozen=True)
class Paired:
    """Differences of ``n`` pairs: their mean, sample standard deviation and two-sided p; None without enough pairs."""

    n: int
    difference: Spread | None
    p: float | None


def paired(first: Mapping[tuple[str, str], float], second: Mapping[tuple[str, str], float]) -> Paired:
    """``second`` less ``first`` over the seeds that both have."""
    each = [second[seed] - first[seed] for seed in first if seed in second]
    difference = spread(each)
    if difference is None or difference.std is None:
        return Paired(len(each), difference, None)
    if difference.std == 0:
        return Paired(len(each), difference, float(difference.mean == 0))
    t = difference.mean / (difference.std / math.sqrt(len(each)))
    return Paired(len(each), difference, two_sided(t, len(each) - 1))


def two_sided(t: float, freedom: int) -> float:
    """The probability of a t at least this far from 0, with a whole number of degrees of freedom from 1.

    The finite series of Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    angle = math.atan(abs(t) / math.sqrt(freedom))
    sine, cosine, odd = math.sin(angle), math.cos(angle), freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return max(1 - within, 0.0)


def best(groups: Sequence[Group]) -> list[bool]:
    """Of each group, whether its test score is to be bold (`BOLD`), among those of its task and model."""
    comparable = [group for group in groups if group.best and group.finished]
    families = gathered(comparable, lambda group: (group.title, group.model, group.in_perplexity)).values()
    bold = {id(group) for family in families for group in _bold(family)}
    return [id(group) in bold for group in groups]


def _bold(family: Sequence[Group]) -> Iterable[Group]:
    """None where there is nothing to compare."""
    scores = [(group, values) for group in family if (values := group.by_seed("test"))]
    if len(scores) < 2:
        return []
    sign = -1 if family[0].in_perplexity else 1
    top, most = max(scores, key=lambda pair: sign * math.fsum(pair[1].values()) / len(pair[1]))
    tests = [(group, paired(values, most)) for group, values in scores]
    return [group for group, test in tests if group is top or _alike(test)]


def _alike(test: Paired) -> bool:
    """Whether enough pairs show no difference."""
    return test.n >= PAIRS and test.p is not None and test.p >= LEVEL
