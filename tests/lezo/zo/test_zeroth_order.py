"""Optimizers on a bowl whose gradient is known: agrees with a reference, deterministic, converges, unbiased."""

import math
from functools import partial

import pytest
import torch

from lezo.config.compose import compose
from lezo.data.pack import candidate_batch, gold_batch
from lezo.model.forward import Network
from lezo.model.layout import layout
from lezo.model.loss import contributions
from lezo.noise import directions, seeds
from lezo.runs.build import make_optimizer
from lezo.zo.blocks import AllBlocks, UniformBlocks
from lezo.zo.first_order import FirstOrder
from lezo.zo.probe import PlainProbe, StreamProbe, TwoSided
from lezo.zo.step import StepReport, Stopwatch
from lezo.zo.step_size import Constant, Linear
from lezo.zo.streams import Streams
from lezo.zo.zeroth_order import SeededUpdate, ZerothOrder
from tests.lezo.small_models import CPU, Bowl, examples, small_model, weights


def two_point(model, sparsity=0.0, **changes):
    settings = {"lr": 0.05, "eps": 1e-3, "seed": 3, **changes}
    found = layout(model)
    blocks = UniformBlocks(len(found.blocks), sparsity)
    return ZerothOrder(model, found, blocks, bowl_probe(model), **settings)


def bowl_probe(model):
    """A batch is the scale of the bowl."""
    return PlainProbe(model, lambda forward, batch: forward(batch))


def run(optimizer, steps, batch=1.0) -> list[StepReport]:
    return [optimizer.step(step, batch) for step in range(steps)]


def textbook(sparsity, steps, lr=0.05, eps=1e-3, decay=0.0):
    """Algorithm 1 written out in fp64: perturb in place, measure, perturb back, measure, restore, update."""
    model = Bowl()
    names, parameters = zip(*model.named_parameters(), strict=True)
    with torch.no_grad():
        for step in range(steps):
            seed = seeds.step_seed(3, step)
            chosen = UniformBlocks(4, sparsity)(step, seed)
            active = [
                (n, p)
                for n, p in zip(names, parameters, strict=True)
                if n == "head" or int(n.split(".")[1]) in chosen
            ]
            z = {n: directions.normal(seed, n, p) for n, p in active}
            for n, p in active:
                p += eps * z[n]
            plus = model(1.0)
            for n, p in active:
                p -= 2 * eps * z[n]
            minus = model(1.0)
            for n, p in active:
                p += eps * z[n]
                p -= lr * ((plus - minus) / (2 * eps) * z[n] + (decay * p if p.ndim > 1 else 0))
    return weights(model)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_agrees_with_the_textbook_in_fp64(sparsity, decay):
    model = Bowl()
    run(two_point(model, sparsity, weight_decay=decay), 20)
    for name, expected in textbook(sparsity, 20, decay=decay).items():
        torch.testing.assert_close(model.get_parameter(name).data, expected, atol=1e-10, rtol=0)


def test_is_deterministic_bit_for_bit():
    models = [Bowl(torch.float32) for _ in range(2)]
    reports = [run(two_point(model, 0.5), 20) for model in models]
    assert reports[0] == reports[1]
    assert all(torch.equal(p, q) for p, q in zip(*(m.parameters() for m in models), strict=True))


def test_sparsity_0_is_mezo_bit_for_bit():
    lezo, mezo = Bowl(torch.float32), Bowl(torch.float32)
    everything = ZerothOrder(mezo, layout(mezo), AllBlocks(4), bowl_probe(mezo), lr=0.05, eps=1e-3, seed=3)
    assert run(two_point(lezo, 0.0), 20) == run(everything, 20)
    assert all(torch.equal(p, q) for p, q in zip(lezo.parameters(), mezo.parameters(), strict=True))


def test_unselected_blocks_are_untouched_bit_for_bit():
    model = Bowl(torch.float32)
    optimizer = two_point(model, 0.5)
    for step in range(20):
        before, chosen = weights(model), UniformBlocks(4, 0.5)(step, seeds.step_seed(3, step))
        optimizer.step(step, 1.0)
        changed = {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}
        assert changed == {"head", *(f"blocks.{block}.weight" for block in chosen)}


def test_sparsity_1_trains_the_always_on_group_only():
    model = Bowl()
    before = weights(model)
    run(two_point(model, 1.0), 20)
    assert {name for name, p in model.named_parameters() if not torch.equal(before[name], p)} == {"head"}


@pytest.mark.parametrize(
    ("total", "sparsity", "keep"), [(40, 0.75, 10), (8, 0.75, 2), (24, 0.0, 24), (24, 1.0, 0), (5, 0.5, 3)]
)
def test_k_is_n_minus_the_rounded_skipped_share(total, sparsity, keep):
    assert UniformBlocks(total, sparsity).keep == keep == len(UniformBlocks(total, sparsity)(0, 1))


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_zeroth_order_converges(sparsity):
    model = Bowl()
    reports = run(two_point(model, sparsity, lr=0.03), 300)
    assert reports[-1].loss < 0.02 * reports[0].loss


def test_the_update_is_unbiased_on_blocks_up_to_the_share_of_steps_that_touch_them():
    """E[g z] is the gradient where every step moves, and under LeZO K/N of it, uncorrected, on blocks."""
    model = Bowl()
    start, draws = weights(model), 1000
    gradient = {name: start[name] - model.target[name] for name in start}
    moved = {name: [] for name in start}
    optimizer = two_point(model, 0.5, lr=1.0)
    for step in range(draws):
        optimizer.step(step, 1.0)
        for name, p in model.named_parameters():
            moved[name].append(start[name] - p.detach())
            p.data.copy_(start[name])
    for name, samples in moved.items():
        stacked = torch.stack(samples)
        error = stacked.std(0) / math.sqrt(draws)
        expected = gradient[name] * (1.0 if name == "head" else 0.5)
        assert ((stacked.mean(0) - expected).abs() < 5 * error).all(), name


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_non_finite_loss_changes_nothing(bad):
    for optimizer in (
        two_point(Bowl()),
        first_order(Bowl()),
    ):
        model = optimizer.update.model if isinstance(optimizer, ZerothOrder) else optimizer.model
        before = weights(model)
        assert not optimizer.step(0, bad).applied
        assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


class Several(TwoSided):
    """Pairs of losses along ``count`` directions."""

    def __init__(self, model, count):
        self.probe, self.count = bowl_probe(model), count

    def __call__(self, batch, active, *, seed, eps):
        along = [seeds.direction_seed(seed, number) for number in range(self.count)]
        return torch.cat([self.probe(batch, active, seed=one, eps=eps) for one in along])


def test_a_step_of_several_directions_takes_their_mean_and_is_made_again():
    first, again, by_hand = (Bowl() for _ in range(3))
    start = ZerothOrder(first, layout(first), AllBlocks(4), Several(first, 3), lr=0.05, eps=1e-3, seed=3)
    report = start.step(0, 1.0)
    update = ZerothOrder(again, layout(again), AllBlocks(4), Several(again, 1), lr=1, eps=1, seed=3).update
    assert list(update.replay([(0, report.coefficients)])) == [0]
    seed, expected = seeds.step_seed(3, 0), weights(by_hand)
    for number in range(3):
        along = seeds.direction_seed(seed, number)
        plus, minus = bowl_probe(by_hand)(1.0, list(expected), seed=along, eps=1e-3)
        for name, theta in expected.items():
            theta -= 0.05 / 3 * (plus - minus) / 2e-3 * directions.normal(along, name, theta)
    for name, theta in first.named_parameters():
        torch.testing.assert_close(theta.data, expected[name])
        assert torch.equal(theta, again.get_parameter(name))
    assert report.measures["g"] * 0.05 == pytest.approx(sum(report.coefficients))


def test_one_direction_that_is_not_finite_skips_them_all():
    model = Bowl()
    before = weights(model)
    update = ZerothOrder(model, layout(model), AllBlocks(4), Several(model, 2), lr=1, eps=1).update
    update.apply(0, torch.tensor([1.0, math.nan], dtype=torch.float64))
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_weight_decay_follows_the_schedule_also_in_a_replay():
    models = [Bowl() for _ in range(2)]
    made = [
        two_point(model, 0.5, weight_decay=0.5, step_size=step_size)
        for model, step_size in zip(models, (Linear(4), Constant()), strict=True)
    ]
    for step in range(4):
        made[0].step(step, 0.0)  # no slope: all that moves is the decay
        made[1].lr, made[1].update.decay = 0.05 * (1 - step / 4), 0.05 * 0.5 * (1 - step / 4)
        made[1].step(step, 0.0)
    assert all(torch.equal(p, q) for p, q in zip(*(m.parameters() for m in models), strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_steps_coefficient_makes_its_update_again(dtype):
    first, again = Bowl(dtype), Bowl(dtype)
    reports = run(two_point(first, 0.5, weight_decay=0.1), 5)
    updates = two_point(again, 0.5, weight_decay=0.1).update
    assert list(updates.replay([(step, r.coefficients) for step, r in enumerate(reports)])) == list(range(5))
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(("algorithm", "momentum"), [("sgd", 0.0), ("sgd", 0.9), ("adamw", 0.0)])
def test_a_first_order_optimizer_goes_on_from_its_state(algorithm, momentum):
    settings = {"algorithm": algorithm, "momentum": momentum}
    through, stopped = (Bowl(torch.float32) for _ in range(2))
    run(first_order(through, **settings), 6)
    before = first_order(stopped, **settings)
    run(before, 3)
    after = first_order(stopped, **settings)
    after.restore({name: value.clone() for name, value in before.state().items()})
    for step in range(3, 6):
        after.step(step, 1.0)
    assert all(torch.equal(p, q) for p, q in zip(through.parameters(), stopped.parameters(), strict=True))


def test_half_precision_weights_move_by_an_update_computed_in_fp32():
    model = Bowl(torch.float16)
    before = weights(model)
    (report,) = run(two_point(model, lr=0.05, eps=0.05), 1)
    seed = seeds.step_seed(3, 0)
    for name, p in model.named_parameters():
        z = directions.normal(seed, name, p)
        step = torch.tensor(0.05) * report.measures["g"]
        assert torch.equal(p.data, (before[name].float() - step * z).half())


def test_stochastic_rounding_keeps_updates_that_nearest_loses_and_is_reproducible():
    nearest, once, again = (Bowl(torch.float16) for _ in range(3))
    before, tiny = weights(nearest), {"lr": 3e-6, "eps": 0.05}
    run(two_point(nearest, **tiny), 100)
    for model in (once, again):
        run(two_point(model, **tiny, rounding="stochastic"), 100)
    moved = [
        sum(int((before[n] != p).sum()) for n, p in model.named_parameters()) for model in (nearest, once)
    ]
    assert 3 * moved[0] < moved[1]
    assert all(torch.equal(p, q) for p, q in zip(once.parameters(), again.parameters(), strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_waits_for_the_device_once():
    """Nothing before the measures are read may synchronise."""
    device = torch.device("cuda")
    model = small_model(dtype=torch.float16).to(device)
    found, watch = layout(model), Stopwatch(device)
    optimizer = ZerothOrder(
        model, found, UniformBlocks(4, 0.5), StreamProbe(Streams(model, found, watch)), lr=1e-3, eps=1e-3
    )
    batch = [candidate_batch(examples(), pad=1, device=device)]
    optimizer.step(0, batch)  # kernels compile
    active = found.active([0, 2])
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = optimizer.estimator(batch, active, seed=1, eps=1e-3)
        optimizer.update.apply(1, 1e-3 * optimizer.estimator.slopes(losses, 1e-3))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert losses.isfinite().all()


def test_the_configured_rounding_reaches_the_optimizer():
    config = compose(["optim.rounding=stochastic", "optim.sparsity=0.5"]).config
    model = small_model()
    found = layout(model)
    made = make_optimizer(config, Network(model), found, UniformBlocks(len(found.blocks), 0.5))
    assert (made.update.rounding, made.lr, made.update.blocks.keep) == ("stochastic", 3e-4, 2)


def first_order(model, **changes):
    settings = {"algorithm": "sgd", "lr": 0.1, **changes}
    return FirstOrder(model, lambda batch: iter([model(batch)]), **settings)


def test_sgd_steps_along_the_gradient():
    model = Bowl()
    before = weights(model)
    run(first_order(model, weight_decay=0.5), 1)
    for name, p in model.named_parameters():
        gradient = before[name] - model.target[name] + (0.5 * before[name] if before[name].ndim > 1 else 0)
        torch.testing.assert_close(p.data, before[name] - 0.1 * gradient)


@pytest.mark.parametrize("algorithm", ["sgd", "adamw"])
def test_first_order_converges(algorithm):
    model = Bowl()
    reports = run(first_order(model, algorithm=algorithm, step_size=Linear(100)), 100)
    assert reports[-1].loss < 1e-3 * reports[0].loss


def test_linear_decay_reaches_zero_after_the_last_step():
    reports = run(first_order(Bowl(), step_size=Linear(4)), 4)
    assert [r.measures["lr"] for r in reports] == pytest.approx([0.1, 0.075, 0.05, 0.025])


def test_clipping_bounds_the_step():
    model = Bowl()
    before = weights(model)
    run(first_order(model, clip_norm=1e-3), 1)
    moved = torch.cat([(before[name] - p.data).flatten() for name, p in model.named_parameters()])
    assert moved.norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-3)


def scored(model):
    return partial(contributions, Network(model))


def test_dropout_is_on_in_training_only_and_follows_the_seed():
    batch, losses = [gold_batch(examples(), pad=1, device=CPU)], []
    for seed in (0, 0, 1):
        model = small_model()  # OPT's own dropout is 0.1
        optimizer = FirstOrder(model, scored(model), algorithm="sgd", lr=0.1, dropout=True, seed=seed)
        state = torch.random.get_rng_state()
        losses.append(optimizer.step(0, batch).loss)
        assert torch.equal(state, torch.random.get_rng_state())
        assert not model.training
    still = small_model()
    without = FirstOrder(still, scored(still), algorithm="sgd", lr=0.1).step(0, batch).loss
    assert losses[0] == losses[1]
    assert len({losses[0], losses[2], without}) == 3


class Kept:
    """A chooser of one block, or a Gaussian direction, kept for a period of three steps."""

    period = 3

    def __init__(self, total=4):
        self.keep, self.total, self.seed = 1, total, None

    def begin(self, seed):
        self.seed = seed

    def __call__(self, step, seed):
        return (self.seed % self.total,)

    def perturb(self, theta, seed, name, eps, **kwargs):
        return directions.perturb(theta, self.seed, name, eps, **kwargs)

    def update_(self, theta, seed, name, coefficient, decay, *, rounding="nearest"):
        directions.update_(theta, self.seed, name, coefficient, decay, rounding=rounding)


def test_what_is_kept_for_a_period_begins_with_its_first_steps_seed_in_training_and_in_any_replay():
    trained, again = Bowl(torch.float32), Bowl(torch.float32)
    blocks, direction = Kept(), Kept()
    probe = PlainProbe(trained, lambda forward, batch: forward(batch), direction)
    settings = {"direction": direction, "lr": 0.05, "eps": 1e-3, "seed": 3}
    optimizer = ZerothOrder(trained, layout(trained), blocks, probe, **settings)
    begun, past = [], []
    for step in range(7):
        past.append((step, optimizer.step(step, 1.0).coefficients))
        assert blocks.seed == direction.seed
        begun.append(blocks.seed)
    assert begun == [seeds.step_seed(3, step) for step in (0, 0, 0, 3, 3, 3, 6)]
    update = SeededUpdate(again, layout(again), Kept(), direction=Kept(), seed=3)
    for part in (past[:2], past[2:4], past[4:]):  # as a run that is killed within periods, twice
        update.relearn([])
        update.blocks.begin(0)
        update.direction.begin(0)
        list(update.replay(part))
    assert all(torch.equal(p, q) for p, q in zip(trained.parameters(), again.parameters(), strict=True))
