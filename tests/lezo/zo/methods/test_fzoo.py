"""FZOO: against plain torch, its one-sided probes two in a forward, and steps by the losses' deviation."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import lezo
from lezo.cli.replay import main as replay
from lezo.config.compose import compose
from lezo.config.methods import METHODS, Composition, Part
from lezo.config.schema import ConfigError
from lezo.data.pack import candidate_batch
from lezo.model.forward import Network
from lezo.model.layout import layout
from lezo.noise import philox, seeds
from lezo.noise.rademacher import Rademacher
from lezo.zo.blocks import UniformBlocks
from lezo.zo.direction import Direction
from lezo.zo.methods.deviation import Deviation
from lezo.zo.methods.one_sided import OneSided
from lezo.zo.parts import ClosureContext, EstimatorContext, PartError, estimator_of
from lezo.zo.step import Stopwatch
from lezo.zo.zeroth_order import ZerothOrder
from tests.lezo.small_models import CPU, Bowl, examples, small_model, weights
from tests.lezo.whole_runs import SMALL, Runner, typed


def signs(seed: int, name: str, like: Tensor) -> Tensor:
    elements = torch.arange(like.numel()).view(like.shape)
    return philox.signs(seeds.derive(seed, name), elements).to(like.dtype)


def fzoo(model: Bowl, *, probes: int = 8, sparsity: float = 0.0, **settings: Any) -> ZerothOrder:
    direction = Rademacher()
    return ZerothOrder(
        model,
        layout(model),
        UniformBlocks(4, sparsity),
        OneSided(ClosureContext(model, direction), probes),
        direction=direction,
        step_size=Deviation(),
        **{"lr": 0.01, "eps": 1e-3, "seed": 3, **settings},
    )


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_its_steps_are_algorithm_1_written_out(sparsity: float) -> None:
    """theta <- theta - lr / (N sigma) sum (l_i - l_0) u_i, sigma^2 = 1 / (N - 1) sum (l_i - mean)^2 (eq. 3 and 4)."""
    model, reference = Bowl(), Bowl()
    optimizer = fzoo(model, sparsity=sparsity)
    for step in range(5):
        optimizer.step(step, lambda: model(1.0))
        seed, active = optimizer.update.drawn(step)
        along = [seeds.direction_seed(seed, number) for number in range(8)]
        named = {name: reference.get_parameter(name) for name in active}
        with torch.no_grad():
            at_theta, losses = reference(1.0), []
            for one in along:
                start = weights(reference)
                for name, p in named.items():
                    p += 1e-3 * signs(one, name, p)
                losses.append(reference(1.0))
                for name, p in named.items():
                    p.copy_(start[name])
            sigma = torch.stack(losses).std()
            for one, loss in zip(along, losses, strict=True):
                for name, p in named.items():
                    p -= 0.01 / (8 * sigma) * (loss - at_theta) * signs(one, name, p)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.data, reference.get_parameter(name).data, atol=1e-9, rtol=1e-9)


def test_it_brings_a_bowl_down_and_its_steps_do_not_follow_the_losses_scale() -> None:
    moved = {}
    for scale in (1.0, 1e3):
        model = Bowl()
        optimizer = fzoo(model, lr=0.2)
        reports = [optimizer.step(step, lambda: model(scale)) for step in range(60)]  # noqa: B023
        assert reports[-1].measures["loss_theta"] < 0.3 * reports[0].measures["loss_theta"]
        moved[scale] = weights(model)
    for name, p in moved[1.0].items():
        torch.testing.assert_close(p, moved[1e3][name], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("scale", [0.0, math.inf, math.nan])
def test_losses_that_are_all_alike_or_not_finite_skip_the_step_and_say_so(scale: float) -> None:
    model = Bowl()
    report = fzoo(model, weight_decay=0.1).step(0, lambda: model(scale))
    assert not report.applied and len(report.coefficients) == 8
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), Bowl().parameters(), strict=True))


@pytest.mark.parametrize(("name", "dtype"), [("opt", torch.float32), ("llama", torch.float16)])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_two_probes_in_a_forward_are_those_of_single_ones(
    name: str, dtype: torch.dtype, sparsity: float
) -> None:
    model = small_model(name, dtype)
    found, batch = layout(model), [candidate_batch(examples(), pad=1, device=CPU)]
    active = found.active(UniformBlocks(len(found.blocks), sparsity)(0, 5))
    direction: Direction = Rademacher()
    context = EstimatorContext(Network(model), found, direction, Stopwatch(CPU))
    losses = OneSided(context, 4)(batch, active, seed=11, eps=1e-2)
    assert losses.shape == (5,) and losses.dtype == torch.float32
    single = context.probe()
    for number in range(4):
        plus, _ = single(batch, active, seed=seeds.direction_seed(11, number), eps=1e-2)
        torch.testing.assert_close(
            losses[1 + number], plus, atol=2e-3 if dtype is torch.float16 else 1e-6, rtol=0
        )
    torch.testing.assert_close(losses[0], context.loss(batch))


def test_a_direction_of_one_tensor_at_a_time_goes_two_in_a_forward_too() -> None:
    class Alone:
        """A direction that is not `Grouped`, as an installed package may have it."""

        perturb, update_ = Rademacher.perturb, Rademacher.update_

    model = small_model()
    found, batch = layout(model), [candidate_batch(examples(), pad=1, device=CPU)]
    active = found.active(range(4))
    both = [
        OneSided(EstimatorContext(Network(model), found, direction, Stopwatch(CPU)), 2)(
            batch, active, seed=11, eps=1e-2
        )
        for direction in (Alone(), Rademacher())
    ]
    assert torch.equal(*both)


def test_all_probes_of_a_step_see_the_same_dropout() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 20), torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(20))
    inputs, kept = torch.randn(6, 20), model[2].running_mean.clone()
    context = ClosureContext(model, Rademacher())
    losses = OneSided(context, 4)(lambda: model(inputs).exp().mean(), [], seed=3, eps=1e-3)
    assert len(set(losses.tolist())) == 1
    context.loss(lambda: model(inputs).mean(), seed=3)
    assert not torch.equal(kept, model[2].running_mean)  # by the probes alone
    after = model[2].running_mean.clone()
    context.loss(lambda: model(inputs).mean(), seed=4)
    assert torch.equal(after, model[2].running_mean)


@pytest.mark.parametrize("words", [[], ["optim.sparsity=0.75", "peft=lora", "optim.schedule=linear"]])
def test_a_run_goes_on_and_is_made_again(
    words: list[str], lezo_run: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, "task=sst2", "optim=fzoo", "optim.probes=4", "optim.lr=1e-3", *words]
    whole = lezo_run(*words, folder="whole")
    assert whole.code == 0, whole.err
    journal = lezo.read_journal(whole.folder / "journal.bin")
    (whole.folder / "result.json").unlink()
    (whole.folder / "journal.bin").write_bytes((whole.folder / "journal.bin").read_bytes()[:-130])
    ran = lezo_run(*words, "resume=auto", folder="whole")
    assert ran.code == 0, ran.err
    again = lezo.read_journal(ran.folder / "journal.bin")
    assert [r.values for r in again.steps(0, 4)] == [r.values for r in journal.steps(0, 4)]
    assert {len(r.values) for r in again.steps(0, 4)} == {4}
    call = typed("lezo-replay", replay, monkeypatch, capsys)
    code, _, err = call(str(ran.folder), "replay.verify=true", "replay.device=cpu")
    assert code == 0, err


def test_an_odd_number_of_probes_is_refused_and_forwards_are_counted() -> None:
    with pytest.raises(ConfigError, match=r"optim\.probes=7: .*even number"):
        compose(["optim=fzoo", "optim.probes=7"])
    with pytest.raises(ConfigError, match=r"optim\.objective=metric: "):
        compose(["optim=fzoo", "optim.objective=metric"])
    optim = compose(["optim=fzoo"]).config.optim
    assert METHODS["fzoo"].passes(optim) == 9
    with pytest.raises(PartError, match="probes=3"):
        estimator_of(Composition(estimator=Part("one-sided", {"probes": 3})), ClosureContext(Bowl()))


@pytest.mark.parametrize(
    ("words", "rate"),
    [
        ([], 5e-3),
        (["model=opt-13b"], 5e-5),
        (["model=opt-13b", "peft=lora"], 5e-4),
    ],
)
def test_its_default_rate_is_five_times_adamws_which_is_the_papers_on_published_models(
    words: list[str], rate: float
) -> None:
    optim: Any = compose(["optim=fzoo", *words]).config.optim
    assert optim.lr == pytest.approx(rate)
