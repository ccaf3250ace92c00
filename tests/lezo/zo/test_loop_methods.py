"""Methods of lezo-run in loops of one's own: the engine's bits, state, journal, and what is refused."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

import lezo
from lezo.model.layout import layout
from lezo.noise import directions
from lezo.zo.blocks import AllBlocks
from lezo.zo.methods.adalezo import AdaLezo
from lezo.zo.methods.adam import Adam
from lezo.zo.methods.momentum import Momentum
from lezo.zo.optimizers import LeZO
from lezo.zo.parts import ClosureContext
from lezo.zo.probe import PlainProbe
from lezo.zo.zeroth_order import ZerothOrder
from tests.lezo.refusals import refused
from tests.lezo.small_models import Bowl, weights

ADALEZO = lezo.method("adalezo", keep=0.5, alpha=0.5)
METHODS = [
    ADALEZO,
    "zo-momentum",
    lezo.method("zo-adam", sparsity=0.5),
    lezo.method("zo-lisa", keep=1, period=4),
]
METHODS += [
    lezo.method("zo-blocks", blocks=[0, -1], non_block=False),
    lezo.method("mezo", probes=2, clip=3.0),
]
BLOCKS = [f"blocks.{number}" for number in range(4)]
SETTINGS = {"lr": 0.01, "seed": 3, "blocks": BLOCKS}
names = pytest.mark.parametrize("method", METHODS, ids=lambda m: m if isinstance(m, str) else m.name)


def taken(optimizer, steps, batch=1.0):
    return [optimizer.step(lambda: optimizer.model(batch)).item() for _ in range(steps)]


def same(one, other):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", ["adalezo", "zo-momentum", "zo-adam"])
def test_a_method_makes_the_engines_steps(name):
    loop, engine = Bowl(torch.float32), Bowl(torch.float32)
    taken(LeZO(loop, method=ADALEZO if name == "adalezo" else name, weight_decay=0.1, **SETTINGS), 10)
    chooser = AdaLezo(4, keep=0.5, alpha=0.5).over(layout(engine).groups, lambda step: 1.0)
    rule = {"adalezo": None, "zo-momentum": Momentum(), "zo-adam": Adam(0.01)}[name]
    probe = PlainProbe(engine, lambda model, batch: model(batch))
    blocks = chooser if name == "adalezo" else AllBlocks(4)
    settings = {"rule": rule, "lr": 0.01, "eps": 1e-3, "weight_decay": 0.1, "seed": 3}
    optimizer = ZerothOrder(engine, layout(engine), blocks, probe, **settings)
    for step in range(10):
        optimizer.step(step, 1.0)
    assert same(loop, engine)


@names
def test_state_and_journal_go_on_to_the_same_bits(method, tmp_path):
    whole, stopped, replayed = (Bowl(torch.float32) for _ in range(3))
    optimizer = LeZO(whole, method=method, journal=tmp_path / "whole", **SETTINGS)
    scheduled = method != METHODS[2]  # zo-adam's journal has one learning rate
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step if scheduled else 1.0)
    saved = []
    for step in range(9):
        if step == 5:
            saved = [weights(whole), optimizer.state_dict(), scheduler.state_dict()]
            torch.save(saved, tmp_path / "saved")
        optimizer.step(partial(whole, math.inf if step == 2 else 1.0))
        scheduler.step()
    assert lezo.apply_journal(replayed, tmp_path / "whole") == 9 and same(whole, replayed)
    before, state, of_scheduler = torch.load(tmp_path / "saved", weights_only=True)
    stopped.load_state_dict(before)
    again = LeZO(stopped, method=method, **SETTINGS)
    later = lr_scheduler.LambdaLR(again, lambda step: 0.9**step if scheduled else 1.0)
    again.load_state_dict(state)
    later.load_state_dict(of_scheduler)
    for _ in range(4):
        again.step(lambda: stopped(1.0))
        later.step()
    assert same(whole, stopped)


@names
def test_a_killed_loop_goes_on_from_its_journal(method, tmp_path):
    whole, again = Bowl(torch.float32), Bowl(torch.float32)
    optimizer = LeZO(whole, method=method, journal=tmp_path / "journal", **SETTINGS)
    taken(optimizer, 5)
    begun = LeZO(again, method=method, journal=tmp_path / "journal", **SETTINGS)
    assert lezo.apply_journal(again, tmp_path / "journal", optimizer=begun) == begun.steps == 5
    taken(begun, 3)
    optimizer._journal = None  # which is the other's now
    taken(optimizer, 3)
    assert same(whole, again)


@pytest.mark.parametrize("method", METHODS[:3], ids=["adalezo", "zo-momentum", "zo-adam"])
def test_a_number_alone_does_not_bring_a_memory_back(method):
    optimizer = LeZO(Bowl(torch.float32), method=method, **SETTINGS)
    with refused(ValueError, "steps=5: ", "apply_journal(model, journal, optimizer=opt)"):
        optimizer.steps = 5
    taken(optimizer, 2)
    state = optimizer.state_dict()
    lacking = {key: state[key] for key in ("state", "param_groups")}
    with refused(ValueError, "lacks what the method remembers"):
        LeZO(Bowl(torch.float32), method=method, **SETTINGS).load_state_dict(lacking)
    optimizer.steps = 0
    assert not optimizer._zeroth_order().update.state().get("moves", torch.zeros(1)).any()


def test_adams_learning_rate_is_the_schedulers_and_in_a_journal_one(tmp_path):
    one, other = Bowl(), Bowl()
    first, second = LeZO(one, method="zo-adam", **SETTINGS), LeZO(other, method="zo-adam", **SETTINGS)
    taken(first, 1), taken(second, 1)
    first.param_groups[0]["lr"] = 0.02
    before = weights(one)
    taken(first, 1), taken(second, 1)
    for name, theta in one.named_parameters():
        twice = 2 * (other.get_parameter(name) - before[name])
        torch.testing.assert_close(theta - before[name], twice, atol=1e-9, rtol=1e-6)
    journaled = LeZO(Bowl(), method="zo-adam", journal=tmp_path / "journal", **SETTINGS)
    taken(journaled, 1)
    journaled.param_groups[0]["lr"] = 0.02
    with refused(lezo.JournalError, "the learning rate was 0.01 and is 0.02", "keep it constant"):
        taken(journaled, 1)


@pytest.mark.parametrize("method", [ADALEZO, "zo-adam"], ids=["adalezo", "zo-adam"])
def test_a_warm_up_may_begin_at_nothing(method, tmp_path):
    journal = None if method == "zo-adam" else tmp_path / "journal"
    optimizer = LeZO(Bowl(torch.float32), method=method, journal=journal, **SETTINGS)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 2))
    before = weights(optimizer.model)
    optimizer.load_state_dict(optimizer.state_dict())
    taken(optimizer, 1)
    assert all(torch.equal(theta, before[name]) for name, theta in weights(optimizer.model).items())
    scheduler.step()
    taken(optimizer, 1)
    assert not all(torch.equal(theta, before[name]) for name, theta in weights(optimizer.model).items())


def test_a_step_of_adam_at_rate_0_is_none():
    """The first one above 0 moves each weight by lr, as Adam's first step does, and its state goes on to the same bits."""
    optimizer = LeZO(Bowl(torch.float32), method="zo-adam", **SETTINGS)
    optimizer.param_groups[0]["lr"] = 0.0
    taken(optimizer, 1)
    before, state = weights(optimizer.model), optimizer.state_dict()
    again = LeZO(Bowl(torch.float32), method="zo-adam", **SETTINGS)
    again.load_state_dict(state)
    for one in (optimizer, again):
        one.param_groups[0]["lr"] = 0.01
        taken(one, 1)
    moved = [(theta - before[name]).abs() for name, theta in optimizer.model.named_parameters()]
    assert torch.cat([m.flatten() for m in moved]).median().item() == pytest.approx(0.01, rel=1e-2)
    assert same(optimizer.model, again.model)


def test_momentum_at_rate_0_goes_on_by_what_it_has():
    optimizer = LeZO(Bowl(torch.float64), method="zo-momentum", **SETTINGS)
    optimizer.param_groups[0]["lr"] = 0.0
    taken(optimizer, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    before = weights(optimizer.model)
    optimizer.param_groups[0]["lr"] = 0.01
    taken(optimizer, 1)
    first = {name: theta - before[name] for name, theta in optimizer.model.named_parameters()}
    middle = weights(optimizer.model)
    optimizer.param_groups[0]["lr"] = 0.0
    taken(optimizer, 1)
    for name, theta in optimizer.model.named_parameters():
        torch.testing.assert_close(theta - middle[name], 0.9 * first[name])


def test_one_optimizer_is_made_for_all_steps_of_unchanged_settings(monkeypatch):
    made = []
    real = LeZO._new
    monkeypatch.setattr(LeZO, "_new", lambda self: made.append(1) or real(self))
    optimizer = LeZO(Bowl(torch.float32), sparsity=0.5, **SETTINGS)
    taken(optimizer, 3)
    optimizer.param_groups[0].update(lr=0.02, eps=1e-2, weight_decay=0.1)
    taken(optimizer, 2)
    assert len(made) == 1 and optimizer._zeroth_order().update.decay == 0.02 * 0.1
    optimizer.model.double()
    taken(optimizer, 1)
    assert len(made) == 2 and optimizer._zeroth_order().update.dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: lezo.method("adam"), ("'adam'", "zo-adam", "adalezo")),
        (lambda: lezo.method("fo-sgd"), ("'fo-sgd'", "zo-momentum")),
        (lambda: lezo.method("adalezo", sparsity=0.5), ("adalezo has no setting 'sparsity'", "keep")),
        (lambda: lezo.method("zo-adam", lr=0.1), ("zo-adam has no setting 'lr'", "the optimizer's")),
        (
            lambda: lezo.method("mezo", lr_scale=100),
            ("mezo has no setting 'lr_scale'", "expected clip, probes ("),
        ),
        (lambda: lezo.method("adalezo", tau=0), ("adalezo: tau=0", "above 0")),
        (lambda: lezo.method("adalezo", keep="a"), ("adalezo: keep='a'", "above 0, at most 1")),
        (lambda: lezo.method("lozo", rank=2.5), ("lozo: rank=2.5", "a whole number")),
        (lambda: lezo.method("zo-momentum", beta=None), ("zo-momentum: beta=None", "expected")),
        (lambda: lezo.method("mezo", probes=None), ("mezo: probes=None", "a whole number")),
        (lambda: lezo.method("zo-lisa", keep=True), ("zo-lisa: keep=True", "a whole number")),
        (lambda: lezo.method("mezo", name="x"), ("mezo has no setting 'name'",)),
        (
            lambda: LeZO(Bowl(), 0.1, sparsity=0.5, method="zo-adam"),
            ("sparsity=0.5 and method=", "lezo.method"),
        ),
        (
            lambda: LeZO(Bowl(), 0.1, method=lezo.method("zo-blocks", blocks=[9])),
            ("block 9", "the model's 4"),
        ),
        (
            lambda: LeZO(Bowl(), 0.1, method=lezo.method("zo-blocks", blocks=[4]), blocks=["blocks.1"]),
            ("block 4 is none of the model's 1",),
        ),
    ],
)
def test_what_cannot_be_is_refused(make, named):
    with refused(ValueError, *named):
        make()


def test_a_method_that_skips_nothing_needs_no_blocks():
    model = torch.nn.Linear(3, 1)
    assert LeZO(model, 0.1, method="zo-momentum").blocks == ()
    with refused(ValueError, "no list of blocks"):
        LeZO(model, 0.1, method="adalezo")


def test_a_method_that_skips_all_there_is_says_which_setting_lets_it_move():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1))
    with refused(ValueError, "none of the 2 blocks", "lower sparsity"):
        LeZO(model, 0.1, method=lezo.method("lezo", sparsity=1.0), blocks=["0", "1"])


def test_a_method_that_takes_batches_apart_is_refused():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1))
    with refused(ValueError, "exzo"):
        LeZO(model, 0.1, method="exzo")


def test_a_loop_measures_at_theta_itself_with_the_draws_of_a_seed():
    model = torch.nn.Dropout(0.5)
    weight = torch.nn.Parameter(torch.ones(64))
    model.register_parameter("weight", weight)
    context = ClosureContext(model, directions)
    closure = lambda: model(weight).sum()  # noqa: E731
    losses = [context.loss(closure, seed=seed) for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2] and torch.equal(weight, torch.ones(64))


def test_a_method_is_a_name_or_made_by_method():
    with pytest.raises(TypeError, match=r"method=3: expected a name, a lezo\.method"):
        LeZO(Bowl(), 0.1, method=3)


def test_settings_may_be_numpys_numbers():
    made = lezo.method("adalezo", keep=np.float64(0.4)), lezo.method("adalezo", keep=0.4)
    assert made[0].composition(0.1) == made[1].composition(0.1)
