"""What makes a run survive: its journal and checkpoints, written as it goes and read to go back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from lezo.records.checkpoint import Checkpoints, find_checkpoints
from lezo.records.folder import CHECKPOINTS, JOURNAL
from lezo.records.journal import Journal, read_journal
from lezo.records.schema import Header
from lezo.runs.loop import Listener
from lezo.runs.resume import Past
from lezo.zo.step import Optimizer
from lezo.zo.timeline import Timeline, model_state
from lezo.zo.zeroth_order import ZerothOrder


class Durable:
    """Writes what ``optimizer`` does to ``model``, and brings the model to any step that was written.

    A zeroth-order run has a journal, and checkpoints every ``every`` steps; a first-order run has no
    journal, and checkpoints at its dev evaluations too. ``metrics`` hears of a step between the two.
    """

    def __init__(
        self,
        folder: Path,
        metrics: Listener,
        header: Header,
        past: Past,
        model: nn.Module,
        optimizer: Optimizer,
        rebase: Callable[[], None],
        *,
        every: int | None,
        keep: int,
        best: Callable[[], int | None],
    ) -> None:
        self.folder, self.optimizer, self._metrics = folder, optimizer, metrics
        updates = optimizer.update if isinstance(optimizer, ZerothOrder) else None
        self.journal = Journal(folder / JOURNAL, header, at=past.journal_end) if updates else None
        self.checkpoints = Checkpoints(
            folder / CHECKPOINTS,
            header.origin,
            lambda: model_state(model, optimizer),
            every=every,
            keep=keep,
            at_evaluations=updates is None,
            best=best,
        )
        self.timeline = Timeline(model, rebase, updates)

    def listeners(self) -> list[Listener]:
        """Who must hear of a step, in this order: a later one may lack a step that an earlier one has."""
        return [*([self.journal] if self.journal else []), self._metrics, self.checkpoints, self.timeline]

    def bring_to(self, step: int, told: Callable[[int], None]) -> None:
        """The weights of ``step``, and the optimizer's state if a checkpoint has it; ``told`` hears of each update."""
        journal = read_journal(self.folder / JOURNAL) if self.journal else None
        self.timeline.bring_to(
            step, journal, find_checkpoints(self.folder / CHECKPOINTS), self.optimizer, told
        )

    def go_back(self, step: int, told: Callable[[int], None]) -> None:
        """Bring a model just loaded to ``step``, and make up for what a kill prevented: a checkpoint, or its pruning."""
        self.bring_to(step, told)
        if self.checkpoints.due(step):
            self.checkpoints.save(step)
        self.checkpoints.prune()

    def interrupted(self, step: int) -> None:
        """Keep the state of ``step`` where only a checkpoint can."""
        if self.journal is None and step > 0:
            self.checkpoints.save(step)

    def close(self) -> None:
        """See the journal onto the disk."""
        if self.journal is not None:
            self.journal.close()
