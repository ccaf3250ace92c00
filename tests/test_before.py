"""What earlier commits wrote (tests/before) is still read, resumed and replayed to the same weights.

The folders were written by the last commit before the rooms, with noise 1, on a CPU: whole runs of 12 steps, and the
journal of a loop of one's own. Written anew they would prove nothing: a new kind of file gets a new folder.
"""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import lezo
from tests.lezo.whole_runs import Runner

BEFORE = Path(__file__).with_name("before")
JOURNALED = ["lezo", "lezo-metric", "mezo-head", "mezo-lora", "mezo-prefix"]
RUNS = [*JOURNALED, "fo-adamw-lora", "none"]


def overrides(folder: Path) -> list[str]:
    """The words of the command that wrote a run."""
    return shlex.split(json.loads((folder / "environment.json").read_text())["command"])[1:]


def rows(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


@pytest.mark.parametrize("name", JOURNALED)
def test_a_journal_of_before_makes_the_weights_that_its_result_names(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lezo.cli import replay

    shutil.copytree(BEFORE / name, run := tmp_path / name)
    monkeypatch.setattr("sys.argv", ["lezo-replay", str(run), "replay.verify=true", "replay.device=cpu"])
    with pytest.raises(SystemExit) as ended:
        replay.main()
    assert ended.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", JOURNALED)
def test_a_run_of_before_goes_on(name: str, lezo_run: Runner) -> None:
    shutil.copytree(BEFORE / name, "out")
    said = [word for word in overrides(BEFORE / name) if not word.startswith(("train.steps", "hydra."))]
    ran = lezo_run(*said, "train.steps=13", "resume=auto")
    assert ran.code == 0, ran.err
    assert ran.result["status"] == "finished"
    assert [row["step"] for row in ran.training()] == [*range(1, 14)]
    assert rows(ran.folder)[: len(rows(BEFORE / name)) - 1] == rows(BEFORE / name)[:-1]


def test_a_killed_run_of_before_goes_on_at_its_last_record(lezo_run: Runner) -> None:
    shutil.copytree(BEFORE / "lezo", out := Path("out"))
    (out / "result.json").unlink()
    (out / "predictions.jsonl").unlink()
    (out / "journal.bin").write_bytes((out / "journal.bin").read_bytes()[:-50])
    ran = lezo_run(*overrides(BEFORE / "lezo"), "model.device=cpu", "resume=auto")
    assert ran.code == 0, ran.err
    journal, before = (lezo.read_journal(folder / "journal.bin") for folder in (out, BEFORE / "lezo"))
    assert len(journal.records) == len(before.records)
    assert journal.records[:11] == before.records[:11]


def test_a_killed_first_order_run_of_before_goes_on_from_its_checkpoint(lezo_run: Runner) -> None:
    shutil.copytree(BEFORE / "fo-adamw-lora", out := Path("out"))
    (out / "result.json").unlink()
    ran = lezo_run(*overrides(BEFORE / "fo-adamw-lora"), "model.device=cpu", "resume=auto")
    assert ran.code == 0, ran.err
    assert json.loads((out / "environment.json").read_text())["from_step"] == 6
    assert [row["step"] for row in ran.training()] == [*range(1, 13)]


@pytest.mark.parametrize("name", RUNS)
def test_a_finished_run_of_before_has_nothing_left_to_do(name: str, lezo_run: Runner) -> None:
    shutil.copytree(BEFORE / name, "out")
    ran = lezo_run(*overrides(BEFORE / name), "model.device=cpu", "resume=auto")
    assert ran.code == 0, ran.err
    assert "finished already" in ran.out


def test_reports_know_the_runs_of_before() -> None:
    from lezo.records.reader import Reader

    runs = Reader().runs([BEFORE])
    assert [Path(run.folder).name for run in runs] == sorted(RUNS)
    assert {run.status for run in runs} == {"finished"}
    assert not [run.damage for run in runs if run.damage]


def small() -> nn.Module:
    """The module that the journal in before/loop was made on."""
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))
    with torch.no_grad():
        for number, p in enumerate(model.parameters()):
            p.copy_((torch.arange(p.numel()) % 7 - 3).float().view_as(p) / 8 + number / 16)
    return model


def test_the_journal_of_a_loop_of_before_is_applied_to_the_same_bits() -> None:
    model = small()
    assert lezo.apply_journal(model, BEFORE / "loop" / "journal.bin") == 10
    assert lezo.weights_hash(model) == "7f09347740d7724bc4547cbbc6ddc30f57721273617e4fb7ae3a9f8a5529f423"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
def test_a_model_saved_before_is_read_by_peft() -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from lezo.model.load import TINY

    base = AutoModelForCausalLM.from_pretrained(TINY)
    tuned = PeftModel.from_pretrained(base, BEFORE / "mezo-lora" / "model")
    assert any("lora_B" in name and p.any() for name, p in tuned.named_parameters())
