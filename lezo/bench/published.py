"""The step of MeZO's published code, called as it stands in a folder that the user names; nothing of it is here.

Of its trainer.py only the methods of the step are read and run: the file's imports ask for libraries of its time. They are
called with a stand-in for their trainer, whose loss is that of `lezo.bench.textbook`.
"""

from __future__ import annotations
import __future__

import ast
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lezo.bench.textbook import Rows, candidate_rows, textbook_loss
from lezo.data.encode import Encoded
from lezo.model.load import ModelError
from lezo.zo.step import Stopwatch

_STEP = ("zo_step", "zo_perturb_parameters", "zo_forward", "zo_update")
_PLACES = ("trainer.py", "large_models/trainer.py")


def published_step(
    path: str,
    model: nn.Module,
    watch: Stopwatch,
    *,
    lm: bool,
    pad: int,
    lr: float,
    eps: float,
    weight_decay: float,
    seed: int,
) -> Callable[[int, Sequence[Encoded]], None]:
    """(step, examples) -> None: the published zo_step and zo_update of the code in ``path``. Raises ModelError.

    ``watch`` gets the phases data and forward; what the rest does is its own affair.
    """
    trainer = _trainer(model, watch, lr=lr, eps=eps, weight_decay=weight_decay)
    for name, method in published_methods(path).items():
        setattr(trainer, name, MethodType(method, trainer))
    device = next(model.parameters()).device

    def step(number: int, examples: Sequence[Encoded]) -> None:
        np.random.seed((seed + number) % 2**32)  # from which it draws the step's seed
        with watch("data"):
            rows = candidate_rows(examples, lm=lm, pad=pad, device=device)
        trainer.zo_step(model, rows)
        trainer.zo_update(model)

    return step


def published_methods(path: str) -> dict[str, Callable[..., Any]]:
    """The methods of a step, as functions. Raises ModelError where the folder has no such trainer."""
    folder = Path(path).expanduser()
    file = next((folder / place for place in _PLACES if (folder / place).is_file()), None)
    if file is None:
        raise ModelError(
            f"bench.mezo_path={path}: no {_PLACES[0]} there; expected the folder of MeZO's trainer"
        )
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    except (SyntaxError, ValueError, OSError) as error:
        raise ModelError(f"bench.mezo_path={path}: {file} is no Python that can be read ({error})") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            found = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name in _STEP]
            if {one.name for one in found} == {*_STEP}:
                return _run(found, file)
    raise ModelError(f"bench.mezo_path={path}: {file} has no class with {', '.join(_STEP)}")


def _run(functions: list[ast.FunctionDef], file: Path) -> dict[str, Callable[..., Any]]:
    """Define the functions, annotations unread; their names find torch and numpy."""
    names: dict[str, Any] = {"torch": torch, "nn": nn, "np": np, "numpy": np}
    lazily = __future__.annotations.compiler_flag
    exec(compile(ast.Module(list(functions), []), str(file), "exec", flags=lazily), names)
    return {name: names[name] for name in _STEP}


def _trainer(model: nn.Module, watch: Stopwatch, *, lr: float, eps: float, weight_decay: float) -> Any:
    """What the published methods ask of their trainer."""

    def loss(model: nn.Module, rows: Rows, *_: Any, **__: Any) -> Tensor:
        with watch("forward"):
            return textbook_loss(model, rows)

    settings = SimpleNamespace(
        zo_eps=eps,
        weight_decay=weight_decay,
        learning_rate=lr,
        n_gpu=1,
        non_diff=False,
        gradient_accumulation_steps=1,
    )
    return SimpleNamespace(
        model=model,
        args=settings,
        _prepare_inputs=lambda rows: rows,
        compute_loss_context_manager=nullcontext,
        compute_loss=loss,
        _get_learning_rate=lambda: lr,
        lr_scheduler=SimpleNamespace(step=lambda: None),
    )
