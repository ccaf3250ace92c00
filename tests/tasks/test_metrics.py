"""How answers are judged."""

import pytest

from lezo.tasks import TASKS
from lezo.tasks.metrics import accuracy, exact_match, f1, macro_f1, metric_of, normalised, rouge_l


@pytest.mark.parametrize(
    "text, plain",
    [
        ("The QUAY", "quay"),
        ("a theatre, an owl and the sea", "theatre owl and sea"),
        ("U.S.A.'s  top-ten\n\tlist!", "usas topten list"),
        ("(the) [a] $3.50", "350"),
        ("A.N. Other", "other"),  # punctuation goes first, what is left may be an article
        ("“quoted” — naïve", "“quoted” — naïve"),  # only ASCII punctuation goes
        ("banana than anthem", "banana than anthem"),
        ("the a an", ""),
    ],
)
def test_normalised(text, plain):
    assert normalised(text) == plain


@pytest.mark.parametrize(
    "prediction, reference, score",
    [
        ("the quay", "Quay.", 1.0),
        ("quay", "harbour", 0.0),
        ("old stone quay", "stone quay", 0.8),  # precision 2/3, recall 1
        ("quay", "old stone quay", 0.5),  # precision 1, recall 1/3
        ("no no no", "no no", 0.8),  # a multiset: two of three are shared
        ("no", "no no no", 0.5),
        ("b a c", "c b", 1.0),  # order does not count
    ],
)
def test_token_f1(prediction, reference, score):
    assert f1(prediction, [reference]) == pytest.approx(score, abs=1e-12)


def test_f1_is_the_best_over_the_references():
    assert f1("stone quay", ["harbour", "old stone quay wall", "stone quay"]) == 1.0
    assert f1("stone quay", ["harbour", "old stone quay wall"]) == pytest.approx(2 / 3)


def test_two_empty_texts_score_nothing():
    assert f1("the", ["a"]) == f1("", [""]) == f1("", ["quay"]) == f1("quay", ["the"]) == 0.0


@pytest.mark.parametrize("reference", ["CANNOTANSWER", "no answer"])
def test_no_answer_must_match_exactly(reference):
    assert f1(reference, [reference]) == 1.0
    assert f1(reference.upper() + ".", [reference]) == 1.0
    assert f1(f"{reference} given", [reference]) == 0.0
    assert f1("answer", [reference]) == 0.0


def test_no_answer_counts_only_as_the_first_reference():
    assert f1("answer", ["yes", "no answer"]) == pytest.approx(2 / 3)
    assert f1("answer", ["No answer"]) == pytest.approx(2 / 3)  # the two texts are taken literally


def test_exact_match():
    assert exact_match("The quay!", ["harbour", "quay"]) == 1.0
    assert exact_match("stone quay", ["harbour", "quay"]) == 0.0
    assert exact_match("the", ["a"]) == 1.0


def test_accuracy_with_several_right_answers():
    assert [accuracy(i, (1, 3)) for i in range(4)] == [0.0, 1.0, 0.0, 1.0]
    assert accuracy(0, (0,)) == 1.0


def test_metrics_are_found_by_name():
    assert metric_of("f1", generates=True).each is f1
    assert (
        metric_of("em", generates=True).each is metric_of("exact_match", generates=True).each is exact_match
    )
    assert all(metric_of(task.metric, generates=task.generates) for task in TASKS.values())


def test_a_metric_of_each_answer_is_their_mean():
    assert metric_of("accuracy", generates=False)([0, 1, None], [(0,), (0, 1), (2,)]) == 2 / 3
    assert metric_of("f1", generates=True)(["a quay", "no"], [("quay",), ("yes", "no")]) == 1.0


def test_macro_f1_is_the_mean_over_the_labels_there_are():
    golds = [(0,), (0,), (0,), (1,), (2,)]
    # label 0: precision 2/3, recall 2/3; 1: 1/2 and 1; 2: nothing found; 3: predicted and never right
    assert macro_f1([0, 0, 1, 1, 0], golds) == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert macro_f1([0, 0, 3, 1, 0], golds) == pytest.approx((2 / 3 + 1 + 0 + 0) / 4)
    assert macro_f1([None] * 5, golds) == 0.0
    assert macro_f1([0, 0, 0, 1, 2], golds) == 1.0


TEXTS = ["the cat sat on the mat", "On the mat, the cat sat.", "a cat", "", "the the the", "it's 3.5 o'clock"]


@pytest.mark.parametrize("prediction", TEXTS)
def test_rouge_l_is_that_of_the_package_of_this_name(prediction):
    scorer = pytest.importorskip(
        "rouge_score.rouge_scorer", reason="the package rouge_score is not installed"
    )
    own = scorer.RougeScorer(["rougeL"])
    for reference in TEXTS:
        assert rouge_l(prediction, [reference]) == pytest.approx(
            own.score(reference, prediction)["rougeL"].fmeasure
        )


def test_rouge_l_counts_words_in_order_and_takes_the_best_reference():
    assert rouge_l("the cat sat on the mat", ["on the mat the cat sat"]) == pytest.approx(3 / 6)
    assert rouge_l("the cat", ["a dog", "The  cat!"]) == 1.0
    assert rouge_l("grün", ["grau"]) == 0.0
