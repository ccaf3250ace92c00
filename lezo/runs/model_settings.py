"""What a saved model tells lezo-eval: lezo.json beside its weights has the task, prompt and sizes that it was scored with.

It goes where the model goes: no local place stands in it, and no row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lezo.config.identity import run_hash
from lezo.model.load import ModelError
from lezo.records.files import read_file
from lezo.records.folder import CONFIG
from lezo.records.schema import Header, decoded
from lezo.runs.card import is_hub_id

FILE = "lezo.json"
_OF_MODEL = ("name", "path", "revision", "bos", "max_length", "quantization")


@dataclass(frozen=True)
class ModelSettings:
    """``values``: a run's configuration as far as an evaluation needs it, nested; ``step``, ``weights``: as in a `Card`."""

    values: Mapping[str, Any]
    step: int | None
    weights: str | None


def settings_text(yaml: str, header: Header, step: int, weights: str | None) -> str:
    """The file beside a model of the run of configuration ``yaml``. The same facts make the same bytes."""
    values = _portable(_nested(yaml), header.origin.dtype)
    told = {"config": run_hash(yaml), "step": step, "weights": weights, "settings": values}
    return json.dumps(told, indent=2, ensure_ascii=False) + "\n"


def read_settings(folder: Path) -> ModelSettings | None:
    """What the model in ``folder`` tells, with the places that the run around it knows; None where nothing is told.

    Models of before have no file, but lie in their run's folder. Raises ModelError for a damaged file.
    """
    around = (read_file(folder.absolute().parent / CONFIG) or b"").decode(errors="replace")
    content = read_file(folder / FILE)
    if content is None:
        values = _nested(around)
        return ModelSettings(values, None, None) if "task" in values else None
    try:
        told = decoded(content)
        values, config = dict(told["settings"]), str(told["config"])
        step, weights = told.get("step"), told.get("weights")
    except (ValueError, LookupError, TypeError) as error:
        ways = "remove it, and say task=... and data=... yourself"
        raise ModelError(f"{folder / FILE}: not what lezo writes beside a model ({error}); {ways}") from None
    if hash_of(around) == config:  # the folder of its own run, which knows where the rows are
        values |= {group: _nested(around)[group] for group in ("task", "data")}
    return ModelSettings(values, step, weights)


def _portable(values: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The parts that an evaluation needs, without local places."""
    task, data, model = dict(values["task"]), dict(values["data"]), values["model"]
    if task.get("chat_template") is not None:  # the tokenizer is saved with it
        task["chat_template"] = None
    if data.get("name") == "local":
        data["path"] = None
    if data.get("splits"):
        data["splits"] = {role: _last(place) for role, place in data["splits"].items()}
    path = model.get("path")
    of_model = {key: model.get(key) for key in _OF_MODEL if key in model}
    of_model |= {"path": path if path is not None and is_hub_id(path) else None, "dtype": dtype}
    return {"task": task, "data": data, "eval": values["eval"], "model": of_model}


def _last(place: Any) -> Any:
    return Path(place).name if isinstance(place, str) and Path(place).is_absolute() else place


def _nested(yaml: str) -> dict[str, Any]:
    """None of a file that is no configuration: yaml and omegaconf have many ways to say so."""
    try:
        values: Any = OmegaConf.to_container(OmegaConf.create(yaml))
        return dict(values)
    except Exception:
        return {}


def hash_of(yaml: str) -> str | None:
    """The hash of a run's configuration; None of what is none."""
    try:
        return run_hash(yaml)
    except Exception:
        return None
