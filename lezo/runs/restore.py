"""What makes a run survive: its journal and checkpoints, written as it goes and read to go back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from lezo.config.schema import RunConfig
from lezo.records.checkpoint import Checkpoints, find_checkpoints
from lezo.records.folder import CHECKPOINTS, JOURNAL, RunFolder
from lezo.records.journal import Journal, read_journal
from lezo.records.rows import StepSink
from lezo.records.schema import Header
from lezo.runs.build import LoadedModel
from lezo.runs.loop import Progress
from lezo.runs.resume import ResumeState
from lezo.zo.parts import updates_of
from lezo.zo.step import Optimizer
from lezo.zo.timeline import Timeline, model_state
from lezo.zo.zeroth_order import ZerothOrder


class History:
    """Writes what ``optimizer`` does to the model, and brings the model to any step that was written.

    A zeroth-order run has a journal, and checkpoints every train.checkpoint_every steps; a first-order run has no
    journal, and checkpoints at its dev evaluations too.
    """

    def __init__(
        self,
        folder: RunFolder,
        loaded: LoadedModel,
        header: Header,
        past: ResumeState,
        progress: Progress,
        optimizer: Optimizer,
        config: RunConfig,
    ) -> None:
        self.folder, self.optimizer = folder, optimizer
        updates = optimizer.update if isinstance(optimizer, ZerothOrder) else None
        self.journal = Journal(folder.path / JOURNAL, header, at=past.journal_end) if updates else None
        self.checkpoints = Checkpoints(
            folder.path / CHECKPOINTS,
            header.origin,
            partial(model_state, loaded.model, optimizer),
            every=config.train.checkpoint_every,
            keep=config.train.keep_checkpoints,
            at_evaluations=updates is None,
            best=lambda: progress.best_step,
        )
        self.timeline = Timeline(loaded.model, loaded.rebase(config.seed, header.origin.weights), updates)

    def sinks(self) -> list[StepSink]:
        """Who must hear of a step, in this order: a later one may lack a step that an earlier one has."""
        return [*([self.journal] if self.journal else []), self.folder, self.checkpoints, self.timeline]

    def bring_to(self, step: int, told: Callable[[int], None]) -> None:
        """The weights of ``step``, and the optimizer's state if a checkpoint has it; ``told`` hears of each update."""
        _bring_to(self.timeline, self.folder.path, step, self.optimizer, told)

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


def bring_back(
    loaded: LoadedModel, header: Header, path: Path, step: int, config: RunConfig, told: Callable[[int], None]
) -> None:
    """Give a model just loaded the weights that ``step`` had, by the journal or a checkpoint of the run at ``path``."""
    journaled = not config.first_order
    updates = updates_of(header.recipe, loaded.model, loaded.plan.layout) if journaled else None
    timeline = Timeline(loaded.model, loaded.rebase(config.seed, header.origin.weights), updates)
    _bring_to(timeline, path, step, None, told)


def _bring_to(
    timeline: Timeline, path: Path, step: int, optimizer: Optimizer | None, told: Callable[[int], None]
) -> None:
    """By what the run at ``path`` wrote: its checkpoints, and its journal where updates can be made again."""
    journal = read_journal(path / JOURNAL) if timeline.updates is not None else None
    timeline.bring_to(step, journal, find_checkpoints(path / CHECKPOINTS), optimizer, told)
