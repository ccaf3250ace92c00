"""What a run's files hold: the rows of metrics.jsonl, the result, a journal's header. Both readers read by this."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, NotRequired, Required, TypedDict

import msgspec
from msgspec import Meta, convert

LARGEST = 1e100  # a number beyond is damage, as NaN is: written as null
Number = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
Measure = Number | None  # null where it was not finite
Count = Annotated[int, Meta(ge=0, lt=2**53)]


class TrainLine(TypedDict):
    """A train row as in metrics.jsonl; every other key of it is a measure of the step."""

    step: Count
    seconds: Number
    loss: Measure
    skipped: bool
    phases: dict[str, Number]
    memory: NotRequired[Measure]


class DevLine(TypedDict):
    """A dev row as in metrics.jsonl."""

    step: Count
    seconds: Number
    dev_loss: Measure
    dev_score: Number
    eval_seconds: Number


class TestLine(TypedDict):
    """The test row of before training, as in metrics.jsonl."""

    step: Count
    seconds: Number
    test_loss: Measure
    test_score: Number


class Seconds(TypedDict, total=False):
    """Wall-clock, of a result."""

    total: Measure
    train: Measure
    eval: Measure
    step_median: Measure
    forward: Measure
    perturb: Measure
    update: Measure
    data: Measure


class CheckpointFile(TypedDict):
    """What a checkpoint's checkpoint.json says, beside its own SHA-256: that of each file by its name."""

    step: Count
    origin: dict[str, Any]
    files: dict[Annotated[str, Meta(pattern=r"^[0-9]{5}\.safetensors\Z")], str]


class Result(TypedDict, total=False):
    """What a run came to, as in result.json; null where it did not come so far. Scores are fractions 0..1.

    One of before may lack keys, one of a later lezo has more.
    """

    status: Required[Annotated[str, Meta(pattern="^(finished|failed|interrupted)$")]]
    error: str | None
    task: str
    title: str
    data: str | None
    synthetic: bool
    metric: str | None
    model: str
    dequantised: str | None
    optim: str
    peft: str
    lr: Measure
    eps: Measure
    sparsity: Measure
    weight_decay: Measure
    blocks: str | None
    steps: Count
    objective: str
    seed: int
    data_seed: int
    test: Measure
    dev: Measure
    dev_loss: Measure
    zero_shot: Measure
    best_step: Count | None
    weights: str | None
    origin: dict[str, Any] | None
    seconds: Seconds
    peak_memory_bytes: dict[str, Count]  # of the device and on the host
    memory_bytes: dict[str, Count | None]  # expected of the device, and used
    skipped_steps: Count
    rows: str | None
    truncated: Count | None
    examples: dict[str, Count] | None
    command: str


@dataclass(frozen=True)
class Provenance:
    """What a run starts from: hashes of the weights as it loads them, of the tokenizer and of its encoded examples.

    ``config`` is a run_hash; ``code`` is lezo's version and commit, for the reader only.
    """

    weights: str
    tokenizer: str
    data: str | None
    dtype: str
    noise: int
    config: str
    code: str

    def differences(self, now: Provenance) -> list[str]:
        """What another origin would start differently, a line each."""
        words = {
            "weights": "base weights",
            "data": "data",
            "tokenizer": "tokenizer",
            "noise": "noise version",
        }
        named = words | {"dtype": "dtype of the weights", "config": "configuration"}
        return [
            f"{named[key]}: {_short(getattr(self, key))} in the run and {_short(getattr(now, key))} here"
            for key in (field.name for field in fields(self))
            if key in named and getattr(self, key) != getattr(now, key)
        ]


@dataclass(frozen=True)
class ReplaySpec:
    """What turns records into weights: where the base model is, and the settings of `SeededUpdate`.

    ``path``: folder or hub id; None for the embedded model.

    ``decay``: what each update takes off weights that decay, lr * weight_decay. ``peft``: an `Adapter`'s
    settings, None where the model itself was trained.

    ``composition``: the four parts of the method by name, with their settings (`lezo.config.methods.Composition`); None in
    journals of before: blocks drawn uniformly, ``sparsity`` of them skipped, along Gaussian directions.

    ``blocks``: the names of the modules that are blocks, where a program of one's own trained (`lezo.zo.optimizers`), which
    also made the model; None for a run, whose blocks are the decoder's.
    """

    model: str
    path: str | None
    revision: str | None
    shape: dict[str, Any] | None
    random_weights: bool
    tokenizer: str | None
    seed: Annotated[int, Meta(ge=0)]
    sparsity: Annotated[float, Meta(ge=0, le=1)]
    decay: Annotated[float, Meta(ge=0, le=LARGEST)]
    rounding: Annotated[str, Meta(pattern="^(nearest|stochastic)$")]
    peft: dict[str, Any] | None = None
    blocks: list[str] | None = None
    composition: dict[str, Any] | None = None


@dataclass(frozen=True)
class Header:
    """The start of a journal."""

    origin: Provenance
    recipe: ReplaySpec


def decoded(content: bytes) -> dict[str, Any]:
    """A JSON object, in which there is no NaN. Raises ValueError for anything else."""
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except RecursionError as error:
        raise ValueError(error) from None


def measures_of(row: Mapping[str, Any]) -> dict[str, float | None]:
    """What a train row has beside the keys of every one. Raises ValueError with the key of what is no measure."""
    return {key: _measure(key, value) for key, value in row.items() if key not in TrainLine.__annotations__}


def _measure(key: str, value: Any) -> float | None:
    try:
        number: float | None = convert(value, Measure)
        return number
    except ValueError as error:
        raise ValueError(f"{error} - at `$.{reprlib.repr(key)[1:-1]}`") from None


def header_of(content: bytes) -> Header:
    """A journal's header. Raises ValueError with the path of what lacks, is of another type or unknown."""
    found = decoded(content)
    header = convert(found, Header)
    for name, part in (("origin", Provenance), ("recipe", ReplaySpec)):
        if unknown := found[name].keys() - {field.name for field in fields(part)}:
            raise ValueError(f"unknown {min(unknown)!r} - at `$.{name}`")  # it may make other updates
    return header


def sifted(content: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Of a result the keys that are as described, or unknown; and what is wrong with the others, by its path."""
    found = {"status": None} | content
    wrong = {key: problem for key, value in found.items() if (problem := _problem(key, value))}
    return {key: value for key, value in found.items() if key not in wrong}, [*wrong.values()]


def _problem(key: str, value: Any) -> str | None:
    try:
        convert({"status": "failed", key: value}, Result)
    except ValueError as error:
        return str(error)
    return None


def _short(value: Any) -> str:
    """A hash by its first digits."""
    return str(value)[:12]
