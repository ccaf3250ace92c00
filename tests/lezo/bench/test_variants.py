"""What is timed: a typical batch, and steps that move what their names say."""

from dataclasses import replace

import pytest
import torch

from lezo.bench.timing import loaded
from lezo.bench.variants import Setup, Work, lezo_blocks, make_variant, typical_work
from lezo.config.compose import compose
from lezo.config.schema import BenchVariant, RunConfig
from lezo.model.forward import Network
from lezo.noise import seeds
from lezo.runs.plan import Plan, make_plan
from lezo.zo.blocks import UniformBlocks
from tests.lezo.small_models import weights

SMALL = [
    "model.device=cpu",
    "task.num_train=40",
    "task.num_dev=4",
    "task.num_test=4",
    "train.batch_size=4",
    "optim.sparsity=0.5",
]


@pytest.fixture(scope="module")
def planned() -> tuple[RunConfig, Plan]:
    config = compose([*SMALL, "task=copa"]).config
    return config, make_plan(config)


def test_the_typical_batch_is_the_one_nearest_the_medians(planned: tuple[RunConfig, Plan]) -> None:
    config, plan = planned
    work = typical_work(config, plan)
    drawn = seeds.permutation(config.seed, 0, len(plan.train))
    of_place = [[plan.train[i] for i in drawn[at : at + 4]] for at in range(0, len(drawn), 4)]
    real = sorted(sum(len(ids) for e in examples for ids in e.input_ids) for examples in of_place)
    assert work.examples == of_place[work.place]
    assert real[1] <= work.real <= real[-2]
    assert work.padded == len(work.lengths) * (-(-max(work.lengths) // 8) * 8)


def test_the_unusual_batch_is_not_chosen(planned: tuple[RunConfig, Plan]) -> None:
    config, plan = planned
    usual = typical_work(config, plan)
    long = [replace(e, input_ids=tuple(ids * 20 for ids in e.input_ids)) for e in usual.examples]
    changed = [long[usual.examples.index(e)] if e in usual.examples else e for e in plan.train]
    assert typical_work(config, replace(plan, train=changed)).place != usual.place


def test_few_examples_are_one_batch(planned: tuple[RunConfig, Plan]) -> None:
    config, plan = planned
    work = typical_work(config, replace(plan, train=plan.train[:3]))
    assert (work.place, len(work.examples)) == (0, 3)


@pytest.fixture(scope="module")
def network(planned: tuple[RunConfig, Plan]) -> Network:
    return loaded(*planned)


@pytest.mark.parametrize("name", BenchVariant)
def test_a_step_moves_the_blocks_its_name_says(
    name: BenchVariant, planned: tuple[RunConfig, Plan], network: Network
) -> None:
    config, plan = planned
    work = typical_work(config, plan)
    before, model = weights(network.model), network.model
    variant = make_variant(Setup(config, plan, work, network), name)
    variant.step(1)
    changed = {n for n, theta in weights(model).items() if not torch.equal(theta, before[n])}
    share = UniformBlocks(plan.blocks.total, 0.5 if "lezo" in name.value else 0.0)
    chosen = share(1, seeds.step_seed(config.seed, 1))
    assert changed == (set() if name is BenchVariant.floor else set(plan.layout.active(chosen)))
    assert (variant.name, {"data", "forward"} <= set(variant.watch.lap())) == (name, True)


def test_lezos_own_sparsity_stands_in_where_mezo_has_none(planned: tuple[RunConfig, Plan]) -> None:
    _, plan = planned
    given = lezo_blocks(planned[0], plan)
    absent = lezo_blocks(compose([*SMALL[:-1], "optim=mezo"]).config, plan)
    assert (given.sparsity, absent.sparsity) == (0.5, 0.75)


def test_a_work_counts_every_candidate() -> None:
    config = compose([*SMALL, "task=cb"]).config
    work: Work = typical_work(config, make_plan(config))
    assert len(work.lengths) == 3 * len(work.examples)
