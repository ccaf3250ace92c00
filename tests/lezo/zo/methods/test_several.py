"""Several directions a step: exactly the mean of single ones, unbiased, and made again from the journal."""

import math

import pytest
import torch

import lezo
from lezo.cli.replay import main as replay
from lezo.config.compose import compose
from lezo.config.methods import METHODS
from lezo.model.layout import layout
from lezo.noise import seeds
from lezo.zo.blocks import AllBlocks
from lezo.zo.methods.several import Several
from lezo.zo.parts import PartError, estimator_of
from lezo.zo.probe import PlainProbe
from lezo.zo.zeroth_order import ZerothOrder
from tests.lezo.small_models import Bowl, weights
from tests.lezo.whole_runs import SMALL, Runner, typed


def probe(model: Bowl) -> PlainProbe:
    return PlainProbe(model, lambda forward, batch: forward(batch))


def test_its_slopes_are_those_of_single_probes_along_the_directions_of_the_update() -> None:
    model = Bowl()
    active, several = [*weights(model)], Several(probe(model), 3)
    slopes = several.slopes(several(1.0, active, seed=11, eps=1e-3), 1e-3)
    for number, slope in enumerate(slopes):
        one = probe(model)(1.0, active, seed=seeds.direction_seed(11, number), eps=1e-3)
        assert slope == (one[0] - one[1]) / 2e-3


def test_the_mean_is_unbiased_and_varies_less() -> None:
    """Of a quadratic form whose gradient is known; the spread of a mean of q falls by q."""
    spread = {}
    for count in (1, 4):
        model, moved = Bowl(), []
        start = weights(model)
        found = Several(probe(model), count)
        optimizer = ZerothOrder(model, layout(model), AllBlocks(4), found, lr=1.0, eps=1e-3, seed=3)
        for step in range(600):
            optimizer.step(step, 1.0)
            moved.append(start["head"] - model.head.detach())
            for name, p in model.named_parameters():
                p.data.copy_(start[name])
        samples = torch.stack(moved)
        gradient, error = start["head"] - model.target["head"], samples.std(0) / math.sqrt(len(moved))
        assert ((samples.mean(0) - gradient).abs() < 5 * error).all()
        spread[count] = samples.var(0).sum()
    assert 3 < spread[1] / spread[4] < 5.3


@pytest.mark.parametrize("objective", ["loss", "metric"])
def test_runs_go_on_and_are_made_again(
    lezo_run: Runner, objective: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, "optim.probes=3", f"optim.objective={objective}", "optim.lr=1e-3"]
    whole = lezo_run(*words, folder="whole")
    assert whole.code == 0 and "3 directions a step" in whole.out, whole.err
    lezo_run(*words, "train.steps=2", folder="out")
    ran = lezo_run(*words, "resume=auto", folder="out")
    assert ran.code == 0, ran.err
    journals = [lezo.read_journal(one.folder / "journal.bin") for one in (whole, ran)]
    steps = [[record.values for record in journal.steps(0, 4)] for journal in journals]
    assert steps[0] == steps[1] and [len(values) for values in steps[0]] == [3] * 4
    assert whole.result["weights"] == ran.result["weights"]
    call = typed("lezo-replay", replay, monkeypatch, capsys)
    code, _, err = call(str(ran.folder), "replay.verify=true", "replay.device=cpu")
    assert code == 0, err


def test_forwards_are_counted() -> None:
    for probes in (1, 5):
        optim = compose([f"optim.probes={probes}"]).config.optim
        assert METHODS["lezo"].passes(optim) == 2 * probes


def test_it_is_no_plain_lezo_that_a_benchmark_could_time_as_such() -> None:
    parts = compose(["optim.probes=2"]).config.composition
    assert parts is not None and not parts.is_lezo


def test_a_count_that_a_journal_or_package_made_up_is_refused() -> None:
    from lezo.config.methods import Composition, Part

    class Context:
        def probe(self) -> PlainProbe:
            return probe(Bowl())

    with pytest.raises(PartError, match="probes=0"):
        estimator_of(Composition(estimator=Part("two-sided", {"probes": 0})), Context())  # type: ignore[arg-type]
