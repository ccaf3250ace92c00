"""How does a model's tokenizer put a conversation into words? By its chat template, or one of the user's own.

A template is a program in Jinja's language that lies beside a model's weights. transformers runs it in Jinja's sandbox,
where it sees the messages and can reach neither files nor Python; it is the only thing of a model's folder that runs.
One that asks for the date is told the same on every day, or a run could not go on tomorrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from lezo.data.chat import PLAIN, Chat, ChatError, Span
from lezo.model.weights import ModelError
from lezo.tasks.task import Turn

PLAIN_NAME = "plain"
TODAY = date(2024, 7, 26)  # what Llama's templates take where nobody tells them
_FORMATS = ("%d", "%b", "%B", "%m", "%Y", "%y", "%a", "%A", "%H", "%M", "%S", "%j")
_WAYS = (
    f"expected a model tuned to chat, task.chat_template=FILE with a Jinja template, or task.chat_template={PLAIN_NAME} "
    'for "User: ..." and "Assistant: ..." in lines'
)


def chat_of(
    path: str, tokenizer: Any, *, template: str | None, before: tuple[int, ...], given: bool, every: bool
) -> Chat:
    """Conversations by the tokenizer's own template, or that of the file ``template``, or `PLAIN`; the tokenizer keeps it.

    ``before``: what stands before every text; before a conversation only a template that is `PLAIN`, or an id that was
    ``given`` (model.bos), has any. ``every`` as in `Chat`. Raises ModelError where there is no template, or it
    cannot be used.
    """
    plain = template == PLAIN_NAME
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{path}: the tokenizer does not say where in a text its tokens are, which chat needs; expected one with a "
            "tokenizer.json (model.tokenizer=DIR)"
        )
    own = before if plain or given else ()
    choose_template(tokenizer, template)
    if not tokenizer.chat_template:
        raise ModelError(f"{path}: the tokenizer has no chat template; {_WAYS}")
    special = {*tokenizer.all_special_ids}
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    words = _Words(tokenizer, _on_one_day(tokenizer.get_chat_template()))
    lead_template(tokenizer, own)
    return Chat(words.render, words.tokenize, special, own, every)


def choose_template(tokenizer: Any, template: str | None) -> None:
    """Let the tokenizer have the template ``plain``, or of a file, with which it is saved; None: its own. Raises ModelError."""
    if template is not None:
        tokenizer.chat_template = PLAIN if template == PLAIN_NAME else _read(template)


def lead_template(tokenizer: Any, before: Sequence[int]) -> None:
    """Let its template begin with the words of the ids ``before``, which stand before every conversation, so that whoever else uses it
    has them too.
    """
    words = tokenizer.decode([*before])
    if before and tokenizer(words, add_special_tokens=False)["input_ids"] == [*before]:
        tokenizer.chat_template = f"{{{{ {words!r} }}}}{tokenizer.get_chat_template()}"


def chosen_template(given: str | None, model: str) -> str | None:
    """What is in place of a tokenizer's own chat template: of the embedded model, which has none, the plain one."""
    return given or (PLAIN_NAME if model == "tiny" else None)


def _read(template: str) -> str:
    try:
        return Path(template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no UTF-8 text"
        raise ModelError(
            f"task.chat_template={template}: {reason}; expected a Jinja template, or {PLAIN_NAME}"
        ) from None


def _on_one_day(template: str) -> str:
    """The template, with a clock of its own where it looks at one: a macro, for transformers lets no function in."""
    if "strftime_now" not in template:
        return template
    told = "".join(f".replace('{part}', '{TODAY.strftime(part)}')" for part in _FORMATS)
    return f"{{% macro strftime_now(format) %}}{{{{ format{told} }}}}{{% endmacro %}}{template}"


class _Words:
    """Words by a ``template``, and ids by a tokenizer."""

    def __init__(self, tokenizer: Any, template: str) -> None:
        self._tokenizer, self._template = tokenizer, template

    def render(self, turns: Sequence[Turn]) -> str:
        """The conversation in words. Raises ChatError where the template refuses it, or stumbles."""
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            words = self._tokenizer.apply_chat_template(
                messages, chat_template=self._template, tokenize=False
            )
            return str(words)
        except Exception as error:  # whatever a template does
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
            way = "; it may take no system message" if turns[0].role == "system" else ""
            raise ChatError(
                f"the chat template does not take it ({reason}{way}); expected a conversation that it takes, or another "
                "task.chat_template=FILE"
            ) from None

    def tokenize(self, text: str) -> tuple[Sequence[int], Sequence[Span]]:
        """Ids, and where in the text each stands."""
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return found["input_ids"], found["offset_mapping"]
