"""How prompts are put together."""

from lezo.data.prompting import gold_text, with_demos
from lezo.tasks.task import Example

CHOSEN = Example("Owls hunt. Is it so?\n", ("Yes", "No"), (1,))
GENERATED = Example("Question: Where?\nAnswer:", (" here\n",), (0,), ("here",))


def test_gold_text_ends_in_the_answer_that_is_trained_on():
    assert gold_text(CHOSEN) == "Owls hunt. Is it so?\nNo"
    assert gold_text(Example("A", (" b", " c", " d"), (2, 0))) == "A d"


def test_demos_stand_two_newlines_apart_before_the_text():
    assert with_demos([CHOSEN, GENERATED], "Why?\n") == (
        "Owls hunt. Is it so?\nNo\n\nQuestion: Where?\nAnswer: here\n\nWhy?\n"
    )


def test_demos_are_stripped_of_all_white_space():
    padded = Example("\n\t Owls.\n", ("Yes \n\n",), (0,))
    assert with_demos([padded, padded], "Why?") == "Owls.\nYes\n\nOwls.\nYes\n\nWhy?"


def test_empty_demos_leave_no_white_space_behind():
    empty = Example(" ", ("\n",), (0,))
    assert with_demos([empty, empty], "Why?") == "Why?"
    assert with_demos([CHOSEN, empty], "Why?") == "Owls hunt. Is it so?\nNo\n\nWhy?"


def test_without_demos_the_text_loses_leading_white_space_and_trailing_spaces():
    assert with_demos([], "\n\t Why?  ") == "Why?"
    assert with_demos([], "Why?\n") == "Why?\n"
    assert with_demos([], "Why? \n ") == "Why? \n"


def test_behind_demos_the_text_keeps_its_leading_white_space():
    assert with_demos([CHOSEN], "\n Why? ") == "Owls hunt. Is it so?\nNo\n\n\n Why?"
