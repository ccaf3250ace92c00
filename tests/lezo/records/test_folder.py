"""The run folder's files: complete or absent, valid JSON, without secrets."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lezo.records.environment import environment, forget_peak_memory, peak_memory
from lezo.records.files import FolderError
from lezo.records.folder import RunFolder
from lezo.records.rows import DevRow, TestRow, TrainRow
from lezo.records.strict import read_result
from tests.lezo.refusals import refused
from tests.lezo.whole_runs import limited

NAN, INF = float("nan"), float("inf")
TRAIN = TrainRow(1, 0.25, 0.5, {"g": 2.0, "lr": 1e-6}, phases={"data": 0.1, "forward": 0.2}, memory=2**20)


def begun(path: Path, *, resume: bool = False) -> RunFolder:
    folder = RunFolder(path, resume=resume)
    folder.begin()
    return folder


def test_metrics_are_readable_while_the_run_goes_on(tmp_path: Path) -> None:
    folder = begun(tmp_path / "new" / "run")
    folder.evaluated(DevRow(0, 0.0, 0.7, 0.5, 1.5))
    folder.trained(TRAIN)
    rows = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    folder.close()
    dev = {"step": 0, "seconds": 0.0, "dev_loss": 0.7, "dev_score": 0.5, "eval_seconds": 1.5}
    assert rows[0] == dev
    assert rows[1] == TRAIN.values()


def test_a_train_row_has_the_steps_measures_and_no_dev_columns() -> None:
    row = TrainRow(3, 1.23456789, 0.5, {"g": NAN, "lr": 1e-6}, skipped=True).values()
    assert {"step", "seconds", "loss", "g", "lr", "skipped", "phases", "memory"} == set(row)
    assert TRAIN.values()["phases"] == {"data": 0.1, "forward": 0.2}
    assert (row["step"], row["seconds"], row["skipped"]) == (3, 1.2346, True)
    columns = {"step", "seconds", "dev_loss", "dev_score", "eval_seconds"}
    assert set(DevRow(3, 1.0, None, 0.5).values()) == columns


def test_the_first_score_is_a_row_and_the_last_has_its_predictions(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    folder.tested(TestRow(0, 0.0, 0.7, 0.25, [{"index": 0}], "zero-shot"))
    assert not (tmp_path / "predictions.jsonl").exists()
    folder.tested(TestRow(9, 0.0, 0.6, 0.5, [{"index": 1}], "at step 9", last=True))
    folder.close()
    first = {"step": 0, "seconds": 0.0, "test_loss": 0.7, "test_score": 0.25}
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [first]
    assert json.loads((tmp_path / "predictions.jsonl").read_text()) == {"index": 1}


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_what_is_not_a_finite_number_becomes_null(value: float, tmp_path: Path) -> None:
    folder = begun(tmp_path)
    folder.json("result.json", {"test": value, "seconds": {"total": value}, "list": [1.5, value]})
    folder.lines("predictions.jsonl", [{"scores": (value, 0.5)}])
    folder.trained(TrainRow(1, 0.0, value, skipped=True))
    folder.close()
    text = (tmp_path / "result.json").read_text()
    assert json.loads(text) == {"test": None, "seconds": {"total": None}, "list": [1.5, None]}
    assert json.loads((tmp_path / "predictions.jsonl").read_text()) == {"scores": [None, 0.5]}
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] is None


def test_a_file_is_complete_or_absent(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    folder.json("result.json", {"status": "finished"})

    def rows() -> object:
        yield {"index": 0}
        raise RuntimeError

    with pytest.raises(RuntimeError):
        folder.lines("predictions.jsonl", rows())  # type: ignore[arg-type]
    folder.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == [".lock", "metrics.jsonl", "result.json"]


def test_text_beyond_ascii_stays_readable(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    folder.lines("predictions.jsonl", [{"text": "Zoë\u2028"}])
    folder.close()
    assert (tmp_path / "predictions.jsonl").read_text(encoding="utf-8") == '{"text": "Zoë\u2028"}\n'


def test_a_folder_that_holds_a_run_is_refused_unless_it_is_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with refused(FolderError, str(tmp_path), "resume=auto", "hydra.run.dir=DIR"):
        RunFolder(tmp_path)
    assert not (tmp_path / ".lock").exists()
    folder = RunFolder(tmp_path, resume=True)
    assert folder.holds_run
    folder.close()


def test_two_processes_cannot_work_in_one_folder(tmp_path: Path) -> None:
    code = f"from lezo.records.folder import *; RunFolder(Path({str(tmp_path)!r})); print('in', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "in\n"
        for resume in (False, True):
            with refused(FolderError, str(tmp_path), f"pid {other.pid}"):
                RunFolder(tmp_path, resume=resume)
        other.kill()
        other.wait()
        RunFolder(tmp_path).close()  # the lock went with the process
    again = RunFolder(tmp_path)
    again.close()


def test_a_resumed_folder_holds_just_the_rows_that_last(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    folder.row({"step": 1})
    folder.row({"step": 2})
    folder.json("result.json", {"status": "interrupted"})
    folder.close()
    assert read_result(tmp_path) == {"status": "interrupted"}
    again = RunFolder(tmp_path, resume=True)
    again.begin(b'{"step": 1}\n')
    again.row({"step": 3})
    again.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 3}\n'
    assert read_result(tmp_path) is None


def test_a_damaged_result_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{")
    with refused(FolderError, str(tmp_path / "result.json"), "resume=auto"):
        read_result(tmp_path)


def test_every_session_leaves_its_surroundings(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    for command in ("first", "second", "third"):
        folder.session({"command": command})
    found = json.loads((tmp_path / "environment.json").read_text())
    assert found["command"] == "third"
    assert [session["command"] for session in found["earlier"]] == ["first", "second"]
    assert {session["run_id"] for session in found["earlier"]} == {folder.run_id()} == {found["run_id"]}
    folder.close()


def test_a_full_disk_is_said_and_what_was_written_stays(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    folder.row({"step": 1})
    folder.json("result.json", {"status": "interrupted"})
    with refused(FolderError, "metrics.jsonl"), limited(len('{"step": 1}\n') + 5):
        folder.row({"step": 2})
    folder.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step": 1}\n{"ste'
    assert read_result(tmp_path) == {"status": "interrupted"}


@pytest.mark.parametrize("name", ["metrics.jsonl", ".lock"])
def test_a_link_in_the_place_of_a_file_is_not_followed(name: str, tmp_path: Path) -> None:
    target, run = tmp_path / "precious", tmp_path / "run"
    target.write_text("precious")
    run.mkdir()
    (run / name).symlink_to(target)
    try:
        begun(run).close()
    except FolderError as error:
        assert str(run) in str(error)
    assert target.read_text() == "precious"


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with refused(FolderError, str(tmp_path / "file" / "run")):
        RunFolder(tmp_path / "file" / "run")


def test_the_environment_says_versions_and_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    found = environment(torch.device("cpu"))
    assert found["packages"]["torch"] == torch.__version__.split("+")[0] or found["packages"]["torch"]
    assert {"python", "platform", "packages", "device", "cpu_threads", "git_commit", "started"} == set(found)
    assert "secret" not in json.dumps(found)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process forget its peak")
def test_peak_memory_is_in_bytes_and_each_run_of_a_process_has_its_own() -> None:
    forget_peak_memory()
    before = peak_memory()["host"]
    held = bytearray(b"x") * 2**27
    during = peak_memory()["host"]
    del held
    forget_peak_memory()
    assert during - before > 2**26 and during - peak_memory()["host"] > 2**26


@pytest.mark.skipif(sys.platform != "linux", reason="getrusage counts the parent's peak on Linux only")
def test_peak_memory_is_not_that_of_the_process_it_was_started_from() -> None:
    held = bytearray(b"x") * 2**28
    code = "from lezo.records.environment import resident_peak; print(resident_peak())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 2**20 < int(done.stdout) < len(held)


def test_bytes_are_written_whole(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    folder.data("steps.png", b"\x89PNG\r\n")
    folder.row({"variant": "lezo", "seconds": 1.5})
    folder.close()
    assert (tmp_path / "steps.png").read_bytes() == b"\x89PNG\r\n"
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"variant": "lezo", "seconds": 1.5}


def test_a_cleared_folder_keeps_no_model_that_would_be_taken_for_somebodys(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    folder = RunFolder(tmp_path, resume=True)
    folder.clear()
    folder.begin()
    folder.close()
    assert not (tmp_path / "model").exists()
