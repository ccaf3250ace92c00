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
from lezo.tracking.mirror import WandbMirror, _send
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
    monkeypatch.setattr("lezo.tracking.mirror.QUEUE_ROWS", 1)
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
    # What waits for a dead thread was not "behind".
    monkeypatch.setattr("lezo.tracking.mirror.QUEUE_ROWS", 1)
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
    monkeypatch.setattr("lezo.tracking.start.ANSWER_SECONDS", 0.2)
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


# In a process of its own, which brings the real wandb along and no torch: a run's files as its sinks got them.
MIRRORS = """
import json, sys
from pathlib import Path
from lezo.records.rows import TestRow, row_of
from lezo.tracking.mirror import WandbMirror
run, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
result = json.loads((run / "result.json").read_text())
predictions = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
mirror = WandbMirror(Path("out"), settings, "offline", sys.exit, cost=2)
tell = {"train": mirror.trained, "dev": mirror.evaluated, "test": mirror.tested}
for row in map(row_of, (run / "metrics.jsonl").read_bytes().splitlines()):
    tell[row.kind](row)
mirror.tested(TestRow(result["best_step"], 0.0, 0.5, result["test"], predictions, last=True))
mirror.close(result, Path(sys.argv[3]))
"""
FINISHED = Path(__file__).parents[2] / "before" / "lezo"


@pytest.fixture(scope="module")
def mirror_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where wandb keeps an offline run, of a user with settings of their own; its records lie in records.jsonl."""
    folder = tmp_path_factory.mktemp("mirror")
    users = {
        **{"PROJECT": "theirs", "ENTITY": "team", "NAME": "name", "NOTES": "some notes", "TAGS": "one,lezo"},
        **{"MODE": "online", "RUN_GROUP": "other", "DIR": "kept", "API_KEY": SECRET},
    }
    environment = {**os.environ, **{f"WANDB_{key}": value for key, value in users.items()}}
    settings = {"project": None, "group": "mine", "job_type": "lezo", "tags": ["lezo", "rte (sample)"]}
    settings |= {"config": {"train": {"steps": 2}}, "id": "0123abcd"}
    (folder / "kept").mkdir()
    model = FINISHED.parent / "mezo-lora" / "model"
    given = [sys.executable, "-c", MIRRORS, str(FINISHED), json.dumps(settings), str(model)]
    subprocess.run(given, cwd=folder, env=environment, check=True, capture_output=True)
    (offline,) = (folder / "kept" / "wandb").glob("offline-run-*")
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(offline)]
    with (folder / "records.jsonl").open("w") as out:
        subprocess.run(inspect, check=True, stdout=out)
    return folder


def records_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "records.jsonl").read_text().splitlines()
    return [record[kind] for record in map(json.loads, lines) if kind in record]


def test_an_offline_run_has_the_users_settings_and_no_secret(mirror_folder: Path) -> None:
    files = [file for file in mirror_folder.rglob("*") if file.is_file()]
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]
    (run,) = records_of(mirror_folder, "run")
    given = {key: run[key] for key in ("project", "entity", "display_name", "notes")}
    assert given == {"project": "theirs", "entity": "team", "display_name": "name", "notes": "some notes"}
    assert (run["run_group"], run["job_type"], run["run_id"]) == ("mine", "lezo", "0123abcd")
    assert run["tags"] == ["one", "lezo", "rte (sample)"]
    assert run["config"]["update"]["train"]["steps"] == 2


def test_an_offline_run_can_be_read_back_key_by_key(mirror_folder: Path) -> None:
    metrics = records_of(mirror_folder, "metric")
    axes = {metric["glob_name"]: metric["step_metric"] for metric in metrics if "glob_name" in metric}
    assert axes == {f"{namespace}/*": axis for namespace, axis in NAMESPACES.items()}
    kept = {metric["name"]: metric["summary"] for metric in metrics if "summary" in metric}
    assert kept == {"dev/loss": {"min": True, "last": True}, "dev/score": {"max": True, "last": True}}
    history = [record["item"] for record in records_of(mirror_folder, "history")]
    rows = [json.loads(line) for line in (FINISHED / "metrics.jsonl").read_text().splitlines()]
    mirrored = [item for item in history if {"train/loss", "dev/loss"} & set(item)]
    rows = [row for row in rows if "test_score" not in row]
    for row, item in zip(rows, mirrored, strict=True):
        named = dev_keys(row, 2) if "dev_loss" in row else train_keys(row, 2)
        assert named.items() <= item.items()
    result = json.loads((FINISHED / "result.json").read_text())
    tests = [(item["step"], item["test/score"]) for item in history if "test/score" in item]
    assert tests == [(0, result["zero_shot"]), (result["best_step"], result["test"])]
    summary: dict[str, Any] = {}
    for record in records_of(mirror_folder, "summary"):
        summary |= record.get("update", {})
    assert result_keys(result).items() <= summary.items()
    assert summary["seconds"] == mirrored[-1]["seconds"]  # the axis, which the result must not replace
    names = {name.partition(".")[0] for name in set(summary).union(*history)}
    assert {key.name for key in KEYS if key.of in ("every", "trained", "zeroth-order")} <= names


def test_an_offline_run_has_the_predictions(mirror_folder: Path) -> None:
    (file,) = (mirror_folder / "kept" / "wandb").rglob("*.table.json")
    table = json.loads(file.read_text())
    predictions = map(json.loads, (FINISHED / "predictions.jsonl").read_text().splitlines())
    assert table["columns"] == ["index", "scores", "prediction", "gold", "correct"]
    assert [(row[0], row[2], row[3]) for row in table["data"]] == [
        (record["index"], record["prediction"], record["gold"]) for record in predictions
    ]


def test_an_offline_run_has_the_model_from_where_it_lies(mirror_folder: Path) -> None:
    (model,) = [artifact for artifact in records_of(mirror_folder, "artifact") if artifact["type"] == "model"]
    folder = FINISHED.parent / "mezo-lora" / "model"
    sent = {Path(entry["local_path"]): entry["path"] for entry in model["manifest"]["contents"]}
    assert sent == {file: file.name for file in folder.iterdir()}
    assert model["name"] == "model"  # of a result of before, which has no name


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_model_is_sent_by_the_runs_name_and_waited_for_where_there_is_a_server(
    mode: str, tmp_path: Path
) -> None:
    said: list[Any] = []

    class Artifact:
        def __init__(self, name: str, **about: Any) -> None:
            said.append((name, about["type"], about["metadata"]["test"]))

        def add_dir(self, folder: str, **how: Any) -> None:
            said.append((folder, how))

        def wait(self, timeout: int) -> None:
            said.append(timeout)

    run = SimpleNamespace(settings=SimpleNamespace(mode=mode), log_artifact=lambda _: said.append("sent"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", SimpleNamespace(Artifact=Artifact))  # type: ignore[arg-type]
        _send(run, tmp_path, {"name": "rte (mine)-lr1e-3", "test": 0.5})
    how = {"policy": "immutable", "skip_cache": True}
    first = [("rte__mine_-lr1e-3", "model", 0.5), (str(tmp_path), how), "sent"]
    assert said == first + ([3600] if mode == "online" else [])


def test_a_run_that_goes_on_joins_its_own_run_and_tells_no_row_twice(
    lezo_run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    sent: list[Path] = []

    def init(**given: Any) -> SimpleNamespace:
        begun.append(given)
        return _run(given, log=rows.append, define_metric=lambda *_, **__: None, finish=lambda: None)

    fake(monkeypatch, init=init)
    monkeypatch.setattr("lezo.tracking.mirror._send", lambda run, model, result: sent.append(model))
    words = ["log=wandb", "log.notes=a note", "train.eval_every=2"]
    part = lezo_run(*words, "train.steps=2", "log.name=my run")
    assert (part.result["name"], part.result["notes"]) == ("my run", "a note")
    saved = ["save_model=true", "log.artifact=true"]
    more = lezo_run(*words, "train.steps=4", "resume=auto", *saved)
    assert (part.code, more.code, sent) == (0, 0, [Path("out/model")])
    assert [run["name"] for run in begun] == ["my run", "my run"]  # kept where nothing else is said
    assert {run["id"] for run in begun} == {
        json.loads((more.folder / "environment.json").read_text())["run_id"]
    }
    assert {(run["resume"], run["notes"]) for run in begun} == {("allow", "a note")}
    assert not {"bench", "inspect"} & set(begun[0]["config"]) and "optim" in begun[0]["config"]
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "dev/loss" in row] == [0, 2, 4]
    assert [row["step"] for row in rows if "test/loss" in row][0] == 0
    assert more.result["name"] == "my run"
    again = lezo_run(*words, "train.steps=4", "resume=auto", *saved)
    assert (again.code, len(sent), begun[2]["id"]) == (0, 2, begun[0]["id"])


@pytest.mark.parametrize(
    ("optim", "of"), [("fo-adamw", ("every", "trained", "first-order")), ("none", ("every",))]
)
def test_other_runs_have_the_keys_that_are_theirs(
    optim: str, of: tuple[str, ...], lezo_run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    fake(monkeypatch, init=lambda **given: _recorder(seen, given))
    logged = ["log=wandb", "log.group=mine", "log.tags=[extra]", "train.steps=1", "train.eval_every=1"]
    ran = lezo_run(f"optim={optim}", *logged)
    assert ran.code == 0 and "warning" not in ran.out
    mine = {key.name for key in KEYS if key.of in of}
    assert mine <= set(seen)
    others = {name for name in set(seen) - mine - {"given", *AXES} if not name.startswith("result/")}
    assert others <= {"time/eval"}
    assert seen.get("forwards") == {"fo-adamw": 3}.get(optim)
    given = seen["given"]
    assert (given["job_type"], given["group"], given["config"]["train"]["steps"]) == (optim, "mine", 1)
    assert given["tags"] == ["rte (sample)", optim, "tiny", "extra"]
    assert given["id"] == json.loads((ran.folder / "environment.json").read_text())["run_id"]


def _recorder(seen: dict[str, Any], given: dict[str, Any]) -> SimpleNamespace:
    """A run of wandb's that keeps the last of everything."""
    seen["given"] = given
    nothing = {name: lambda *_, **__: None for name in ("define_metric", "finish")}
    run = _run(given, log=seen.update, **nothing)
    run.summary = seen
    return run


def test_a_mode_that_wandb_does_not_know_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "onlin")
    warnings, _ = mirrored(tmp_path, mode="auto")
    assert "WANDB_MODE=onlin: expected online, offline or disabled" in warnings[0]
