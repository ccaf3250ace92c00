"""Weights & Biases sees a run, and can neither stall nor end it."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lezo.records.rows import DevRow, TrainRow
from lezo.tracking.keys import AXES, KEYS, NAMESPACES, dev_keys, result_keys, train_keys
from lezo.tracking.mirror import WandbMirror
from tests.lezo.whole_runs import Runner

SECRET = "0123456789abcdef0123456789abcdef01234567"
# wandb's settings where nobody has said anything; of a server that is not there.
UNSAID = {
    **{"mode": "online", "project": None, "run_name": None, "run_tags": None, "run_job_type": None},
    **{"api_key": None, "identity_token_file": None, "http_proxy": None, "https_proxy": None},
    "base_url": "http://127.0.0.1:1",
}


def mirrored(
    folder: Path, *, patience: float = 30.0, mode: str = "offline", project: str | None = None
) -> tuple[list[str], float]:
    """Mirror a short run; the warnings and the seconds it took."""
    start, warnings = time.monotonic(), []  # type: tuple[float, list[str]]
    settings = {"project": project, "group": "a group", "job_type": "lezo", "tags": ["rte (sample)", "lezo"]}
    settings |= {"config": {"seed": 0}, "id": "0123abcd"}
    mirror = WandbMirror(folder, settings, mode, warnings.append, patience=patience)
    mirror.evaluated(DevRow(0, 0.0, 0.7, 0.5))
    mirror.trained(TrainRow(1, 0.5, 0.6, {"g": 2.0, "lr": 0.1}))
    mirror.close({"test": 0.75, "seconds": {"total": 3.0}})
    return warnings, time.monotonic() - start


def fake(patch: pytest.MonkeyPatch, **does: Any) -> None:
    """A wandb that does nothing, except what it is given."""
    doings = {name: lambda *_, **__: None for name in ("define_metric", "log", "finish")} | does
    run = {name: doings[name] for name in ("define_metric", "log", "finish")}
    init = does.get("init", lambda **given: _run(given, **run))
    theirs = SimpleNamespace(**{**UNSAID, **does.get("theirs", {})})
    module = SimpleNamespace(
        **{"Settings": dict, "init": init, "Table": dict, "__spec__": ModuleSpec("wandb", None)},
        **{"setup": lambda _: SimpleNamespace(settings=theirs), "teardown": lambda: None},
    )
    patch.setitem(sys.modules, "wandb", module)  # type: ignore[arg-type]


def _run(given: dict[str, Any], **does: Any) -> SimpleNamespace:
    mode = given["mode"] or "online"
    settings = SimpleNamespace(**{**UNSAID, "mode": mode, "sync_dir": f"{given['dir']}/{mode}"})
    return SimpleNamespace(**does, summary={}, settings=settings)


def test_rows_that_wandb_cannot_keep_up_with_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    fake(monkeypatch, init=lambda **_: released.wait())
    monkeypatch.setattr("lezo.tracking.mirror._QUEUE_ROWS", 1)  # private: nobody sets it, and it is large
    warnings, _ = mirrored(tmp_path, patience=0.2)
    released.set()
    assert warnings[1] == "wandb fell behind: 1 rows not mirrored; the run folder has them"


def fails(*_: Any, **__: Any) -> None:
    raise RuntimeError("no such luck\nsecond line")


@pytest.mark.parametrize("where", ["init", "define_metric", "log", "finish"])
def test_a_wandb_that_raises_is_said_once_and_dropped(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, **{where: fails})
    monkeypatch.setattr(
        "lezo.tracking.mirror._QUEUE_ROWS", 1
    )  # what waits for a dead thread was not "behind"
    warnings, seconds = mirrored(tmp_path)
    assert warnings == ["wandb stopped mirroring (no such luck second line); the run folder has everything"]
    assert seconds < 10


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_wandb_that_hangs_is_left_behind(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    fake(monkeypatch, **{where: lambda *_, **__: released.wait()})
    warnings, seconds = mirrored(tmp_path, patience=0.2)
    released.set()
    assert warnings == ["wandb did not finish within 0.2 s; the run folder has everything"]
    assert seconds < 10


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """One that has no page to show but answers; the address, and what has been asked."""
    asked: list[str] = []

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answering) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}", asked
        listening.shutdown()


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that takes connections and never answers, for which nobody waits long."""
    monkeypatch.setattr("lezo.tracking.start._ANSWER_SECONDS", 0.2)  # private: nobody sets it, and it is long
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def began(patch: pytest.MonkeyPatch, folder: Path, asked: str, **theirs: Any) -> tuple[list[Any], list[str]]:
    """The modes in which a run of wandb's was begun, and the warnings."""
    modes: list[Any] = []

    def init(**given: Any) -> SimpleNamespace:
        modes.append(given["mode"])
        return _run(given, **{name: lambda *_, **__: None for name in ("define_metric", "log", "finish")})

    fake(patch, init=init, theirs=theirs)
    warnings, _ = mirrored(folder, mode=asked)
    return modes, warnings


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_a_server_that_answers_gets_the_run(
    mode: str, server: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert began(monkeypatch, tmp_path, mode, base_url=server[0], api_key=SECRET) == (["online"], [])
    assert server[1] == ["/"]


def test_without_a_server_the_run_is_kept_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = f"this run is kept offline: wandb sync {tmp_path}/offline uploads it"
    expected = (["offline"], [f"wandb: 127.0.0.1:1: Connection refused; {left}"])
    assert began(monkeypatch, tmp_path, "auto", api_key=SECRET) == expected


def test_a_server_that_does_not_answer_is_none_and_its_password_is_not_said(
    silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = silent.replace("http://", "http://user:secret@")
    modes, (warning,) = began(monkeypatch, tmp_path, "online", base_url=address, api_key=SECRET)
    assert modes == ["offline"]
    assert warning.startswith(f"wandb: {silent[7:]}: no answer within 0.2 s; this run is kept offline: ")


def test_a_server_that_does_not_take_the_run_leaves_it_offline(
    server: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**given: Any) -> SimpleNamespace:
        if given["mode"] == "online":
            raise RuntimeError("permission\ndenied")
        return _run(given, **{name: lambda *_, **__: None for name in ("define_metric", "log", "finish")})

    fake(monkeypatch, init=init, theirs={"base_url": server[0], "api_key": SECRET})
    (warning,) = mirrored(tmp_path, mode="online")[0]
    assert warning.startswith("wandb: permission denied; this run is kept offline: wandb sync ")


@pytest.mark.parametrize(
    ("mode", "theirs", "expected", "said"),
    [
        ("auto", {}, "offline", False),
        ("online", {}, "offline", True),
        ("auto", {"mode": "disabled"}, "disabled", False),
        ("auto", {"mode": "dryrun", "api_key": SECRET}, "dryrun", False),
        ("offline", {"mode": "online", "api_key": SECRET}, "offline", False),
    ],
)
def test_the_mode_is_the_configurations_or_the_users(
    mode: str,
    theirs: dict[str, str],
    expected: str,
    said: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    modes, warnings = began(monkeypatch, tmp_path, mode, **theirs)
    assert modes == [expected]
    assert [warning.startswith("wandb: no account is set up (wandb login)") for warning in warnings] == (
        [True] if said else []
    )


def test_the_netrc_file_is_an_account(
    server: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login user password {SECRET}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert began(monkeypatch, tmp_path, "auto", base_url=server[0]) == (["online"], [])


def test_a_server_that_goes_away_is_not_waited_for(
    silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr("lezo.tracking.mirror.FINISH_SECONDS", 0.2)
    monkeypatch.setattr("lezo.tracking.start.no_answer", lambda _: None)  # at first
    fake(
        monkeypatch,
        finish=lambda: released.wait() and fails(),
        theirs={"base_url": silent, "api_key": SECRET},
    )
    monkeypatch.setitem(UNSAID, "base_url", silent)
    warnings, seconds = mirrored(tmp_path, mode="online")
    released.set()
    assert seconds < 10 and len(warnings) == 1  # what happens to the thread later is nobody's concern
    assert warnings[0].startswith("wandb did not finish within ")
    assert warnings[0].endswith(f"and wandb sync {tmp_path}/online uploads the rest")


@pytest.mark.parametrize(
    ("project", "theirs", "expected"), [("x", "y", "x"), (None, "y", "y"), (None, None, "lezo")]
)
def test_the_project_is_the_configurations_then_the_users(
    project: str | None, theirs: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def init(**settings: Any) -> SimpleNamespace:
        given.update(settings)
        return _run(settings, **{name: lambda *_, **__: None for name in ("define_metric", "log", "finish")})

    fake(monkeypatch, init=init, theirs={"project": theirs})
    mirrored(tmp_path, project=project)
    assert (given["project"], given["dir"], given["name"]) == (expected, str(tmp_path), tmp_path.name)


def test_an_offline_run_can_be_read_back_and_holds_no_secret(tmp_path: Path) -> None:
    small = ["task.num_train=32", "task.num_dev=8", "task.num_test=8", "train.steps=2", "train.eval_every=1"]
    small += ["model.device=cpu"]
    logged = ["log=wandb", "log.mode=offline", "log.group=mine", "log.tags=[extra]"]
    users = {
        **{
            "WANDB_PROJECT": "theirs",
            "WANDB_ENTITY": "team",
            "WANDB_NAME": "name",
            "WANDB_NOTES": "some notes",
        },
        **{"WANDB_TAGS": "one,lezo", "WANDB_MODE": "online", "WANDB_RUN_GROUP": "other", "WANDB_DIR": "kept"},
    }
    (tmp_path / "kept").mkdir()
    subprocess.run(
        [sys.executable, "-m", "lezo.cli.run", *small, *logged, "hydra.run.dir=out"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "WANDB_API_KEY": SECRET, **users},
        check=True,
        capture_output=True,
    )
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]
    (offline,) = (tmp_path / "kept" / "wandb").glob("offline-run-*")
    text = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(offline)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    records = [json.loads(line) for line in text.splitlines()]
    (run,) = (record["run"] for record in records if record["type"] == "run")
    assert (run["run_group"], run["job_type"]) == ("mine", "lezo")
    assert run["tags"] == ["one", "lezo", "rte (sample)", "tiny", "extra"]
    told = {key: run[key] for key in ("project", "entity", "display_name", "notes")}
    assert told == {"project": "theirs", "entity": "team", "display_name": "name", "notes": "some notes"}
    assert run["config"]["update"]["train"]["steps"] == 2
    metrics = [record["metric"] for record in records if record["type"] == "metric"]
    axes = {metric["glob_name"]: metric["step_metric"] for metric in metrics if "glob_name" in metric}
    assert axes == {f"{namespace}/*": axis for namespace, axis in NAMESPACES.items()}
    kept = {metric["name"]: metric["summary"] for metric in metrics if "summary" in metric}
    assert kept == {"dev/loss": {"min": True, "last": True}, "dev/score": {"max": True, "last": True}}
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    mirrored = [item for item in history if {"train/loss", "dev/loss"} & set(item)]
    assert [
        _named_for_wandb(row).items() <= item.items()
        for row, item in zip([row for row in rows if "test_score" not in row], mirrored, strict=True)
    ] == [True] * 5
    assert [item["memory/peak_gib"] > 0 for item in mirrored if "train/loss" in item] == [True] * 2
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    tests = [(item["step"], item["test/score"]) for item in history if "test/score" in item]
    assert tests == [(0, result["zero_shot"]), (result["best_step"], result["test"])]
    summary: dict[str, Any] = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    assert result_keys(result).items() <= summary.items()
    assert summary["seconds"] == mirrored[-1]["seconds"]  # the axis is what the result has no say in
    found = {name.partition(".")[0] for name in set(summary).union(*history)}
    assert {key.name for key in KEYS if key.of in ("every", "trained", "zeroth-order")} <= found
    (table,) = (tmp_path / "kept" / "wandb").rglob("*.table.json")
    predictions = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    _same_table(json.loads(table.read_text()), [json.loads(line) for line in predictions])


def _named_for_wandb(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl under wandb's names; memory, which is measured anew, left out."""
    named = dev_keys(row) if "dev_loss" in row else train_keys(row)
    return {name: value for name, value in named.items() if name != "memory/peak_gib"}


def _same_table(table: dict[str, Any], predictions: list[dict[str, Any]]) -> None:
    assert table["columns"] == ["index", "scores", "prediction", "gold", "correct"]
    assert [(row[0], row[2], row[3]) for row in table["data"]] == [
        (record["index"], record["prediction"], record["gold"]) for record in predictions
    ]


@pytest.mark.parametrize(
    ("optim", "of"), [("fo-adamw", ("every", "trained", "first-order")), ("none", ("every",))]
)
def test_other_runs_have_the_keys_that_are_theirs(
    optim: str, of: tuple[str, ...], lezo_run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    fake(monkeypatch, init=lambda **given: _recorder(seen, given))
    ran = lezo_run(f"optim={optim}", "log=wandb", "train.steps=2", "train.eval_every=1")
    assert ran.code == 0 and "warning" not in ran.out
    mine = {key.name for key in KEYS if key.of in of}
    assert mine <= set(seen)
    others = {name for name in set(seen) - mine - {"job_type", *AXES} if not name.startswith("result/")}
    assert others <= {"time/eval"}
    assert seen["job_type"] == optim


def _recorder(seen: dict[str, Any], given: dict[str, Any]) -> SimpleNamespace:
    """A run of wandb's that keeps the last of everything."""
    seen["job_type"] = given["job_type"]
    nothing = {name: lambda *_, **__: None for name in ("define_metric", "finish")}
    run = _run(given, log=seen.update, **nothing)
    run.summary = seen
    return run


def test_a_mode_that_wandb_does_not_know_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "onlin")
    warnings, _ = mirrored(tmp_path, mode="auto")
    assert "WANDB_MODE=onlin: expected online, offline or disabled" in warnings[0]
