"""Every task, from an invented row to its exact words."""

import json
from dataclasses import replace

import pytest

from lezo.tasks import TASKS, Example
from lezo.tasks.row import Row, RowError
from tests.lezo.refusals import refused

# Entities out of order and twice: the rendered ones are a sorted set.
VOYAGE = (
    "Ana Ruiz sailed from Cork to Vigo.\n@highlight\nAna Ruiz left Cork\n@highlight\nVigo waited @highlight"
)
VOYAGE_SPANS = [(29, 32), (0, 7), (21, 24), (46, 53), (60, 63)]
VOYAGE_PROMPT = "Ana Ruiz sailed from Cork to Vigo.\n- Ana Ruiz left Cork\n- Vigo waited @highlight\n-"
PORT_QUERY = "The ship knew @placeholder, and @placeholder knew the ship"
WHO_QUERY = "It was @placeholder who left"

CLOCK = "The clock stopped.  Nobody noticed."
CLOCK_QUESTIONS = (("What stopped?", (("the clock", 1), ("the dog", 0))), ("Who saw?", (("Nobody", 1),)))


def release_multirc() -> dict:
    questions = [
        {"question": q, "answers": [{"text": text, "label": label} for text, label in answers]}
        for q, answers in CLOCK_QUESTIONS
    ]
    return {"idx": 0, "passage": {"text": CLOCK, "questions": questions}}


def hub_multirc() -> list[dict]:
    return [
        {"paragraph": CLOCK, "question": q, "answer": text, "label": label}
        for q, answers in CLOCK_QUESTIONS
        for text, label in answers
    ]


def release_record(**changes) -> dict:
    ports = [{"start": 29, "end": 32, "text": "Vigo"}, {"start": 21, "end": 24, "text": "Cork"}]
    ana = {"start": 0, "end": 7, "text": "Ana Ruiz"}
    return {
        "source": "invented",
        "passage": {"text": VOYAGE, "entities": [{"start": s, "end": e} for s, e in VOYAGE_SPANS]},
        "qas": [
            {"query": PORT_QUERY, "answers": [*ports, ports[0]]},
            {"query": WHO_QUERY, "answers": [ana]},
        ],
        **changes,
    }


def hub_record() -> list[dict]:
    row = {"passage": VOYAGE, "entities": ["Ana Ruiz", "Cork", "Vigo"]}
    return [
        {**row, "query": PORT_QUERY, "answers": ["Cork", "Vigo"]},
        {**row, "query": WHO_QUERY, "answers": ["Ana Ruiz"]},
    ]


# task: release rows, hub rows, the examples of either
CASES = {
    "sst2": (
        [{"sentence": "\ta slow , lovely film \n", "label": 1, "idx": 7}],
        [{"sentence": "a slow , lovely film ", "label": 1, "idx": 7}],
        [Example("a slow , lovely film It was", (" terrible", " great"), (1,))],
    ),
    "rte": (
        [{"premise": "Owls hunt.", "hypothesis": "Owls sleep.", "label": "not_entailment", "idx": 0}],
        [{"premise": "Owls hunt.", "hypothesis": "Owls sleep.", "label": 1, "idx": 0}],
        [
            Example(
                'Owls hunt.\nDoes this mean that "Owls sleep." is true? Yes or No?\n',
                ("Yes", "No"),
                (1,),
            )
        ],
    ),
    "cb": (
        [{"premise": "I doubt it. Rain?", "hypothesis": "it rained", "label": "contradiction"}],
        [{"premise": "I doubt it. Rain?", "hypothesis": "it rained", "label": 1}],
        [
            Example(
                'Suppose I doubt it. Rain? Can we infer that "it rained"? Yes, No, or Maybe?\n',
                ("Yes", "No", "Maybe"),
                (1,),
            )
        ],
    ),
    "boolq": (
        [{"passage": "Tea -- Tea is a leaf.", "question": "is tea from McTavish", "label": False}],
        [{"passage": "Tea -- Tea is a leaf.", "question": "is tea from McTavish", "answer": False}],
        [Example("Tea -- Tea is a leaf. Is tea from McTavish?\n", ("Yes", "No"), (1,))],
    ),
    "wsc": (
        [
            {
                "text": "The owl saw the mouse. It fled.",
                "target": {
                    "span1_index": 3,
                    "span1_text": "the mouse",
                    "span2_index": 5,
                    "span2_text": "It",
                },
                "label": True,
            }
        ],
        [
            {
                "text": "The owl saw the mouse. It fled.",
                "span1_index": 3,
                "span1_text": "the mouse",
                "span2_index": 5,
                "span2_text": "It",
                "label": 1,
            }
        ],
        [
            Example(
                "The owl saw the mouse. It fled.\nIn the previous sentence, "
                'does the pronoun "it" refer to the mouse? Yes or No?\n',
                ("No", "Yes"),
                (1,),
            )
        ],
    ),
    "wic": (
        [{"word": "bank", "sentence1": "A bank.", "sentence2": "The river bank.", "label": False}],
        [{"word": "bank", "sentence1": "A bank.", "sentence2": "The river bank.", "label": 0}],
        [
            Example(
                'Does the word "bank" have the same meaning in these two sentences? Yes, No?\n'
                "A bank.\nThe river bank.\n",
                ("No", "Yes"),
                (0,),
            )
        ],
    ),
    "multirc": (
        [release_multirc()],
        hub_multirc(),
        [
            Example(
                "The clock stopped.  Nobody noticed.\nQuestion: What stopped?\n"
                'I found this answer "the clock". Is that correct? Yes or No?\n',
                ("No", "Yes"),
                (1,),
            ),
            Example(
                "The clock stopped.  Nobody noticed.\nQuestion: What stopped?\n"
                'I found this answer "the dog". Is that correct? Yes or No?\n',
                ("No", "Yes"),
                (0,),
            ),
            Example(
                "The clock stopped.  Nobody noticed.\nQuestion: Who saw?\n"
                'I found this answer "Nobody". Is that correct? Yes or No?\n',
                ("No", "Yes"),
                (1,),
            ),
        ],
    ),
    "copa": (
        [
            {
                "premise": "The lamp broke.",
                "choice1": "Someone bumped it.",
                "choice2": "I sang.",
                "question": "cause",
                "label": 1,
            }
        ],
        None,  # the same columns
        [Example("The lamp broke because", (" someone bumped it.", " I sang."), (1,))],
    ),
    "record": (
        [release_record()],
        hub_record(),
        [
            Example(
                VOYAGE_PROMPT,
                (
                    " The ship knew Ana Ruiz, and Ana Ruiz knew the ship",
                    " The ship knew Cork, and Cork knew the ship",
                    " The ship knew Vigo, and Vigo knew the ship",
                ),
                (1, 2),
            ),
            Example(
                VOYAGE_PROMPT,
                (" It was Ana Ruiz who left", " It was Cork who left", " It was Vigo who left"),
                (0,),
            ),
        ],
    ),
    "squad": (
        [
            {
                "id": "x",
                "title": "Harbour_towns",
                "context": " Boats lie at the quay. ",
                "question": " Where do boats lie? ",
                "answers": {"text": ["at the quay", "the quay"], "answer_start": [11, 14]},
            }
        ],
        None,  # the same columns
        [
            Example(
                "Title: Harbour_towns\nContext:  Boats lie at the quay. \n"
                "Question: Where do boats lie?\nAnswer:",
                (" at the quay\n",),
                (0,),
                ("at the quay", "the quay"),
            )
        ],
    ),
    "drop": (
        [{"passage": "Ana ran 3 miles. ", "question": "How far?\n", "answers": ["3", "3 miles"]}],
        [
            {
                "section_id": "s",
                "query_id": "q",
                "passage": "Ana ran 3 miles. ",
                "question": "How far?\n",
                "answers_spans": {"spans": ["3", "3 miles"], "types": ["number", "span"]},
            }
        ],
        [
            Example(
                "Passage: Ana ran 3 miles. \nQuestion: How far?\nAnswer:",
                (" 3\n",),
                (0,),
                ("3", "3 miles"),
            )
        ],
    ),
}


def rendered(task, rows):
    """The examples without their blank prompts, which have a test of their own."""
    examples = [example for row in rows for example in TASKS[task].examples(Row(row))]
    return [replace(example, blank=None) for example in examples]


def one(task, **columns):
    base = (CASES[task][1] or CASES[task][0])[0]  # the flat form
    (example,) = rendered(task, [{**base, **columns}])
    return example


@pytest.mark.parametrize("task", TASKS)
def test_release_and_hub_rows_give_the_published_words(task):
    release, hub, expected = CASES[task]
    assert rendered(task, release) == expected
    assert rendered(task, hub or release) == expected


def test_the_published_losses_metrics_and_sizes():
    choice, lm = ("candidates", "accuracy", False), ("lm", "accuracy", False)
    text = ("lm", "f1", True)
    assert {
        name: (
            (task.loss, task.metric, task.generates),
            task.hub.id,
            task.hub.config,
            (task.hub.train_rows, task.hub.val_rows),
        )
        for name, task in TASKS.items()
    } == {
        "sst2": (choice, "nyu-mll/glue", "sst2", (67349, 872)),
        "rte": (choice, "aps/super_glue", "rte", (2490, 277)),
        "cb": (choice, "aps/super_glue", "cb", (250, 56)),
        "boolq": (choice, "google/boolq", None, (9427, 3270)),
        "wsc": (choice, "aps/super_glue", "wsc.fixed", (554, 104)),
        "wic": (choice, "aps/super_glue", "wic", (5428, 638)),
        "multirc": (choice, "aps/super_glue", "multirc", (27243, 4848)),
        "copa": (lm, "aps/super_glue", "copa", (400, 100)),
        "record": (lm, "aps/super_glue", "record", (100730, 10000)),
        "squad": (text, "rajpurkar/squad", None, (87599, 10570)),
        "drop": (text, "ucinlp/drop", None, (77400, 9535)),
    }


@pytest.mark.parametrize(
    "task, labels",
    {
        "sst2": ["negative", "positive"],
        "rte": ["entailment", "not_entailment"],
        "cb": ["entailment", "contradiction", "neutral"],
        "wsc": [False, True],
        "wic": [False, True],
        "multirc": [False, True],
        "copa": ["choice1", "choice2"],
    }.items(),
)
def test_label_index_is_the_candidate_index(task, labels):
    for index, label in enumerate(labels):
        assert one(task, label=index).gold == one(task, label=label).gold == (index,)


@pytest.mark.parametrize("answer, gold", [(True, 0), (False, 1), (1, 0), (0, 1)])
def test_boolq_yes_comes_first(answer, gold):
    assert one("boolq", answer=answer).gold == (gold,)


@pytest.mark.parametrize(
    "question, shown",
    [
        ("is it", "Is it?"),
        ("is it?", "Is it?"),
        ("is it? ", "Is it? ?"),
        ("iPod or NASA", "IPod or NASA?"),
        ("", "?"),
    ],
)
def test_boolq_question(question, shown):
    assert one("boolq", passage="P.", question=question).prompt == f"P. {shown}\n"


@pytest.mark.parametrize(
    "premise, question, prompt",
    [
        ("It rained.", "cause", "It rained because"),
        ("It rained.", "effect", "It rained so"),
        ("It rained. \n", "effect", "It rained so"),
        ("It rained..", "effect", "It rained. so"),
        ("It rained!", "effect", "It rained! so"),
        (" It rained .", "effect", " It rained  so"),
    ],
)
def test_copa_premise(premise, question, prompt):
    assert one("copa", premise=premise, question=question).prompt == prompt


@pytest.mark.parametrize(
    "choice, answer",
    [
        ("I ran home.", " I ran home."),
        ("I'm Bob.", " i'm Bob."),
        ("NASA Knew It.", " nasa Knew It."),
        ("The  Owl flew", " the  Owl flew"),
        ("Run!", " run!"),
    ],
)
def test_copa_choice(choice, answer):
    assert one("copa", choice1=choice).answers[0] == answer
    assert one("copa", choice2=choice).answers[1] == answer


@pytest.mark.parametrize(
    "span, index, shown",
    [
        ("the mouse", 0, "the mouse"),  # already in the text, wherever the index points
        ("The mouse", 3, "the mouse"),
        ("the owl", 0, "The owl"),
        ("the owl.", 0, "The owl"),
        ("The\nmouse", 3, "the mouse"),
        ("Kamenev and Zinoviev", 3, "Kamenev and Zinoviev"),
        ("Kamenev, Zinoviev, and Stalin", 3, "Kamenev, Zinoviev, and Stalin"),
    ],
)
def test_wsc_span_is_repaired_as_in_wsc_fixed(span, index, shown):
    prompt = one("wsc", span1_text=span, span1_index=index).prompt
    assert prompt.endswith(f'does the pronoun "it" refer to {shown}? Yes or No?\n')


def test_wsc_pronoun_is_repaired_and_lower_cased():
    assert 'the pronoun "it" refer' in one("wsc", span2_text="it.", span2_index=5).prompt
    assert 'the pronoun "it fled" refer' in one("wsc", span2_text="It\nfled", span2_index=5).prompt


def test_released_wsc_spans_end_up_in_their_texts(shared):
    repaired = 0
    for line in (shared / "data/wsc/train.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        (example,) = rendered("wsc", [row])
        assert example.prompt.startswith(row["text"] + "\n")
        noun = example.prompt.split('" refer to ')[-1].removesuffix("? Yes or No?\n")
        assert noun in row["text"]
        repaired += noun != row["target"]["span1_text"]
    assert repaired > 50


@pytest.mark.parametrize("span", [(90, 200), (-3, 2), (7, 0), (97, 98)])
def test_record_span_outside_the_passage(span):
    start, end = span
    passage = {"text": VOYAGE, "entities": [{"start": start, "end": end}]}
    with refused(RowError, f"{start}..{end}", "98 characters"):
        rendered("record", [release_record(passage=passage)])


def test_record_span_ends_with_its_last_character():
    passage = {"text": "Oslo, Rome", "entities": [{"start": 6, "end": 9}, {"start": 0, "end": 0}]}
    qas = [{"query": "@placeholder", "answers": [{"text": "Rome"}]}]
    (example,) = rendered("record", [release_record(passage=passage, qas=qas)])
    assert example == Example("Oslo, Rome\n-", (" O", " Rome"), (1,))


@pytest.mark.parametrize("answers", [["Oslo"], ["Cork", "Oslo"]])
def test_record_answer_that_is_no_entity(answers):
    with refused(RowError, "'answers'", "['Oslo']", "Cork"):
        one("record", answers=answers)


def test_record_query_without_answers():
    with refused(RowError, "'answers'", "nothing"):
        rendered("record", [release_record(qas=[{"query": WHO_QUERY, "answers": []}])])


@pytest.mark.parametrize("task, answers", [("squad", {"text": []}), ("drop", [])])
def test_generation_needs_an_answer(task, answers):
    row = {**CASES[task][0][0], "answers": answers}
    with refused(RowError, "at least one text"):
        rendered(task, [row])


def test_prompts_without_content_are_the_published_ones():
    blanks = {
        name: {e.blank for row in release for e in TASKS[name].examples(Row(row))}
        for name, (release, _, _) in CASES.items()
    }
    words = dict.fromkeys(("rte", "cb", "boolq", "wsc", "wic", "multirc"), {""})
    generated = dict.fromkeys(("squad", "drop"), {None})
    assert blanks.pop("copa") <= {"so", "because"}
    assert blanks == words | generated | {"sst2": {" It was"}, "record": {"-"}}
