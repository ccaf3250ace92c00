"""Predictions in words: what was asked, what could be answered, what was, and what is right, without the data at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lezo.tasks import Example


def in_words(predictions: Sequence[Mapping[str, Any]], examples: Sequence[Example]) -> list[dict[str, Any]]:
    """The records of an evaluation, each with the words of its example; all that they had stays as it was.

    Of candidates ``prompt``, ``candidates``, and the texts of ``prediction`` and ``gold``, which are places among them:
    ``prediction_text``, ``gold_text``. Of a text that is generated or learnt ``prompt``, and ``gold_text`` where the record
    has no gold. Of a conversation ``messages``, the last of which is the right answer. Demonstrations are in no prompt here.
    """
    return [_in_words(record, examples[record["index"]]) for record in predictions]


def _in_words(record: Mapping[str, Any], example: Example) -> dict[str, Any]:
    index = {"index": record["index"]}
    if example.turns:
        return {**index, "messages": [asdict(turn) for turn in example.turns], **record}
    prompt = {**index, "prompt": example.prompt}
    if "scores" in record:
        return {**prompt, "candidates": [*example.answers], **record, **_texts(record, example.answers)}
    right = {} if "gold" in record else {"gold_text": example.answers[example.gold[0]]}
    return {**prompt, **record, **right}


def _texts(record: Mapping[str, Any], answers: Sequence[str]) -> dict[str, Any]:
    """What was chosen, None where no score was a number, and what is right, a list where several are."""
    chosen, gold = record["prediction"], record["gold"]
    right = [answers[place] for place in gold] if isinstance(gold, list) else answers[gold]
    return {"prediction_text": None if chosen is None else answers[chosen], "gold_text": right}
