"""Run folders made up of plain files, for the report's tests."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

PHASES = {"data": 0.001, "forward": 0.1, "perturb": 0.05, "update": 0.02}


def config(**changes: Any) -> dict[str, Any]:
    """A configuration; a change such as ``optim__lr=1e-3`` sets a key within a group.

    Like those of earlier versions it lacks what came later, such as ``peft``.
    """
    made: dict[str, Any] = {
        "seed": 0,
        "task": {
            "name": "rte",
            "num_train": 1000,
            "num_dev": 500,
            "num_test": 1000,
            "data_seed": 0,
            "demos": 0,
        },
        "data": {"name": "sample", "path": None},
        "optim": {"name": "lezo", "lr": 0.001, "eps": 0.001, "weight_decay": 0.0, "sparsity": 0.75},
        "model": {
            "name": "tiny",
            "path": None,
            "random_weights": False,
            "device": "auto",
            "lr": {"zo": 0.001},
        },
        "train": {"steps": 20000, "batch_size": 16, "checkpoint_every": None},
        "log": {"name": "files", "group": None},
    }
    for key, value in changes.items():
        *groups, last = key.split("__")
        place = made
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    if made["optim"]["name"] == "mezo":
        del made["optim"]["sparsity"]
    if made["optim"]["name"].startswith("fo-"):
        del made["optim"]["eps"]
    return made


def result(**changes: Any) -> dict[str, Any]:
    """A finished run's result."""
    seconds = {"total": 30.0, "step_median": 0.2, **PHASES}
    memory = {"device": 0, "host": 2**30}
    scores = {"test": 0.75, "dev": 0.8, "dev_loss": 0.5, "zero_shot": 0.5, "best_step": 4, "steps": 4}
    return {
        "status": "finished",
        "error": None,
        **scores,
        "seconds": seconds,
        "peak_memory_bytes": memory,
    } | changes


def rows(
    dev_losses: Sequence[float | None] = (0.7, 0.6, 0.5), *, every: int = 2, step: float = 0.2
) -> list[dict[str, Any]]:
    """Metrics with these dev losses, ``every`` train rows apart, each of ``step`` seconds."""
    made: list[dict[str, Any]] = [{"step": 0, "seconds": 0.0, "test_loss": 0.7, "test_score": 0.5}]
    for place, loss in enumerate(dev_losses):
        at = place * every
        if place:
            made += [_train(number, number * step) for number in range(at - every + 1, at + 1)]
        dev = {"dev_loss": loss, "dev_score": 0.5 + 0.1 * place, "eval_seconds": 0.1}
        made.append({"step": at, "seconds": at * step, **dev})
    return made


def _train(step: int, seconds: float) -> dict[str, Any]:
    measured = {"loss": 1 / step, "g": 0.1, "lr": 0.001, "skipped": False}
    return {"step": step, "seconds": seconds, **measured, "phases": PHASES, "memory": 2**29}


def write(
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    metrics: Sequence[Mapping[str, Any]] | None = None,
    ended: Mapping[str, Any] | None = None,
) -> Path:
    """A run folder with those files that are given."""
    folder.mkdir(parents=True, exist_ok=True)
    if settings is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    if metrics is not None:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    if ended is not None:
        (folder / "result.json").write_text(json.dumps(ended))
    return folder


def finished(
    folder: Path,
    dev_losses: Sequence[float] = (0.7, 0.6, 0.5),
    step: float = 0.2,
    test: float = 0.75,
    **changes: Any,
) -> Path:
    """A finished run; ``changes`` are its configuration's."""
    return write(folder, config(**changes), rows(dev_losses, step=step), result(test=test))
