"""LOZO against its algorithm in plain torch, and runs of it that go on and are made again."""

from typing import Any

import pytest
import torch

import lezo
from lezo.cli.replay import main as replay
from lezo.model.layout import layout
from lezo.noise import directions, philox, seeds
from lezo.noise.low_rank import LowRank
from lezo.zo.blocks import AllBlocks
from lezo.zo.probe import PlainProbe
from lezo.zo.zeroth_order import ZerothOrder
from tests.lezo.small_models import Bowl
from tests.lezo.whole_runs import SMALL, Runner, typed

RANK, PERIOD, EPS, LR = 2, 3, 1e-3, 0.02


def factors(seed: int, kept: int, name: str, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    def normals(seed: int, size: int) -> Any:
        return philox.normals(seed, torch.arange(size * RANK).view(size, RANK)).double()

    return normals(seeds.derive(seed, f"{name}/U"), len(p)), normals(
        seeds.derive(kept, f"{name}/V"), p.shape[1]
    )


def test_its_steps_are_algorithm_1_written_out() -> None:
    """W +- eps U V^T, then W <- W - lr (F+ - F-) / (2 eps) U V^T / r, with V kept for nu steps; vectors as MeZO has them."""
    model, reference = Bowl(), Bowl()
    direction = LowRank(RANK, PERIOD)
    probe = PlainProbe(model, lambda forward, batch: forward(batch), direction)
    settings: dict[str, Any] = {"lr": LR, "eps": EPS * RANK**0.5, "seed": 3}
    optimizer = ZerothOrder(model, layout(model), AllBlocks(4), probe, direction=direction, **settings)
    named = dict(reference.named_parameters())
    for step in range(7):
        optimizer.step(step, 1.0)
        seed, kept = (seeds.step_seed(3, number) for number in (step, step - step % PERIOD))
        moves = {}
        with torch.no_grad():
            for name, p in named.items():
                if p.ndim == 1:
                    moves[name] = directions.normal(seed, name, p) * RANK**0.5  # eps z of ours
                else:
                    u, v = factors(seed, kept, name, p)
                    moves[name] = u @ v.T
            losses = []
            for sign in (1, -1):
                for name, p in named.items():
                    p += sign * EPS * moves[name]
                losses.append(reference(1.0))
                for name, p in named.items():
                    p -= sign * EPS * moves[name]
            c = (losses[0] - losses[1]) / (2 * EPS)
            for name, p in named.items():
                p -= LR * c * moves[name] / RANK
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.data, named[name].data, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("words", [["optim.sparsity=0.75"], ["peft=lora", "optim.rank=1", "optim.probes=2"]])
def test_a_run_goes_on_within_a_period_and_is_made_again(
    words: list[str], lezo_run: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, "optim=lozo", "optim.period=3", "train.steps=5", *words]
    whole = lezo_run(*words, folder="whole")
    assert whole.code == 0, whole.err
    assert "direction low-rank rank=" in whole.out
    lezo_run(*words, "train.steps=2", folder="out")
    ran = lezo_run(*words, "resume=auto", folder="out")
    assert ran.code == 0, ran.err
    journals = [lezo.read_journal(one.folder / "journal.bin") for one in (whole, ran)]
    steps = [[record.values for record in journal.steps(0, 5)] for journal in journals]
    assert steps[0] == steps[1] and whole.result["weights"] == ran.result["weights"]
    call = typed("lezo-replay", replay, monkeypatch, capsys)
    code, _, err = call(str(ran.folder), "replay.verify=true", "replay.device=cpu")
    assert code == 0, err
