"""What a run's files say: the provenance of its weights, and what makes them again."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Origin:
    """What a run starts from: hashes of the weights as it loads them, of the tokenizer and of its encoded examples.

    ``config`` is a run_hash; ``code`` is lezo's version and commit, for the reader only.
    """

    weights: str
    tokenizer: str
    data: str
    dtype: str
    noise: int
    config: str
    code: str

    def differences(self, now: Origin) -> list[str]:
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
class Recipe:
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
    seed: int
    sparsity: float
    decay: float
    rounding: str
    peft: dict[str, Any] | None = None
    blocks: list[str] | None = None
    composition: dict[str, Any] | None = None


@dataclass(frozen=True)
class Header:
    """The start of a journal."""

    origin: Origin
    recipe: Recipe


def _short(value: Any) -> str:
    """A hash by its first digits."""
    return str(value)[:12]
