"""What a run goes on from: the last step whose journal record, or checkpoint, and metrics are all there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lezo.config.identity import differences, open_sizes, settings
from lezo.config.schema import DType
from lezo.records.checkpoint import Checkpoint, find_checkpoints, remove
from lezo.records.files import FolderError, read_file
from lezo.records.folder import CHECKPOINTS, CONFIG, JOURNAL, METRICS, surroundings
from lezo.records.journal import JournalFile, Kind, read_journal
from lezo.records.rows import DevRow, TestRow, TrainRow
from lezo.records.schema import Header, Provenance, ReplaySpec
from lezo.records.strict import Line, read_result, read_rows, wrong_line
from lezo.runs.loop import Progress


@dataclass(frozen=True)
class ResumeState:
    """What lasts of the earlier sessions: all of it is about steps up to ``step``.

    ``journal_end``: the bytes of the journal that are kept; None where a new one begins.
    ``forgotten``: checkpoints of later steps.
    """

    step: int = 0
    rows: Sequence[Line] = ()
    journal_end: int | None = None
    checkpoints: Sequence[Checkpoint] = ()
    forgotten: Sequence[Checkpoint] = ()

    @property
    def zero_shot(self) -> TestRow | None:
        """The zero-shot score, where it was written."""
        return next((line.row for line in self.rows if isinstance(line.row, TestRow)), None)

    def progress(self) -> Progress:
        """How far training was."""
        done = Progress()
        for line in self.rows:
            done.elapsed = line.row.seconds
            match line.row:
                case TrainRow():
                    done.trained(line.row)
                case DevRow():
                    done.evaluated(line.row)
                case TestRow():
                    done.tested(line.row)
        return done

    def has_best(self) -> bool:
        """Whether the checkpoint of the best step so far is there, as a first-order run needs it."""
        best = self.progress().best_step
        return best is None or best in {checkpoint.step for checkpoint in self.checkpoints}

    def forget(self) -> None:
        """Remove the checkpoints of steps that will be made again."""
        for checkpoint in self.forgotten:
            remove(checkpoint.path)


def refuse_changes(folder: Path, yaml: str) -> None:
    """Raise FolderError where the run in ``folder`` has another configuration, with what differs."""
    before = _config(folder)
    try:
        changed = differences(before, yaml)
    except Exception as error:  # yaml and omegaconf have many ways to say that a file is not theirs
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FolderError(f"{folder / CONFIG}: not the configuration of a run ({reason})") from None
    _refuse(folder, changed)


def made_no_step(folder: Path) -> bool:
    """Whether the run in ``folder`` neither made a step nor finished, so that another run may replace it.

    A damaged run may have made some, and what a benchmark measured is no run at all.
    """
    if not (folder / CONFIG).exists() or any((folder / CHECKPOINTS).glob("step-*")):
        return False
    try:
        if (folder / JOURNAL).exists() and read_journal(folder / JOURNAL).step:
            return False  # before the rows, of which a long run has many
        finished = (result := read_result(folder)) is not None and result["status"] == "finished"
        return not finished and not any(row.step for row in read_rows(folder / METRICS))
    except FolderError:
        return False


def same_run(folder: Path, yaml: str) -> bool:
    """Whether the run in ``folder`` can go on under ``yaml``."""
    try:
        refuse_changes(folder, yaml)
    except FolderError:
        return False
    return True


def open_sizes_of(folder: Path, yaml: str) -> dict[str, int]:
    """Published sizes that the run in ``folder`` gives, as all did once, and ``yaml`` leaves open."""
    before = _config(folder)
    try:
        then, open_then = settings(before), open_sizes(before)
    except Exception:  # `refuse_changes` says what is wrong with it
        return {}
    return {key: n for key, n in open_sizes(yaml).items() if key not in open_then and then.get(key) == n}


def names_of(folder: Path) -> dict[str, str]:
    """The name and the notes that the run in ``folder`` was given (log.name, log.notes)."""
    try:
        then = settings(_config(folder))
    except Exception:  # `refuse_changes` says what is wrong with it
        return {}
    if "log.notes" not in then:  # log.name was once what log= chose
        return {}
    found = {key: then.get(f"log.{key}") for key in ("name", "notes")}
    return {key: value for key, value in found.items() if isinstance(value, str)}


def dtype_of_run(folder: Path) -> tuple[DType, DType] | None:
    """The model.dtype that the run in ``folder`` was given, and the one that its weights have; None where it is not known.

    They differ where auto was given, which means one dtype on CUDA and another on a CPU.
    """
    try:
        given = DType(settings(_config(folder))["model.dtype"])
        return given, DType(_origin(folder)["dtype"]) if given is DType.auto else given
    except Exception:  # `refuse_changes`, or who reads the damaged file, says what is wrong with it
        return None


def _origin(folder: Path) -> dict[str, Any]:
    """What the run in ``folder`` started from, by its journal or, of a method without one, by its result."""
    if (folder / JOURNAL).exists():
        return asdict(read_journal(folder / JOURNAL).header.origin)
    result: Any = read_result(folder) or {}
    return dict(result.get("origin") or {})


def micro_batch_size_of(folder: Path) -> int | None:
    """The examples of a micro-batch that the run in ``folder`` was last made in; None: a step's whole batch."""
    size = surroundings(folder).get("micro_batch_size")
    return size if isinstance(size, int) and size > 0 else None


def asks_for_more(folder: Path, yaml: str) -> bool:
    """Whether ``yaml`` asks for more steps or seconds than the run in ``folder`` was to make."""
    # In this order: that a number grew is a difference only backwards.
    return bool(differences(yaml, _config(folder)))


def model_moved(folder: Path, yaml: str) -> bool:
    """Whether ``yaml`` names another place of the base model than the run in ``folder`` had."""
    then, now = settings(_config(folder)), settings(yaml)
    return then.get("model.path") != now.get("model.path")


def refuse_other_provenance(path: Path, then: Any, now: Provenance) -> None:
    """Raise FolderError where the run of ``path`` started from something else, with what differs."""
    _refuse(path, _changes(then, now))


def _config(folder: Path) -> str:
    return (read_file(folder / CONFIG) or b"").decode(errors="replace")


def read_resume_state(
    folder: Path, origin: Provenance, recipe: ReplaySpec | None, *, steps: int, eval_every: int
) -> ResumeState:
    """What the run in ``folder`` goes on from. ``recipe`` None: a first-order run, which needs checkpoints.

    Raises FolderError where it is another run's, or damaged.
    """
    checkpoints = find_checkpoints(folder / CHECKPOINTS)
    for checkpoint in checkpoints:
        refuse_other_provenance(checkpoint.path, checkpoint.origin, origin)
    rows = read_rows(folder / METRICS)
    _refuse_gaps(folder / METRICS, rows, eval_every)
    journal = None if recipe is None else _journal(folder, Header(origin, recipe))

    def cut(step: int, evaluated: bool) -> ResumeState:
        """What is about steps up to ``step``; its dev loss where there is one and where one is due."""
        evaluated = evaluated and (step % eval_every == 0 or step == steps)
        return ResumeState(
            step=step,
            rows=[r for r in rows if r.step < step or (r.step == step and (r.kind != "dev" or evaluated))],
            journal_end=None if journal is None else journal.cut(step, evaluated),
            checkpoints=[c for c in checkpoints if c.step <= step],
            forgotten=[c for c in checkpoints if c.step > step],
        )

    if recipe is not None:
        return cut(*_agreed(folder / METRICS, rows, journal))
    last = max((row.step for row in rows if row.kind == "train"), default=0)
    evaluated = {row.step for row in rows if row.kind == "dev"}
    states = (cut(step, step in evaluated) for step in [*(c.step for c in checkpoints if c.step <= last), 0])
    return next(state for state in states if state.has_best())


Event = tuple[str, int, float | None]
"""What metrics and journal both hold: (train, step, whether skipped) or (dev, step, dev loss or None)."""


def events_of_rows(rows: Sequence[Line]) -> list[Event]:
    """The events that metrics hold."""
    both = (line.row for line in rows if not isinstance(line.row, TestRow))
    return [(row.kind, row.step, row.loss if isinstance(row, DevRow) else row.skipped) for row in both]


def events_of_journal(journal: JournalFile) -> list[Event]:
    """The events that a journal holds."""
    return [
        ("dev", r.step, r.value if math.isfinite(r.value) else None)
        if r.kind is Kind.dev
        else ("train", r.step, r.kind is Kind.skipped)
        for r in journal.records
    ]


def _agreed(file: Path, rows: Sequence[Line], journal: JournalFile | None) -> tuple[int, bool]:
    """The last step that both metrics and journal have, and whether both have its dev loss.

    Raises FolderError where they differ up to there.
    """
    events = list(zip(events_of_rows(rows), events_of_journal(journal) if journal else [], strict=False))
    for number, (written, journaled) in enumerate(events, start=1):
        if written != journaled:
            number += sum(row.kind == "test" for row in rows)
            raise wrong_line(file, number, f"step {written[1]} differs from {JOURNAL}")
    return (events[-1][0][1], events[-1][0][0] == "dev") if events else (0, False)


def _refuse_gaps(file: Path, rows: Sequence[Line], eval_every: int) -> None:
    """Raise FolderError where a dev row is missing before a step, or one is there that was not due."""
    for place, row in enumerate(rows):
        due = (row.step - 1) % eval_every == 0
        evaluated = place > 0 and rows[place - 1].kind == "dev"
        if row.kind == "train" and due != evaluated:
            lacks = "no dev row" if due else "a dev row that was not due"
            raise wrong_line(file, place + 1, f"{lacks} before step {row.step}")


def _journal(folder: Path, header: Header) -> JournalFile | None:
    """The journal, where there is one. Raises FolderError where it is another run's."""
    path = folder / JOURNAL
    if not path.exists():
        return None
    journal = read_journal(path)
    now, then = asdict(header.recipe), asdict(journal.header.recipe)
    then["composition"] = then["composition"] or now["composition"]  # older journals name no parts
    changed = [
        f"{key}: {then[key]} in the run and {now[key]} here" for key in _UPDATES if now[key] != then[key]
    ]
    _refuse(path, [*changed, *_changes(asdict(journal.header.origin), header.origin)])
    return journal


# What of a recipe decides the updates, which is not where the model lies.
_UPDATES = ("seed", "sparsity", "decay", "rounding", "peft", "composition")


def _changes(then: Any, now: Provenance) -> list[str]:
    try:
        return Provenance(**then).differences(now)
    except TypeError:
        return ["its file lacks parts of what it starts from"]


def _refuse(path: Path, changed: Sequence[str]) -> None:
    if changed:
        ways = "set it back, or start anew in another folder with hydra.run.dir=DIR"
        raise FolderError(f"{path}: cannot resume this run: {'; '.join(changed)}; {ways}")
