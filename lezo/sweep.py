"""lezo-run -m: every combination of the swept values as a lezo-run process of its own, one at a time."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from rich.console import Console
from rich.table import Table

from lezo.compose import compose, parse
from lezo.config import ConfigError
from lezo.story import clock, console, score, size

_TAIL = 12  # lines of a failed job that are shown


@dataclass(frozen=True)
class SweepJob:
    """One combination: all its overrides, the swept ones as its label, and the folder it writes to."""

    number: int
    label: str
    overrides: tuple[str, ...]
    folder: Path


def sweep(overrides: Sequence[str], *, config_dir: str | None = None) -> int:
    """Check every job, run them in order, print the table. Returns 0 if all finished, 1 if not, 130 interrupted.

    Raises ConfigError, before anything runs, with the first job that cannot be configured, or where the
    folder cannot take a sweep.
    """
    out = console()
    todo = jobs(overrides, config_dir)
    folder = _new_folder(todo)
    out.print(f"sweep of {len(todo)} jobs in {folder}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's end is like Ctrl-C
    rows, code = [], 0
    try:
        for job in todo:
            rows.append(_run(job, len(todo), config_dir, out))
            _save(folder, rows)
    except KeyboardInterrupt:
        out.print(f"interrupted; {len(todo) - len(rows)} of {len(todo)} jobs did not finish")
        code = 130
    rows += [_row(job, _result(job) or {"status": _unfinished(job)}) for job in todo[len(rows) :]]
    _save(folder, rows)
    out.print(_table(rows))
    return code or int(any(row["status"] != "finished" for row in rows))


def jobs(overrides: Sequence[str], config_dir: str | None = None) -> list[SweepJob]:
    """Every combination of the swept values, checked. Raises ConfigError with the first that cannot run."""
    parsed = parse(overrides)
    swept = {override.get_key_element() for override in parsed if override.is_sweep_override()}
    found: list[SweepJob] = []
    for number, combination in enumerate(_combinations(parsed)):
        label = " ".join(text for text in combination if text.split("=")[0] in swept) or "single"
        try:
            folder = compose(combination, config_dir=config_dir).sweep_dir
        except ConfigError as error:
            raise ConfigError([f"job {number} ({label}): {problem}" for problem in error.problems]) from None
        folder = found[0].folder.parent if found else folder  # its name holds the time: one for all
        found.append(SweepJob(number, label, tuple(combination), folder / str(number)))
    return found


def _combinations(parsed: Sequence[Override]) -> list[list[str]]:
    try:
        return BasicSweeper.split_arguments(list(parsed), None)[0]
    except HydraException:  # glob(...) and interval(...)
        swept = " ".join(override.input_line or "" for override in parsed if override.is_sweep_override())
        raise ConfigError(
            [f"{swept}: expected values with commas between, choice(...) or range(...)"]
        ) from None


def _new_folder(todo: Sequence[SweepJob]) -> Path:
    """Create the sweep's folder. Raises ConfigError where it cannot be written or already holds runs."""
    folder, way_out = todo[0].folder.parent, "choose another folder with hydra.sweep.dir=DIR"
    taken = [path for path in (folder, *(job.folder for job in todo)) if _holds_runs(path)]
    if taken:
        raise ConfigError([f"{taken[0]}: already holds runs; {way_out}"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _save(folder, [])
    except OSError as error:
        raise ConfigError([f"{folder}: cannot write there ({error.strerror}); {way_out}"]) from None
    return folder


def _holds_runs(folder: Path) -> bool:
    return (folder / "sweep.json").exists() or (folder / "config.yaml").exists()


def _run(job: SweepJob, total: int, config_dir: str | None, out: Console) -> dict[str, Any]:
    """Run one job to its end and say how it went; a failure shows its last lines at once."""
    out.print(f"[{job.number + 1}/{total}] {job.label}")
    job.folder.mkdir(parents=True, exist_ok=True)
    log = job.folder / "console.log"
    with log.open("w", encoding="utf-8") as output:
        # A session of its own: Ctrl-C reaches the job once, through us, and it can write its result.
        process = subprocess.Popen(
            _command(job, config_dir),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        _wait(process)
    row = _row(job, _result(job) or {"status": f"failed (exit code {process.returncode})"})
    if process.returncode == 0:
        out.print(
            f"    {row['metric']} dev {score(row['dev'])} test {score(row['test'])} in {clock(row['seconds'])}"
        )
    else:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:]
        out.print("\n".join([f"    FAILED; the end of {log}:", *(f"    | {line}" for line in tail)]))
    return row


def _wait(process: subprocess.Popen[bytes]) -> None:
    """Wait for the job; an interruption is passed on, and waited for again."""
    try:
        process.wait()
    except KeyboardInterrupt:
        process.terminate()  # a job started in a shell's background ignores SIGINT
        process.wait()
        raise


def _command(job: SweepJob, config_dir: str | None) -> list[str]:
    folder = ["--config-dir", config_dir] if config_dir else []
    group = (
        []
        if any(text.startswith("log.group=") for text in job.overrides)
        else [f"log.group={_quoted(job.folder.parent.name)}"]
    )
    own = [text for text in job.overrides if not text.startswith("hydra.sweep.")]
    return [
        sys.executable,
        "-m",
        "lezo.run",
        *folder,
        *own,
        *group,
        f"hydra.run.dir={_quoted(str(job.folder))}",
    ]


def _quoted(value: str) -> str:
    """A value in Hydra's override grammar, whatever characters it has."""
    if re.fullmatch(r"[\w./-]+", value):
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _result(job: SweepJob) -> dict[str, Any] | None:
    try:
        result: dict[str, Any] = json.loads((job.folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):  # the job died before it could write one
        return None
    return result


def _unfinished(job: SweepJob) -> str:
    return "interrupted" if job.folder.is_dir() else "not started"


def _row(job: SweepJob, result: dict[str, Any]) -> dict[str, Any]:
    used = result.get("peak_memory_bytes") or {}
    return {
        "job": job.label,
        "metric": result.get("metric"),
        "dev": result.get("dev"),
        "test": result.get("test"),
        "seconds": (result.get("seconds") or {}).get("total"),
        "memory": used.get("device") or used.get("host"),
        "status": result["status"],
        "folder": str(job.folder),
    }


def _save(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    partial = folder / ".sweep.json.partial"
    partial.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / "sweep.json")


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("job", "metric", "dev", "test", "seconds", "memory", "status")
    for row in rows:
        seconds = "-" if row["seconds"] is None else f"{row['seconds']:.1f}"
        memory = "-" if row["memory"] is None else size(row["memory"])
        table.add_row(
            row["job"],
            row["metric"] or "-",
            score(row["dev"]),
            score(row["test"]),
            seconds,
            memory,
            row["status"],
        )
    return table
