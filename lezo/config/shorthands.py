"""Settings that say another one: steps by their forwards, evaluations by their number, a rate by its default.

They are resolved while a configuration is composed and stand in none that is written, so that a run is the same however
it was asked for: to resume it, in a sweep, in a report. No torch.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from lezo.config.methods import METHODS, OptimConfig
from lezo.config.ranges import COUNT, POSITIVE, Range
from lezo.config.schema import ConfigError

_SAYS = {"train.forwards": "train.steps", "train.evaluations": "train.eval_every"}


def refuse_both(tree: DictConfig, given: Collection[str]) -> None:
    """Raise ConfigError where a command gives what a shorthand, its own or a recipe's, says too."""
    for shorthand, key in _SAYS.items():
        value = OmegaConf.select(tree, shorthand)
        if key in given and value is not None:
            ways = f"leave out one of them ({shorthand}=null)"
            raise ConfigError([f"{key}: {shorthand}={value} says it too; {ways}"])


def resolve(tree: DictConfig) -> None:
    """Set what the shorthands of a composed configuration say, and remove them from it.

    Steps are those that `Method.forwards_a_step` leaves of train.forwards, at least one; evaluations are about as many as
    train.evaluations, the last after the last step. Raises ConfigError for one out of its range.
    """
    forwards, evaluations = _taken(tree, "train.forwards", COUNT), _taken(tree, "train.evaluations", COUNT)
    scale = _taken(tree, "optim.lr_scale", POSITIVE)
    if scale is not None and tree.optim.lr is not None:
        tree.optim.lr = float(f"{tree.optim.lr * scale:.6g}")  # as one would type it: 3e-05
    if forwards is not None and (cost := _cost(tree)) is not None:
        tree.train.steps = max(forwards // cost, 1)
    if evaluations is not None:
        tree.train.eval_every = -(-tree.train.steps // evaluations)


def _taken(tree: DictConfig, path: str, within: Range) -> Any:
    """The value, which the tree no longer has; None where there is none, or no such key."""
    name, key = path.split(".")
    group = tree.get(name)
    if not isinstance(group, DictConfig) or key not in group:
        return None
    with open_dict(group):
        value = group.pop(key)
    if value is not None and not within.holds(value):
        raise ConfigError([f"{path}={value}: expected {within.expected}"])
    return value


def _cost(tree: DictConfig) -> int | None:
    """Forwards of a step; None of what takes none."""
    optim = OmegaConf.to_object(tree.optim)
    method = METHODS.get(optim.name) if isinstance(optim, OptimConfig) else None
    if method is None or not method.trains or not isinstance(optim, method.schema):
        return None
    return method.forwards_a_step(optim)
