"""Chat rows: every form becomes the same turns, and what is wrong with one is said."""

from typing import Any

import pytest

from lezo.tasks.chat import ChatTask
from lezo.tasks.row import Row, RowError
from lezo.tasks.task import Example, Turn

ASKED, ANSWERED = Turn("user", "Who?"), Turn("assistant", "Anna.")


def example(row: Any, **settings: Any) -> Example:
    (made,) = ChatTask("chat", **settings).examples(Row(row))
    return made


def said(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


PARTS = [{"type": "text", "text": "Who"}, {"type": "text", "text": "?"}]


@pytest.mark.parametrize(
    "row",
    [
        said(("user", "Who?"), ("assistant", "Anna.")),
        {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Anna."}]},
        {"instruction": "Who?", "input": " ", "output": "Anna."},
        {"instruction": "Who?", "input": None, "output": "Anna."},
        {"prompt": "Who?", "completion": "Anna."},
        said(("user", "Who?"), ("assistant", "Anna."), ("user", "And nobody answers this?")),
    ],
)
def test_every_form_becomes_turns(row: dict[str, Any]) -> None:
    assert example(row) == Example("", ("Anna.",), (0,), turns=(ASKED, ANSWERED))


def test_an_input_stands_below_its_instruction_and_parts_below_each_other() -> None:
    row = {"instruction": "Who?", "input": "A door opens.", "output": "Anna."}
    assert example(row).turns[0].content == "Who?\n\nA door opens."
    assert example(said(("user", PARTS), ("assistant", "Anna."))).turns[0].content == "Who\n?"


def test_a_system_message_is_put_before_conversations_that_have_none() -> None:
    plain, own = (
        said(*first, ("user", "Who?"), ("assistant", "Anna.")) for first in ((), (("developer", "Be kind."),))
    )
    assert example(plain, system="Be brief.").turns == (Turn("system", "Be brief."), ASKED, ANSWERED)
    assert example(own, system="Be brief.").turns == (Turn("system", "Be kind."), ASKED, ANSWERED)


PICTURE = [{"type": "image_url", "image_url": {"url": "x"}}]
ORDER = "expected perhaps one system message, then user and assistant in turns, the user first"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"text": "Hello"},
            "no conversation in the row's columns ('text'); expected messages (a list of role and content), conversations "
            "(a list of from and value), instruction and output, perhaps with input, or prompt and completion",
        ),
        (
            said(("user", "Who?"), ("tool", "x")),
            "messages, turn 2: role 'tool' is unknown, expected one of system, developer, user, human, assistant, gpt",
        ),
        (said(("user", "Who?"), ("assistant", " ")), "messages, turn 2: the assistant's content is empty, expected some text"),
        (
            said(("user", PICTURE), ("assistant", "Anna.")),
            "messages, turn 1: content has a part of type 'image_url'; expected parts of type 'text' alone",
        ),
        (said(("user", "Who?"), ("assistant", None)), "messages, turn 2: column 'content' is None, expected text"),
        (said(("assistant", "Anna.")), f"turn 1 is the assistant's where the user's was due; {ORDER}"),
        (
            said(("system", "Be kind."), ("user", "Who?"), ("user", "Who?")),
            f"turn 3 is the user's where the assistant's was due; {ORDER}",
        ),
        (said(("user", "Who?")), "no turn is the assistant's; expected one to learn from"),
        ({"messages": []}, "no turn is the assistant's; expected one to learn from"),
        ({"conversations": [{"value": "Who?"}]}, "conversations, turn 1: column 'from' is missing; the row has value"),
        ({"instruction": "", "output": "Anna."}, "instruction is empty, expected some text"),
        ({"messages": "Who?"}, "column 'messages' is 'Who?', expected a list of objects"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_conversation_says_why(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError) as refused:
        example(row)
    assert str(refused.value) == message
