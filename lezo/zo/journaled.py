"""The journal of a user's own training loop: begin it, resume from it, apply it to base weights."""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from lezo.model.hashes import weights_hash
from lezo.model.layout import Layout, layout_of, refuse_no_module
from lezo.noise import seeds
from lezo.records.environment import code_version
from lezo.records.journal import Journal, JournalError, JournalFile, read_journal
from lezo.records.rows import TrainRow
from lezo.records.schema import Header, Provenance, ReplaySpec
from lezo.zo.parts import Composition, composition_of, refuse_unknown, updates_of
from lezo.zo.step import StepReport
from lezo.zo.timeline import Timeline
from lezo.zo.zeroth_order import SeededUpdate


class GoesOn(Protocol):
    """An optimizer of a user's own loop, as `lezo.LeZO` is."""

    def go_on(self, steps: int, state: Mapping[str, Tensor], past: Sequence[Sequence[float]]) -> None:
        """Be after ``steps`` steps, whose coefficients were ``past``, with ``state`` for the rule's memory."""


def apply_journal(
    model: nn.Module,
    path: str | os.PathLike[str],
    step: int | None = None,
    *,
    optimizer: GoesOn | None = None,
) -> int:
    """Bring ``model`` from a journal's base weights to those after ``step`` (None: the last), bit for bit.

    Returns the step. No forward is made. The model is as it was when the journal began: built alike, the same
    weights, the same tensors trainable. A journal keeps parameters only: buffers, such as the running statistics
    of BatchNorm, stay as they are. ``optimizer``: the model's, which is to go on from there: it gets the step's number, and what
    its method remembers or has learned by then.

    Raises JournalError for a damaged file, other base weights, other trainable tensors, and the journal of a
    lezo-run; FolderError for a step that it does not reach.
    """
    refuse_no_module(model, "lezo.apply_journal")
    file = Path(path)
    journal = read_journal(file)
    recipe = journal.header.recipe
    if recipe.blocks is None:
        raise JournalError(f"{file}: the journal of a lezo-run; lezo-replay {file} makes its model")
    refuse_unknown(recipe, file)
    try:
        layout = layout_of(model, recipe.blocks)
    except ValueError as error:
        raise JournalError(f"{file}: another model's journal, of a {recipe.model} ({error})") from None
    _refuse(file, _differences(journal, model, layout))
    if (base := weights_hash(model)) != journal.header.origin.weights:
        expected = f"sha256 {base[:12]}, the journal's are {journal.header.origin.weights[:12]}"
        _refuse(file, [f"these are not its base weights ({expected}): apply it to the model as it began"])
    wanted = journal.step if step is None else step
    updates = updates_of(recipe, model, layout)
    Timeline(model, lambda: None, updates).bring_to(wanted, journal, [])
    if optimizer is not None:
        optimizer.go_on(wanted, updates.state(), [r.values for r in journal.steps(0, wanted)])
    return wanted


class LoopJournal:
    """Keeps the journal of an optimizer's steps in ``file``, which is opened for the first of them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._journal: Journal | None = None
        self._recipe: ReplaySpec | None = None

    def expect(
        self, step: int, update: SeededUpdate, blocks: Sequence[str], composition: Composition
    ) -> None:
        """Be ready for the record of step ``step``, counted from 0, which ``update`` is about to make.

        At step 0 a journal begins, and the present weights are its base. Later it is gone on with behind the record
        before. Raises JournalError where it is there at step 0, or is not there later, is another's, or does not
        reach the step; and where settings have changed since it began.
        """
        recipe = _recipe(update, blocks, composition)
        if self._journal is None:
            self._journal = _new(self.file, update, recipe) if step == 0 else self._reopened(step, update)
            weakref.finalize(self, self._journal.close)
        self._recipe = self._recipe or recipe
        before, now, began = asdict(self._recipe), asdict(recipe), composition_of(self._recipe)
        before["composition"] = began.plain()  # old journals lack it
        was, is_now = began.rule.settings.get("lr"), composition.rule.settings.get("lr")
        if was != is_now:
            ways = (
                "a journal of this method has one for all steps: keep it constant, or leave out the journal"
            )
            _refuse(self.file, [f"the learning rate was {was} and is {is_now}; {ways}"])
        changes = [f"{key} was {before[key]} and is {now[key]}" for key in now if before[key] != now[key]]
        if changes:
            why = "one journal has one of each (decay is lr * weight_decay: with a changing lr, set weight_decay=0)"
            _refuse(self.file, [f"{', '.join(changes)}; {why}"])

    def trained(self, step: int, report: StepReport) -> None:
        """Append the record of step ``step``, counted from 1."""
        assert self._journal is not None
        skipped, c, more = not report.applied, report.coefficient, report.more
        self._journal.trained(TrainRow(step, 0.0, report.loss, skipped=skipped, coefficient=c, more=more))

    def close(self) -> None:
        """See it onto the disk; the next ``expect`` opens it again."""
        if self._journal is not None:
            self._journal.close()
        self._journal = self._recipe = None

    def _reopened(self, step: int, update: SeededUpdate) -> Journal:
        journal = read_journal(self.file)
        _refuse(self.file, _differences(journal, update.model, update.layout))
        if journal.step < step:
            _refuse(self.file, [f"it reaches step {journal.step}, and the optimizer is at step {step}"])
        self._recipe = journal.header.recipe
        return Journal(self.file, journal.header, at=journal.cut(step, keeps_dev=True))


def _new(file: Path, update: SeededUpdate, recipe: ReplaySpec) -> Journal:
    if file.exists():
        expected = (
            "opt.steps = lezo.apply_journal(model, path) goes on with it; else remove it or name another file"
        )
        raise JournalError(f"{file}: holds a journal already, and the optimizer is at its start; {expected}")
    origin = replace(_origin(update.model, update.layout), weights=weights_hash(update.model))
    return Journal(file, Header(origin, recipe))


def _recipe(update: SeededUpdate, blocks: Sequence[str], composition: Composition) -> ReplaySpec:
    return ReplaySpec(
        model=type(update.model).__name__,
        path=None,
        revision=None,
        shape=None,
        random_weights=False,
        tokenizer=None,
        seed=update.seed,
        sparsity=composition.blocks.settings.get("sparsity", 0.0),
        decay=update.decay,
        rounding=update.rounding,
        blocks=list(blocks),
        composition=composition.plain(),
    )


def _origin(model: nn.Module, layout: Layout) -> Provenance:
    """What is known of it without reading the weights. ``config`` stands for what is trained, sorted by blocks."""
    tensors = json.dumps([layout.non_block, layout.blocks]).encode()
    return Provenance(
        weights="",
        tokenizer="",
        data="",
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        noise=seeds.VERSION,
        config=hashlib.sha256(tensors).hexdigest(),
        code=code_version(),
    )


def _differences(journal: JournalFile, model: nn.Module, layout: Layout) -> Iterator[str]:
    before, now = journal.header.origin, _origin(model, layout)
    if before.config != now.config:
        trained = sum(map(len, (layout.non_block, *layout.blocks)))
        yield (
            f"other tensors were trained than the {trained} that are trainable here; build the {type(model).__name__} "
            "as it was, with the same requires_grad"
        )
    if before.noise != now.noise:
        yield f"made with noise {before.noise}, and this lezo draws noise {now.noise}"


def _refuse(file: Path, problems: Iterator[str] | Sequence[str]) -> None:
    for problem in problems:
        raise JournalError(f"{file}: {problem}")
