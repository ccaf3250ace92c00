"""A run that ranks share ends in the bits of one process with the same micro-batches."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lezo.ranks.ranks import RankError
from lezo.records.journal import Kind
from lezo.runs import follow
from lezo.zo.zeroth_order import SeededUpdate
from tests.lezo.ranks.threads import left, run_by
from tests.lezo.whole_runs import SMALL, Runner, little_model

# Seven examples in parts of two: the ranks have unequal shares, and the last of four has none in a short batch.
SHARED = [*SMALL, "train.batch_size=7", "train.micro_batch_size=2", "log=files"]


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (2, []),
        (4, ["task=sst2", "optim=mezo"]),
        (3, ["task=squad", "train.steps=2"]),  # scores answers' tokens, and generates
        (2, ["task=squad", "train.steps=2", "optim.objective=metric"]),
        (2, ["peft=lora"]),
        (4, ["task=sst2", "optim=exzo"]),
        (2, ["optim=fzoo", "optim.probes=2"]),
        (2, ["optim=lozo", "optim.probes=2", "optim.period=3"]),
        (2, ["peft=prefix"]),
        (2, ["optim=adalezo", "optim.alpha=0.5", "peft=lora"]),
        (3, ["optim=none", "eval.calibration=sfc"]),
        (2, ["optim=lp"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_the_bits_are_those_of_one_process(
    lezo_run: Runner, ranks: int, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    alone = lezo_run(*SHARED, *overrides, folder="alone")
    assert run_by(ranks, [*SHARED, *overrides, "hydra.run.dir=shared"]) == 0
    assert left(Path("shared")) == left(alone.folder)
    assert re.search(rf"\n  ranks +{ranks}, ", capsys.readouterr().out)


def test_ranks_take_a_zero_shot_score_at_rank_0s_word(
    capsys: pytest.CaptureFixture[str], lezo_run: Runner
) -> None:
    alone = lezo_run.once(*SHARED, folder="alone")
    Path("sweep/.zero-shot").mkdir(parents=True)
    for name in ("first", "second"):
        assert run_by(2, [*SHARED, f"hydra.run.dir=sweep/{name}"]) == 0
        shared = left(Path("sweep") / name)
        assert shared["rows"][0].pop("zero_shot_from", None) == (None if name == "first" else "first")
        assert shared == left(alone.folder)
    result = json.loads(Path("sweep/second/result.json").read_text())
    assert result["zero_shot_from"] == "first" and "(computed by first)" in capsys.readouterr().out


def test_each_rank_takes_a_part_of_its_own(lezo_run: Runner) -> None:
    """Where the size of micro-batches is open, a batch is cut into as many as there are ranks."""
    alone = lezo_run(*SMALL, "train.batch_size=6", "train.micro_batch_size=2", folder="alone")
    assert run_by(3, [*SMALL, "train.batch_size=6", "hydra.run.dir=shared"]) == 0
    assert left(Path("shared"))["journal"] == left(alone.folder)["journal"]


@pytest.mark.parametrize("method", [[], ["optim=zo-adam", "train.checkpoint_every=1"]], ids=" ".join)
def test_another_number_of_ranks_goes_on_to_the_same_bits(method: list[str], lezo_run: Runner) -> None:
    alone = lezo_run(*SMALL, *method, "train.batch_size=6", "train.micro_batch_size=3", folder="alone")
    given = [*SMALL, *method, "train.batch_size=6", "hydra.run.dir=shared", "resume=auto"]
    for ranks, steps in ((2, 2), (3, 3), (1, 4)):
        assert run_by(ranks, [*given, f"train.steps={steps}"]) == 0
    steps = [
        [r for r in left(f)["journal"][2] if r.kind is not Kind.dev] for f in (Path("shared"), alone.folder)
    ]
    assert steps[0] == steps[1]
    assert left(Path("shared"))["weights"] == left(alone.folder)["weights"]


def test_a_rank_with_other_weights_is_named(lezo_run: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("one", "other"):
        little_model(folder)
    weights = load_file("other/model.safetensors")
    save_file(
        {name: t + (name.endswith("fc1.bias")) for name, t in weights.items()},
        "other/model.safetensors",
        {"format": "pt"},
    )
    del lezo_run  # whose folder this is
    words = [*SMALL, "model=hf", "optim.lr=1e-3", "data=sample"]
    with pytest.raises(RankError, match="rank 1 differs: weights [0-9a-f]{12}, rank 0 has [0-9a-f]{12}"):
        run_by(2, [*words, "model.path=one", "hydra.run.dir=out"], ["model.path=other"])
    assert "error: rank 1 differs: weights" in capsys.readouterr().err
    assert json.loads(Path("out/result.json").read_text())["status"] == "failed"


def test_a_rank_with_other_settings_says_so(lezo_run: Runner) -> None:
    del lezo_run
    with pytest.raises(RankError, match="its settings are another run's"):
        run_by(2, [*SMALL, "hydra.run.dir=out"], ["seed=1"])


def test_ranks_whose_weights_drifted_apart_are_stopped(
    lezo_run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the next evaluation, whatever made them drift: here an update that one of them skips."""
    del lezo_run
    real, first = SeededUpdate.apply, []

    def apply(update: SeededUpdate, step: int, coefficients: torch.Tensor) -> None:
        first.append(first[0] if first else update)
        if step != 1 or update is first[0]:
            real(update, step, coefficients)

    monkeypatch.setattr(SeededUpdate, "apply", apply)
    with pytest.raises(RankError, match="differs after the same steps: weights"):
        run_by(2, [*SMALL, "hydra.run.dir=out"])


def test_a_rank_with_less_room_has_all_generate_less_at_a_time(
    lezo_run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*SHARED, "task=squad", "train.steps=2"]
    alone = lezo_run(*words, folder="alone")
    real = follow.make_plan
    monkeypatch.setattr(follow, "make_plan", lambda config: replace(real(config), prompts_at_once=3))
    assert run_by(2, [*words, "hydra.run.dir=shared"]) == 0
    assert left(Path("shared"))["predictions"] == left(alone.folder)["predictions"]
