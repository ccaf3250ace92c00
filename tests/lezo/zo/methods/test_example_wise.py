"""A direction for each example: its losses are those of models moved by hand, and its step follows the gradient."""

import math

import pytest
import torch

import lezo
from lezo.cli.replay import main as replay
from lezo.config.methods import METHODS
from lezo.data.batches import Batches, MicroBatches
from lezo.model.forward import Network, PlainRows
from lezo.model.layout import layout
from lezo.model.load import ModelError
from lezo.model.loss import loss, total
from lezo.noise import seeds
from lezo.zo.direction import moving
from lezo.zo.methods.example_wise import ExampleWise, RankOneOfLinear
from lezo.zo.methods.last_blocks import LastBlocks
from lezo.zo.probe import PlainProbe
from lezo.zo.step import Stopwatch
from lezo.zo.zeroth_order import ZerothOrder
from tests.lezo.small_models import CPU, examples, small_model, weights
from tests.lezo.whole_runs import SMALL, Runner, typed

EPS = 1e-3


def batches(kind: str, count: int = 5, size: int | None = None) -> Batches:
    return Batches(
        examples(count),
        loss=kind,  # type: ignore[arg-type]
        seed=0,
        batch_size=count,
        micro_batch_size=size,
        pad=1,
        device=CPU,
    )


def probe(model: torch.nn.Module, probes: int = 2) -> tuple[ExampleWise, tuple[str, ...]]:
    tensors = moving(RankOneOfLinear(), model, layout(model))
    return ExampleWise.of(Network(model), tensors, Stopwatch(CPU), probes), tensors.active(range(1, 3))


@pytest.mark.parametrize("kind", ["candidates", "lm"])
@pytest.mark.parametrize("name", ["opt", "opt-350m-style", "llama", "qwen2-tied", "neox"])
def test_losses_are_those_of_each_example_alone_along_its_direction(name: str, kind: str) -> None:
    model = small_model(name, torch.float64)
    measure, active = probe(model)
    with torch.no_grad():
        batch = batches(kind)
        found = measure(batch(0), active, seed=5, eps=EPS).reshape(2, -1, 2)
        order, weight = batch.examples_of(0), batch(0).weight
        alone = PlainProbe(model, lambda _, one: loss(Network(model), one)[0], RankOneOfLinear())
        for number, example in enumerate(order):
            (one,) = Batches(
                [example], loss=kind, seed=0, batch_size=1, micro_batch_size=None, pad=1, device=CPU
            )(0)  # type: ignore[arg-type]
            share = one.weight / weight * len(order)
            for turn in range(2):
                along = seeds.direction_seed(5, turn * len(order) + number)
                expected = alone(one, active, seed=along, eps=EPS) * share
                assert found[turn, number].tolist() == pytest.approx(expected.tolist(), abs=1e-12)
    assert len(found[:, 0].unique()) == 4


@pytest.mark.parametrize("kind", ["candidates", "lm"])
def test_micro_batches_change_nothing_but_rounding(kind: str) -> None:
    model = small_model("llama", torch.float64)
    measure, active = probe(model)
    whole, parts = (measure(batches(kind, 5, size)(0), active, seed=5, eps=EPS) for size in (None, 2))
    assert len(parts) == 20 and torch.allclose(whole, parts, atol=1e-12, rtol=0)


def test_the_mean_update_is_the_gradient() -> None:
    """Within five standard errors over 600 steps, on every weight of one layer."""
    model = small_model("llama", torch.float64)
    measure, active = probe(model)
    batch: MicroBatches = batches("candidates")(0)
    theta = model.get_parameter(active[3])
    for parameter in model.parameters():
        parameter.grad = None
    total(Network(model), batch).backward()
    gradient, start = theta.grad, weights(model)
    assert gradient is not None
    optimizer = ZerothOrder(
        model, layout(model), LastBlocks(3, 2 / 3), measure, direction=RankOneOfLinear(), lr=1.0, eps=1e-4
    )
    moved = []
    for step in range(600):
        optimizer.step(step, batch)
        moved.append(start[active[3]] - theta.detach())
        for name, parameter in model.named_parameters():
            parameter.data.copy_(start[name])
    samples = torch.stack(moved)
    error = samples.std(0) / math.sqrt(len(moved))
    assert ((samples.mean(0) - gradient).abs() < 5 * error).all()
    assert error.max() < gradient.abs().max() / 2  # so that it says something


def test_only_linear_layers_of_the_last_blocks_move_and_theta_is_only_read() -> None:
    model = small_model("opt")
    measure, _ = probe(model)
    before, batch = weights(model), batches("candidates")(0)
    optimizer = ZerothOrder(
        model,
        layout(model),
        LastBlocks(4, 0.5),
        measure,
        direction=RankOneOfLinear(),
        lr=0.1,
        eps=EPS,
        weight_decay=0.1,
    )
    losses = optimizer.measure(0, batch)
    assert all(torch.equal(theta, before[name]) for name, theta in weights(model).items())
    optimizer.move(0, losses)
    moved = {name for name, theta in weights(model).items() if not torch.equal(theta, before[name])}
    assert moved and all(".layers.2." in n or ".layers.3." in n for n in moved)
    assert {n.rsplit(".", 2)[-2] for n in moved} == {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
    assert all(n.endswith("weight") for n in moved)


@pytest.mark.parametrize(
    "words", [[], ["peft=lora"], ["task=squad"], ["optim.schedule=cosine", "optim.weight_decay=0.1"]]
)
def test_runs_go_on_and_are_made_again(
    lezo_run: Runner, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*SMALL, "optim=exzo", "optim.probes=3", "train.batch_size=6", "train.micro_batch_size=4", *words]
    if "optim.schedule=cosine" in words:
        given.append("train.steps=4")
    whole = lezo_run(*given, folder="whole")
    assert whole.code == 0, whole.err
    lezo_run(*given, "train.max_seconds=1e-9", folder="out")  # stops after a step
    ran = lezo_run(*given, "resume=auto", folder="out")
    assert ran.code == 0, ran.err
    journals = [lezo.read_journal(one.folder / "journal.bin") for one in (whole, ran)]
    steps = [[record.values for record in journal.steps(0, 4)] for journal in journals]
    assert steps[0] == steps[1] and [len(values) for values in steps[0]] == [18] * 4
    assert whole.result["weights"] == ran.result["weights"]
    call = typed("lezo-replay", replay, monkeypatch, capsys)
    code, _, err = call(str(ran.folder), "replay.verify=true", "replay.device=cpu")
    assert code == 0, err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["optim.objective=metric"], "optim.objective"),
        (["optim.top=0"], "optim.top"),
        (["peft=prefix"], "peft=prefix"),
        (["peft=head"], "peft=head"),
    ],
)
def test_what_has_no_meaning_is_refused(lezo_run: Runner, words: list[str], named: str) -> None:
    lezo_run(*SMALL, "optim=exzo", *words).refused(named, code=2)


@pytest.mark.parametrize(
    ("probes", "top", "forwards"), [(4, 0.33, 4), (8, 0.1, 3), (1, 1, 2), (1, 0.5, 2), (4, 0.25, 3)]
)
def test_forwards_are_counted_by_the_blocks_that_run(probes: int, top: float, forwards: int) -> None:
    method = METHODS["exzo"]
    assert method.passes(method.schema(probes=probes, top=top)) == forwards  # type: ignore[call-arg]


def test_models_that_it_cannot_train_are_refused() -> None:
    model = small_model("opt")
    with pytest.raises(ModelError, match="packed rows"):
        ExampleWise.of(PlainRows(model), layout(model), Stopwatch(CPU))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
    with pytest.raises(ModelError, match="linear layer"):
        RankOneOfLinear().layout(model, layout(model))
