"""How a prompt is put together: stripping, and in-context demonstrations."""

from __future__ import annotations

from collections.abc import Sequence

from lezo.tasks.task import Example


def gold_text(example: Example) -> str:
    """The prompt with the answer that is trained on."""
    return example.prompt + example.answers[example.gold[0]]


def with_demos(demos: Sequence[Example], text: str) -> str:
    """``text`` behind the solved demonstrations, two newlines apart; stripped as published."""
    block = "\n\n".join(gold_text(demo).strip() for demo in demos).strip()
    return f"{block}\n\n{text}".lstrip().strip(" ")
