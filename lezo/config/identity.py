"""When are two runs the same? By every setting, and by the content of what they start from. No torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import PurePath
from typing import Any

from omegaconf import OmegaConf

from lezo.tasks import TASKS

# How a run is made, not which.
IGNORED = (
    *("log", "resume", "dry_run", "sweep", "inspect", "bench"),
    *("model.cuda_graphs", "model.devices", "model.home", "model.home_dir", "train.rank_timeout"),
)
CHANGEABLE = ("save_model", "train.checkpoint_every", "train.keep_checkpoints", "model.device")
_BY_HASH = (
    "model.path",
    "model.tokenizer",
    "data.path",
    "task.chat_template",
)  # what lies there is compared by its hash instead
UP_TO_ROUNDING = ("train.micro_batch_size", "eval.batch_size")  # the way out where memory ran out
_MAY_GROW = ("train.steps", "train.max_seconds")
_LATER: dict[str, dict[str, Any]] = {
    "optim.eps": {"optim.schedule": "constant", "optim.warmup": 0, "optim.clip": None, "optim.probes": 1},
    "optim.clip_norm": {"optim.warmup": 0},
    "eval.batch_size": {"eval.max_new_tokens": 50},
    "model.dtype": {"model.max_length": None, "model.quantization": "none"},
    "data.revision": {"data.config": None, "data.columns": None, "data.splits": None, "data.test_share": 0.2},
}
"""Settings that groups got later, by one that they always had, and the values that leave runs of before as they were."""


def config_hash(yaml: str) -> str:
    """64 hex digits of a resolved configuration, without the settings that leave a run's result alone."""
    return _hash_without(yaml, IGNORED)


def run_hash(yaml: str) -> str:
    """The same without all that may change while a run goes on (see `differences`)."""
    return _hash_without(yaml, (*IGNORED, *CHANGEABLE, *_BY_HASH, *UP_TO_ROUNDING, *_MAY_GROW))


def shared_hash(yaml: str) -> str:
    """What the ranks of a run must have alike: all but what leaves it alone, and paths, which each may have of its own."""
    return _hash_without(yaml, (*IGNORED, "model.device", *_BY_HASH))


def _hash_without(yaml: str, parents: tuple[str, ...]) -> str:
    values, later = settings(yaml), _later(_values(yaml))
    kept = {
        key: value
        for key, value in values.items()
        if not within(key, parents) and (key not in later or value != later[key])
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def job_name(yaml: str) -> str:
    """A folder name for a run: what people look for, and the first 8 digits of its hash.

    Names may come from a user's own files: what is no plain file name in them becomes "_".
    """
    values = settings(yaml)
    groups = [values[f"{group}.name"] for group in ("task", "model", "optim", "peft")]
    names = [*groups[: 3 if groups[3] == "none" else 4], f"seed{values['seed']}"]
    plain = re.sub(r"[^A-Za-z0-9._-]|\.(?=\.)", "_", "-".join(str(name) for name in names))
    return f"{plain.lstrip('.')[:100]}-{config_hash(yaml)[:8]}"


def run_name(yaml: str, given: Sequence[str] = (), *, trains: bool = True) -> str:
    """What to call a run that nobody has named: task, model, method, what of its settings the command ``given`` says, and seed.

    Of one that ``trains`` nothing no step is told.
    """
    values = settings(yaml)
    path = values.get("model.path")
    model = PurePath(path).name if values["model.name"] == "hf" and path else values["model.name"]
    peft = [] if values["peft.name"] == "none" else [values["peft.name"]]
    keys = dict.fromkeys(_SHORTHANDS.get(key, key) for key in given)
    shown = [key for key in _TOLD if trains or not key.startswith("train.")]
    told = [key for key in keys if "." in key and within(key, shown) and values.get(key) is not None]
    words = [f"{key.rpartition('.')[2]}{_brief(values[key])}" for key in told]
    return "-".join(
        [values["task.name"], model, values["optim.name"], *peft, *words, f"seed{values['seed']}"]
    )


_SHORTHANDS = {"optim.lr_scale": "optim.lr", "train.forwards": "train.steps"}
_TOLD = (
    *("optim", "peft", "train.steps", "train.batch_size", "task.num_train", "task.demos", "task.data_seed"),
    *("eval.calibration", "model.dtype", "model.quantization"),
)
"""Settings that a sweep may be about, and that tell runs apart that are otherwise called alike."""


def _brief(value: Any) -> str:
    """Of a number as few digits as say it, 1e-6 for 1e-06; of a list its values."""
    if isinstance(value, list):
        return "+".join(map(_brief, value))
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


def differences(before: str, now: str) -> list[str]:
    """What keeps the run of configuration ``before`` from going on under ``now``, a line each; none: it can.

    More steps or seconds are no difference, nor are settings that change nothing, or nothing beyond
    rounding. Paths are left to whoever compares what they hold.
    """
    old, new = settings(before), settings(now)
    if (
        new.get("data.path") is not None
    ):  # of one's own rows a size left open follows them, a given one does not
        old |= dict.fromkeys(open_sizes(before).keys() - open_sizes(now).keys())
    changed = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    compared = (*IGNORED, *CHANGEABLE, *_BY_HASH, *UP_TO_ROUNDING)
    return [
        f"{key} was {_shown(old.get(key))} and is {_shown(new.get(key))}{_why(key, old)}"
        for key in changed
        if not within(key, compared) and not (key in _MAY_GROW and _grows(key, old, new))
    ]


def settings(yaml: str) -> dict[str, Any]:
    """The configuration's values by their dotted keys; sizes that it leaves open are the published ones.

    Settings that were added after it was written have the values that mean the same.
    """
    values = _values(yaml)
    return {**_later(values), **values, **open_sizes(yaml)}


def _later(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that its groups got later, at the values that change nothing: no hash knows of these."""
    return {key: value for mark, added in _LATER.items() if mark in values for key, value in added.items()}


def open_sizes(yaml: str) -> dict[str, int]:
    """The published values of the sizes that a configuration leaves open, by their dotted keys."""
    values = _values(yaml)
    task = TASKS.get(str(values.get("task.name")))
    names = [name for name in ("num_train", "num_dev") if values.get(f"task.{name}", 0) is None]
    return {} if task is None else {f"task.{name}": getattr(task, name) for name in names}


@lru_cache(maxsize=64)
def _values(yaml: str) -> Mapping[str, Any]:
    """What it says itself. Parsing takes longer than composing did, and each run asks several times."""
    return dict(_flat(OmegaConf.to_container(OmegaConf.create(yaml)), ""))


def _flat(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def within(key: str, parents: Sequence[str]) -> bool:
    """Whether a dotted key is one of ``parents``, or of a group of them."""
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)


def _grows(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """A schedule that ends spreads over all steps: there another number of them is another run."""
    if _ends(key, old):
        return False
    before, now = old.get(key), new.get(key)
    return now is None or (before is not None and now > before)


def _ends(key: str, old: Mapping[str, Any]) -> bool:
    return key == "train.steps" and old.get("optim.schedule") in ("linear", "cosine")


def _why(key: str, old: Mapping[str, Any]) -> str:
    return f" (its {old['optim.schedule']} schedule ends there)" if _ends(key, old) else ""


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value).replace("\n", "\\n")
