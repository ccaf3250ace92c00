"""The zero-shot score is computed once for the runs of a sweep that share all that it depends on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lezo.config.schema import ReplayConfig
from lezo.runs.replay import replayed
from lezo.runs.together import Together
from tests.lezo.whole_runs import Ran, Runner, timeless

SHARED = Path("sweep/.zero-shot")


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch, lezo_run: Runner) -> Iterator[list[str]]:
    """The splits that runs evaluate, in a folder where they share scores."""
    del lezo_run  # whose folder this is
    splits: list[str] = []
    real = Together.evaluate
    monkeypatch.setattr(Together, "evaluate", lambda self, split: splits.append(split) or real(self, split))
    SHARED.mkdir(parents=True)
    yield splits


def ended(ran: Ran) -> dict[str, Any]:
    """What a run leaves, but for clocks, memory, its name and where its zero-shot score is from."""
    apart = ("seconds", "peak_memory_bytes", "memory_bytes", "command", "zero_shot_from")
    assert ran.code == 0, ran.err
    rows = [timeless(row) | {"zero_shot_from": None} for row in ran.rows("metrics.jsonl")]
    return {
        "result": {key: value for key, value in ran.result.items() if key not in apart},
        "rows": rows,
        "predictions": (ran.folder / "predictions.jsonl").read_bytes(),
    }


def test_it_is_computed_once_to_the_same_bits(lezo_run: Runner, evaluated: list[str]) -> None:
    first = lezo_run("seed=0", folder="sweep/first")
    assert evaluated[0] == "test" and first.result["zero_shot_from"] is None
    alone = lezo_run("seed=1", folder="alone/second")
    evaluated.clear()
    second = lezo_run("seed=1", folder="sweep/second")
    assert "test" not in evaluated and evaluated.count("last test") == 1
    assert ended(second) == ended(alone)
    before, *_ = second.rows("metrics.jsonl")
    assert second.result["zero_shot_from"] == before["zero_shot_from"] == "first"
    assert "zero_shot_from" not in first.rows("metrics.jsonl")[0]
    assert f"test zero-shot: accuracy {second.result['zero_shot']:.4f}  (computed by first)\n" in second.out
    other = lezo_run("task.num_train=24", "optim=fo-sgd", "train.steps=2", folder="sweep/third")
    assert other.result["zero_shot_from"] == "first"  # neither method nor training rows change it
    evaluated.clear()
    again = lezo_run("seed=1", "train.steps=6", "resume=auto", folder="sweep/second")
    assert again.result["zero_shot_from"] == "first" and "test" not in evaluated
    assert again.rows("metrics.jsonl")[0] == before
    assert replayed(again.folder, ReplayConfig(verify=True, device="cpu")) == 0


CHANGES = (
    "eval.batch_size=4",  # sums over other batches round otherwise
    "task.num_test=7",
    "eval.calibration=sfc",
    "model.dtype=bfloat16",
    "sweep.share_zero_shot=false",
)


def test_whatever_changes_it_computes_it_anew(lezo_run: Runner, evaluated: list[str]) -> None:
    scored = ["optim=none", "task.num_train=0", "task.num_dev=0"]
    lezo_run(*scored, folder="sweep/first")
    changed = [lezo_run(*scored, change, folder=f"sweep/{i}") for i, change in enumerate(CHANGES)]
    assert [ran.result["zero_shot_from"] for ran in changed] == [None] * len(CHANGES)
    assert evaluated == ["last test"] * (1 + len(CHANGES))
    assert lezo_run(*scored, "seed=1", folder="sweep/last").result["zero_shot_from"] == "first"


def test_a_run_that_only_scores_takes_its_predictions_too(lezo_run: Runner, evaluated: list[str]) -> None:
    scored = ["optim=none", "task=squad", "task.num_test=4"]
    alone = lezo_run(*scored, folder="alone/second")
    lezo_run(*scored, "seed=1", folder="sweep/first")
    evaluated.clear()
    second = lezo_run(*scored, folder="sweep/second")
    assert evaluated == ["dev"] and ended(second) == ended(alone)
    assert second.result["test"] == second.result["zero_shot"] is not None
    assert second.result["zero_shot_from"] == "first"


def test_outside_of_a_sweep_every_run_computes_its_own(lezo_run: Runner, evaluated: list[str]) -> None:
    for name in ("one", "two"):
        assert lezo_run("optim=none", folder=f"elsewhere/{name}").result["zero_shot_from"] is None
    assert evaluated.count("last test") == 2 and not list(Path("elsewhere").glob(".*"))


def test_with_demonstrations_it_is_not_called_zero_shot(lezo_run: Runner) -> None:
    shown = lezo_run("optim=icl", "task.demos=3", folder="icl")
    assert f"test in context, 3 demonstrations: accuracy {shown.result['test']:.4f}\n" in shown.out
    assert f"test accuracy  {shown.result['test']:.4f}  (in context, 3 demonstrations)\n" in shown.out
    assert "zero-shot" not in shown.out and shown.result["zero_shot"] == shown.result["test"]
    bare = lezo_run("optim=none", folder="bare")
    assert f"test accuracy  {bare.result['test']:.4f}  (zero-shot)\n" in bare.out
    trained = lezo_run("task.demos=1", folder="trained")
    assert f"(in context, 1 demonstration {trained.result['zero_shot']:.4f})\n" in trained.out
