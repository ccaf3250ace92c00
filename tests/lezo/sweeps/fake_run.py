"""Stands for lezo-run in a sweep's tests: takes no time, and does what its label says.

    python fake_run.py FOLDER WORD...

Words: ``ok`` finishes; ``fail`` ends with exit code 1 and a result, ``diverge`` too; ``die`` with 7 and none, after thirty lines;
``kill`` by SIGKILL; ``stop`` trains until a signal; ``deaf`` until a second one that is SIGINT; ``dead`` hears none;
``meet`` finishes once two jobs have met. All write their signals, process id and environment to FOLDER.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from lezo.sweeps.lifeline import end_with_the_sweep

FOLDER, WORDS = Path(sys.argv[1]), sys.argv[2:]
HEARD: list[int] = []


def _hear(number: int, frame: FrameType | None) -> None:
    HEARD.append(number)
    with (FOLDER / "heard").open("a") as file:
        file.write(f"{signal.Signals(number).name}\n")


def _result(status: str, code: int) -> None:
    scores = {
        "metric": "accuracy",
        "dev_loss": 0.25,
        "dev": 0.5,
        "test": 0.75,
        "steps": 3,
        "seconds": {"total": 1.5},
    }
    run = {"title": "rte (sample)", "model": "tiny", "optim": "lezo", "command": "lezo-run", "seed": 0}
    told = {"diverged": True} if "diverge" in WORDS else {}
    (FOLDER / "result.json").write_text(json.dumps({"status": status, **scores, **run, **told}))
    print("said at the end:", status, flush=True)
    sys.exit(code)


def _stopped() -> bool:
    if "dead" in WORDS:
        return False
    return bool(HEARD[1:]) and HEARD[-1] == signal.SIGINT if "deaf" in WORDS else bool(HEARD)


def _until_stopped() -> None:
    with (FOLDER / "metrics.jsonl").open("a") as metrics:
        for step in range(1, 3000):
            row = {"step": step, "seconds": step / 100, "loss": 0.5, "skipped": False, "phases": {}}
            metrics.write(json.dumps(row) + "\n")
            metrics.flush()
            time.sleep(0.01)
            if _stopped():
                _result("interrupted", 130)


def _meet() -> None:
    (FOLDER.parent / f"here-{FOLDER.name}").touch()
    while len(list(FOLDER.parent.glob("here-*"))) < 2:
        time.sleep(0.01)


def main() -> None:
    """Be the run."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _hear)
    end_with_the_sweep()
    kept = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "LEZO_SWEEP_PIPE")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    (FOLDER / "environment.json").write_text(json.dumps({"pid": os.getpid(), **environment}))
    if "die" in WORDS:
        print("\n".join(f"line {i}" for i in range(30)))
        sys.exit(7)
    if "kill" in WORDS:
        os.kill(os.getpid(), signal.SIGKILL)
    if "meet" in WORDS:
        _meet()
    if {"stop", "deaf", "dead"} & set(WORDS):
        _until_stopped()
    _result(*(("failed", 1) if {"fail", "diverge"} & set(WORDS) else ("finished", 0)))


if __name__ == "__main__":
    main()
