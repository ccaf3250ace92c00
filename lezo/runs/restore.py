"""What makes a run survive: its journal and checkpoints, written as it goes and read to go back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from lezo.records.checkpoint import Checkpoints, find_checkpoints
from lezo.records.folder import CHECKPOINTS, JOURNAL
from lezo.records.journal import Journal, read_journal
from lezo.records.rows import StepSink
from lezo.records.schema import Header
from lezo.runs.begin import Session
from lezo.runs.build import LoadedModel
from lezo.runs.console import replaying
from lezo.zo.blocks import Learner
from lezo.zo.parts import updates_of
from lezo.zo.step import Optimizer
from lezo.zo.timeline import Timeline, model_state
from lezo.zo.zeroth_order import ZerothOrder


class History:
    """Writes what the optimizer does to the model, and brings the model, on all ranks, to any step that was written.

    A zeroth-order run has a journal, and checkpoints every train.checkpoint_every steps; a first-order run
    has no journal, and checkpoints at its dev evaluations too.
    """

    def __init__(self, session: Session) -> None:
        optimizer = session.together.optimizer
        self.session, self.optimizer, self.path = session, optimizer, session.folder.path
        loaded, header, settings = session.loaded, session.header, session.config.train
        updates = optimizer.update if isinstance(optimizer, ZerothOrder) else None
        self.journal = (
            Journal(self.path / JOURNAL, header, at=session.resumed.journal_end) if updates else None
        )
        self.checkpoints = Checkpoints(
            self.path / CHECKPOINTS,
            header.origin,
            partial(model_state, loaded.model, optimizer),
            every=settings.checkpoint_every,
            keep=settings.keep_checkpoints,
            at_evaluations=updates is None,
            best=lambda: session.progress.best_step,
        )
        self.timeline = Timeline(loaded.model, partial(loaded.base.rebase, header.origin.weights), updates)

    def sinks(self) -> list[StepSink]:
        """What keeps a step, in order: after a kill an earlier one may be a step ahead of a later one."""
        journals = [self.journal] if self.journal else []
        return [*journals, self.session.folder, self.checkpoints, self.timeline]

    def bring_to(self, step: int) -> None:
        """The weights of ``step``, and the optimizer's state if a checkpoint has it."""
        with replaying(self.session.request.out, step) as replayed:
            _bring_to(self.timeline, self.path, step, self.optimizer, replayed)
        self.session.together.spread_weights(self._past(step))

    def go_back(self) -> None:
        """Bring a model just loaded to where the earlier sessions ended.

        Makes up for what a kill prevented: a checkpoint, or the removal of old ones.
        """
        step = self.session.resumed.step
        if step or self.session.resumed.rows:
            steps = self.session.config.train.steps
            self.session.request.out.print(f"resuming this run after step {step} of {steps}")
        if step:
            self.bring_to(step)
            if self.checkpoints.due(step):
                self.checkpoints.save(step)
            self.checkpoints.prune()

    def _past(self, step: int) -> list[tuple[int, Sequence[float]]]:
        """What a chooser of blocks that learns has learned from; other ranks learn it again."""
        update = self.timeline.updates
        if self.session.request.ranks.size == 1 or update is None or not isinstance(update.blocks, Learner):
            return []
        return [(r.step - 1, r.values) for r in read_journal(self.path / JOURNAL).steps(0, step)]

    def keep(self, step: int) -> None:
        """Keep the state of ``step``, where the run is interrupted, if only a checkpoint can."""
        if self.journal is None and step > 0:
            self.checkpoints.save(step)

    def close(self) -> None:
        """See the journal onto the disk."""
        if self.journal is not None:
            self.journal.close()


def bring_back(
    loaded: LoadedModel, header: Header, path: Path, step: int, out: Console, *, journaled: bool
) -> None:
    """Give a model just loaded the weights that ``step`` had, by what the run at ``path`` wrote."""
    updates = updates_of(header.recipe, loaded.model, loaded.plan.layout) if journaled else None
    timeline = Timeline(loaded.model, partial(loaded.base.rebase, header.origin.weights), updates)
    with replaying(out, step) as replayed:
        _bring_to(timeline, path, step, None, replayed)


def _bring_to(
    timeline: Timeline, path: Path, step: int, optimizer: Optimizer | None, replayed: Callable[[int], None]
) -> None:
    """By the checkpoints of the run at ``path``, or of that journal alone, and its journal where updates can be made again."""
    file = path if path.is_file() else path / JOURNAL
    journal = read_journal(file) if timeline.updates is not None else None
    timeline.bring_to(step, journal, find_checkpoints(path / CHECKPOINTS), optimizer, replayed)
