"""From a conversation to ids: its words are those of the model's chat template, and the assistant's are scored.

The conversation is rendered and tokenized once, as a whole. Where a turn's words stand in it is found by rendering the
turns up to it with a mark in their place. If what is before or behind the mark is not what the whole conversation has
there, the template rewrites earlier turns: what would be scored is not what the model sees when it answers, and that is
refused.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from lezo.tasks.task import Turn

Span = tuple[int, int]
"""The first place, and one more than the last."""

PLAIN = (
    "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content | trim }}"
    "{% if message.role == 'assistant' %}{{ eos_token or '' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""task.chat_template=plain: "User: ..." and "Assistant: ..." in lines, the tokenizer's end token behind the assistant's."""

_MARK = "lezo-marks-this-turn"


class ChatError(ValueError):
    """A conversation that this template cannot show as it is; the message says why, and the way out."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as ids, up to the last one scored, and ``after`` those behind it.

    ``spans``: of the scored ones. ``dropped``: how many turns were left out; ``cut``: whether it lost its beginning besides.
    """

    ids: tuple[int, ...]
    spans: tuple[Span, ...] = ()
    after: tuple[int, ...] = ()
    dropped: int = 0
    cut: bool = False


@dataclass(frozen=True)
class Chat:
    """How conversations become ids.

    ``render`` puts turns into words, and raises ChatError where it cannot. ``tokenize``: a text's ids, each with its first
    character and one more than its last. ``before``: ids before each conversation. ``ends``: special ids; the first of them
    behind a turn's words is what the model says to stop. ``every``: whether all of the assistant's turns are scored, or
    the last alone.
    """

    render: Callable[[Sequence[Turn]], str]
    tokenize: Callable[[str], tuple[Sequence[int], Sequence[Span]]]
    ends: Collection[int]
    before: tuple[int, ...] = ()
    every: bool = True

    def conversation(self, turns: Sequence[Turn], max_length: int) -> Rendered:
        """What is learnt from. A longer one than ``max_length`` loses its oldest turns, its last two as much of their beginning
        as must be. Raises ChatError.
        """
        room = max_length - len(self.before)
        kept, _ = self._fitting(turns, lambda some: self._scored(some, [len(some) - 1]), room)
        answers = [place for place, turn in enumerate(kept) if turn.role == "assistant"]
        rendered = self._scored(kept, answers if self.every else answers[-1:])
        return self._behind(self._cut(rendered, room), len(turns) - len(kept))

    def question(self, turns: Sequence[Turn], max_length: int) -> Rendered:
        """What is continued: all before the words of the last turn, an assistant's. Cut alike. Raises ChatError."""
        room = max_length - len(self.before)
        kept, rendered = self._fitting(turns, self._asked, room)
        return self._behind(self._cut(rendered, room), len(turns) - len(kept))

    def _fitting(
        self, turns: Sequence[Turn], rendered: Callable[[Sequence[Turn]], Rendered], room: int
    ) -> tuple[Sequence[Turn], Rendered]:
        """All turns, or, behind the system's, as many of the last as fit: at least a question and its answer."""
        first = 1 if turns[0].role == "system" else 0
        for start in range(first, len(turns), 2):
            kept = (*turns[:first], *turns[start:])
            found = rendered(kept)
            if len(found.ids) <= room:
                break
        return kept, found

    def _asked(self, turns: Sequence[Turn]) -> Rendered:
        before, _ = self._around(turns, len(turns) - 1)
        return Rendered(tuple(self.tokenize(before.rstrip(" "))[0]))  # a space belongs to the first word

    def _scored(self, turns: Sequence[Turn], answers: Sequence[int]) -> Rendered:
        """The whole of them, with the spans of the turns ``answers``."""
        text = self.render(turns)
        ids, places = self.tokenize(text)
        spans = tuple(self._span(ids, places, *self._found(turns, place, text)) for place in answers)
        last = spans[-1][1]
        return Rendered(tuple(ids[:last]), spans, tuple(ids[last:]))

    def _found(self, turns: Sequence[Turn], place: int, text: str) -> tuple[int, int, int]:
        """Where a turn's words begin and end in the whole text, and where what is behind them does. Raises ChatError."""
        before, behind = self._around(turns, place)
        content = turns[place].content
        for words in dict.fromkeys((content, content.strip(), content.lstrip(), content.rstrip())):
            if text.startswith(before + words + behind):
                end = len(before) + len(words)
                return len(before), end, end + len(behind)
        last = place == len(turns) - 1
        reason = (
            "the chat template changes its words"
            if last
            else "the chat template shows it otherwise once others follow it"
        )
        ways = "another task.chat_template=FILE" + (
            "" if last else ", or task.turns=last to score the last turn alone"
        )
        raise ChatError(
            f"turn {place + 1}, the assistant's, does not stand in the whole as the model would say it: {reason}; expected {ways}"
        )

    def _around(self, turns: Sequence[Turn], place: int) -> tuple[str, str]:
        """What is before and behind the words of a turn, while it is the last. Raises ChatError."""
        text = self.render([*turns[:place], replace(turns[place], content=_MARK)])
        if text.count(_MARK) != 1:
            raise ChatError(
                f"the chat template shows turn {place + 1}, the assistant's, {text.count(_MARK)} times; expected a "
                "template that shows it once (task.chat_template=FILE)"
            )
        before, _, behind = text.partition(_MARK)
        return before, behind

    def _span(self, ids: Sequence[int], places: Sequence[Span], start: int, end: int, behind: int) -> Span:
        """The tokens of a turn's words, and of what ends it: up to a special one, or the first."""
        first = bisect_right(places, start, key=lambda place: max(place[1], place[0] + 1))
        last = bisect_left(places, end, key=lambda place: place[0])
        tail = ids[last : bisect_left(places, behind, key=lambda place: place[0])]
        others = sum(1 for _ in takewhile(lambda token: token not in self.ends, tail))
        return first, last + (others + 1 if others < len(tail) else min(len(tail), 1))

    def _cut(self, rendered: Rendered, room: int) -> Rendered:
        """Without as many of its first ids as must be; nothing predicts the very first of a sequence."""
        if (gone := len(rendered.ids) - room) <= 0:
            return rendered
        first = 0 if self.before else 1
        spans = [
            (max(start - gone, first), end - gone) for start, end in rendered.spans if end - gone > first
        ]
        return replace(rendered, ids=rendered.ids[gone:], spans=tuple(spans), cut=True)

    def _behind(self, rendered: Rendered, dropped: int) -> Rendered:
        size = len(self.before)
        spans = tuple((start + size, end + size) for start, end in rendered.spans)
        return replace(rendered, ids=(*self.before, *rendered.ids), spans=spans, dropped=dropped)
