"""Predictions can be read without the data."""

from lezo.runs.predictions import in_words
from lezo.tasks import Example
from lezo.tasks.task import Turn

CHOICE = Example("It was", (" good", " bad", " fine"), (0, 2))


def test_a_choice_has_prompt_candidates_and_the_texts_of_what_was_chosen_and_is_right() -> None:
    record = {"index": 1, "scores": [0.0, 1.0, 0.5], "prediction": 1, "gold": [0, 2]}
    (found,) = in_words([record], [Example("other", (" a",), (0,)), CHOICE])
    assert record.items() <= found.items() and list(found)[:3] == ["index", "prompt", "candidates"]
    assert (found["prompt"], found["candidates"]) == ("It was", [" good", " bad", " fine"])
    assert (found["prediction_text"], found["gold_text"]) == (" bad", [" good", " fine"])
    nan = {**record, "prediction": None, "index": 0, "gold": 1}
    assert in_words([nan], [CHOICE])[0]["prediction_text"] is None
    assert in_words([nan], [CHOICE])[0]["gold_text"] == " bad"


def test_texts_have_their_prompt_and_what_is_right() -> None:
    example = Example("Q: why?", (" because",), (0,), ("because", "so"))
    made = {"index": 0, "text": "so\n", "prediction": "so", "score": 1.0, "gold": ["because", "so"]}
    assert in_words([made], [example]) == [{**made, "prompt": "Q: why?"}]
    learnt = {"index": 0, "loss": 1.5, "tokens": 2}
    assert in_words([learnt], [example]) == [{**learnt, "prompt": "Q: why?", "gold_text": " because"}]


def test_a_conversation_has_its_turns() -> None:
    turns = (Turn("user", "Hi"), Turn("assistant", "Hello"))
    (found,) = in_words(
        [{"index": 0, "loss": 1.5, "tokens": 2}], [Example("", ("Hello",), (0,), turns=turns)]
    )
    assert found["messages"] == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert set(found) == {"index", "messages", "loss", "tokens"}
