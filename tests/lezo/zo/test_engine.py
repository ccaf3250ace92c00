"""The engine's economies change no number: every task against one padded row a candidate, full logits and a cache."""

from pathlib import Path

import pytest
import torch

from lezo.bench.textbook import candidate_rows, textbook_loss
from lezo.config.compose import compose
from lezo.data.pack import candidate_batch, gold_batch
from lezo.model.forward import Network
from lezo.model.layout import layout
from lezo.model.load import load
from lezo.model.loss import loss
from lezo.runs.build import make_evaluator
from lezo.runs.plan import Plan, make_plan
from lezo.tasks import TASKS
from lezo.zo.probe import PlainProbe, StreamProbe
from lezo.zo.step import Stopwatch
from lezo.zo.streams import Streams
from tests.lezo.small_models import CPU

SMALL = ["task.num_train=4", "task.num_dev=3", "task.num_test=3", "model.device=cpu"]


def plan_of(task: str) -> Plan:
    return make_plan(compose([f"task={task}", "optim=mezo", *SMALL]).config)


def plan_on_real_data(task: str, shared: Path) -> Plan:
    model = ["model=hf", f"model.path={shared}/models/opt-2m-reviews", "optim.lr=1e-4"]
    sizes = ["task.num_dev=40"] if task == "record" else []
    where = ["data=local", f"data.path={shared}/data"]
    return make_plan(compose([f"task={task}", "optim=mezo", *SMALL, *model, *where, *sizes]).config)


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
    found = layout(model)
    active = found.active([0, 5])
    fast = StreamProbe(Streams(model, found, Stopwatch(CPU)))([batch], active, seed=5, eps=1e-3)
    plain = PlainProbe(model, textbook_loss)(rows, active, seed=5, eps=1e-3)
    assert slope(fast) == pytest.approx(slope(plain), abs=1e-9)
    assert slope(plain) != 0


def slope(losses: torch.Tensor) -> float:
    return ((losses[0] - losses[1]) / 2e-3).item()


def assert_same_evaluation(plan: Plan) -> None:
    """Scores and choices of candidates against a forward of one row each (generation has tests of its own).

    In fp32 both forms are off the exact score by about a millionth of it, the rounding of logits of ten and more.
    """
    model, scored = weights_of(plan, torch.float32), plan.test.scored or plan.dev.scored
    in_fp32 = make_evaluator(plan, Network(model), 5)._answer_log_probs(scored)
    model = model.double()
    exact = make_evaluator(plan, Network(model), 5)._answer_log_probs(scored)
    for example, *sums in zip(scored, in_fp32, exact, strict=True):
        pairs = zip(example.input_ids, example.answer_lens, strict=True)
        plain = [plain_score(model, ids, n) for ids, n in pairs]
        for found, tolerance in zip(sums, (1e-6, 1e-10), strict=True):
            means = [total / n for total, n in zip(found, example.answer_lens, strict=True)]
            assert means == pytest.approx(plain, rel=tolerance, abs=3 * tolerance)
            assert means.index(max(means)) == plain.index(max(plain))


def plain_score(model: torch.nn.Module, ids: tuple[int, ...], size: int) -> float:
    """The mean log-probability of the last ``size`` tokens, from a batch of one without padding or mask."""
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(scores[i - 1, ids[i]].item() for i in range(len(ids) - size, len(ids))) / size


@pytest.mark.parametrize("task", TASKS)
def test_a_step_is_the_padded_one_row_a_candidate_step(task: str) -> None:
    assert_same_step(plan_of(task))


@pytest.mark.parametrize("task", TASKS)
def test_an_evaluation_is_one_forward_a_candidate(task: str) -> None:
    assert_same_evaluation(plan_of(task))


@pytest.mark.parametrize("task", TASKS)
def test_both_on_real_rows(task: str, shared: Path) -> None:
    plan = plan_on_real_data(task, shared)
    assert_same_step(plan)
    assert_same_evaluation(plan)


@pytest.mark.parametrize("task", ["rte", "sst2", "cb", "boolq", "wsc", "wic", "multirc"])
def test_seven_tasks_run_each_prompt_once_and_need_no_normaliser(task: str, shared: Path) -> None:
    """With the OPT tokenizer their candidates are one token each."""
    model = ["model=opt-125m", "model.random_weights=true", f"model.tokenizer={shared}/tokenizers/opt"]
    where = ["data=local", f"data.path={shared}/data"]
    plan = make_plan(compose([f"task={task}", "optim=mezo", *SMALL, *model, *where]).config)
    batch = candidate_batch(plan.train, pad=1, device=CPU)
    assert batch.columns_only
    assert len(batch.read) == len(plan.train)
