"""Kills runs with SIGKILL at random moments, lets them go on, and compares their ends with a run never killed.

`python tests/lezo/runs/killing.py FOLDER OPTIM KILLS SEED` prints a line a kill and fails where an end differs.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SMALL = [
    "model.device=cpu",
    *("task.num_train=16", "task.num_dev=4", "task.num_test=4", "train.batch_size=4", "save_model=true"),
    *("train.steps=6", "train.eval_every=2", "train.checkpoint_every=3"),
]
OPTIONS = {
    "lezo": ["optim=lezo", "optim.sparsity=0.5", "optim.weight_decay=0.01"],
    "over-two": ["optim=lezo", "optim.sparsity=0.5", "model.device=auto", "model.devices=[cpu,cpu]"],
    "lezo-disk": ["optim=lezo", "optim.sparsity=0.5", "model.home=disk"],
    "mezo": ["optim=mezo", "model.dtype=float16", "optim.rounding=stochastic", "optim.lr=1e-5"],
    "fo-sgd": ["optim=fo-sgd", "optim.momentum=0.9", "optim.dropout=0.1"],
    "fo-adamw": ["optim=fo-adamw", "optim.dropout=0.1"],
}
IN_A_ROW = 3  # kills of one run before it may end
CLOCKS = ("seconds", "eval_seconds", "phases", "memory", "peak_memory_bytes", "memory_bytes", "command")


def lezo_run(overrides: list[str], folder: Path, prepare: Callable[[], None], seconds: float | None) -> bool:
    """A run in a forked process, killed after ``seconds`` or by what ``prepare`` set up. Whether it was killed."""
    child = os.fork()
    if child == 0:
        output = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        prepare()
        os._exit(_finished(overrides, folder))
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), folder.with_suffix(".log").read_text()
    return code != 0


def _finished(overrides: list[str], folder: Path) -> int:
    from lezo.config.compose import compose
    from lezo.runs.session import run as replayed

    return replayed(compose([*overrides, "resume=auto", f"hydra.run.dir={folder}"]), "killed")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def counting(upto: int | None, tally: Path | None = None) -> Callable[[], None]:
    """Kills its process at the ``upto``-th touch of a file, in the middle of it where it is a write.

    None counts the touches into ``tally``.
    """

    def prepare() -> None:
        touches = 0

        def touched(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            nonlocal touches
            touches += 1
            if tally is not None:
                tally.write_text(str(touches), encoding="utf-8") if call is not real["write"] else None
            if touches == upto:
                if call is real["write"]:
                    call(arguments[0], arguments[1][: len(arguments[1]) // 2])
                die()
            return call(*arguments, **options)

        real = {
            name: getattr(os, name) for name in ("write", "replace", "fsync", "rename", "unlink", "rmdir")
        }
        for name, call in real.items():
            setattr(os, name, lambda *a, _call=call, **o: touched(_call, *a, **o))

    return prepare


def evaluating(upto: int) -> Callable[[], None]:
    """Kills its process in the ``upto``-th evaluation."""

    def prepare() -> None:
        from lezo.model.evaluate import Evaluator

        real, calls = Evaluator.__call__, [0]

        def evaluated(self: Evaluator, split: Any) -> Any:
            found = real(self, split)
            calls[0] += 1
            if calls[0] == upto:
                die()
            return found

        Evaluator.__call__ = evaluated  # type: ignore[method-assign]

    return prepare


def end(folder: Path) -> dict[str, Any]:
    """All that a run leaves, without times and memory."""
    result = _timeless(json.loads((folder / "result.json").read_text()))
    rows = [_timeless(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    files = {
        str(file.relative_to(folder)): file.read_bytes()
        for name in ("predictions.jsonl", "journal.bin", "config.yaml", "model", "checkpoints")
        for file in [folder / name, *(folder / name).rglob("*")]
        if file.is_file()
    }
    left = {file.name for file in folder.iterdir()} - {"wandb"}
    return {"result": result, "rows": rows, "files": files, "left": left}


def _timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in CLOCKS}


def _difference(one: Any, other: Any) -> str:
    """The first few things that differ."""
    if isinstance(one, dict):
        names = [name for name in sorted(one | other) if one.get(name) != other.get(name)]
        return ", ".join(names)[:500]
    return str(
        [pair for pair in zip(one, other, strict=False) if pair[0] != pair[1]][:2] or (len(one), len(other))
    )


def main(folder: Path, optim: str, kills: int, seed: int) -> None:
    """Kill ``kills`` times in all."""
    overrides, draw = [*SMALL, *OPTIONS[optim]], random.Random(seed)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: threads would not survive a fork
    imported = _finished([*overrides, "dry_run=true"], folder / "none")  # once for all the forks
    assert imported == 0
    reference, tally = folder / "reference", folder / "touches"
    start = time.monotonic()
    lezo_run(overrides, reference, counting(None, tally), None)
    seconds, touches = time.monotonic() - start, int(tally.read_text())
    expected, killed, number = end(reference), 0, 0
    while killed < kills:
        number += 1
        run = folder / f"run{number}"
        for _ in range(min(IN_A_ROW, kills - killed)):
            kind = draw.choice(["touch", "touch", "evaluation", "time"])
            at = (
                draw.uniform(0, seconds)
                if kind == "time"
                else draw.randint(1, touches if kind == "touch" else 6)
            )
            prepare = {"touch": counting, "evaluation": evaluating}.get(kind, lambda _: lambda: None)(int(at))
            was = lezo_run(overrides, run, prepare, at if kind == "time" else None)
            killed += was
            print(f"{optim} run {number}: {'killed' if was else 'ended before'} {kind} {at:.3g}", flush=True)
            if not was:
                break
        assert not lezo_run(overrides, run, lambda: None, None)
        found = end(run)
        for part, value in expected.items():
            assert found[part] == value, f"run {number}: {part} differs: {_difference(value, found[part])}"
    print(f"{optim}: {killed} kills, every end the same; {touches} touches, {seconds:.1f} s a run")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
