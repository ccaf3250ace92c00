"""Choosers of blocks and rules beyond MeZO and LeZO, each against a reference in plain torch or Python."""

import math
from itertools import product

import pytest
import torch

from lezo.data.pack import candidate_batch
from lezo.model.adapter import Adapter, attach
from lezo.model.forward import Network
from lezo.model.layout import layout
from lezo.model.loss import total
from lezo.noise import directions, seeds
from lezo.noise.philox import compute_dtype
from lezo.zo.blocks import AllBlocks, active
from lezo.zo.methods import moments
from lezo.zo.methods.adalezo import AdaLezo
from lezo.zo.methods.adam import Adam
from lezo.zo.methods.cycle import GivenBlocks, LisaBlocks
from lezo.zo.methods.momentum import Momentum
from lezo.zo.probe import PlainProbe, StreamProbe
from lezo.zo.rule import Move
from lezo.zo.step import Stopwatch
from lezo.zo.step_size import Constant, Linear
from lezo.zo.streams import Streams
from lezo.zo.zeroth_order import SeededUpdate, ZerothOrder
from tests.lezo.small_models import CPU, Bowl, examples, small_model, weights

ALL = Constant().share


def over(chooser, model, share=ALL):
    return chooser.over(layout(model).groups, share)


def trained(model, blocks, steps=12, batch=1.0, **settings):
    """The optimizer after ``steps``, and what a journal of them would hold."""
    probe = PlainProbe(model, lambda forward, scale: forward(scale))
    optimizer = ZerothOrder(
        model, layout(model), blocks, probe, **{"lr": 0.02, "eps": 1e-3, "seed": 3, **settings}
    )
    losses = [batch(step) if callable(batch) else batch for step in range(steps)]
    return optimizer, [(step, optimizer.step(step, loss).coefficients) for step, loss in enumerate(losses)]


def same(one, other):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def moved(model, before):
    return {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}


# Groups outside the blocks.


def test_embeddings_are_a_group_and_a_tied_head_is_theirs():
    tied, untied = layout(small_model("opt")), layout(small_model("llama"))
    assert tied.of(-1) == ("model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight")
    assert tied.of(4) == ("model.decoder.final_layer_norm.weight", "model.decoder.final_layer_norm.bias")
    assert untied.of(-1) == ("model.embed_tokens.weight",) and "lm_head.weight" in untied.of(3)
    assert tied.groups == (-1, 0, 1, 2, 3, 4)
    assert layout(Bowl()).groups == (0, 1, 2, 3, 4)  # without embeddings


@pytest.mark.parametrize("adapter", ["lora", "prefix"])
def test_of_an_adapter_the_blocks_alone_are_groups(adapter):
    model = small_model("opt")
    attach(model, Adapter(adapter, rank=2, alpha=4, targets=("q_proj", "v_proj"), tokens=2))
    assert layout(model).groups == (0, 1, 2, 3)
    assert over(AdaLezo(4, keep=0.5), model).draws == 2


@pytest.mark.parametrize("name", ["opt", "llama", "qwen2-tied"])
@pytest.mark.parametrize("groups", [(-1,), (1,), (0, 2), (3, 4)])
def test_the_fast_probe_skips_embeddings_and_head_as_the_plain_one_does(name, groups):
    model = small_model(name, torch.float64)
    found, batch = layout(model), [candidate_batch(examples(), pad=1, device=CPU)]
    groups = [group for group in groups if group in found.groups]
    names = [name for group in groups for name in found.of(group)]
    fast = StreamProbe(Streams(model, found, Stopwatch(CPU)))
    plain = PlainProbe(model, lambda _, parts: total(Network(model), parts))
    expected = plain(batch, names, seed=5, eps=0.1)
    assert expected[0] != expected[1]
    torch.testing.assert_close(fast(batch, names, seed=5, eps=0.1), expected, atol=1e-9, rtol=0)


# Fixed cycles and given blocks.


def test_lisa_keeps_its_blocks_for_a_period_and_draws_them_uniformly():
    model = Bowl(torch.float32)
    update = SeededUpdate(model, layout(model), LisaBlocks(4, keep=2, period=5), seed=3)
    drawn = [update.drawn(step)[1] for step in range(2000)]
    assert all(len(set(drawn[start : start + 5])) == 1 for start in range(0, 2000, 5))
    assert all("head" in names and len(names) == 3 for names in drawn)
    counts = [sum(f"blocks.{block}.weight" in names for names in drawn[::5]) for block in range(4)]
    assert sum(counts) == 800 and all(abs(count - 200) < 40 for count in counts)  # 4 standard deviations
    assert update.drawn(7) == update.drawn(7) and update.drawn(7)[0] != update.drawn(8)[0]
    assert LisaBlocks(4, keep=9, period=1).keep == 4


def test_a_lisa_run_is_made_again_from_within_a_period():
    model, again = Bowl(torch.float32), Bowl(torch.float32)
    _, past = trained(model, LisaBlocks(4, keep=1, period=5))
    for part in (past[:3], past[3:7], past[7:]):  # each by another process
        update = SeededUpdate(again, layout(again), LisaBlocks(4, keep=1, period=5), seed=3)
        list(update.replay(part))
    assert same(model, again)


@pytest.mark.parametrize("non_block", [True, False])
def test_given_blocks_alone_move(non_block):
    model = Bowl(torch.float32)
    before = weights(model)
    trained(model, over(GivenBlocks(4, [0, -1, 3], non_block), model))
    assert moved(model, before) == {"blocks.0.weight", "blocks.3.weight"} | ({"head"} if non_block else set())


@pytest.mark.parametrize("block", [4, -5])
def test_a_block_that_the_model_lacks_is_refused(block):
    with pytest.raises(ValueError, match=f"block {block} is none of the model's 4"):
        GivenBlocks(4, [0, block])


# AdaLeZO.


def reference(groups, past, keep=0.2, tau=0.6, gamma=0.1, alpha=0.1, clip=16.0):
    """Algorithm 1 in torch: what each step moves, and by what factors, from |c| and the seeds."""
    q, steps = torch.zeros(len(groups), dtype=torch.float64), []
    k = max(1, int(keep * len(groups)))
    for step, c in past:
        p = torch.softmax(q / (q.max() if q.max() > 0 else 1.0) / tau, 0) * (1 - gamma) + gamma / len(groups)
        seed = seeds.step_seed(3, step)
        u = torch.tensor([seeds.derive(seed, "adalezo", i) / 2**63 for i in range(k)], dtype=torch.float64)
        n = torch.bincount(torch.searchsorted(p.cumsum(0), u), minlength=len(groups))
        factors = n * torch.clamp(1 / (k * p), max=clip)
        steps.append({group: float(factors[i]) for i, group in enumerate(groups) if n[i]})
        q = torch.where(n > 0, (1 - alpha) * q + alpha * abs(c), q)
    return steps


@pytest.mark.parametrize("changes", [{}, {"keep": 0.8, "gamma": 0.0, "clip": 1.1, "alpha": 0.5}])
def test_adalezo_is_its_algorithm(changes):
    model = Bowl()
    optimizer, past = trained(model, over(AdaLezo(4, **changes), model), steps=40)
    expected = reference(layout(model).groups, [(step, c) for step, (c,) in past], **changes)
    optimizer.update.relearn([])
    for (step, c), factors in zip(past, expected, strict=True):
        seed = seeds.step_seed(3, step)
        assert optimizer.update.blocks.factors(step, seed) == pytest.approx(factors, rel=1e-12)
        optimizer.update.blocks.observe(step, optimizer.update.blocks(step, seed), c)


def test_the_update_of_adalezo_is_the_factors_times_z():
    model = Bowl()
    optimizer, past = trained(model, over(AdaLezo(4, keep=0.6, alpha=0.9), model), steps=10)
    before, seed = weights(model), seeds.step_seed(3, 10)
    factors = optimizer.update.blocks.factors(10, seed)
    assert len({*factors.values()}) > 1
    optimizer.update.apply(10, torch.tensor([0.25], dtype=torch.float64))
    for group in layout(model).groups:
        for name in layout(model).of(group):
            z = directions.normal(seed, name, before[name])
            step = 0.25 * factors.get(group, 0.0) * z
            torch.testing.assert_close(before[name] - model.get_parameter(name), step, atol=1e-12, rtol=0)


class Drawn(AdaLezo):
    """These groups, whatever the seed."""

    these = ()

    def drawn(self, seed):
        return self.these


def expected_update(clip):
    """Over all draws with their probabilities, the mean update along one z; and that of all groups."""
    model = Bowl()
    taught, _ = trained(model, over(AdaLezo(4, keep=0.4, alpha=0.9, clip=clip), model), steps=10)
    p, before = taught.update.blocks.probabilities(), weights(model)
    assert max(p) > 1.5 * min(p)  # it has learned something
    mean = {name: torch.zeros_like(theta) for name, theta in before.items()}

    def update(blocks):
        with torch.no_grad():
            for name, theta in model.named_parameters():
                theta.copy_(before[name])
        SeededUpdate(model, layout(model), blocks, seed=3).apply(10, torch.tensor([0.5]))
        return {name: before[name] - theta for name, theta in weights(model).items()}

    for these in product(range(5), repeat=2):
        blocks = over(Drawn(4, keep=0.4, alpha=0.9, clip=clip), model)
        blocks.these, blocks.rewards = these, taught.update.blocks.rewards
        for name, step in update(blocks).items():
            mean[name] += math.prod(p[place] for place in these) * step
    return mean, update(AllBlocks(4))


def test_without_clipping_the_expected_update_is_that_of_all_groups():
    mean, dense = expected_update(None)
    for name in dense:
        torch.testing.assert_close(mean[name], dense[name], atol=1e-12, rtol=1e-9)


def test_clipping_makes_it_smaller_where_a_group_is_rare():
    mean, dense = expected_update(1.5)
    assert not all(torch.allclose(mean[name], dense[name]) for name in dense)
    assert all((mean[name].abs() <= dense[name].abs() + 1e-12).all() for name in dense)


def test_adalezo_learns_from_the_journal_alone_and_skipped_steps_teach_nothing():
    model, again = Bowl(torch.float32), Bowl(torch.float32)
    optimizer, past = trained(
        model, over(AdaLezo(4, alpha=0.5), model), batch=lambda step: math.inf if step in (2, 5) else 1.0
    )
    assert [math.isnan(c) for _, (c,) in past] == [step in (2, 5) for step in range(12)]
    update = SeededUpdate(again, layout(again), over(AdaLezo(4, alpha=0.5), again), seed=3)
    list(update.replay(past[:7]))
    update.relearn(past[:7])  # as another process does, whose weights are there already
    list(update.replay(past[7:]))
    assert same(model, again) and update.blocks.rewards == optimizer.update.blocks.rewards


def test_a_schedule_does_not_make_later_rewards_small():
    model = Bowl()
    falling = over(AdaLezo(4), model, Linear(10).share)
    falling.observe(0, (1,), (0.3,))
    falling.observe(5, (2,), (0.15,))
    assert falling.rewards == pytest.approx({1: 0.03, 2: 0.03})


@pytest.mark.parametrize(("keep", "draws"), [(0.2, 1), (0.4, 2), (0.01, 1), (1.0, 5), (0.99, 4)])
def test_adalezo_draws_the_floor_of_its_share_and_at_least_one(keep, draws):
    blocks = over(AdaLezo(4, keep=keep), Bowl())
    assert blocks.draws == draws and blocks.keep == min(4, draws)
    assert blocks.most({-1: 5, 0: 1, 1: 2}) == sum([5, 2, 1][:draws])


# Rules with a memory.

RULES = {"momentum": lambda: Momentum(0.9), "adam": lambda: Adam(0.02, 0.9, 0.99)}
TORCH = {
    "momentum": lambda thetas: torch.optim.SGD(thetas, lr=0.02, momentum=0.9),
    "adam": lambda thetas: torch.optim.Adam(thetas, lr=0.02, betas=(0.9, 0.99), eps=1e-8),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_torchs_optimizer_on_the_estimate(name):
    model, reference = Bowl(), Bowl()
    _, past = trained(model, AllBlocks(4), steps=25, rule=RULES[name]())
    optimizer = TORCH[name](reference.parameters())
    for step, (c,) in past:
        seed = seeds.step_seed(3, step)
        for tensor, theta in reference.named_parameters():
            theta.grad = c / 0.02 * directions.normal(seed, tensor, theta.detach())
        optimizer.step()
    for tensor, theta in model.named_parameters():
        torch.testing.assert_close(theta, reference.get_parameter(tensor), atol=1e-11, rtol=0)


@pytest.mark.parametrize("name", RULES)
def test_momentum_and_adam_converge_on_the_bowl(name):
    model = Bowl(torch.float32)
    settings = {"momentum": {"lr": 3e-3}, "adam": {"lr": 0.02}}[name]
    before = model()
    trained(model, AllBlocks(4), steps=300, rule=RULES[name](), **settings)
    assert model() < 0.3 * before


@pytest.mark.parametrize("name", RULES)
def test_what_a_step_skips_keeps_its_memory(name):
    model = Bowl(torch.float32)
    optimizer, _ = trained(model, over(GivenBlocks(4, [1]), model), steps=3, rule=RULES[name]())
    rule = optimizer.update.rule
    kept = {key: moment.clone() for key, moment in rule.moments.items() if key[1] == "blocks.1.weight"}
    assert {tensor for _, tensor in rule.moments} == {"head", "blocks.1.weight"}  # and of no other
    optimizer.update.blocks = over(GivenBlocks(4, [2]), model)
    optimizer.update._chosen = None
    for step in range(3, 6):
        optimizer.step(step, 1.0)
    assert all(torch.equal(rule.moments[key], moment) for key, moment in kept.items())
    assert rule.moves == {"head": 6, "blocks.1.weight": 3, "blocks.2.weight": 3}


@pytest.mark.parametrize("name", RULES)
def test_a_loss_that_is_not_finite_changes_neither_weights_nor_memory(name):
    model = Bowl(torch.float32)
    optimizer, _ = trained(model, AllBlocks(4), steps=3, rule=RULES[name](), weight_decay=0.1)
    before = weights(model)
    state = {key: value.clone() for key, value in optimizer.state().items()}
    assert not optimizer.step(3, math.nan).applied
    assert not moved(model, before)
    assert all(torch.equal(value, state[key]) for key, value in optimizer.state().items())


@pytest.mark.parametrize("name", RULES)
def test_decay_is_apart_from_the_memory_and_spares_vectors(name):
    model = Bowl()
    optimizer, _ = trained(model, AllBlocks(4), steps=1, rule=RULES[name](), weight_decay=0.5)
    before, state = weights(model), {k: v.clone() for k, v in optimizer.state().items()}
    twin = Bowl()
    twin.load_state_dict(before)
    apart = SeededUpdate(twin, layout(twin), AllBlocks(4), rule=RULES[name](), seed=3)
    apart.restore(state)
    for update in (optimizer.update, apart):
        update.apply(1, torch.tensor([0.01], dtype=torch.float64))
    for tensor, theta in model.named_parameters():
        decay = 0.0 if tensor == "head" else 0.02 * 0.5
        expected = twin.get_parameter(tensor) - decay * before[tensor]
        torch.testing.assert_close(theta, expected, atol=1e-13, rtol=0)


@pytest.mark.parametrize("name", RULES)
def test_several_directions_add_up(name):
    model, reference = Bowl(), Bowl()
    update = SeededUpdate(model, layout(model), AllBlocks(4), rule=RULES[name](), seed=3)
    optimizer = TORCH[name](reference.parameters())
    for step, row in enumerate(([0.1, -0.2], [0.05, 0.3])):
        list(update.replay([(step, row)]))
        for tensor, theta in reference.named_parameters():
            along = [seeds.direction_seed(seeds.step_seed(3, step), i) for i in range(2)]
            z = [directions.normal(seed, tensor, theta.detach()) for seed in along]
            theta.grad = (row[0] * z[0] + row[1] * z[1]) / 0.02
        optimizer.step()
    for tensor, theta in model.named_parameters():
        torch.testing.assert_close(theta, reference.get_parameter(tensor), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_memory_of_16_bit_weights_is_that_of_fp32_and_they_are_rounded_once(name, dtype):
    models = Bowl(dtype), Bowl(dtype).float()
    rules = []
    for model in models:
        rules.append(RULES[name]())
        update = SeededUpdate(model, layout(model), AllBlocks(4), rule=rules[-1], seed=3)
        list(update.replay([(0, [1e-3])]))
    assert all(torch.equal(moment, rules[1].moments[key]) for key, moment in rules[0].moments.items())
    assert all(torch.equal(p, q.to(dtype)) for p, q in zip(*(m.parameters() for m in models), strict=True))


def test_rounding_is_to_one_of_two_neighbours_and_right_in_the_mean():
    theta = torch.full((400_000,), 1.0, dtype=torch.bfloat16)
    step = torch.full_like(theta, 2.0**-10, dtype=torch.float32)  # an eighth of the way to the next below 1
    by = Move(directions, 5, torch.tensor([0.1]), rounding="stochastic")
    by.descend_("theta", theta, step)
    assert {*theta.tolist()} == {1.0, 1 - 2.0**-8}
    assert abs(float((theta != 1).float().mean()) - 0.25) < 0.004


@pytest.mark.parametrize("name", RULES)
def test_a_memory_is_saved_whole_and_one_that_lacks_a_part_is_refused(name):
    model = Bowl(torch.float32)
    optimizer, past = trained(model, AllBlocks(4), steps=3, rule=RULES[name]())
    state = {key: value.clone() for key, value in optimizer.state().items()}
    again, begun = Bowl(torch.float32), RULES[name]()
    update = SeededUpdate(again, layout(again), AllBlocks(4), rule=begun, seed=3)
    again.load_state_dict(model.state_dict())
    update.restore(state)
    optimizer.update.apply(3, torch.tensor([0.1]))
    update.apply(3, torch.tensor([0.1]))
    assert same(model, again)
    for change in ({"m.head": None}, {"moves": None}, {"m.head": torch.zeros(2)}, {"moves": torch.ones(2)}):
        broken = {key: value for key, value in (state | change).items() if value is not None}
        with pytest.raises(ValueError, match="m of head|trainable tensors"):
            update.restore(broken)
    update.restore({})
    assert not begun.moments and not begun.moves


def test_the_expected_memory_of_a_rule_is_what_it_takes():
    for name, kinds in (("momentum", 1), ("adam", 2)):
        for dtype in (torch.float64, torch.bfloat16):
            model = Bowl(dtype)
            optimizer, _ = trained(model, AllBlocks(4), steps=1, rule=RULES[name]())
            rule = optimizer.update.rule
            held = sum(moment.nbytes for moment in rule.moments.values())
            wide = sum(p.numel() * compute_dtype(p).itemsize for p in model.parameters())
            assert rule.state_bytes(model.parameters()) == held == kinds * wide


def test_adam_takes_few_tensors_at_a_time_to_the_same_bits(monkeypatch):
    models = [Bowl(torch.float32) for _ in range(2)]
    trained(models[0], AllBlocks(4), rule=RULES["adam"]())
    monkeypatch.setattr(moments.chunks, "__defaults__", (7,))
    trained(models[1], AllBlocks(4), rule=RULES["adam"]())
    assert same(*models)


def test_names_of_active_tensors_are_a_choosers_own():
    found = layout(Bowl())
    assert active(found, AllBlocks(4), (0,)) == ("head", "blocks.0.weight")
    assert active(found, over(GivenBlocks(4, [0], non_block=False), Bowl()), (0,)) == ("blocks.0.weight",)
