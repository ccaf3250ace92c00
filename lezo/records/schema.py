"""What a run's files hold: the result, a checkpoint's description, a journal's header. Both readers read by this."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Required, TypedDict

import msgspec
from msgspec import Meta, convert

LARGEST = 1e100  # nothing measures a number beyond: it is written as null, as NaN is
Number = Annotated[float, Meta(ge=-1e300, le=1e300)]  # so that no sum of some overflows
Measure = Number | None  # null where it was not finite
Count = Annotated[int, Meta(ge=0, lt=2**53)]


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
    """A checkpoint.json, without its own SHA-256; ``files``: the SHA-256 of each."""

    step: Count
    origin: dict[str, Any]
    files: dict[Annotated[str, Meta(pattern=r"^[0-9]{5}\.safetensors\Z")], str]


class Result(TypedDict, total=False):
    """A run's result.json; null where the run did not come so far. Scores are fractions 0..1, or perplexities.

    One of an earlier lezo may lack keys, one of a later lezo has more.
    """

    status: Required[Annotated[str, Meta(pattern="^(finished|failed|interrupted)$")]]
    error: str | None
    diverged: bool  # whether it failed by losses that were not finite
    task: str
    title: str
    name: str
    notes: str | None
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
    zero_shot_from: str | None  # the run of the sweep that computed it, where that is another
    best_step: Count | None
    weights: str | None
    origin: dict[str, Any] | None
    seconds: Seconds
    peak_memory_bytes: dict[str, Count]  # of the device and on the host
    memory_bytes: dict[str, Count | None]  # expected of the device, and used
    skipped_steps: Count
    rows: str | None
    truncated: Count | None
    prompts_at_once: Count | None  # of a generation
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
        """What differs between a run that starts from this and one that starts from ``now``, a line each."""
        pairs = {name: (getattr(self, key), getattr(now, key)) for key, name in _NAMES.items()}
        return [
            f"{name}: {str(then)[:12]} in the run and {str(here)[:12]} here"  # of a hash the first digits
            for name, (then, here) in pairs.items()
            if then != here
        ]


_NAMES = {
    "weights": "base weights",
    "tokenizer": "tokenizer",
    "data": "data (rows, prompts or their tokens)",
    "dtype": "dtype of the weights",
    "noise": "noise version",
    "config": "configuration",
}


@dataclass(frozen=True)
class ReplaySpec:
    """What turns records into weights: where the base model is, and the settings of `SeededUpdate`.

    ``path``: folder or hub id; None for the embedded model.

    ``decay``: what each update takes off weights that decay, lr * weight_decay. ``peft``: an `Adapter`'s
    settings, None where the model itself was trained.

    ``composition``: the parts of the method by name, with their settings (`lezo.config.methods.Composition`); None in
    older journals: blocks drawn uniformly, ``sparsity`` of them skipped, along Gaussian directions.

    ``blocks``: the names of the modules that are blocks, where a program of one's own trained (`lezo.zo.optimizers`), which
    also made the model; None for a run, whose blocks are the decoder's.

    ``quantization``: how the base's plain weights were quantised as they were read; None: not at all.
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
    quantization: str | None = None


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


def header_of(content: bytes) -> Header:
    """A journal's header. Raises ValueError with the path of what is missing, of another type or unknown."""
    values = decoded(content)
    header = convert(values, Header)
    for name, part in (("origin", Provenance), ("recipe", ReplaySpec)):
        if unknown := values[name].keys() - {field.name for field in fields(part)}:
            raise ValueError(f"unknown {min(unknown)!r} - at `$.{name}`")  # it may make other updates
    return header


def result_of(content: bytes) -> tuple[Result, list[str]]:
    """What of a result.json is as described, or unknown; and what is wrong with the rest, by its path."""
    try:
        values = {"status": None} | decoded(content)
    except ValueError as error:
        return {}, [str(error)]  # type: ignore[typeddict-item]
    wrong = {key: problem for key, value in values.items() if (problem := _problem(key, value))}
    right: Any = {key: value for key, value in values.items() if key not in wrong}
    return right, [*wrong.values()]


def _problem(key: str, value: Any) -> str | None:
    try:
        convert({"status": "failed", key: value}, Result)
    except ValueError as error:
        return str(error)
    return None
