from lezo.data.encode import EncodeError, Encoder, padded
from lezo.tasks import Example
from tests.lezo.refusals import refused


def letters(texts):
    """A tokenizer with one id a character."""
    return [[ord(c) for c in text] for text in texts]


def text(ids):
    return "".join(map(chr, ids))


def encoder(max_length=100, before=(0,), after=()):
    return Encoder(letters, before, max_length, after)


YES_NO = Example("Is it? ", ("Yes", "No"), (1,))


def test_candidates_are_bos_prompt_answer():
    (found,) = encoder().candidates([YES_NO])
    assert [ids[0] for ids in found.input_ids] == [0, 0]
    assert [text(ids[1:]) for ids in found.input_ids] == ["Is it? Yes", "Is it? No"]
    # The bare prompt loses its trailing space, which therefore counts as the answer's, as published.
    assert found.answer_lens == (4, 3)
    assert (found.index, found.gold, found.truncated) == (0, (1,), False)


def test_no_bos():
    assert text(encoder(before=()).candidates([YES_NO])[0].input_ids[0]) == "Is it? Yes"


def test_what_the_tokenizer_puts_around_a_text_is_there_and_no_part_of_an_answer():
    (found,) = encoder(before=(7, 8), after=(9,)).candidates([YES_NO])
    assert [(ids[:2], text(ids[2:])) for ids in found.input_ids] == [
        ((7, 8), "Is it? Yes"),
        ((7, 8), "Is it? No"),
    ]
    assert (found.answer_lens, found.after) == ((4, 3), (9,))
    (prompt,) = encoder(before=(7, 8), after=(9,)).prompts([YES_NO])
    assert (prompt.input_ids, prompt.after) == (((7, 8, *map(ord, "Is it?")),), ())


def test_demonstrations_go_before_and_leave_answer_lengths_alone():
    demo = Example("Was it?", (" Oui",), (0,))
    (found,) = encoder().candidates([YES_NO], [demo])
    assert text(found.input_ids[0][1:]) == "Was it? Oui\n\nIs it? Yes"
    assert found.answer_lens == (4, 3)


def test_too_long_is_cut_from_the_left_behind_the_bos():
    (found,) = encoder(max_length=8).candidates([YES_NO])
    assert [text(ids[1:]) for ids in found.input_ids] == ["it? Yes", " it? No"]
    assert found.truncated
    (prompt,) = encoder(max_length=5).prompts([YES_NO])
    assert (text(prompt.input_ids[0][1:]), prompt.answer_lens, prompt.truncated) == (" it?", (0,), True)


def test_all_that_stands_before_is_kept_where_a_text_is_cut():
    two = {"before": (7, 8), "after": (9,)}
    (found,) = encoder(max_length=9, **two).candidates([YES_NO])
    assert [(ids[:2], text(ids[2:])) for ids in found.input_ids] == [((7, 8), "it? Yes"), ((7, 8), " it? No")]
    assert found.truncated and encoder(max_length=11, **two).candidates([YES_NO])[0].truncated
    assert not encoder(max_length=12, **two).candidates([YES_NO])[0].truncated
    with refused(EncodeError, "example 0: ", "'abcd'", "5 tokens", "2 before", "holds 6"):
        encoder(max_length=6, **two).candidates([Example("Is it? ", ("abcd",), (0,))])


def test_exactly_fitting_is_not_truncated():
    assert not encoder(max_length=11).candidates([YES_NO])[0].truncated
    assert not encoder(max_length=7).prompts([YES_NO])[0].truncated
    assert encoder(max_length=6).prompts([YES_NO])[0].truncated


def test_an_answer_without_tokens_is_an_error():
    with refused(EncodeError, "example 0: ", "' '", "model.tokenizer"):
        encoder().candidates([Example("Is it?", (" ",), (0,))])


def test_an_answer_that_does_not_fit_is_an_error():
    fits = Example("", ("abcd",), (0,))
    assert encoder(max_length=5).candidates([fits])[0].answer_lens == (4,)
    with refused(EncodeError, "example 0: ", "'abcd'", "4 tokens", "holds 4"):
        encoder(max_length=4).candidates([fits])


def test_a_prompt_without_tokens_needs_something_first():
    empty = Example("", ("abcd",), (0,))
    for encode in (encoder(before=()).candidates, encoder(before=()).prompts):
        with refused(EncodeError, "example 0: ", "model.bos=ID"):
            encode([empty])
    assert encoder(before=(5,)).candidates([empty])[0].input_ids == ((5, *map(ord, "abcd")),)
    assert encoder(before=(5,)).prompts([empty])[0].input_ids == ((5,),)


def test_padded():
    ids, mask = padded([[3], [4, 5]], pad=9)
    assert (ids.tolist(), mask.tolist()) == ([[9, 3], [4, 5]], [[0, 1], [1, 1]])
    assert padded([[3], [4, 5]], 9, 4)[0].tolist() == [[9, 9, 9, 3], [9, 9, 4, 5]]
