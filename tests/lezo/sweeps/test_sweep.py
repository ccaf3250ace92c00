"""lezo-run -m: every combination as a process of its own, found again by its configuration, and a table at the end."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lezo.config.schema import ConfigError
from lezo.sweeps import sweep as driver
from lezo.sweeps.jobs import SweepJob, jobs
from lezo.sweeps.sweep import sweep
from tests.lezo.refusals import refused
from tests.lezo.sweeps.composed import compose_once
from tests.lezo.sweeps.forked import Forked

FAKE = Path(__file__).with_name("fake_run.py")
OUT = "hydra.sweep.dir=out"
Words = Callable[..., list[list[str]]]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("lezo.sweeps.slots.has_driver", lambda: False)
    monkeypatch.setattr("lezo.sweeps.jobs.compose", compose_once)
    handler = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is handler


def fake_command(job: SweepJob, group: str, config_dir: str | None) -> list[str]:
    """A fake that does what log.tags say."""
    (job.folder / "config.yaml").write_text(job.composed.yaml)
    return [sys.executable, str(FAKE), str(job.folder), *job.composed.config.log.tags]


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> Words:
    """Makes the jobs of a sweep fakes that do what the words say, by number; returns the commands of the real ones.

    A real one takes ten seconds to start.
    """
    real, started = driver.job_command, []

    def fakes(*words: str) -> list[list[str]]:
        def command(job: SweepJob, group: str, config_dir: str | None) -> list[str]:
            started.append(real(job, group, config_dir))
            (job.folder / "config.yaml").write_text(job.composed.yaml)
            return [sys.executable, str(FAKE), str(job.folder), *words[job.number].split()]

        monkeypatch.setattr(driver, "job_command", command)
        started.clear()
        return started

    return fakes


def table(out: str) -> dict[str, list[str]]:
    """The printed table of jobs: job -> its other cells."""
    jobs = out.partition("┃ setting ")[0]  # another table comes behind it where seeds were swept
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in jobs.splitlines() if "│" in line]
    return {row[0]: row[1:] for row in rows}


def saved(folder: str = "out") -> list[dict[str, Any]]:
    (file,) = Path(folder).glob("sweep-*.json")
    return json.loads(file.read_text())  # type: ignore[no-any-return]


def statuses(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [row["status"] for row in rows]


def folders(*overrides: str) -> list[Path]:
    return [job.folder for job in jobs(overrides)]


def test_a_failing_job_shows_its_end_and_the_others_finish(
    words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    words("fail", "ok")
    command = ["seed=0,1", OUT]
    assert sweep(command) == 1
    out, (bad, good) = capsys.readouterr().out, folders(*command)
    assert out.startswith("sweep of 2 jobs in out\n[1/2] started: seed=0\n")
    assert f"[1/2] failed: seed=0; the end of {bad}/console.log:\n    | said at the end: failed\n" in out
    assert out.index("[2/2] started: seed=1") > out.index("[1/2] failed")
    assert out.endswith("1 of 2 jobs did not finish; the same command tries them again\n")
    shown, rows = table(out), saved()
    assert statuses(rows) == [shown[row["job"]][-1] for row in rows] == ["failed", "finished"]
    assert [row["job"] for row in rows] == ["seed=0", "seed=1"]
    assert set(rows[1]) == {
        "job",
        "metric",
        "dev_loss",
        "dev",
        "test",
        "seconds",
        "memory",
        "status",
        "folder",
    }
    result = json.loads((good / "result.json").read_text())
    assert (rows[1]["dev"], rows[1]["test"]) == (result["dev"], result["test"])
    assert shown["seed=1"][:4] == [
        "accuracy",
        f"{result['dev_loss']:.4f}",
        f"{result['dev']:.4f}",
        f"{result['test']:.4f}",
    ]


def test_a_job_that_dies_without_a_result_is_told_by_its_exit_code(
    words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    words("die", "kill", "ok")
    assert sweep(["seed=0,1,2", "hydra.sweep.dir='with space'"]) == 1
    out = capsys.readouterr().out
    expected = ["failed (exit code 7)", "failed (exit code -9)", "finished"]
    assert statuses(saved("with space")) == [cells[-1] for cells in table(out).values()] == expected
    assert "| line 29\n" in out and "| line 18\n" in out and "| line 17\n" not in out


def test_a_repeated_command_runs_what_is_not_complete_and_another_has_its_own_file(
    words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    words("ok", "fail", "kill")
    assert sweep(["seed=0,1,2", OUT]) == 1
    logs = [folder / "console.log" for folder in folders("seed=0,1,2", OUT)]
    said = [log.read_text() for log in logs]
    capsys.readouterr()
    started = words("die", "ok", "ok", "ok")
    assert sweep(["seed=0,2,1", OUT]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        "sweep of 3 jobs in out, 1 of them finished before\n[2/3] goes on (interrupted before)"
    )
    assert "[3/3] goes on (failed before): seed=1\n" in out and "1 of 3 were finished before" in out
    assert [command[-4:-1] for command in started] == [
        [f"seed={seed}", "resume=auto", f"log.group={next(Path('out').glob('*.json')).stem}"]
        for seed in (2, 1)
    ]
    assert statuses(saved()) == ["finished"] * 3  # one file: the same jobs
    assert [log.read_text() for log in logs] == [
        said[0],
        said[1] + "said at the end: finished\n",
        "said at the end: finished\n",
    ]
    assert sweep(["seed=0,3", "log.group=mine", OUT]) == 0
    assert len(started) == 3 and not any(text.startswith("log.group=sweep") for text in started[-1])
    assert len(list(Path("out").glob("sweep-*.json"))) == 2
    assert sweep(["seed=0,3", OUT]) == 0
    assert len(started) == 3


def test_an_attempt_is_not_mistaken_for_an_earlier_one(
    words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    words("fail")
    assert sweep(["seed=0", OUT]) == 1
    assert saved()[0]["dev"] == 0.5
    assert "    | said at the end: failed\n" in capsys.readouterr().out
    words("kill")
    assert sweep(["seed=0", OUT]) == 1
    assert (saved()[0]["status"], saved()[0]["dev"]) == ("failed (exit code -9)", None)
    assert "said at the end" not in capsys.readouterr().out


def test_what_diverged_is_tried_again_only_when_asked_and_from_its_beginning(
    words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = "a diverged job is not tried again unless sweep.retry_failed=true"
    command, left = ["seed=0,1,2", OUT], f"1 diverged ({rule})"
    words("diverge", "fail", "ok")
    assert sweep(command) == 1
    out = capsys.readouterr().out
    assert "[1/3] diverged: seed=0; the end of " in out
    assert out.endswith(f"2 of 3 jobs did not finish; {left}; the same command tries 1 of them again\n")
    assert statuses(saved()) == ["diverged", "failed", "finished"]
    started = words("die", "ok", "die")
    assert sweep(command) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"sweep of 3 jobs in out, 1 of them finished before, {left}\n")
    assert out.endswith(f"1 of 3 jobs did not finish; {left}\n") and len(started) == 1
    diverged, *_ = folders(*command)
    (diverged / "journal.bin").touch()
    words("ok", "die", "die")
    assert sweep([*command, "sweep.retry_failed=true"]) == 0
    assert "[1/3] started: seed=0\n" in capsys.readouterr().out
    assert statuses(saved()) == ["finished"] * 3 and not (diverged / "journal.bin").exists()


def test_failed_jobs_are_left_where_that_is_asked_for(
    words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    words("fail", "diverge")
    assert sweep(["seed=0,1", OUT]) == 1
    capsys.readouterr()
    started = words("ok", "ok")
    assert sweep(["seed=0,1", "sweep.retry_failed=false", OUT]) == 1
    out = capsys.readouterr().out
    assert (
        not started
        and "1 failed and 1 diverged (a failed or diverged job is not tried again " in out.splitlines()[0]
    )
    assert "the same command" not in out and statuses(saved()) == ["failed", "diverged"]


def test_at_the_end_stand_the_seeds_means_the_best_run_and_what_to_do_next(
    words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["optim=lezo", "seed=0,1,2", "sweep.best=true", "hydra.sweep.dir='a b'"]
    words("ok", "ok", "fail")
    assert sweep(command) == 1
    *_, setting, _, _, best, _, folder, model, one, following, _ = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in setting.split("│")[1:-1]]
    assert cells[:4] == ["all jobs", "2 of 3", "accuracy", "0.2500 ± 0.0000"]
    assert best.endswith("rte (sample), tiny, lezo: seed=0 (of 2 runs, the first of 2 equals)")
    assert folder.split("  ")[-1] == str(folders(*command)[0])
    assert "save_model=true" in model  # a fake leaves no journal
    assert one == "each best is one run; means over seeds are in the table above"
    assert following == "next: lezo-report 'a b'"


def test_runs_share_their_zero_shot_score_where_that_is_wanted(words: Words) -> None:
    words("ok", "ok")
    assert sweep(["seed=0", "sweep.share_zero_shot=false", OUT]) == 0
    assert not Path("out/.zero-shot").exists()
    assert sweep(["seed=1", OUT]) == 0 and Path("out/.zero-shot").is_dir()
    Path("out/.zero-shot").rmdir()
    Path("out/.zero-shot").touch()
    with refused(ConfigError, "out/.zero-shot: ", "sweep.share_zero_shot=false"):
        sweep(["seed=2", OUT])


def test_a_dry_run_plans_each_job(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = "print(*range(20), sep='\\n')"
    monkeypatch.setattr(driver, "job_command", lambda *_: [sys.executable, "-c", plan])
    assert sweep(["seed=0,1", "dry_run=true", OUT]) == 0
    out = capsys.readouterr().out
    assert statuses(saved()) == ["planned"] * 2
    assert out.count("    | 0\n    | 1\n") == 2
    assert "finish" not in out


def test_jobs_run_in_slots_that_share_the_cores(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("lezo.sweeps.slots.cores", lambda: 6)
    words("meet", "meet", "ok")
    assert sweep(["seed=0,1,2", "sweep.slots=2", OUT]) == 0
    for folder in folders("seed=0,1,2", OUT):
        environment = json.loads((folder / "environment.json").read_text())
        assert environment.items() >= {"OMP_NUM_THREADS": "3"}.items()
        assert "LEZO_SWEEP_PIPE" not in environment  # the run took it out


def test_each_slot_has_a_gpu(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lezo.sweeps.slots.visible_gpus", lambda: ["GPU-a", "GPU-b"])
    words("meet", "meet", "ok")
    assert sweep(["seed=0,1,2", OUT]) == 0
    seen = [
        json.loads((folder / "environment.json").read_text())["CUDA_VISIBLE_DEVICES"]
        for folder in folders("seed=0,1,2", OUT)
    ]
    assert seen[:2] == ["GPU-a", "GPU-b"] and seen[2] in seen[:2]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["seed=0,-1", "train.steps=0,5"], ["job 0 (seed=0 train.steps=0): train.steps=0: "]),
        (["seed=0,1", "sweep.bset=true"], ["sweep.bset=True: "]),
        (["optim=lezo,lezzo"], ["job 1 (optim=lezzo): optim=lezzo: "]),
        (["optim.lr=interval(0,1)"], ["optim.lr=interval(0,1): ", "commas"]),
        (["optim.lr=1,[2"], ["optim.lr=1,[2: "]),
        (["model.device=cuda:0,cuda:1"], ["model.device=cuda:1: ", "CUDA_VISIBLE_DEVICES=1"]),
    ],
)
def test_one_bad_job_stops_the_sweep_before_anything_runs(
    overrides: list[str], named: list[str], tmp_path: Path
) -> None:
    with refused(ConfigError, *named) as wrong:
        sweep([*overrides, OUT])
    assert ("job 0" in str(wrong.value)) == ("job 0" in named[0])
    assert not list(tmp_path.iterdir())


def test_all_jobs_agree_on_the_slots() -> None:
    with refused(ConfigError, "sweep.slots: ", "'2', '3'"):
        sweep(["seed=2,3", "sweep.slots=${seed}", OUT])


def test_a_folder_that_cannot_be_written_is_refused() -> None:
    Path("out").touch()
    with refused(ConfigError, "out: ", "hydra.sweep.dir"):
        sweep(["seed=1,2", OUT])


def test_a_job_that_cannot_start_has_failed_and_the_others_run(words: Words) -> None:
    words("ok", "ok")
    first, _ = folders("seed=1,2", OUT)
    first.parent.mkdir()
    first.touch()
    assert sweep(["seed=1,2", OUT]) == 1
    assert statuses(saved()) == ["failed (File exists)", "finished"]


def test_where_the_sweeps_file_cannot_be_written_any_more_the_jobs_go_on(
    words: Words, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    words("ok", "ok")
    monkeypatch.setattr(
        "lezo.sweeps.sweep.os.replace", lambda *_: monkeypatch.setattr("lezo.sweeps.sweep.os.replace", full)
    )
    assert sweep(["seed=1,2", OUT]) == 0
    out = capsys.readouterr().out
    assert ".json: cannot write there (No space left on device); the jobs' results stay" in out
    assert [cells[-1] for cells in table(out).values()] == ["finished"] * 2


class Process:
    """A sweep of fakes as a process of its own, in this folder; as many jobs run as there are slots."""

    def __init__(self, *overrides: str, slots: int) -> None:
        self.folders = folders(*overrides, OUT)
        self.driver = Forked(lambda: sweep([*overrides, OUT, f"sweep.slots={slots}"]))
        for folder in self.folders[:slots]:
            self.wait_for(lambda folder=folder: (folder / "metrics.jsonl").exists())

    def send(self, number: signal.Signals) -> None:
        """As a terminal does: to everyone in the foreground."""
        os.killpg(self.driver.pid, number)

    def wait_for(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 120
        while not holds():
            assert time.monotonic() < end
            time.sleep(0.02)

    def heard(self, job: int) -> list[str]:
        """The signals a job got."""
        file = self.folders[job] / "heard"
        return file.read_text().split() if file.exists() else []

    def pid(self, job: int) -> int:
        return json.loads((self.folders[job] / "environment.json").read_text())["pid"]  # type: ignore[no-any-return]

    def alive(self, job: int) -> bool:
        pid = self.pid(job)
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return not Path(f"/proc/{pid}/stat").exists() or ") Z " not in Path(f"/proc/{pid}/stat").read_text()


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that do what log.tags say, and three tenths of a second for those that do not listen."""
    monkeypatch.setattr(driver, "job_command", fake_command)
    monkeypatch.setattr(driver, "GRACE_SECONDS", 0.3)


def test_asked_once_every_job_stops_after_its_step(fakes: None) -> None:
    sweeping = Process("seed=0,1,2", "log.tags=[stop]", slots=2)
    sweeping.send(signal.SIGINT)
    code, out = sweeping.driver.ended()
    assert code == 130 and "stopping after each job's step" in out
    assert out.splitlines()[-1].startswith("interrupted; 3 of 3 jobs")
    assert statuses(saved()) == [cells[-1] for cells in table(out).values()]
    assert statuses(saved()) == ["interrupted", "interrupted", "not started"]
    assert sweeping.heard(0) == sweeping.heard(1) == ["SIGTERM"]
    assert not sweeping.folders[2].exists()


def test_a_repeated_sigterm_is_one_and_a_second_ctrl_c_stops_at_once(fakes: None) -> None:
    sweeping = Process("seed=0,1", "log.tags=[deaf]", slots=2)
    for _ in range(2):
        sweeping.send(signal.SIGTERM)
        sweeping.wait_for(lambda: bool(sweeping.heard(0) and sweeping.heard(1)))
        time.sleep(0.25)
    assert sweeping.heard(0) == ["SIGTERM"]
    sweeping.send(signal.SIGINT)
    code, out = sweeping.driver.ended()
    assert code == 130 and "stopping at once\n" in out
    assert sweeping.heard(0) == sweeping.heard(1) == ["SIGTERM", "SIGINT"]
    assert statuses(saved()) == ["interrupted", "interrupted"]


def test_jobs_that_do_not_listen_are_killed(fakes: None) -> None:
    sweeping = Process("seed=0,1", "log.tags=[dead]", slots=2)
    for heard in (["SIGTERM"], ["SIGTERM", "SIGINT"]):
        sweeping.send(signal.SIGINT)
        sweeping.wait_for(lambda heard=heard: sweeping.heard(0) == sweeping.heard(1) == heard)
    assert sweeping.driver.ended()[0] == 130
    assert not sweeping.alive(0) and not sweeping.alive(1)
    assert statuses(saved()) == ["interrupted", "interrupted"]


def test_no_job_outlives_a_sweep_that_is_killed(fakes: None) -> None:
    sweeping = Process("seed=0,1", "log.tags=[stop]", slots=2)
    os.kill(sweeping.driver.pid, signal.SIGKILL)
    assert sweeping.driver.ended()[0] == -signal.SIGKILL
    sweeping.wait_for(lambda: not sweeping.alive(0) and not sweeping.alive(1))
    results = [json.loads((folder / "result.json").read_text()) for folder in sweeping.folders]
    assert statuses(results) == ["interrupted", "interrupted"]


def test_no_job_outlives_a_sweep_whose_reader_goes_away(fakes: None) -> None:
    sweeping = Process("seed=0,1", "log.tags=[stop]", slots=2)
    os.close(sweeping.driver.output)
    os.kill(sweeping.pid(0), signal.SIGTERM)  # of which the sweep has something to say
    assert sweeping.driver.waited() != 0
    sweeping.wait_for(lambda: not sweeping.alive(1))


def test_ctrl_c_reaches_a_real_run() -> None:
    small = ["task.num_train=32", "task.num_dev=8", "task.num_test=8", "train.steps=1000000"]
    small += ["model.device=cpu"]
    first, second = folders(*small, "seed=0,1", OUT)
    running = Forked(lambda: sweep([*small, "seed=0,1", "sweep.slots=1", OUT]))
    metrics = first / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        assert os.waitpid(running.pid, os.WNOHANG)[0] == 0
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)
    code, out = running.ended(60)
    assert code == 130
    assert {job: cells[-1] for job, cells in table(out).items()} == {
        "seed=0": "interrupted",
        "seed=1": "not started",
    }
    assert json.loads((first / "result.json").read_text())["status"] == "interrupted"
    assert (first / "console.log").read_text().count("interrupted: stopped at step") == 1
    assert not second.exists()
