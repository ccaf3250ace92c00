"""Whole runs on a quantised base: stopped and gone on with, made again, refused."""

from pathlib import Path

import pytest

from lezo.cli import replay
from tests.lezo.arranged import ctrl_c_in_step
from tests.lezo.quantised_folders import needs_bitsandbytes, saved
from tests.lezo.whole_runs import SMALL, Runner, typed


@pytest.fixture(autouse=True)
def _bitsandbytes() -> None:
    needs_bitsandbytes()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft, loading the adapter by the code of its card
@pytest.mark.parametrize(
    ("kind", "optim"), [("8bit", ["peft=prefix"]), ("4bit", ["peft=lora", "optim=zo-momentum"])]
)
def test_a_run_that_stops_ends_as_one_that_does_not_and_is_replayed(
    kind: str,
    optim: list[str],
    lezo_run: Runner,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [*SMALL, *optim, f"model.quantization={kind}", "resume=auto"]
    whole = lezo_run(*words, folder="whole")
    assert whole.code == 0, whole.err
    assert (
        f"linear layers frozen in {kind[0]} bits (bitsandbytes)" in whole.out
        and "rows plain" not in whole.out
    )
    with monkeypatch.context() as patch:
        ctrl_c_in_step(patch, 3)
        assert lezo_run(*words, folder="parts").code == 130
    again = lezo_run(*words, folder="parts")
    assert again.result["weights"] == whole.result["weights"]
    verify = typed("lezo-replay", replay.main, monkeypatch, capsys)
    code, out, err = verify("whole", "replay.verify=true", "replay.device=cpu")
    assert (code, err) == (0, "") and "everything is right" in out
    assert verify("parts", "replay.out=adapter", "replay.device=cpu")[0] == 0
    card = Path("adapter/README.md").read_text().partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir("adapter")
    exec(card, names := {})
    assert names["model"].get_base_model().is_quantized


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_a_run_on_a_checkpoint_of_bitsandbytes(kind: str, lezo_run: Runner) -> None:
    folder = saved(kind, Path(kind))
    words = [*SMALL, "model=hf", f"model.path={folder}", "data=sample", "optim.lr=1e-2"]
    assert lezo_run(*words, "peft=lora", folder="run").result["status"] == "finished"
    lezo_run(*words, folder="all").refused(kind, f"{kind[0]}-bit", "peft=none", "peft=lora", code=1)
    twice = lezo_run(*words, "peft=lora", f"model.quantization={kind}", folder="twice")
    twice.refused("bitsandbytes", f"model.quantization={kind}", "leave it out")
    assert lezo_run(*words[:-1], "optim=none", folder="scored").result["status"] == "finished"


def test_gradients_train_an_adapter_on_it(lezo_run: Runner) -> None:
    """As QLoRA does."""
    ran = lezo_run(*SMALL, "optim=fo-adamw", "peft=lora", "model.quantization=4bit", folder="fo")
    assert ran.result["status"] == "finished", ran.err
    assert len({row["loss"] for row in ran.training()}) > 1
