"""What of a conversation is scored, and what is left of one that is too long: by templates that are functions here."""

from collections.abc import Callable, Sequence

import pytest

from lezo.data.chat import Chat, ChatError, Rendered
from lezo.data.encode import EncodeError, Encoder
from lezo.tasks.task import Example, Turn
from tests.lezo.refusals import refused

USER, ASSISTANT, SYSTEM = (
    lambda words, role=role: Turn(role, words) for role in ("user", "assistant", "system")
)
END = ord("|")
TURNS = (SYSTEM("be"), USER("a"), ASSISTANT("bc"), USER("d"), ASSISTANT("ef"))


def lines(turns: Sequence[Turn]) -> str:
    """A template: `u:a|` in lines."""
    return "".join(f"{turn.role[0]}:{turn.content.strip()}|\n" for turn in turns)


def thinking(turns: Sequence[Turn]) -> str:
    """One that puts a thought before the last turn's words alone."""
    thought = "" if turns[-1].role == "user" else "<>"
    return lines([*turns[:-1], Turn(turns[-1].role, f"{thought}{turns[-1].content}")])


def letters(text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """One id a character; a space and what follows it are one token."""
    ids, places, start = [], [], 0
    while start < len(text):
        end = start + (2 if text[start] == " " else 1)
        ids.append(ord(text[end - 1]))
        places.append((start, end))
        start = end
    return ids, places


def chat(
    render: Callable[[Sequence[Turn]], str] = lines, before: tuple[int, ...] = (), every: bool = True
) -> Chat:
    return Chat(render, letters, {END}, before, every)


def marked(found: Rendered) -> str:
    """The scored characters in capitals."""
    scored = {place for span in found.spans for place in range(*span)}
    return "".join(chr(i).upper() if place in scored else chr(i) for place, i in enumerate(found.ids))


def test_the_assistants_words_and_what_ends_them_are_scored() -> None:
    found = chat().conversation(TURNS, 100)
    assert marked(found) == "s:be|\nu:a|\na:BC|\nu:d|\na:EF|"
    assert [found.ids[end - 1] for _, end in found.spans] == [END, END]
    assert (found.after, found.dropped, found.cut) == ((ord("\n"),), 0, False)
    assert marked(chat(every=False).conversation(TURNS, 100)) == "s:be|\nu:a|\na:bc|\nu:d|\na:EF|"


def test_without_a_special_token_the_first_behind_the_words_ends_them_and_a_space_belongs_to_them() -> None:
    def spoken(turns: Sequence[Turn]) -> str:
        return "".join(f"{turn.role[0]}: {turn.content}\n\n" for turn in turns)

    found = chat(spoken).conversation(TURNS[1:3], 100)
    ((start, end),) = found.spans
    assert [chr(i) for i in found.ids[start:end]] == ["b", "c", "\n"]
    assert found.after == (ord("\n"),)
    assert "".join(map(chr, chat(spoken).question(TURNS[1:3], 100).ids)) == "u:a\n\na:"


def test_words_that_stand_elsewhere_too_are_found_where_they_are_said() -> None:
    found = chat().conversation((USER("a:a"), ASSISTANT("a"), USER("a"), ASSISTANT(" a ")), 100)
    assert marked(found) == "u:a:a|\na:A|\nu:a|\na:A|"


def test_a_long_conversation_loses_its_oldest_turns_and_keeps_the_systems() -> None:
    whole = len(chat().conversation(TURNS, 100).ids)
    assert chat().conversation(TURNS, whole).dropped == 0
    found = chat().conversation(TURNS, whole - 1)
    assert (marked(found), found.dropped, found.cut) == ("s:be|\nu:d|\na:EF|", 2, False)
    assert (marked(chat(before=(48,)).conversation(TURNS, whole))) == "0s:be|\nu:d|\na:EF|"


def test_two_turns_that_do_not_fit_are_cut_from_the_left_behind_what_stands_before() -> None:
    found = chat(before=(48,)).conversation(TURNS, 7)
    assert (marked(found), found.dropped, found.cut) == ("0\na:EF|", 2, True)
    assert marked(chat(before=(48,)).conversation(TURNS, 3)) == "0F|"
    assert marked(chat().conversation(TURNS, 3)) == "eF|"  # nothing predicts the first


def test_a_question_ends_where_the_answer_begins() -> None:
    assert "".join(map(chr, chat(before=(48,)).question(TURNS, 100).ids)) == "0s:be|\nu:a|\na:bc|\nu:d|\na:"
    short = chat().question(TURNS, 14)
    assert ("".join(map(chr, short.ids)), short.dropped) == ("s:be|\nu:d|\na:", 2)


def test_a_template_that_shows_earlier_turns_otherwise_is_refused_but_for_the_last_turn() -> None:
    with pytest.raises(ChatError) as told:
        chat(thinking).conversation(TURNS, 100)
    assert str(told.value) == (
        "turn 3, the assistant's, does not stand in the whole as the model would say it: the chat template shows it otherwise "
        "once others follow it; expected another task.chat_template=FILE, or task.turns=last to score the last turn alone"
    )
    last = chat(thinking, every=False)
    assert marked(last.conversation(TURNS, 100)) == "s:be|\nu:a|\na:bc|\nu:d|\na:<>EF|"
    assert "".join(map(chr, last.question(TURNS, 100).ids)).endswith("\na:<>")
    assert marked(chat(thinking).conversation(TURNS[:3], 100)) == "s:be|\nu:a|\na:<>BC|"


@pytest.mark.parametrize(
    ("render", "named"),
    [
        (lambda turns: lines([Turn(t.role, t.content.replace("f", "")) for t in turns]), ["turn 5", "changes its words"]),
        (lambda turns: lines(turns) + lines(turns), ["turn 5", "2 times"]),
        (lambda turns: lines([turn for turn in turns if turn.role != "assistant"]), ["turn 5", "0 times"]),
    ],
)  # fmt: skip
def test_a_template_that_does_not_show_a_turn_as_it_is_is_refused(
    render: Callable[[Sequence[Turn]], str], named: list[str]
) -> None:
    example = Example("", ("ef",), (0,), turns=TURNS)
    encoder = Encoder(lambda texts: [], (), 100, chat=chat(render))
    with refused(EncodeError, "example 0 (it begins with 'a')", *named, "task.chat_template=FILE"):
        encoder.candidates([example])


def test_an_answer_without_tokens_is_refused() -> None:
    silent = Chat(lines, lambda text: ([1, 2], [(0, 1), (1, 2)]), set())
    encoder = Encoder(lambda texts: [], (), 100, chat=silent)
    with refused(EncodeError, "example 0", "'ef'", "model.tokenizer"):
        encoder.candidates([Example("", ("ef",), (0,), turns=TURNS)])


def test_a_conversation_is_encoded_with_the_places_of_its_scored_tokens() -> None:
    encoder = Encoder(lambda texts: [], (7, 8), 18, chat=chat(before=(7,)))
    (found,) = encoder.candidates([Example("", ("ef",), (0,), turns=TURNS)])
    assert (found.answer_lens, found.spans, found.dropped, found.truncated) == ((3,), ((14, 17),), 2, False)
    assert [chr(found.input_ids[0][place]) for place in found.scored(0)] == ["e", "f", "|"]
    (asked,) = encoder.prompts([Example("", ("ef",), (0,), turns=TURNS)])
    assert (asked.answer_lens, asked.references, asked.spans) == ((0,), ("ef",), ())
