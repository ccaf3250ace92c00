"""The engine's economies change no number: against one padded row a candidate, full logits and a cache."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from lezo.bench.textbook import candidate_rows, textbook_loss
from lezo.config.compose import compose
from lezo.data.dataset import EvalSet
from lezo.data.pack import candidate_batch, gold_batch
from lezo.model.forward import Network
from lezo.model.layout import layout
from lezo.model.load import load
from lezo.model.loss import loss
from lezo.runs.build import make_evaluator
from lezo.runs.plan import Plan, make_plan
from lezo.zo.probe import PlainProbe, StreamProbe
from lezo.zo.step import Stopwatch
from lezo.zo.streams import Streams
from tests.lezo.small_models import CPU

SMALL = ["task.num_train=3", "task.num_dev=2", "task.num_test=2", "model.device=cpu", "optim=mezo"]


def weights_of(plan: Plan, dtype: torch.dtype) -> torch.nn.Module:
    return load(plan.parts.source, plan.parts.model_config, dtype=dtype, device=CPU, seed=0)


def assert_same_step(plan: Plan) -> None:
    lm, pad = plan.parts.task.loss == "lm", plan.parts.pad
    batch = (gold_batch if lm else candidate_batch)(plan.train, pad=pad, device=CPU)
    rows = candidate_rows(plan.train, lm=lm, pad=pad, device=CPU)
    model = weights_of(plan, torch.float32)
    with torch.no_grad():
        in_fp32, model = loss(Network(model), batch).item(), model.double()
        assert in_fp32 == pytest.approx(textbook_loss(model, rows).item(), abs=1e-6)
    active = layout(model).active([0, 5])
    fast = StreamProbe(Streams(model, layout(model), Stopwatch(CPU)))([batch], active, seed=5, eps=1e-3)
    plain = PlainProbe(model, textbook_loss)(rows, active, seed=5, eps=1e-3)
    assert slope(fast) == pytest.approx(slope(plain), abs=1e-9)
    assert slope(plain) != 0


def slope(losses: torch.Tensor) -> float:
    return ((losses[0] - losses[1]) / 2e-3).item()


def assert_same_evaluation(plan: Plan) -> None:
    """Scores and choices of candidates against a forward of one row each (generation has tests of its own).

    In fp32 both forms are off the exact score by about a millionth of it, the rounding of logits of ten and more.
    """
    model, split = weights_of(plan, torch.float32), EvalSet(plan.test.scored or plan.dev.scored)
    choosing = partial(replace, metric="accuracy")  # of a text that is generated the loss alone is asked for
    in_fp32 = choosing(make_evaluator(plan, Network(model), 5))(split).predictions
    model = model.double()
    exact = choosing(make_evaluator(plan, Network(model), 5))(split).predictions
    for example, *records in zip(split.scored, in_fp32, exact, strict=True):
        pairs = zip(example.input_ids, example.answer_lens, strict=True)
        plain = [plain_score(model, ids, n) for ids, n in pairs]
        for record, tolerance in zip(records, (1e-6, 1e-10), strict=True):
            assert record["scores"] == pytest.approx(plain, rel=tolerance, abs=3 * tolerance)
            assert record["prediction"] == plain.index(max(plain))


def plain_score(model: torch.nn.Module, ids: tuple[int, ...], size: int) -> float:
    """The mean log-probability of the last ``size`` tokens, from a batch of one without padding or mask."""
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(scores[i - 1, ids[i]].item() for i in range(len(ids) - size, len(ids))) / size


# Answers of one token each, of three words, of sentences, of entities, and an answer that is generated.
@pytest.mark.parametrize("task", ["sst2", "cb", "copa", "record", "squad"])
def test_a_step_and_an_evaluation_are_those_of_padded_rows_a_candidate(task: str) -> None:
    plan = make_plan(compose([f"task={task}", *SMALL]).config)
    assert_same_step(plan)
    assert_same_evaluation(plan)


@pytest.mark.parametrize("task", ["copa", "wsc"])
def test_both_on_real_rows(task: str, shared: Path) -> None:
    model = ["model=hf", f"model.path={shared}/models/opt-2m-reviews", "optim.lr=1e-4"]
    where = ["data=local", f"data.path={shared}/data"]
    plan = make_plan(compose([f"task={task}", *SMALL, *model, *where]).config)
    assert_same_step(plan)
    assert_same_evaluation(plan)


@pytest.mark.parametrize("task", ["rte", "sst2", "cb", "boolq", "wsc", "wic", "multirc"])
def test_seven_tasks_run_each_prompt_once_and_need_no_normaliser(task: str, shared: Path) -> None:
    """With the OPT tokenizer their candidates are one token each."""
    model = ["model=opt-125m", "model.random_weights=true", f"model.tokenizer={shared}/tokenizers/opt"]
    where = ["data=local", f"data.path={shared}/data"]
    plan = make_plan(compose([f"task={task}", *SMALL, *model, *where]).config)
    batch = candidate_batch(plan.train, pad=1, device=CPU)
    assert batch.columns_only
    assert len(batch.read) == len(plan.train)
