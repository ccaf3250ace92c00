import dataclasses
import math

import pytest
import torch

from lezo.data.dataset import EvalSet
from lezo.data.encode import Encoded
from lezo.model.evaluate import Evaluator, gold, one_minus_metric, score_chunks
from lezo.model.forward import Network
from lezo.model.generation import continued
from lezo.noise import directions
from lezo.tasks.metrics import macro_f1
from lezo.zo.probe import PlainProbe
from tests.lezo.model.test_loss import plain_candidate_loss, plain_lm_loss, plain_log_prob
from tests.lezo.small_models import CPU, examples, small_model

NEWLINE, END = 7, 2


def evaluator(model, loss="candidates", metric="accuracy", batch_size=3):
    return Evaluator(
        network=Network(model),
        loss=loss,
        metric=metric,
        batch_size=batch_size,
        pad=1,
        device=CPU,
        decode=lambda ids: "".join(f" t{i}" if i != NEWLINE else "\n" for i in ids if i > 3),
        stop={END},
    )


@pytest.mark.parametrize(("loss", "plain"), [("candidates", plain_candidate_loss), ("lm", plain_lm_loss)])
def test_loss_score_and_predictions_equal_the_plain_form(loss, plain):
    model, made = small_model(dtype=torch.float64), examples(8)
    found = evaluator(model, loss)(EvalSet(made))
    assert found.loss == pytest.approx(plain(model, made), abs=1e-10)
    right = 0
    for e, record in zip(made, found.predictions, strict=True):
        means = [plain_log_prob(model, ids, n) / n for ids, n in zip(e.input_ids, e.answer_lens, strict=True)]
        assert record["scores"] == pytest.approx(means, abs=1e-10)
        assert record["prediction"] == means.index(max(means))
        assert (record["index"], record["gold"]) == (e.index, e.gold[0])
        right += record["prediction"] in e.gold
    assert found.score == right / 8


def test_a_forward_holds_at_most_the_batch_size_and_the_longest_come_first():
    made = examples(8)
    for size in (1, 3, 100):
        chunks = list(score_chunks(made, size))
        assert all(sum(len(part) for _, part in chunk) <= size for chunk in chunks)
        rows = [(i, k) for chunk in chunks for i, part in chunk for k in part]
        assert sorted(rows) == [(i, k) for i, e in enumerate(made) for k in range(len(e.input_ids))]
    longest = max(len(ids) for e in made for ids in e.input_ids)
    (i, _), *_ = next(score_chunks(made, 3))
    assert max(map(len, made[i].input_ids)) == longest


@pytest.mark.parametrize("loss", ["candidates", "lm"])
def test_the_result_does_not_depend_on_the_batch_size(loss):
    model, made = small_model(dtype=torch.float64), examples(8)
    one, many = (evaluator(model, loss, batch_size=size)(EvalSet(made)) for size in (1, 100))
    assert one.loss == pytest.approx(many.loss, abs=1e-12)
    assert [r["prediction"] for r in one.predictions] == [r["prediction"] for r in many.predictions]


def test_the_first_of_equal_candidates_wins_and_any_right_one_counts():
    same = Encoded(0, ((0, 5, 6),) * 3, (1, 1, 1), (2, 0))
    found = evaluator(small_model())(EvalSet([same]))
    assert (found.predictions[0]["prediction"], found.predictions[0]["gold"], found.score) == (0, [2, 0], 1.0)
    wrong = dataclasses.replace(same, gold=(1,))
    assert evaluator(small_model())(EvalSet([wrong])).score == 0.0


def greedy(model, ids, limit=50):
    """The plain form: one unpadded forward a token."""
    produced = []
    while len(produced) < limit and not (produced and produced[-1] in (NEWLINE, END)):
        with torch.no_grad():
            produced.append(int(model(input_ids=torch.tensor([[*ids, *produced]])).logits[0, -1].argmax()))
    return produced


def test_fewer_prompts_may_go_on_at_a_time_and_say_the_same(monkeypatch):
    model, sizes = small_model(dtype=torch.float64), []
    prompts = [Encoded(e.index, (e.input_ids[0][:9],), (0,), (0,), ("t5",)) for e in examples(5)]
    many = evaluator(model, "lm", "f1", batch_size=5)
    few = dataclasses.replace(many, prompts_at_once=2)
    monkeypatch.setattr(
        "lezo.model.evaluate.continued",
        lambda model, ids, **options: sizes.append(len(ids)) or continued(model, ids, **options),
    )
    assert few(EvalSet((), prompts)).predictions == many(EvalSet((), prompts)).predictions
    assert sizes == [2, 2, 1, 5]


def test_generation_is_greedy_up_to_a_newline_in_the_splits_order():
    model = small_model(dtype=torch.float64)
    prompts = [Encoded(e.index, (e.input_ids[0][:9],), (0,), (0,), ("t5 t6",)) for e in examples(6)]
    judge = evaluator(model, "lm", "f1", batch_size=4)
    found = judge(EvalSet((), prompts))
    assert found.loss is None
    for prompt, record in zip(prompts, found.predictions, strict=True):
        expected = judge.decode(greedy(model, prompt.input_ids[0]))
        assert (record["index"], record["text"], record["prediction"]) == (
            prompt.index,
            expected,
            expected.strip(),
        )
        assert record["gold"] == ["t5 t6"]
    assert found.score == pytest.approx(sum(r["score"] for r in found.predictions) / 6)


def test_gold_as_files_show_it():
    assert gold(Encoded(0, ((0,),), (1,), (3,))) == 3
    assert gold(Encoded(0, ((0,),), (1,), (3, 1))) == [3, 1]
    assert gold(Encoded(0, ((0,),), (0,), (0,), ("a", "b"))) == ["a", "b"]


def test_a_model_that_says_nan_has_chosen_nothing_and_is_wrong():
    model = small_model()
    with torch.no_grad():
        model.model.decoder.final_layer_norm.bias.fill_(float("nan"))
    same = [dataclasses.replace(e, gold=tuple(range(len(e.input_ids)))) for e in examples(5)]
    found = evaluator(model)(EvalSet(same))
    assert math.isnan(found.loss)
    assert (found.score, {record["prediction"] for record in found.predictions}) == (0.0, {None})


def test_calibrated_scores_are_summed_and_less_those_after_a_blank_prompt(monkeypatch):
    model = small_model(dtype=torch.float64)
    made = [dataclasses.replace(e, gold=(0,)) for e in examples(6)]
    blanks = [
        dataclasses.replace(e, input_ids=tuple((0, *ids[len(ids) - n :]) for ids, n in zip(e.input_ids, e.answer_lens, strict=True)))
        for e in made
    ]  # fmt: skip
    blanks[5], made[5] = blanks[0], dataclasses.replace(made[0], index=5)
    judge, asked = evaluator(model), []
    real = Evaluator._answer_log_probs  # private: how often something is scored shows nowhere else
    monkeypatch.setattr(Evaluator, "_answer_log_probs", lambda self, e: asked.append(len(e)) or real(self, e))
    found = judge(EvalSet(made, (), blanks))
    assert asked == [6, 5]  # equal blanks are scored once
    for e, blank, record in zip(made, blanks, found.predictions, strict=True):
        pairs = zip(e.input_ids, blank.input_ids, e.answer_lens, strict=True)
        scores = [plain_log_prob(model, a, n) - plain_log_prob(model, b, n) for a, b, n in pairs]
        assert record["scores"] == pytest.approx(scores, abs=1e-10)
        assert record["prediction"] == scores.index(max(scores))
    assert found.loss == judge(EvalSet(made)).loss


@torch.no_grad()
def test_an_error_is_over_all_parts_and_probed_at_moved_weights():
    model, made = small_model(dtype=torch.float64), examples(7)
    judge, parts = evaluator(model), [EvalSet(made[:5]), EvalSet(made[5:])]
    assert one_minus_metric(judge, parts) == pytest.approx(1 - judge(EvalSet(made)).score)
    name = "model.decoder.embed_tokens.weight"
    found = PlainProbe(model, lambda _, given: one_minus_metric(judge, given))(parts, [name], seed=5, eps=0.5)
    before = model.get_parameter(name).clone()
    for sign in (0, 1):
        model.get_parameter(name).copy_(directions.perturb(before, 5, name, 0.5)[sign])
        assert found[sign].item() == one_minus_metric(judge, parts)
    assert found[0] != found[1]


def test_a_metric_over_all_answers_is_asked_about_all_parts_at_once():
    model, made = small_model(dtype=torch.float64), examples(7)
    judge, parts = evaluator(model, metric="macro_f1"), [EvalSet(made[:5]), EvalSet(made[5:])]
    found = judge(EvalSet(made))
    chosen = [record["prediction"] for record in found.predictions]
    assert found.score == macro_f1(chosen, [e.gold for e in made])
    assert one_minus_metric(judge, parts) == 1 - found.score
    means = [judge(part).score * len(part) for part in parts]
    assert 1 - found.score != pytest.approx(1 - sum(means) / 7)


def test_a_stop_text_may_be_spread_over_tokens_and_ends_what_is_before_it(monkeypatch):
    model, said, asked = small_model(), [9, 10, 11, 12, 13, 14], []

    def going_on(model, prompts, *, ends, most, **_):
        lengths = [n for n in range(1, most + 1) if ends(said[:n])][:1] or [most]
        asked.append(lengths[0])
        return [said[: lengths[0]] for _ in prompts]

    monkeypatch.setattr("lezo.model.evaluate.continued", going_on)
    prompt = Encoded(0, ((5, 6),), (0,), (0,), ("t9",))
    for stops, length, text, prediction in (
        (("\n",), 6, " t9 t10 t11 t12 t13 t14", "t9 t10 t11 t12 t13 t14"),
        (("1 t12",), 4, " t9 t10 t11 t12", "t9 t10 t1"),
        (("13", "0 t11"), 3, " t9 t10 t11", "t9 t1"),
        ((), 6, " t9 t10 t11 t12 t13 t14", "t9 t10 t11 t12 t13 t14"),
    ):
        judge = dataclasses.replace(evaluator(model, metric="f1"), stop_texts=stops, max_new_tokens=6)
        (record,) = judge(EvalSet((), [prompt])).predictions
        assert (asked.pop(), record["text"], record["prediction"]) == (length, text, prediction)


@pytest.mark.parametrize("loss", ["candidates", "lm"])
def test_a_model_that_says_the_same_of_all_examples_has_no_loss(loss):
    model, made = small_model(), examples(8)
    score = evaluator(model, loss)
    assert math.isfinite(score(EvalSet(made)).loss)
    with torch.no_grad():
        model.model.decoder.final_layer_norm.weight.zero_()  # what is left of weights whose squares overflow
        model.model.decoder.final_layer_norm.bias.zero_()
    found = score(EvalSet(made))
    assert math.isnan(found.loss)
    assert len(found.predictions) == 8
    assert math.isfinite(score(EvalSet(made[:7])).loss)  # so few may agree by chance
    assert math.isfinite(score(EvalSet([made[0]] * 8)).loss)  # and one may be there eight times


@pytest.mark.parametrize(
    ("sums", "loss"),
    [
        ([[0.0]] * 8, 0.0),  # each answer is certain
        ([[-2.0]] * 8, math.nan),
        ([[-2.0]] * 7 + [[-2.00001]], (7 * 2 + 2.00001) / 8),
        ([[-2.0]] * 7 + [[-2.0, -2.0]], math.nan),  # one has more choices
    ],
)
def test_certain_answers_are_a_loss_and_a_hundred_thousandth_is_a_difference(sums, loss, monkeypatch):
    made = [Encoded(i, ((4, 5 + i),) * len(each), (1,) * len(each), (0,)) for i, each in enumerate(sums)]
    monkeypatch.setattr(Evaluator, "_answer_log_probs", lambda *_: sums)
    assert evaluator(small_model(), "lm")(EvalSet(made)).loss == pytest.approx(loss, abs=1e-12, nan_ok=True)
