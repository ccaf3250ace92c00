"""How good is the model now? Candidate likelihood or generation -> loss, score and predictions."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from itertools import groupby
from typing import Any, Literal, TypeVar

import torch

from lezo.data.dataset import EvalSet
from lezo.data.encode import MAX_NEW_TOKENS, Encoded
from lezo.data.pack import pack
from lezo.model.forward import Network
from lezo.model.generation import GenerationMode, continued
from lezo.model.loss import answer_scores
from lezo.ranks.ranks import ALONE, Ranks, share
from lezo.tasks.metrics import PERPLEXITY, Metric, metric_of, perplexity

_FEW = 8  # of fewer distinct examples equal scores may be chance

C = TypeVar("C")
R = TypeVar("R")


@dataclass(frozen=True)
class Evaluation:
    """``loss``: mean over examples, or over answer tokens for the LM loss (None without ``scored``).

    It is NaN where all examples have the same scores, whatever they ask: weights so large that a norm makes zeros of them
    give every answer the same probability, a loss of ln 2 where there are two, which may be lower than an honest one.
    ``score``: the metric's, 0..1 but for those of installed packages and the perplexity. ``predictions``: one record an
    example, in the split's order, with a score of its own where the metric of generated texts has one.
    """

    loss: float | None
    score: float
    predictions: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Evaluator:
    """Scores a split in batches of at most ``batch_size`` sequences; the result does not depend on it.

    ``decode`` turns ids into text without special tokens. A generated text ends with the first of ``stop_texts``, before an
    id of ``stop``, or after ``max_new_tokens``; ``mode`` says which prompts go on side by side, ``prompts_at_once`` how
    many, if not ``batch_size``.
    ``ranks`` share the forwards, and each has the whole result. ``forwarded`` is called after each, for a progress bar.
    """

    network: Network
    loss: Literal["candidates", "lm"]
    metric: str
    batch_size: int
    pad: int
    device: torch.device
    decode: Callable[[Sequence[int]], str]
    stop: Collection[int]
    mode: GenerationMode = GenerationMode()
    prompts_at_once: int | None = None
    ranks: Ranks = ALONE
    stop_texts: Sequence[str] = ("\n",)
    max_new_tokens: int = MAX_NEW_TOKENS
    forwarded: Callable[[], None] = lambda: None

    @torch.no_grad()
    def __call__(self, split: EvalSet) -> Evaluation:
        """Loss, score and predictions of the split, which holds at least one example."""
        sums = self._answer_log_probs(split.scored)
        loss = self._loss(split.scored, sums) if split.scored else None
        if self.metric == PERPLEXITY and loss is not None:
            return Evaluation(loss, perplexity(loss), self._learnt(split, sums))
        records = self._generated(split.prompts) if split.prompts else self._chosen(split, sums)
        return Evaluation(loss, self.judge([split], records), records)

    def judge(self, parts: Sequence[EvalSet], records: Sequence[dict[str, Any]]) -> float:
        """The metric's score of the parts' predictions."""
        golds = [_accepted(example) for part in parts for example in part.prompts or part.scored]
        return self._metric(any(part.prompts for part in parts))([r["prediction"] for r in records], golds)

    def judges_each(self, part: EvalSet) -> bool:
        """Whether the metric scores one answer at a time, so that parts' scores have a mean."""
        return self._metric(bool(part.prompts)).each is not None

    def _metric(self, generates: bool) -> Metric:
        return metric_of(self.metric, generates=generates)

    def _answer_log_probs(self, examples: Sequence[Encoded]) -> list[list[float]]:
        """Each candidate's summed log-probability."""
        sums = [[0.0] * len(example.input_ids) for example in examples]
        chunks = list(score_chunks(examples, self.batch_size))
        for chunk, found in zip(chunks, self._shared(chunks, partial(self._scored, examples)), strict=True):
            scores = iter(found)
            for i, chosen in chunk:
                for k in chosen:
                    sums[i][k] = next(scores)
        return sums

    def _scored(self, examples: Sequence[Encoded], chunk: Sequence[tuple[int, Sequence[int]]]) -> list[float]:
        """The log-probabilities of a chunk's candidates, in its order."""
        requests = [(examples[i], chosen) for i, chosen in chunk]
        batch = pack(requests, "candidates", pad=self.pad, device=self.device, plain=self.network.plain)
        return answer_scores(self.network, batch)[0].tolist()  # type: ignore[no-any-return]

    def _shared(self, chunks: Sequence[C], work: Callable[[C], R]) -> list[R]:
        """``work`` on every chunk, in their order, each by one of the ranks."""
        done = self.ranks.exchange([self._counted(work(chunk)) for chunk in share(self.ranks, chunks)])
        return [done[i % self.ranks.size][i // self.ranks.size] for i in range(len(chunks))]

    def _counted(self, result: R) -> R:
        self.forwarded()
        return result

    def forwards(self, split: EvalSet) -> int:
        """How many forwards it takes about; a generation counts as one, and equal blank prompts as different ones."""
        asked = (split.scored, split.blanks)
        scored = sum(1 for examples in asked for _ in score_chunks(examples, self.batch_size))
        return scored + sum(1 for _ in self._batches(split.prompts or split.samples))

    def _loss(self, examples: Sequence[Encoded], sums: Sequence[Sequence[float]]) -> float:
        means = [_means(example, each) for example, each in zip(examples, sums, strict=True)]
        if _alike(examples, means):
            return math.nan
        if self.loss == "lm":
            tokens = sum(example.answer_lens[example.gold[0]] for example in examples)
            return -sum(s[e.gold[0]] for e, s in zip(examples, sums, strict=True)) / tokens
        losses = [_cross_entropy(each, e.gold[0]) for e, each in zip(examples, means, strict=True)]
        return sum(losses) / len(losses)

    def _chosen(self, split: EvalSet, sums: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
        """By the mean log-probability of a candidate's tokens; calibrated, by their sum less the blank prompt's."""
        if split.blanks:
            pairs = zip(sums, self._blank_sums(split.blanks), strict=True)
            all_scores = [[a - b for a, b in zip(*pair, strict=True)] for pair in pairs]
        else:
            all_scores = [_means(e, s) for e, s in zip(split.scored, sums, strict=True)]
        return [
            {"index": example.index, "scores": scores, "prediction": _best(scores), "gold": gold(example)}
            for example, scores in zip(split.scored, all_scores, strict=True)
        ]

    def _learnt(self, split: EvalSet, sums: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
        """Of each conversation its loss, in nats a token, and of the first ones what the model would have said."""
        replies = self._texts(split.samples)
        records: list[dict[str, Any]] = []
        for example, each in zip(split.scored, sums, strict=True):
            right = example.gold[0]
            tokens = example.answer_lens[right]
            records.append({"index": example.index, "loss": -each[right] / tokens, "tokens": tokens})
        for sample, record in zip(split.samples, records, strict=False):
            prompt = self.decode(sample.input_ids[0])
            record |= {"prompt": prompt, "reply": replies[sample.index][0], "reference": sample.references[0]}
        return records

    def _blank_sums(self, blanks: Sequence[Encoded]) -> list[list[float]]:
        """As `_answer_log_probs`; equal ones, which are all of most tasks, are scored once."""
        distinct = {blank.input_ids: blank for blank in blanks}
        sums = dict(zip(distinct, self._answer_log_probs(list(distinct.values())), strict=True))
        return [sums[blank.input_ids] for blank in blanks]

    def _generated(self, prompts: Sequence[Encoded]) -> list[dict[str, Any]]:
        texts, judge = self._texts(prompts), self._metric(True).each
        records = []
        for prompt in prompts:
            answer, end = texts[prompt.index]
            record = {"index": prompt.index, "text": answer + end, "prediction": answer.strip()}
            if judge is not None:
                record["score"] = judge(answer.strip(), prompt.references)
            records.append({**record, "gold": gold(prompt)})
        return records

    def _texts(self, prompts: Sequence[Encoded]) -> dict[int, tuple[str, str]]:
        """What the model goes on with and what ended it, by the prompts' indices."""
        texts: dict[int, tuple[str, str]] = {}
        chunks = list(self._batches(prompts))
        for chunk, found in zip(chunks, self._shared(chunks, self._continued), strict=True):
            texts.update(zip([p.index for p in chunk], found, strict=True))
        return texts

    def _batches(self, prompts: Sequence[Encoded]) -> Iterator[Sequence[Encoded]]:
        """The batches of a generation, the longest prompts first."""
        order, most = sorted(prompts, key=_length, reverse=True), self.prompts_at_once or self.batch_size
        size = most if self.mode.together else 1
        groups = [order] if self.mode.padded else [list(same) for _, same in groupby(order, _length)]
        return (chunk for group in groups for chunk in _chunks(group, size))

    def _continued(self, prompts: Sequence[Encoded]) -> list[tuple[str, str]]:
        """What the model goes on with, up to the end of text or one of ``stop_texts``, and that one."""
        rows = continued(
            self.network.model,
            [prompt.input_ids[0] for prompt in prompts],
            pad=self.pad,
            ends=self._ends,
            cached=self.mode.cached,
            most=self.max_new_tokens,
        )
        return [self._text(row) for row in rows]

    def _text(self, ids: Sequence[int]) -> tuple[str, str]:
        text = self.decode([i for i in ids if i not in self.stop])
        found = [(text.index(stop), stop) for stop in self.stop_texts if stop in text]
        end, stop = min(found, default=(len(text), ""))
        return text[:end], stop

    @cached_property
    def _ends(self) -> Callable[[Sequence[int]], bool]:
        """Whether the last of a text's ids end it: a stop text may be part of one, or spread over as many as it has bytes."""
        longest = max((len(stop.encode()) for stop in self.stop_texts), default=1)
        seen = 1 if longest == 1 else longest + 1  # of some tokenizers the first loses its space
        stops = cache(lambda ids: any(stop in self.decode([*ids]) for stop in self.stop_texts))
        return lambda ids: ids[-1] in self.stop or stops(tuple(ids[-seen:]))


def one_minus_metric(evaluator: Evaluator, parts: Sequence[EvalSet]) -> float:
    """One minus the score over all parts, each of which counts by its size: an objective without a gradient."""
    found = [evaluator(part) for part in parts]
    if not all(map(evaluator.judges_each, parts)):
        return 1 - evaluator.judge(parts, [record for one in found for record in one.predictions])
    return 1 - sum(one.score * len(part) for one, part in zip(found, parts, strict=True)) / sum(
        map(len, parts)
    )


def score_chunks(examples: Sequence[Encoded], batch_size: int) -> Iterator[list[tuple[int, Sequence[int]]]]:
    """The forwards of an evaluation: (example, some of its candidates), at most ``batch_size`` sequences each.

    The longest sequences come first, so that memory peaks at once.
    """
    order = sorted(range(len(examples)), key=lambda i: -max(map(len, examples[i].input_ids)))
    parts = [(i, part) for i in order for part in _chunks(range(len(examples[i].input_ids)), batch_size)]
    chunk: list[tuple[int, Sequence[int]]] = []
    for i, part in parts:
        if sum(len(chosen) for _, chosen in chunk) + len(part) > batch_size:
            yield chunk
            chunk = []
        chunk.append((i, part))
    if chunk:
        yield chunk


def gold(example: Encoded) -> int | list[int] | list[str]:
    """The right answer as files show it: an index, the indices where several are right, or texts."""
    if example.references:
        return list(example.references)
    return example.gold[0] if len(example.gold) == 1 else list(example.gold)


def _accepted(example: Encoded) -> Sequence[Any]:
    return example.references or example.gold


def _best(scores: Sequence[float]) -> int | None:
    """The first of the highest; None, which is right about nothing, where a score is not a number."""
    if any(map(math.isnan, scores)):
        return None
    return max(range(len(scores)), key=lambda k: (scores[k], -k))


def _means(example: Encoded, sums: Sequence[float]) -> list[float]:
    return [total / size for total, size in zip(sums, example.answer_lens, strict=True)]


def _alike(examples: Sequence[Encoded], means: Sequence[Sequence[float]]) -> bool:
    """Whether all of them have the same scores, up to the rounding of a mean; perfect ones are perfect.

    Of lists of choices that differ in length, the first choices are compared.
    """
    if len({example.input_ids for example in examples}) < _FEW:
        return False
    first, *others = means
    pairs = (pair for each in others for pair in zip(first, each, strict=False))
    return any(first) and all(math.isclose(*pair, rel_tol=1e-6) for pair in pairs)


def _cross_entropy(scores: Sequence[float], target: int) -> float:
    top = max(scores)
    return top + math.log(sum(math.exp(score - top) for score in scores)) - scores[target]


def _length(prompt: Encoded) -> int:
    return len(prompt.input_ids[0])


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[i : i + size] for i in range(0, len(items), size))
