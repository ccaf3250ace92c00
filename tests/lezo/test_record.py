"""The run folder's files."""

import json
from pathlib import Path

import pytest
import torch

from lezo.evaluate import Evaluation
from lezo.optim import StepReport
from lezo.record import FolderError, RunFolder, environment, peak_memory


@pytest.fixture
def folder(tmp_path: Path):
    opened = RunFolder(tmp_path / "a" / "run")
    yield opened
    opened.close()


def test_rows_are_on_disk_as_soon_as_they_are_written(folder: RunFolder):
    folder.trained(1, 0.5, StepReport(0.7, True, {"g": 2.0, "lr": 1e-3}))
    folder.evaluated(1, 0.75, Evaluation(0.6, 0.5))
    train, dev = map(json.loads, (folder.path / "metrics.jsonl").read_text().splitlines())
    assert train.pop("memory") > 0
    assert train == {"step": 1, "seconds": 0.5, "loss": 0.7, "g": 2.0, "lr": 1e-3, "skipped": False}
    assert dev == {"step": 1, "seconds": 0.75, "dev_loss": 0.6, "dev_score": 0.5}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_json_cannot_hold_becomes_null(folder: RunFolder, value: float):
    folder.json("result.json", {"a": value, "b": [value, 1.5]})
    assert json.loads((folder.path / "result.json").read_text()) == {"a": None, "b": [None, 1.5]}
    assert [file.name for file in folder.path.glob(".*")] == []  # no partial file stays


def test_a_folder_that_holds_a_run_is_refused(folder: RunFolder):
    folder.text("config.yaml", "seed: 0\n")
    with pytest.raises(FolderError, match=r"already holds a run; .*hydra\.run\.dir"):
        RunFolder(folder.path)


def test_a_folder_that_cannot_be_made_is_an_error_in_words(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match=r"cannot write there \(.*\); .*hydra\.run\.dir"):
        RunFolder(tmp_path / "file" / "run")


def test_the_environment_names_versions_and_no_secrets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "s3cret")
    found = environment(torch.device("cpu"))
    assert found["packages"]["torch"] == torch.__version__
    assert found["device"]
    assert "s3cret" not in json.dumps(found)


def test_peak_memory_is_in_bytes():
    assert 50 * 2**20 < peak_memory()["host"] < 2**40
