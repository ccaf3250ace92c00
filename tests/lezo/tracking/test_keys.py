"""The names that wandb shows: what they hold, and that rows and results come under them."""

from typing import Any

from lezo.tracking import keys
from lezo.tracking.keys import (
    AXES,
    KEYS,
    TABLE_ROWS,
    dev_keys,
    prediction_table,
    result_keys,
    train_keys,
)

TRAINED: dict[str, Any] = {
    **{"step": 3, "seconds": 1.5, "loss": 0.5, "g": 0.1, "lr": 0.01, "skipped": True},
    **{"phases": {"data": 0.1, "forward": 0.2}, "memory": 2**31},
}


def test_a_name_stands_once_and_none_is_an_axis() -> None:
    names = [key.name for key in KEYS]
    assert len(set(names)) == len(names) and not set(names) & set(AXES)
    assert {key.axis for key in KEYS if key.name.startswith(("result/", "predictions"))} == {None}
    assert all(key.axis in AXES for key in KEYS if not key.name.startswith(("result/", "predictions")))


def test_a_train_row_has_its_phases_beside_it_memory_in_gib_and_nothing_without_a_value() -> None:
    assert train_keys({**TRAINED, "g": None}) == {
        **{"step": 3, "seconds": 1.5, "train/loss": 0.5, "train/lr": 0.01, "train/skipped": 1},
        **{"time/data": 0.1, "time/forward": 0.2, "memory/peak_gib": 2.0},
    }


def test_rows_stand_on_the_forwards_that_their_steps_cost() -> None:
    assert train_keys(TRAINED, 3)["forwards"] == 9
    dev = {"step": 4, "seconds": 0.0, "dev_loss": 0.5, "dev_score": 0.5, "eval_seconds": 0.2}
    assert dev_keys(dev, 2)["forwards"] == 8
    assert "forwards" not in dev_keys(dev)


def test_a_dev_row_without_a_loss_has_none() -> None:
    row = {"step": 0, "seconds": 0.0, "dev_loss": None, "dev_score": 0.5, "eval_seconds": 0.2}
    assert dev_keys(row) == {"step": 0, "seconds": 0.0, "dev/score": 0.5, "time/eval": 0.2}


def test_perplexities_have_a_name_of_their_own() -> None:
    row = {"step": 0, "seconds": 0.0, "dev_loss": 1.0, "dev_score": 2.7, "eval_seconds": 0.2}
    assert dev_keys(row, None, "perplexity")["dev/perplexity"] == 2.7
    assert keys.test_keys(0, 1.0, 2.7, "perplexity") == {"step": 0, "test/loss": 1.0, "test/perplexity": 2.7}
    assert [key.best for key in KEYS if key.name in ("dev/score", "dev/perplexity")] == ["max", "min"]


def test_nothing_of_a_result_is_named_like_an_axis_or_a_metric() -> None:
    found = result_keys({"test": 0.5, "error": None, "seconds": {"total": 3.0, "train": 2.0}})
    assert found == {
        **{"result/test": 0.5, "result/error": None},
        **{"result/seconds/total": 3.0, "result/seconds/train": 2.0},
    }


def test_chosen_candidates_say_whether_they_are_right() -> None:
    records = [
        {"index": 0, "scores": [-1.0, -2.5], "prediction": 0, "gold": 1},
        {"index": 1, "scores": [-1.0, -2.5], "prediction": 0, "gold": [0, 1]},
        {"index": 2, "scores": [float("nan")] * 2, "prediction": None, "gold": 0},
    ]
    columns, rows = prediction_table(records)
    assert columns == ["index", "scores", "prediction", "gold", "correct"]
    assert rows == [
        [0, "-1.0000; -2.5000", 0, "1", False],
        [1, "-1.0000; -2.5000", 0, "0; 1", True],
        [2, "nan; nan", None, "0", False],
    ]


def test_generated_texts_have_their_score_and_a_table_ends_somewhere() -> None:
    record = {"index": 0, "text": " a\n", "prediction": "a", "score": 0.5, "gold": ["a", "b"]}
    columns, rows = prediction_table([record] * (TABLE_ROWS + 1))
    assert columns == ["index", "text", "prediction", "score", "gold"]
    assert rows[0] == [0, " a\n", "a", 0.5, "a; b"] and len(rows) == TABLE_ROWS


def test_the_words_of_rows_leave_the_machine_only_where_that_is_asked_for() -> None:
    chosen = {"index": 0, "prompt": "It was", "candidates": ["good", "bad"], "scores": [-1.0, -2.0]}
    chosen |= {"prediction": 0, "gold": 1, "prediction_text": "good", "gold_text": "bad"}
    assert prediction_table([chosen])[0] == ["index", "scores", "prediction", "gold", "correct"]
    columns, (row,) = prediction_table([chosen], texts=True)
    assert dict(zip(columns, row, strict=True))["candidates"] == "good; bad" and row[1] == "It was"
    talk = {"index": 0, "messages": [{"role": "user", "content": "Hi"}], "loss": 1.0, "tokens": 3}
    asked = {**talk, "prompt": "Hi", "reply": "Hello", "reference": "Hey"}
    assert prediction_table([talk, asked])[0] == ["index", "loss", "tokens", "prompt", "reply", "reference"]
    assert prediction_table([talk], texts=True)[1] == [[0, "user: Hi", 1.0, 3]]
