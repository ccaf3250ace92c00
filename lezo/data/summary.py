"""What a split's examples are like: how long, how much is scored and cut, which answers are right how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lezo.data.encode import Encoded, Encoder
from lezo.tasks import Example

MOST = 2000  # examples of a split whose tokens are counted
_SHOWN = 5  # of the most common answers

Encode = Callable[[Encoder, Sequence[Example]], list[Encoded]]
"""Examples as they stand behind the run's demonstrations."""


@dataclass(frozen=True)
class Lengths:
    """Numbers of tokens."""

    median: int
    ninth_decile: int
    longest: int

    def __str__(self) -> str:
        return f"median {self.median}, 90 % up to {self.ninth_decile}, longest {self.longest}"


@dataclass(frozen=True)
class Summary:
    """``tokens``, ``scored``: of the ``counted`` first examples, the longest candidate's; ``scored`` None of prompts alone.
    ``cut``: how many are longer than the model takes, the longest by ``lost`` tokens. ``right``: answers -> their share of
    all rows. ``again``: how many have the prompt of a row that is trained on or of dev; None of those themselves.
    """

    split: str
    rows: int
    counted: int
    tokens: Lengths
    scored: Lengths | None
    cut: int
    lost: int
    right: dict[str, float]
    again: int | None

    def record(self) -> dict[str, Any]:
        """The same for JSON."""
        lengths = {"tokens": vars(self.tokens), "scored": None if self.scored is None else vars(self.scored)}
        return {"split": self.split, "summary": True, **vars(self), **lengths}

    def lines(self) -> dict[str, str]:
        """Names and values of a table."""
        some = f"; the first {self.counted} counted" if self.counted < self.rows else ""
        lines = {"examples": f"{self.rows}{some}", "tokens": str(self.tokens)}
        lines |= {} if self.scored is None else {"scored": str(self.scored)}
        lines["cut"] = f"{self.cut} of {self.counted}, up to {self.lost} tokens" if self.cut else "none"
        right = ", ".join(f"{answer} {share:.0%}" for answer, share in self.right.items())
        lines |= {"right": right} if right else {}
        lines |= (
            {} if self.again is None else {"again": f"{self.again} have the prompt of a train or dev row"}
        )
        return lines


def summarised(
    split: str,
    examples: Sequence[Example],
    encode: Encode,
    encoder: Encoder,
    seen: Sequence[Example] | None = None,
) -> Summary | None:
    """Of a split's examples; None where it has none. ``seen``: train and dev examples, to look for again."""
    if not examples:
        return None
    whole = encode(replace(encoder, max_length=10**9), examples[:MOST])
    sizes = [max(map(len, one.input_ids)) for one in whole]
    scored = [max(one.answer_lens) for one in whole]
    over = [size - encoder.max_length for size in sizes if size > encoder.max_length]
    prompts = {*map(_asked, seen or ())}
    return Summary(
        split=split,
        rows=len(examples),
        counted=len(whole),
        tokens=_lengths(sizes),
        scored=_lengths(scored) if any(scored) else None,
        cut=len(over),
        lost=max(over, default=0),
        right=_right(examples, scored),
        again=None if seen is None else sum(_asked(example) in prompts for example in examples),
    )


def _asked(example: Example) -> Any:
    """The prompt, of a conversation all before its last turn; of an example that has none in words its answers."""
    return example.turns[:-1] or example.prompt.strip() or example.answers


def _lengths(sizes: Sequence[int]) -> Lengths:
    ordered = sorted(sizes)
    return Lengths(ordered[len(ordered) // 2], ordered[-(-9 * len(ordered) // 10) - 1], ordered[-1])


def _right(examples: Sequence[Example], scored: Sequence[int]) -> dict[str, float]:
    """The most common right answers, by words where all examples have the same, else by place; of one answer its length."""
    answers = {tuple(answer.strip() for answer in example.answers) for example in examples}
    if all(len(example.answers) < 2 for example in examples):
        return _shares(f"{size} token{'s' if size > 1 else ''}" for size in scored if size)
    if len(answers) == 1:
        (words,) = answers
        return _shares(repr(words[example.gold[0]]) for example in examples)
    return _shares(f"candidate {example.gold[0]}" for example in examples)


def _shares(names: Any) -> dict[str, float]:
    counts = Counter(names)
    return {name: count / counts.total() for name, count in counts.most_common(_SHOWN)}
