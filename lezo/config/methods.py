"""Which methods are there, and what is each made of? Only this module tells optimizers apart.

Config, help, banner, report, resume and replay ask a `Method`; none of them knows one by name. A package of
others registers a method as an entry point of the group ``lezo.methods``, and its parts in groups of theirs
(`lezo.zo.parts`). A module that registers a `Method` is imported by commands that do without torch, so it
should too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf

from lezo.config.method import (
    NO_METHOD,
    Composition,
    FirstOrderConfig,
    LezoConfig,
    Method,
    Objective,
    OptimConfig,
    Part,
    Rounding,
    Schedule,
    ZerothOrderConfig,
    method_name,
    no_problems,
    objective,
    step_size,
)
from lezo.config.optim import adalezo, cycle, exzo, fzoo, lozo, memory
from lezo.tasks.registry import Registry

__all__ = [
    "METHODS",
    "NO_METHOD",
    "Composition",
    "FirstOrderConfig",
    "LezoConfig",
    "Method",
    "Objective",
    "OptimConfig",
    "Part",
    "Rounding",
    "Schedule",
    "ZerothOrderConfig",
    "method_name",
    "no_problems",
    "objective",
    "step_size",
]


def _mezo(optim: ZerothOrderConfig, steps: int) -> Composition:
    return Composition(estimator=objective(optim), step_size=step_size(optim, steps))


def _lezo(optim: LezoConfig, steps: int) -> Composition:
    blocks = Part("uniform", {"sparsity": optim.sparsity})
    return Composition(blocks, estimator=objective(optim), step_size=step_size(optim, steps))


def _adamw(optim: FirstOrderConfig) -> Iterator[str]:
    if optim.momentum:
        yield "optim.momentum: AdamW has its own (0.9); only fo-sgd takes it"


_OWN = (
    Method("none", OptimConfig, published="zero-shot"),
    Method("icl", OptimConfig, own_demos=True, published="ICL"),
    Method("lp", OptimConfig, fits_head=True, published="LP"),
    Method("fo-sgd", FirstOrderConfig, algorithm="sgd", rate="fo_sgd"),
    Method("fo-adamw", FirstOrderConfig, algorithm="adamw", rate="fo_adamw", published="FT", problems=_adamw),
    Method("mezo", ZerothOrderConfig, compose=_mezo, sparsity=0.0, family="lezo", published="MeZO"),
    Method("lezo", LezoConfig, compose=_lezo, family="lezo", published="LeZO"),
    exzo.METHOD,
    fzoo.METHOD,
    adalezo.METHOD,
    cycle.LISA,
    cycle.BLOCKS,
    memory.MOMENTUM,
    memory.ADAM,
    lozo.METHOD,
)


def _method(name: str, value: Any) -> Method:
    """What a package has registered, checked. Raises TypeError."""
    if not isinstance(value, Method) or value.name != name:
        raise TypeError(f"expected a lezo.config.methods.Method whose name is {name!r}")
    training = ZerothOrderConfig if value.zeroth_order else FirstOrderConfig
    kind = training if value.trains else OptimConfig
    if not (isinstance(value.schema, type) and issubclass(value.schema, kind)):
        raise TypeError(f"its schema: expected a dataclass of {kind.__name__}")
    OmegaConf.structured(value.schema(name=name))  # raises for types that no configuration can have
    return value


METHODS = Registry("lezo.methods", {method.name: method for method in _OWN}, _method)
