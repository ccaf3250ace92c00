"""MeZO and LeZO in loops of one's own: as the textbook has it, as the engine has it, and what torch's users expect."""

import math
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import lr_scheduler

import lezo
from lezo.model.layout import layout
from lezo.noise import directions, seeds
from lezo.zo.blocks import UniformBlocks
from lezo.zo.optimizers import LeZO, MeZO
from lezo.zo.probe import PlainProbe
from lezo.zo.zeroth_order import ZerothOrder
from tests.lezo.refusals import refused
from tests.lezo.small_models import Bowl, small_model, weights

INPUTS = torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(1))
LABELS = (INPUTS[:, 0, :3].mean((1, 2)) > INPUTS[:, 0, 3:].mean((1, 2))).long()


def network(kind: str = "mlp", dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    dense = [nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2)]
    conv = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()]
    layers = dense if kind == "mlp" else [*conv, nn.Linear(16, 2)]
    return nn.Sequential(*layers).to(dtype)


def closure_of(model):
    def closure():
        dtype = next(model.parameters()).dtype
        logits = model(INPUTS.to(dtype))
        return cross_entropy(logits.to(torch.promote_types(dtype, torch.float32)), LABELS)

    return closure


def run(optimizer, steps):
    closure = closure_of(optimizer.model)
    return [optimizer.step(closure).item() for _ in range(steps)]


def same(one, other):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def textbook(model, sparsity, steps, lr=0.02, eps=1e-3, decay=0.1):
    """Algorithm 1 in place: perturb by eps, by -2 eps, restore, update."""
    names = [str(i) for i, layer in enumerate(model) if isinstance(layer, nn.Linear)]
    closure, theta = closure_of(model), dict(model.named_parameters())
    for step in range(steps):
        seed, losses = seeds.step_seed(3, step), []
        kept = {names[i] for i in UniformBlocks(3, sparsity)(step, seed)}
        active = {name: p.data for name, p in theta.items() if name.split(".")[0] in kept}
        z = {name: directions.normal(seed, name, p) for name, p in active.items()}
        for scale in (eps, -2 * eps):
            for name, p in active.items():
                p += scale * z[name]
            losses.append(closure().item())
        g = (losses[0] - losses[1]) / (2 * eps)
        for name, p in active.items():
            p += eps * z[name]
            p -= lr * (g * z[name] + (decay * p if p.ndim > 1 else 0))


@pytest.mark.parametrize("sparsity", [0.0, 1 / 3])
def test_agrees_with_the_textbook_in_fp64(sparsity):
    ours, theirs = network(dtype=torch.float64), network(dtype=torch.float64)
    run(LeZO(ours, 0.02, sparsity=sparsity, weight_decay=0.1, seed=3), 10)
    textbook(theirs, sparsity, 10)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_agrees_with_the_engines_optimizer_bit_for_bit(dtype):
    ours, theirs = (small_model(dtype=dtype) for _ in range(2))
    ids = torch.arange(5, 15)[None]
    optimizer = LeZO(ours, 1e-3, eps=1e-2, sparsity=0.5, rounding="stochastic", seed=3)
    engine = ZerothOrder(
        theirs,
        layout(theirs),
        UniformBlocks(4, 0.5),
        PlainProbe(theirs, lambda forward, batch: forward(input_ids=batch, labels=batch).loss),
        lr=1e-3,
        eps=1e-2,
        rounding="stochastic",
        seed=3,
    )
    for step in range(4):
        optimizer.step(lambda: ours(input_ids=ids, labels=ids).loss)
        assert optimizer.last == engine.step(step, ids)
    assert same(ours, theirs)
    assert not same(ours, small_model(dtype=dtype))


@pytest.mark.parametrize(
    ("kind", "make", "blocks"),
    [("mlp", partial(LeZO, lr=0.1, sparsity=0.5), 3), ("cnn", partial(MeZO, lr=0.03), 0)],
)
def test_a_network_learns(kind, make, blocks):
    optimizer = make(network(kind))
    assert len(optimizer.blocks) == blocks
    losses = run(optimizer, 150)
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])


def test_a_recurrent_network_learns():
    """torch keeps a list of an LSTM's weights aside, in which the copies must be too."""
    torch.manual_seed(0)
    model = nn.LSTM(6, 4)
    optimizer = MeZO(model, 0.3)

    def closure():
        return cross_entropy(model(INPUTS[:, 0].transpose(0, 1))[0][-1], LABELS)

    losses = [optimizer.step(closure).item() for _ in range(50)]
    assert losses[-1] < 0.95 * losses[0]


def test_skipped_blocks_are_untouched_and_the_rest_moves():
    model = network()
    optimizer = LeZO(model, 0.02, sparsity=0.5, blocks=["1", model[3]], seed=3)
    for step in range(8):
        before = weights(model)
        run(optimizer, 1)
        (kept,) = UniformBlocks(2, 0.5)(step, seeds.step_seed(3, step))
        moved = {
            name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(before[name], p)
        }
        assert moved == {("1", "3")[kept], "5"}


def test_is_deterministic_whatever_the_generators_are_at():
    models = [network("cnn") for _ in range(2)]
    for model in models:
        model.insert(2, nn.Dropout(0.5))
        torch.manual_seed(len(weights(models[0])) + id(model) % 97)
        run(LeZO(model, 0.01), 5)
    assert same(*models)


@pytest.mark.parametrize(
    ("dtype", "error", "call"), [(torch.float16, ZeroDivisionError, 0), (torch.float32, KeyboardInterrupt, 1)]
)
def test_theta_is_as_before_when_a_closure_fails(dtype, error, call):
    model = network(dtype=dtype)
    before, calls, optimizer = weights(model), [], MeZO(model, 0.02)

    def closure():
        calls.append(model[1].weight)
        if len(calls) > call:
            raise error
        return closure_of(model)()

    with pytest.raises(error):
        optimizer.step(closure)
    assert all(not torch.equal(seen, before["1.weight"]) for seen in calls)
    assert {name: id(p) for name, p in model.named_parameters()}.keys() == before.keys()
    assert all(isinstance(p, nn.Parameter) and torch.equal(before[n], p) for n, p in model.named_parameters())
    assert (optimizer.steps, optimizer.last) == (0, None)
    with refused(RuntimeError, "step(closure)"):
        optimizer.step()


def test_a_probe_leaves_theta_and_the_step_is_what_updates_it():
    one, two = network(), network()
    before = weights(one)
    optimizer = MeZO(one, 0.02)
    loss = optimizer.probe(closure_of(one))
    assert all(torch.equal(before[name], p) for name, p in one.named_parameters())
    optimizer.step()
    assert loss.item() == run(MeZO(two, 0.02), 1)[0]
    assert same(one, two)


def test_probes_of_parts_of_a_batch_make_the_step_of_the_whole():
    whole, parts = network(dtype=torch.float64), network(dtype=torch.float64)
    run(MeZO(whole, 0.02), 1)
    optimizer = MeZO(parts, 0.02)
    for half in (slice(0, 48), slice(48, 64)):
        share = len(LABELS[half]) / len(LABELS)
        optimizer.probe(
            lambda half=half, share=share: cross_entropy(parts(INPUTS[half].double()), LABELS[half]) * share
        )
    optimizer.step()
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-12, rtol=0)


def test_zero_grad_forgets_a_probe():
    optimizer = MeZO(network(), 0.02)
    optimizer.zero_grad()
    optimizer.probe(closure_of(optimizer.model))
    optimizer.zero_grad()
    with refused(RuntimeError, "step(closure)"):
        optimizer.step()


def test_frozen_tensors_stay_out_and_tied_ones_move_once():
    model = network()
    model[3].weight.requires_grad_(False)
    model.append(nn.Tanh()).append(nn.Linear(2, 2, bias=False))
    model[7].weight = nn.Parameter(torch.eye(2))
    model.append(nn.Linear(2, 2)).append(model[7])
    before = weights(model)
    optimizer = MeZO(model, 0.02, seed=3)
    run(optimizer, 1)
    moved = {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}
    assert moved == set(before) - {"3.weight"}
    z = directions.normal(seeds.step_seed(3, 0), "7.weight", before["7.weight"])
    expected = before["7.weight"] - torch.tensor(optimizer.last.coefficient, dtype=torch.float32) * z
    assert torch.equal(model[9].weight, expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_skips_the_update_and_says_so(bad):
    model = network()
    before, optimizer = weights(model), MeZO(model, 0.02)
    optimizer.step(lambda: closure_of(model)() * bad)
    assert (optimizer.last.applied, optimizer.steps) == (False, 1)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    run(optimizer, 1)
    assert optimizer.last.applied and not math.isnan(optimizer.last.measures["g"])


@pytest.mark.parametrize("answer", [float, lambda loss: loss.reshape(1), lambda loss: loss.numpy()[()]])
def test_a_loss_may_be_a_number_or_a_tensor_of_one_element(answer):
    one, two = network(dtype=torch.float64), network(dtype=torch.float64)
    run(MeZO(one, 0.02), 1)
    MeZO(two, 0.02).step(lambda: answer(closure_of(two)()))
    assert same(one, two)


def test_a_loss_may_require_a_gradient_and_be_wider_than_the_weights():
    model = network()
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    before, optimizer = weights(model), MeZO(model, 0.02)

    def closure():
        with torch.enable_grad():
            return closure_of(model)().double() * scale

    assert optimizer.step(closure).dtype == torch.float64
    assert not torch.equal(before["1.weight"], model[1].weight)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("returned", [torch.zeros(2), None, "0.5", torch.zeros(0)])
def test_a_closure_that_returns_no_number_is_refused(returned):
    with refused(ValueError, "the loss"):
        MeZO(network(), 0.02).step(lambda: returned)


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=6),
        lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 6),
    ],
)
def test_learning_rates_are_the_schedulers(make):
    warnings.simplefilter("error")  # a scheduler warns where it does not see the optimizer's steps
    model = network()
    optimizer = MeZO(model, 0.02)
    reference = torch.optim.SGD(network().parameters(), 0.02)
    scheduler, expected = make(optimizer), make(reference)
    for _ in range(7):
        run(optimizer, 1)
        measures = optimizer.last.measures
        assert measures["lr"] == expected.get_last_lr()[0]
        assert optimizer.last.coefficient == pytest.approx(measures["lr"] * measures["g"], rel=1e-6)
        reference.step()
        scheduler.step()
        expected.step()
    assert measures["lr"] < 0.005


def test_goes_on_from_its_state_bit_for_bit(tmp_path):
    through, stopped = network("cnn"), network("cnn")
    optimizer = LeZO(through, 0.02, sparsity=0.5, weight_decay=0.1, seed=7)
    run(optimizer, 6)
    first = LeZO(stopped, 0.02, sparsity=0.5, weight_decay=0.1, seed=7)
    run(first, 3)
    torch.save([stopped.state_dict(), first.state_dict()], tmp_path / "state.pt")
    again = network("cnn")
    second = LeZO(again, 1.0, eps=0.5, sparsity=0.25)  # all settings are the state's
    for part, state in zip((again, second), torch.load(tmp_path / "state.pt"), strict=True):
        part.load_state_dict(state)
    assert second.steps == 3
    run(second, 3)
    assert same(through, again)
    assert second.state_dict() == optimizer.state_dict()


def test_a_state_with_settings_out_of_range_is_refused_at_the_next_step():
    optimizer = MeZO(network(), 0.02)
    optimizer.param_groups[0]["lr"] = -1.0
    with refused(ValueError, "lr=-1.0"):
        run(optimizer, 1)


def test_batchnorm_takes_in_what_one_of_the_two_forwards_saw():
    model = network("cnn")
    MeZO(model, 0.02).step(closure_of(model))
    assert model[1].num_batches_tracked == 1
    model.eval()
    kept = model[1].running_mean.clone()
    MeZO(model, 0.02).step(closure_of(model))
    assert torch.equal(model[1].running_mean, kept)


def test_dropout_draws_the_same_masks_for_both_signs_others_in_the_next_step_and_leaves_the_generator():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    optimizer, seen, before = MeZO(model, 0.02), [], torch.random.get_rng_state()

    def closure():
        seen.append(model[1](torch.ones(50)))
        return model(torch.ones(4)).sum()

    for _ in range(2):
        optimizer.step(closure)
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[0], seen[2])
    assert torch.equal(before, torch.random.get_rng_state())


def test_weights_of_several_dtypes_train_together():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, dtype=torch.float64), nn.Linear(4, 1).half())
    before, optimizer = weights(model), MeZO(model, 0.02)
    optimizer.step(lambda: model[2](model[1](model[0](torch.ones(4)).double()).half()).double())
    for name, p in model.named_parameters():
        assert not torch.equal(before[name], p) and before[name].dtype == p.dtype


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"lr": math.inf}, "lr=inf"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"sparsity": 1.5}, "sparsity=1.5"),
        ({"sparsity": -0.1}, "sparsity=-0.1"),
        ({"sparsity": 1.0}, "sparsity=1.0 of 3 blocks"),
        ({"blocks": []}, "blocks=[...]"),
        ({"blocks": ["7"]}, "block '7'"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"rounding": "up"}, "rounding='up'"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 0.5}, "seed=0.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings, named):
    with refused(ValueError, named):
        LeZO(network(), **{"lr": 0.02, **settings})


def test_a_second_group_is_refused():
    model = network()
    optimizer = MeZO(model, 0.02)
    with refused(ValueError, "one group of parameters"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})


def test_a_module_may_be_its_own_closure():
    model = Bowl(torch.float32)
    optimizer = lezo.LeZO(model, lr=0.05, sparsity=0.5)
    assert optimizer.blocks == tuple(f"blocks.{i}" for i in range(4))
    losses = [optimizer.step(model).item() for _ in range(150)]
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("optimizer", [MeZO, LeZO])
@pytest.mark.parametrize(
    "given",
    [nn.Module.parameters, lambda m: list(m.parameters()), nn.Module.state_dict, lambda m: "opt-125m"],
)
def test_what_others_take_in_place_of_the_module_is_refused(optimizer, given):
    with refused(TypeError, f"lezo.{optimizer.__name__}(model, ...)"):
        optimizer(given(Bowl()), lr=1e-3)
    with refused(TypeError, "lezo.apply_journal(model, ...)"):
        lezo.apply_journal(given(Bowl()), "a.journal")


def test_a_loss_in_place_of_what_computes_it_is_refused():
    with refused(TypeError, "closure is a Tensor"):
        MeZO(Bowl(), lr=1e-3).step(torch.ones(()))


def test_blocks_are_a_list():
    with refused(ValueError, "blocks='layers'"):
        LeZO(small_model(), lr=1e-3, blocks="layers")
