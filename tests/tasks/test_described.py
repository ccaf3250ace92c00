"""Tasks that settings describe: what their rows become, and what is said of settings and rows that do not fit."""

from typing import Any

import pytest

from lezo.data.tables import Cells
from lezo.tasks import TASKS
from lezo.tasks.prompt import prompt_task
from lezo.tasks.row import Row, RowError
from lezo.tasks.task import Example, TaskError

FILM = {
    "template": "{{ Text }} It was",
    "label_column": "Class",
    "words": {"pos": "great", "neg": "terrible"},
}
ASKED = {"template": "Q: {{ q }}\nA:", "answer_column": "a"}
CHOSEN = {"template": "{{ q }}", "choices_column": "choices", "label_column": "right"}


def example(settings: dict[str, Any], **columns: Any) -> Example:
    (made,) = prompt_task("mine", **settings).examples(Row(columns))
    return made


def test_labels_become_candidates() -> None:
    made = example(FILM, Text="A quay .", Class="neg")
    assert made == Example("A quay . It was", (" great", " terrible"), (1,), blank="")


def test_the_papers_tasks_can_be_described() -> None:
    """One of each kind: the same texts, which is all that a model sees of a task."""
    sst2 = {
        "template": "{{ sentence.strip() }} It was",
        "label_column": "label",
        "words": {0: "terrible", 1: "great"},
    }
    squad = {
        "template": r"Title: {{ title }}\nContext: {{ context }}\nQuestion: {{ question.strip() }}\nAnswer:",
        "answer_column": "answers",
    }
    rows: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
        "sst2": ({**sst2, "blank_prompt": " It was"}, row := {"sentence": "a quay . ", "label": 1}, row),
        "squad": (
            squad,
            asked := {
                "title": "Quays",
                "context": "Of stone.",
                "question": "Of what? ",
                "answers": ["stone", "Stone"],
            },
            {**asked, "answers": {"text": asked["answers"]}},
        ),
    }
    for name, (settings, own, published) in rows.items():
        (theirs,) = TASKS[name].examples(Row(published))
        assert example(settings, **own) == theirs


@pytest.mark.parametrize(
    ("template", "word", "whole"),
    [
        ("{{ Text }} It was", "great", "T It was great"),
        ("{{ Text }} It was ", "great", "T It was great"),
        ("{{ Text }} It was", " great", "T It was great"),
        ("{{ Text }}\n", "great", "T\ngreat"),
        (r"{{ Text }}\nAnswer:", r"\ngreat", "T\nAnswer:\ngreat"),
        ('{{ row["Text"] }}:', "great", "T: great"),
        ("{{ Text }}{{ gap }}", "great", "T great"),  # an empty cell prints as nothing
    ],
)
def test_one_space_stands_before_an_answer_or_the_white_space_that_is_given(
    template: str, word: str, whole: str
) -> None:
    made = example(
        {**FILM, "template": template, "words": {"pos": word, "neg": "x"}}, Text="T", Class="pos", gap=None
    )
    assert made.prompt + made.answers[0] == whole


@pytest.mark.parametrize(
    ("words", "labels"),
    [
        ({0: "no", 1: "yes"}, [1, "1", " 1 ", 1.0, "1.0", True, "true", "TRUE", "yes"]),
        ({False: "no", True: "yes"}, [True, "true", "True", 1, "1", "Yes"]),
        ({"no": "bad", "yes": "good"}, ["yes", "YES", True, 1]),
        ({"neg": "bad", "Pos": "good"}, ["Pos", "pos", "POS "]),
        ({"a": "bad", "A": "good"}, ["A"]),
        ({"-1": "bad", 7: "good"}, [7, "7", 7.0]),
        (["bad", "good"], ["good", "Good"]),
    ],
)
def test_a_label_is_known_however_rows_write_it(words: Any, labels: list[Any]) -> None:
    settings = {**FILM, "words": words}
    assert [example(settings, Text="T", Class=label).gold for label in labels] == [(1,)] * len(labels)


def test_a_blank_prompt_ends_as_the_prompt_does() -> None:
    settings = {**FILM, "blank_prompt": "It was"}
    assert example(settings, Text="T", Class="pos").blank == "It was"
    assert example({**settings, "template": "{{ Text }}\n"}, Text="T", Class="pos").blank == "It was\n"


def test_an_answer_is_trained_on_up_to_the_text_that_ends_it() -> None:
    made = example(ASKED, q="1?", a=["one", "1"])
    assert made == Example("Q: 1?\nA:", (" one\n",), (0,), ("one", "1"))
    assert example({**ASKED, "stop": "###"}, q="1?", a="one\ntwo ").answers == (" one\ntwo###",)
    assert example({**ASKED, "stop": []}, q="1?", a="one\ntwo").answers == (" one\ntwo",)
    assert prompt_task("mine", **ASKED, stop=[r"\n\n", "Q:"]).stop == ("\n\n", "Q:")
    assert example(ASKED, q="1?", a=42).references == ("42",)


@pytest.mark.parametrize("right", [2, "2", "C", "c", " green"])
def test_the_right_choice_is_a_number_a_letter_or_a_text(right: Any) -> None:
    made = example(CHOSEN, q="Grass is", choices=["red", "blue", "green"], right=right)
    assert made == Example("Grass is", (" red", " blue", " green"), (2,), blank="")


def test_choices_in_columns_of_their_own_are_known_by_these_too() -> None:
    settings = {**CHOSEN, "choices_column": ["x", "y"]}
    assert example(settings, q="?", x="red", y=7, right="y") == Example("?", (" red", " 7"), (1,), blank="")


def test_a_cell_of_a_csv_may_hold_a_list() -> None:
    (made,) = prompt_task("mine", **CHOSEN).examples(
        Cells({"q": "?", "choices": '["red", "blue"]', "right": "1"})
    )
    assert (made.answers, made.gold) == ((" red", " blue"), (1,))
    (made,) = prompt_task("mine", **ASKED).examples(Cells({"q": "?", "a": '["red", "blue"]'}))
    assert made.references == ("red", "blue")
    (made,) = prompt_task("mine", **ASKED).examples(Cells({"q": "?", "a": "42"}))
    assert made.references == ("42",)


def test_texts_that_are_numbers_come_before_numbers_of_choices() -> None:
    assert example(CHOSEN, q="1+1", choices=["1", "0", "2"], right="0").gold == (1,)
    assert example(CHOSEN, q="1+1", choices=["1", "0", "2"], right=0).gold == (0,)


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "no template": (
        {**FILM, "template": None},
        "task.template: expected the prompt, a Jinja template of a row's columns, such as "
        "\"task.template='Review: {{ text }}'\"",
    ),
    "a template that is none": (
        {**FILM, "template": "Read:\n{{ Text | }} It was"},
        "task.template: not a Jinja template (line 2, column 12: expected token 'name', got 'end of print statement')",
    ),
    "an unknown filter": (
        {**FILM, "template": "{{ Text | shout }}"},
        "task.template: not a Jinja template (line 1, column 11: No filter named 'shout'.)",
    ),
    "nothing to answer": (
        {"template": "{{ x }}"},
        "task.label_column, task.answer_column: expected the column of the label (with task.words, or with "
        "task.choices_column for multiple choice), or that of the text to generate",
    ),
    "no words": (
        {**FILM, "words": None},
        "task.words: expected a word for each of two labels or more, as 'task.words={pos: great, neg: terrible}', or "
        "labels that are words themselves, as task.words=[positive,negative]",
    ),
    "one word for two labels": (
        {**FILM, "words": {"a": "x", "b": "x"}},
        "task.words={'a': 'x', 'b': 'x'}: expected another word for each label",
    ),
    "a label twice": (
        {**FILM, "words": {1: "x", "1": "y"}},
        "task.words: expected a label once, found 1, 1",
    ),
    "YAML's no": (
        {**FILM, "words": {0: False, 1: True}},
        "task.words: the word of 0 is false: YAML reads yes, no, on, off, true and false so; put it in quotes",
    ),
    "an empty word": (
        {**FILM, "words": {"pos": " ", "neg": "x"}},
        "task.words: the word of pos is ' '; expected text",
    ),
    "two kinds at once": (
        {**FILM, "answer_column": "a"},
        "task.label_column=Class: has no part in a generated answer (task.answer_column); leave out one of them",
    ),
    "words for choices": (
        {**CHOSEN, "words": {"a": "b", "c": "d"}},
        "task.words={'a': 'b', 'c': 'd'}: has no part in multiple choice (task.choices_column); leave out one of them",
    ),
    "a stop text for labels": (
        {**FILM, "stop": "x"},
        "task.stop=x: has no part in labels and words (task.label_column); leave out one of them",
    ),
    "a stop text that is none": (
        {**ASKED, "stop": [""]},
        "task.stop=['']: expected a text that ends a generated answer, or a list of them",
    ),
    "choices that are no column": (
        {**CHOSEN, "choices_column": ["a"]},
        "task.choices_column=['a']: expected the column that lists the choices, or a list of columns of one each, as [a,b,c]",
    ),
    "a metric of texts for labels": (
        {**FILM, "metric": "f1"},
        "task.metric=f1: expected one of accuracy, macro_f1 for labels (of choices accuracy alone), or module:function of an installed package",
    ),
    "a metric of labels for texts": (
        {**ASKED, "metric": "accuracy"},
        "task.metric=accuracy: expected one of f1, exact_match, rouge_l, perplexity for generated answers, or module:function of an "
        "installed package",
    ),
    "a prompt without a column": (
        {**FILM, "template": "It was"},
        "task.template=It was: has no column of the rows in it; expected some, as {{ text }}",
    ),
    "another file": (
        {**FILM, "template": "{% include 'a' %} {{ Text }}"},
        "task.template: a template reads no other file; expected it without include, import and extends",
    ),
    "a column of two words": (
        {**FILM, "template": "{{ The text }}"},
        "task.template: not a Jinja template (line 1, column 11: expected token 'end of print statement', got 'text'); a column whose "
        'name has spaces is {{ row["The text"] }}',
    ),
    "perplexity of labels": (
        {**FILM, "metric": "perplexity"},
        "task.metric=perplexity: expected one of accuracy, macro_f1 for labels (of choices accuracy alone), or module:function of an "
        "installed package",
    ),
    "macro F1 of choices": (
        {**CHOSEN, "metric": "macro_f1"},
        "task.metric=macro_f1: is over labels, and a choice has none; expected accuracy",
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_describe_no_task_are_refused(case: str) -> None:
    settings, said = SETTINGS[case]
    with pytest.raises(TaskError) as refused:
        prompt_task("mine", **settings)
    assert str(refused.value) == said


ROWS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "an unknown column": (
        {**FILM, "template": "{{ text }} It was"},
        {"Text": "T", "Class": "pos"},
        "column 'text' is missing; the row has Text, Class; the nearest is 'Text'",
    ),
    "an empty prompt": (
        {**FILM, "template": "{{ Text }}"},
        {"Text": " ", "Class": "pos"},
        "task.template: makes nothing but white space of this row",
    ),
    "a row of empty cells": (
        {**FILM, "template": "{{ Text }} It was"},
        {"Text": "", "Class": "pos"},
        "task.template: nothing of this row is in it: Text empty; expected some text, or leave the row out",
    ),
    "an expression that fails": (
        {**FILM, "template": "{{ Text + 1 }}"},
        {"Text": "T", "Class": "pos"},
        'task.template: TypeError: can only concatenate str (not "int") to str',
    ),
    "a way out of the sandbox": (
        {**FILM, "template": "{{ Text.__class__.__mro__ }}"},
        {"Text": "T", "Class": "pos"},
        "task.template: access to attribute '__class__' of 'str' object is unsafe; a template can print a row's columns and nothing else",
    ),
    "an unknown label": (
        FILM,
        {"Text": "T", "Class": "neutral"},
        "column 'Class' is 'neutral', expected one of the labels of task.words: pos, neg",
    ),
    "no label": (
        FILM,
        {"Text": "T", "Class": None},
        "column 'Class' is None, expected one of the labels of task.words: pos, neg",
    ),
    "a number for a named label": (
        FILM,
        {"Text": "T", "Class": 0},
        "column 'Class' is 0, expected one of the labels of task.words: pos, neg",
    ),
    "labels that differ in case only": (
        {**FILM, "words": {"a": "x", "A": "y", "b": "z"}},
        {"Text": "T", "Class": "B"},
        "column 'Class' is 'B', expected one of the labels of task.words: a, A, b",
    ),
    "no such label column": (
        FILM,
        {"Text": "T", "label": 1},
        "column 'Class' is missing; the row has Text, label",
    ),
    "an answer that is none": (
        ASKED,
        {"q": "1?", "a": " "},
        "column 'a' is ' ', expected text",
    ),
    "an answer beyond its end": (
        ASKED,
        {"q": "1?", "a": "one\ntwo"},
        "column 'a' holds '\\n', where a generated answer ends; task.stop='###' ends answers otherwise, task.stop=[] by "
        "the tokenizer's end token",
    ),
    "choices in a text": (
        CHOSEN,
        {"q": "?", "choices": "red, blue", "right": 0},
        "column 'choices' is 'red, blue', expected a list of texts (task.choices_column=[a,b,c] names columns of one text each)",
    ),
    "the same choice twice": (
        CHOSEN,
        {"q": "?", "choices": ["red", "red "], "right": 0},
        "choices ['red', 'red']: expected two or more, each another text",
    ),
    "a choice that there is not": (
        CHOSEN,
        {"q": "?", "choices": ["red", "blue"], "right": "C"},
        "column 'right' is 'C', expected the right choice's number (0 to 1), letter (A to B) or text",
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_rows_that_do_not_fit_are_refused(case: str) -> None:
    settings, columns, said = ROWS[case]
    with pytest.raises(RowError) as refused:
        example(settings, **columns)
    assert str(refused.value) == said
