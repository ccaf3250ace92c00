"""Chat: conversations of one's own, whose assistant is learnt from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lezo.tasks.metrics import PERPLEXITY
from lezo.tasks.row import Row, RowError
from lezo.tasks.task import Example, Role, Task, Turn

_ROLES: Mapping[str, Role] = {
    **{"system": "system", "developer": "system"},
    **{"user": "user", "human": "user"},
    **{"assistant": "assistant", "gpt": "assistant"},
}
_FORMS = (
    "messages (a list of role and content), conversations (a list of from and value), instruction and output, "
    "perhaps with input, or prompt and completion"
)


class ChatTask(Task):
    """Conversations in the forms of OpenAI, ShareGPT and Alpaca, or prompt and completion.

    ``system``: a system message for conversations that have none. What follows the assistant's last turn is left out.
    """

    loss = "lm"
    metric = PERPLEXITY
    stop = ()
    num_train = None
    num_dev = 100

    def __init__(self, name: str, *, system: str | None = None) -> None:
        self.name, self._system = name, system

    def examples(self, row: Row) -> Iterator[Example]:
        turns = _in_order(_turns(row))
        if self._system is not None and turns[0].role != "system":
            turns = [Turn("system", self._system), *turns]
        yield Example("", (turns[-1].content,), (0,), turns=tuple(turns))


def _turns(row: Row) -> list[Turn]:
    """The row's turns, whatever form it has."""
    for column, keys in (("messages", ("role", "content")), ("conversations", ("from", "value"))):
        if column in row:
            return [_turn(one, number, column, *keys) for number, one in enumerate(row.rows(column), start=1)]
    for asked, answered in (("instruction", "output"), ("prompt", "completion")):
        if asked in row and answered in row:
            parts = [asked, *(["input"] if asked == "instruction" and _filled(row, "input") else [])]
            question = "\n\n".join(_said(row.text(part), part) for part in parts)
            return [Turn("user", question), Turn("assistant", _said(row.text(answered), answered))]
    found = ", ".join(map(repr, row.columns)) or "no columns"
    raise RowError(f"no conversation in the row's columns ({found}); expected {_FORMS}")


def _filled(row: Row, column: str) -> bool:
    return column in row and row.columns[column] is not None and bool(row.text(column).strip())


def _turn(one: Row, number: int, column: str, role_key: str, text_key: str) -> Turn:
    where = f"{column}, turn {number}"
    try:
        role = _ROLES.get(given := one.text(role_key))
        if role is None:
            known = ", ".join(_ROLES)
            raise RowError(f"{role_key} {given!r} is unknown, expected one of {known}")
        return Turn(role, _said(_content(one, text_key), f"the {role}'s {text_key}"))
    except RowError as error:
        raise RowError(f"{where}: {error}") from None


def _content(one: Row, key: str) -> str:
    """The text of a turn, or of the parts it is made of."""
    value: Any = one.columns.get(key)
    if isinstance(value, str) or not isinstance(value, Sequence):
        return one.text(key)
    parts = one.rows(key)
    kinds = [part.text("type") for part in parts]
    if other := next((kind for kind in kinds if kind != "text"), None):
        raise RowError(f"{key} has a part of type {other!r}; expected parts of type 'text' alone")
    return "\n".join(part.text("text") for part in parts)


def _said(text: str, what: str) -> str:
    if not text.strip():
        raise RowError(f"{what} is empty, expected some text")
    return text


def _in_order(turns: Sequence[Turn]) -> list[Turn]:
    """Perhaps a system message, then user and assistant in turns, up to the assistant's last."""
    first = 1 if turns and turns[0].role == "system" else 0
    for number, turn in enumerate(turns[first:]):
        expected = ("user", "assistant")[number % 2]
        if turn.role != expected:
            order = "perhaps one system message, then user and assistant in turns, the user first"
            raise RowError(
                f"turn {first + number + 1} is the {turn.role}'s where the {expected}'s was due; expected {order}"
            )
    kept = [*turns[: first + (len(turns) - first) // 2 * 2]]
    if len(kept) == first:
        raise RowError("no turn is the assistant's; expected one to learn from")
    return kept
