"""From examples to token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lezo.data.chat import Chat, ChatError, Rendered, Span
from lezo.data.prompting import with_demos
from lezo.tasks import Example
from lezo.tasks.task import Turn

MAX_LENGTH = 2048
MAX_NEW_TOKENS = 50


class EncodeError(ValueError):
    """An example that this tokenizer and model cannot hold; the message names it and the way out."""


@dataclass(frozen=True)
class Encoded:
    """An example as token ids.

    ``input_ids``: one sequence a candidate, behind what the tokenizer puts before a text, cut from the left
    where too long. ``answer_lens``: how many of its last tokens are the answer (0: nothing to score, a prompt
    to continue). ``gold``: the right candidates, the first being the one to train on. ``after``: what the
    tokenizer puts after each text. It is shown and never run: a causal model scores the answer before it sees
    any of it.

    ``spans``: of a conversation, which has one sequence, the places of the answer's tokens, where they are not its last;
    the sequence ends with the last of them. ``dropped``: how many of its oldest turns were left out, so that it fits.
    """

    index: int
    input_ids: tuple[tuple[int, ...], ...]
    answer_lens: tuple[int, ...]
    gold: tuple[int, ...]
    references: tuple[str, ...] = ()
    truncated: bool = False
    after: tuple[int, ...] = ()
    spans: tuple[Span, ...] = ()
    dropped: int = 0

    def scored(self, candidate: int) -> list[int]:
        """The places of the tokens in a candidate's sequence that are its answer's."""
        if self.spans:
            return [place for span in self.spans for place in range(*span)]
        end = len(self.input_ids[candidate])
        return [*range(end - self.answer_lens[candidate], end)]


@dataclass(frozen=True)
class Encoder:
    """Turns a split's examples into ids. ``max_length`` counts ``before`` and answer.

    ``tokenizer`` maps a list of texts to lists of ids without special tokens; ``before`` and ``after`` are
    those that stand around each text. An end token ``after`` is no part of an answer: counted from the last
    token, as published for tokenizers that add none, a one-word answer's score would be that of the end token
    alone. A prompt to continue has nothing after it. ``end`` is part of every answer: how a text ends that no other text
    ends. ``chat``: how conversations become ids, where there are any.
    """

    tokenizer: Callable[[list[str]], list[list[int]]]
    before: tuple[int, ...]
    max_length: int
    after: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    chat: Chat | None = None

    def candidates(self, examples: Sequence[Example], demos: Sequence[Example] = ()) -> list[Encoded]:
        """Every candidate in full. Raises EncodeError where an answer has no tokens or does not fit."""
        if self.chat is not None:
            return [self._conversation(index, example) for index, example in enumerate(examples)]
        return [
            self._encoded(index, example, texts)
            for index, example, texts in self._tokenized(examples, lambda e: _texts(e, demos))
        ]

    def prompts(self, examples: Sequence[Example], demos: Sequence[Example] = ()) -> list[Encoded]:
        """The prompts alone, to be continued. Raises EncodeError where one has no tokens."""
        if self.chat is not None:
            return [self._question(index, example) for index, example in enumerate(examples)]
        encoded = []
        for index, example, (ids,) in self._tokenized(examples, lambda e: [with_demos(demos, e.prompt)]):
            kept = self._fitted(ids)
            self._check_prompt(index, kept)
            cut = len(kept) < len(ids) + len(self.before)
            encoded.append(Encoded(index, (kept,), (0,), (0,), example.references, cut))
        return encoded

    def _conversation(self, index: int, example: Example) -> Encoded:
        assert self.chat is not None
        found = self._rendered(index, example, self.chat.conversation)
        size = sum(end - start for start, end in found.spans)
        if size < 1:
            text = _shortened(example.answers[0])
            raise EncodeError(
                f"example {index}: the answer {text} adds no token to its conversation with this tokenizer; expected at "
                "least one (a row with an answer in it, or another model.tokenizer)"
            )
        return Encoded(
            *(index, (found.ids,), (size,), (0,), (), found.cut, found.after),
            spans=found.spans,
            dropped=found.dropped,
        )

    def _question(self, index: int, example: Example) -> Encoded:
        assert self.chat is not None
        found = self._rendered(index, example, self.chat.question)
        self._check_prompt(index, found.ids)
        return Encoded(index, (found.ids,), (0,), (0,), example.answers, found.cut, dropped=found.dropped)

    def _rendered(
        self, index: int, example: Example, encode: Callable[[Sequence[Turn], int], Rendered]
    ) -> Rendered:
        try:
            return encode(example.turns, self.max_length)
        except ChatError as error:
            asked = next(turn.content for turn in example.turns if turn.role == "user")
            raise EncodeError(f"example {index} (it begins with {_shortened(asked)}): {error}") from None

    def _tokenized(
        self, examples: Sequence[Example], texts: Callable[[Example], list[str]]
    ) -> Iterator[tuple[int, Example, list[list[int]]]]:
        groups = [texts(example) for example in examples]
        flat = iter(self.tokenizer([text for group in groups for text in group]))
        for index, (example, group) in enumerate(zip(examples, groups, strict=True)):
            yield index, example, [next(flat) for _ in group]

    def _encoded(self, index: int, example: Example, ids: list[list[int]]) -> Encoded:
        prompt, plain, full = ids[0], ids[1::2], [[*text, *self.end] for text in ids[2::2]]
        own = [len(answer) - len(prompt) for answer in plain]
        for answer, size in zip(example.answers, own, strict=True):
            self._check_answer(index, answer, size)
        lens = tuple(size + len(self.end) for size in own)
        sequences = tuple(self._fitted(sequence) for sequence in full)
        for sequence, size in zip(sequences, lens, strict=True):
            self._check_prompt(index, sequence[: len(sequence) - size])
        cut = max(map(len, full)) + len(self.before) > self.max_length
        return Encoded(index, sequences, lens, example.gold, example.references, cut, self.after)

    def _fitted(self, ids: Sequence[int]) -> tuple[int, ...]:
        room = self.max_length - len(self.before)
        return (*self.before, *ids[max(len(ids) - room, 0) :])

    def _check_answer(self, index: int, answer: str, size: int) -> None:
        if size < 1:
            ways = "a row with an answer in it, another model.tokenizer, or a task whose answers it knows"
            problem = f"the answer {_shortened(answer)} adds no token to its prompt with this tokenizer"
            raise EncodeError(f"example {index}: {problem}; expected at least one ({ways})")
        if size + len(self.end) > self.max_length - max(len(self.before), 1):
            before = len(self.before) if len(self.before) > 1 else "at least one"
            room = f"with {before} before it the model holds {self.max_length}"
            expected = "expected a shorter answer or a model with more positions (model.max_length)"
            raise EncodeError(
                f"example {index}: the answer {_shortened(answer)} has {size} tokens, and {room}; {expected}"
            )

    def _check_prompt(self, index: int, ids: Sequence[int]) -> None:
        if not ids:
            problem = "the prompt has no token with this tokenizer, which puts none first either"
            expected = "expected at least one before the answer (model.bos=ID puts one there)"
            raise EncodeError(f"example {index}: {problem}; {expected}")


def padded(sequences: Sequence[Sequence[int]], pad: int, multiple: int = 1) -> tuple[Tensor, Tensor]:
    """Left-padded ids and their mask, both (rows, length) int64; the length is a ``multiple``."""
    length = -(-max(map(len, sequences)) // multiple) * multiple
    ids = torch.tensor([[pad] * (length - len(s)) + list(s) for s in sequences])
    mask = torch.tensor([[0] * (length - len(s)) + [1] * len(s) for s in sequences])
    return ids, mask


def _texts(example: Example, demos: Sequence[Example]) -> list[str]:
    """The bare prompt, then for each candidate its text without and with the demonstrations.

    An answer's length is the difference of the two lengths without demonstrations, as published.
    """
    texts = [example.prompt.strip(" ")]
    for answer in example.answers:
        text = (example.prompt + answer).strip(" ")
        texts += [text, with_demos(demos, text)]
    return texts


def _shortened(answer: str) -> str:
    return repr(answer if len(answer) <= 60 else answer[:57] + "...")
