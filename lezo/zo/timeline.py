"""The weights after any step of a run, from what it wrote: base weights, checkpoints, journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lezo.model.home import home_of
from lezo.records.checkpoint import Checkpoint
from lezo.records.files import FolderError
from lezo.records.journal import JournalFile
from lezo.records.rows import DevRow, TrainRow
from lezo.zo.step import Optimizer
from lezo.zo.zeroth_order import SeededUpdate


class Timeline:
    """Brings ``model`` to its weights after any step; it begins ``at`` step 0, the base weights.

    ``rebase`` brings the base weights back. ``updates`` makes a journal's updates again: None where
    there is no journal, as in a first-order run, and then only steps with a checkpoint can be reached. What its rule
    remembers (`lezo.zo.rule`) goes with the weights: empty at the base, a checkpoint's own, renewed by each update.
    """

    def __init__(self, model: nn.Module, rebase: Callable[[], None], updates: SeededUpdate | None) -> None:
        self.model, self.rebase, self.updates = model, rebase, updates
        self.at = 0

    def trained(self, row: TrainRow) -> None:
        """The model was trained to the row's step."""
        self.at = row.step

    def evaluated(self, row: DevRow) -> None:
        """An evaluation moves nothing."""

    def bring_to(
        self,
        step: int,
        journal: JournalFile | None,
        checkpoints: Sequence[Checkpoint],
        optimizer: Optimizer | None = None,
        progress: Callable[[int], None] = lambda step: None,
    ) -> None:
        """The weights after ``step`` updates and, where a checkpoint has it, the ``optimizer``'s state.

        Raises FolderError where neither checkpoint nor journal reaches that step.
        """
        self._start(step, checkpoints, optimizer)
        if self.updates is not None and journal is not None:
            self.updates.relearn((r.step - 1, r.values) for r in journal.steps(0, self.at))
        records = list(journal.steps(self.at, step)) if journal else []
        if len(records) < step - self.at or (records and self.updates is None):
            reached = self.at + len(records)
            raise FolderError(
                f"step {step}: the run's files reach step {reached} only; ask for that step or an earlier one"
            )
        if records and self.updates is not None:
            for made in self.updates.replay([(r.step - 1, r.values) for r in records]):
                progress(made + 1)
        self.at = step

    def _start(self, step: int, checkpoints: Sequence[Checkpoint], optimizer: Optimizer | None) -> None:
        """Go to the nearest state before ``step`` that is at hand: the present one, a checkpoint or the base."""
        nearest = max((c for c in checkpoints if c.step <= step), key=lambda c: c.step, default=None)
        if nearest is not None and not (nearest.step <= self.at <= step):
            _take(self.model, nearest, optimizer or self.updates)
            self.at = nearest.step
        elif self.at > step:
            self.rebase()
            if self.updates is not None:
                self.updates.restore({})
            self.at = 0


def model_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """What a checkpoint holds: the trainable weights and the optimizer's memory."""
    weights = {f"model.{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return weights | {f"optimizer.{name}": value for name, value in optimizer.state().items()}


@torch.no_grad()
def _take(model: nn.Module, checkpoint: Checkpoint, optimizer: Optimizer | SeededUpdate | None) -> None:
    """Copy a checkpoint's tensors into the model and the optimizer."""
    expected = f"remove the folder {checkpoint.path} to go on from an earlier one"
    if (damage := checkpoint.damage()) is not None:
        raise FolderError(f"{damage}; {expected}")
    missing = {f"model.{name}": p for name, p in model.named_parameters() if p.requires_grad}
    state, home = {}, home_of(model)
    for key, tensor in checkpoint.tensors():
        theta = missing.pop(key, None)
        if key.startswith("optimizer."):
            state[key.removeprefix("optimizer.")] = tensor
        elif theta is not None and (theta.shape, theta.dtype) == (tensor.shape, tensor.dtype):
            theta.copy_(tensor)
            home.let_go(theta)
        else:
            raise FolderError(f"{checkpoint.path}: {key} is not a tensor of this model; {expected}")
    if missing:
        raise FolderError(f"{checkpoint.path}: lacks {min(missing)}; {expected}")
    if optimizer is None:
        return
    if optimizer.state() and not state:
        raise FolderError(f"{checkpoint.path}: lacks the optimizer's memory; {expected}")
    try:
        optimizer.restore(state)
    except ValueError as error:
        raise FolderError(f"{checkpoint.path}: not the optimizer's memory ({error}); {expected}") from None
