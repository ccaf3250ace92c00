"""How far a run had come, from whatever a kill, a full disk or a careless hand left of its files."""

import json
import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lezo.config.compose import compose
from lezo.model.evaluate import Evaluation
from lezo.records.checkpoint import Checkpoints, find_checkpoints
from lezo.records.files import FolderError
from lezo.records.folder import RunFolder
from lezo.records.journal import RECORD, Journal, Kind, read_journal
from lezo.records.rows import DevRow, TrainRow
from lezo.records.schema import Header, Provenance, ReplaySpec
from lezo.records.strict import read_rows
from lezo.runs.loop import Progress, train, train_row
from lezo.runs.resume import ResumeState, asks_for_more, read_resume_state, refuse_changes
from lezo.zo.step import StepReport
from tests.lezo.refusals import refused
from tests.lezo.whole_runs import timeless

ORIGIN = Provenance("w" * 64, "t" * 64, "d" * 64, "float32", 1, "c" * 64, "0.1.0")
RECIPE = ReplaySpec("tiny", None, None, None, True, None, 3, 0.75, 1e-5, "nearest")
STEPS, EVAL_EVERY = 7, 3
EVENTS = ["dev 0", 1, 2, 3, "dev 3", 4, 5, 6, "dev 6", 7, "dev 7"]
LOSSES = {0: 0.1, 3: 0.7, 6: math.nan, 7: 0.7}  # dev losses; the best step is 3
BAD = (2, 5, 6)  # steps, counted from 1, that are skipped


class Run:
    """A run of a stateless optimizer in ``folder``, with the files and listeners of a real one."""

    def __init__(
        self, folder: Path, *, journaled: bool = True, every: int | None = None, keep: int = 9
    ) -> None:
        self.folder, self.journaled, self.every, self.keep = folder, journaled, every, keep
        self.losses = dict(LOSSES)

    def trained(self, past: ResumeState | None = None, steps: int = STEPS) -> list[Progress]:
        """Train, or go on from ``past``; returns the progress after every event of EVENTS that was made."""
        folder = RunFolder(self.folder, resume=True)
        past = past or ResumeState()
        folder.begin(b"".join(row.line for row in past.rows))
        past.forget()
        folder.text("config.yaml", "")
        if past.zero_shot is None:
            folder.row({"step": 0, "seconds": 0.0, "test_loss": None, "test_score": 0.5})
        progress, kept = past.progress(), list[Progress]()
        journal = Journal(folder.path / "journal.bin", Header(ORIGIN, RECIPE), at=past.journal_end)
        listeners = [*([journal] if self.journaled else []), folder, self.checkpoints(progress)]
        told = [*listeners, Snapshots(progress, kept)]
        limits = {"steps": steps, "eval_every": EVAL_EVERY, "max_seconds": None, "max_bad_steps": 9}
        train(Stateless(), float, lambda: self.evaluated(progress.step), told, progress, **limits)  # type: ignore[arg-type]
        journal.close()
        folder.close()
        if not self.journaled:
            (folder.path / "journal.bin").unlink()
        return kept

    def evaluated(self, step: int) -> Evaluation:
        return Evaluation(self.losses.get(step, 0.9), 0.25)

    def checkpoints(self, progress: Progress) -> Checkpoints:
        return Checkpoints(
            self.folder / "checkpoints",
            ORIGIN,
            lambda: {"model.a": torch.tensor([float(progress.step)])},
            every=self.every,
            keep=self.keep,
            at_evaluations=not self.journaled,
            best=lambda: progress.best_step,
        )

    def past(
        self, steps: int = STEPS, origin: Provenance = ORIGIN, recipe: ReplaySpec = RECIPE
    ) -> ResumeState:
        given = recipe if self.journaled else None
        return read_resume_state(self.folder, origin, given, steps=steps, eval_every=EVAL_EVERY)

    @property
    def lines(self) -> list[bytes]:
        return (self.folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)

    def write_lines(self, lines: Sequence[bytes], torn: bytes = b"") -> None:
        (self.folder / "metrics.jsonl").write_bytes(b"".join(lines) + torn)

    def keep_records(self, count: int, torn: bytes = b"") -> None:
        file = self.folder / "journal.bin"
        whole, records = file.read_bytes(), len(read_journal(file).records)
        file.write_bytes(whole[: len(whole) - RECORD.size * (records - count)] + torn)

    def end(self) -> tuple[bytes, list[Any], list[int]]:
        """The journal, the metrics without times, the checkpoints' steps."""
        journal = self.folder / "journal.bin"
        steps = [c.step for c in find_checkpoints(self.folder / "checkpoints")]
        rows = [timeless(json.loads(line)) for line in self.lines]
        return journal.read_bytes() if journal.exists() else b"", rows, steps


class Stateless:
    """Reports that follow from the step's number."""

    def step(self, step: int, batch: float) -> StepReport:
        bad, number = step + 1 in BAD, step + 1
        measures = {"g": math.nan if bad else 0.5 * number, "lr": 1e-3, "loss_plus": math.nan if bad else 1.0}
        coefficient = math.nan if bad else 5e-4 * number
        return StepReport(math.nan if bad else 1 / number, not bad, measures, coefficient, {"update": 0.25})

    def state(self) -> dict[str, torch.Tensor]:
        return {}

    def restore(self, state: Any) -> None:
        assert not state


class Snapshots:
    """Keeps a copy of the progress after every event."""

    def __init__(self, progress: Progress, kept: list[Progress]) -> None:
        self.progress, self.kept = progress, kept

    def trained(self, row: TrainRow | DevRow) -> None:
        self.kept.append(replace(deepcopy(self.progress), elapsed=row.seconds))

    evaluated: Any = trained


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path / "run")
    made.trained()
    return made


def position(made: int) -> tuple[int, bool]:
    """The step that the first so many EVENTS reach, and whether its dev loss is the last of them."""
    last = EVENTS[made - 1] if made else 0
    return (int(str(last).split()[-1]), isinstance(last, str))


def test_the_events_are_those_of_the_files(run: Run) -> None:
    rows, records = read_rows(run.folder / "metrics.jsonl"), read_journal(run.folder / "journal.bin").records
    told = [f"dev {row.step}" if row.kind == "dev" else row.step for row in rows[1:]]
    kept = [f"dev {r.step}" if r.kind is Kind.dev else r.step for r in records]
    assert (rows[0].kind, told, kept) == ("test", EVENTS, EVENTS)
    assert [r.step for r in records if r.kind is Kind.skipped] == list(BAD)


@pytest.mark.parametrize("torn", [False, True])
def test_what_both_files_have_lasts_whichever_is_ahead(torn: bool, run: Run) -> None:
    lines, journal = run.lines, (run.folder / "journal.bin").read_bytes()
    begin = len(journal) - RECORD.size * len(EVENTS)
    for rows in range(len(lines) + 1):
        for records in range(len(EVENTS) + 1):
            (run.folder / "journal.bin").write_bytes(journal)
            run.keep_records(records, b"\1" * 13 if torn else b"")
            run.write_lines(lines[:rows], b'{"step": 1, "sec' if torn else b"")
            past, made = run.past(), min(max(rows - 1, 0), records)
            assert (past.step, past.journal_end) == (position(made)[0], begin + RECORD.size * made)
            assert [row.line for row in past.rows] == lines[: min(made + 1, rows)]
            assert (past.zero_shot is None) == (rows == 0)


def test_progress_is_that_of_training_until_there(run: Run, tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole")
    expected, lines = [Progress(), *whole.trained()], whole.lines
    for made in range(len(EVENTS), -1, -1):
        whole.write_lines(lines[: made + 1])
        found, wanted = whole.past().progress(), expected[made]
        for name in ("step", "skipped", "bad", "evaluated_at", "best_step"):
            assert getattr(found, name) == getattr(wanted, name), name
        best, same = (row and (row.step, row.loss, row.score) for row in (found.best, wanted.best))
        assert best == same
        assert dict(found.measured) == pytest.approx(dict(wanted.measured), nan_ok=True)
        assert list(found.measured) == list(wanted.measured)
        for name in ("elapsed", "train_seconds", "eval_seconds", "step_seconds", "phases"):
            assert getattr(found, name) == pytest.approx(getattr(wanted, name), abs=1e-3), name
    assert expected[-1].best_step == 3 and expected[-1].skipped == 3 and expected[-3].bad == 2


@pytest.mark.parametrize("ahead", [-1, 0, 1])
def test_a_run_goes_on_to_the_same_files(ahead: int, tmp_path: Path) -> None:
    """After a kill behind any event, with one file or the other one event ahead."""
    whole = Run(tmp_path / "whole", every=2)
    whole.trained()
    for made in range(len(EVENTS) + 1):
        run = Run(tmp_path / f"run{made}", every=2)
        run.trained()
        run.write_lines(run.lines[: made + 1])
        run.keep_records(min(max(made + ahead, 0), len(EVENTS)))
        run.trained(run.past())
        assert run.end() == whole.end()


def test_more_steps_forget_the_evaluation_of_the_old_end(tmp_path: Path) -> None:
    run, whole = (Run(tmp_path / name, every=2) for name in ("run", "whole"))
    run.losses[7] = whole.losses[7] = 0.01  # it would be the best one
    run.trained()
    past = run.past(steps=10)
    assert (past.step, past.progress().best_step, past.progress().evaluated_at) == (7, 3, 6)
    run.trained(past, steps=10)
    whole.trained(steps=10)
    assert run.end() == whole.end() and run.past(steps=10).progress().best_step == 3


def test_a_kill_between_the_cut_of_the_two_files_is_no_harm(tmp_path: Path) -> None:
    """More steps were asked for; the metrics were cut, and the journal not yet. Then the old steps are asked for."""
    run = Run(tmp_path / "run")
    run.trained()
    whole = run.end()
    run.write_lines([row.line for row in run.past(steps=10).rows])
    assert run.past(steps=10).step == 7
    run.trained(run.past())
    assert run.end() == whole


def test_without_a_journal_all_is_made_again(run: Run) -> None:
    whole = run.end()
    (run.folder / "journal.bin").unlink()
    past = run.past()
    assert (past.step, past.journal_end, [row.kind for row in past.rows]) == (0, None, ["test"])
    run.trained(past)
    assert run.end() == whole


def test_without_metrics_all_is_made_again(run: Run) -> None:
    whole = run.end()
    (run.folder / "metrics.jsonl").unlink()
    past = run.past()
    assert (past.step, past.rows, past.zero_shot) == (0, [], None)
    run.trained(past)
    assert run.end() == whole


def test_checkpoints_of_steps_that_did_not_last_are_forgotten(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", every=2)
    run.trained()
    run.keep_records(6)  # up to step 4
    past = run.past()
    assert ([c.step for c in past.checkpoints], [c.step for c in past.forgotten]) == ([4, 2], [6])
    past.forget()
    assert [c.step for c in run.past().checkpoints] == [4, 2] and not run.past().forgotten


def test_a_kill_while_checkpoints_are_forgotten_is_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run", every=2)
    run.trained()
    run.keep_records(3)
    past = run.past()

    def half(path: Path, ignore_errors: bool = False) -> None:
        """A kill within the deletion."""
        if path.is_dir():
            (path / "checkpoint.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shutil.rmtree", half)
        past.forget()
    assert [c.step for c in run.past().forgotten] == [4]
    run.past().forget()
    assert [c.step for c in run.past().checkpoints] == [2]


def test_a_first_order_run_goes_on_from_its_newest_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", journaled=False, every=2)
    run.trained()
    lines = run.lines
    found = []
    for rows in range(len(lines) + 1):
        run.write_lines(lines[:rows])
        past = run.past()
        found.append(past.step)
        due = len([e for e in EVENTS if position(EVENTS.index(e) + 1)[0] <= past.step])
        assert [row.line for row in past.rows] == lines[: min(due + 1, rows)]
        assert past.journal_end is None
        assert [c.step for c in past.forgotten] == [s for s in (7, 6, 4, 3, 2) if s > past.step]
    assert found == [0, 0, 0, 0, 2, 3, 3, 4, 4, 6, 6, 7, 7]


def test_a_first_order_run_goes_on_to_the_same_files(tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole", journaled=False, every=2)
    whole.trained()
    for made in range(len(EVENTS) + 1):
        run = Run(tmp_path / f"run{made}", journaled=False, every=2)
        run.trained()
        run.write_lines(run.lines[: made + 1])
        run.trained(run.past())
        assert run.end() == whole.end()


def test_a_first_order_run_whose_best_checkpoint_is_gone_begins_where_it_is_not_needed(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path / "run", journaled=False, keep=1)
    run.losses |= {3: 0.7, 6: 0.8, 7: 0.1}
    run.trained()
    assert [c.step for c in find_checkpoints(run.folder / "checkpoints")] == [7]  # the last and the best
    assert run.past().step == 7
    more = run.past(steps=9)  # under which 3 would be the best, and has no checkpoint any more
    assert (more.step, [c.step for c in more.forgotten]) == (0, [7])
    run.trained(more, steps=9)
    assert run.past(steps=9).progress().best_step == 3
    assert 3 in [c.step for c in run.past(steps=9).checkpoints]


@pytest.mark.parametrize("journaled", [True, False])
def test_a_new_folder_has_no_past(journaled: bool, tmp_path: Path) -> None:
    past = Run(tmp_path / "nothing", journaled=journaled).past()
    assert (past.step, past.rows, past.journal_end, past.zero_shot) == (0, [], None, None)
    assert past.progress() == Progress()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weights": "x" * 64}, "base weights: wwwwwwwwwwww in the run and xxxxxxxxxxxx here"),
        (
            {"data": "x" * 64},
            "data (rows, prompts or their tokens): dddddddddddd in the run and xxxxxxxxxxxx here",
        ),
        ({"tokenizer": "x" * 64}, "tokenizer: tttttttttttt in the run and xxxxxxxxxxxx here"),
        ({"dtype": "float16"}, "dtype of the weights: float32 in the run and float16 here"),
        ({"noise": 2}, "noise version: 1 in the run and 2 here"),
        ({"config": "x" * 64}, "configuration: cccccccccccc in the run and xxxxxxxxxxxx here"),
    ],
)
def test_the_files_of_another_run_are_refused(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    ways = "set it back, or start anew in another folder with hydra.run.dir=DIR"
    for journaled, named in ((True, "journal.bin"), (False, "checkpoints/step-7")):
        run = Run(tmp_path / named.replace("/", "-"), journaled=journaled)
        run.trained()
        with pytest.raises(FolderError) as caught:
            run.past(origin=replace(ORIGIN, **change))
        assert str(caught.value) == f"{run.folder / named}: cannot resume this run: {reason}; {ways}"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 4}, "seed: 3 in the run and 4 here"),
        ({"sparsity": 0.5}, "sparsity: 0.75 in the run and 0.5 here"),
        ({"decay": 0.0}, "decay: 1e-05 in the run and 0.0 here"),
        ({"rounding": "stochastic"}, "rounding: nearest in the run and stochastic here"),
        ({"seed": 4, "decay": 0.0}, "seed: 3 in the run and 4 here; decay: 1e-05 in the run and 0.0 here"),
    ],
)
def test_a_journal_of_other_updates_is_refused(change: dict[str, Any], reason: str, run: Run) -> None:
    with refused(FolderError, "journal.bin: ", reason):
        run.past(recipe=replace(RECIPE, **change))


def test_another_version_and_another_place_are_the_same_run(run: Run) -> None:
    past = run.past(
        origin=replace(ORIGIN, code="0.2.0"), recipe=replace(RECIPE, path="/elsewhere", model="hf")
    )
    assert past.step == 7


@dataclass
class Wrong:
    """An origin of another lezo."""

    wieghts: str


def test_a_checkpoint_that_does_not_say_what_it_is_of_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run", journaled=False)
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "ORIGIN", Wrong("x"))
        run.checkpoints(Progress()).save(3)
    with refused(FolderError, "step-3: "):
        run.past()


def row(**values: Any) -> bytes:
    return json.dumps(values).encode()


TRAIN = {"step": 4, "seconds": 0.1, "loss": 0.25, "skipped": False, "phases": {"data": 0.0}}
DEV = {"step": 3, "seconds": 0.1, "dev_loss": 0.7, "dev_score": 0.5, "eval_seconds": 0.1}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "Input data was truncated"),
        (b"{", "Input data was truncated"),
        (b"\0" * 60, "JSON is malformed: invalid character (byte 0)"),
        (row(**TRAIN).decode().encode("utf-16"), "JSON is malformed"),
        (b"\xff{}", "JSON is malformed"),
        (b"[]", "Expected `object`, got `array`"),
        (b"4", "Expected `object`, got `int`"),
        (b'{"a":' * 100_000, "maximum recursion depth exceeded"),
        (b"{}", "neither a train nor a dev nor a test row"),
        (row(**TRAIN).replace(b'"loss"', b'"lsos"'), "neither a train nor a dev nor a test row"),
        (row(**TRAIN | {"step": 5}), "step 5 after step 3"),
        (row(**TRAIN | {"step": 3}), "step 3 after step 3"),
        (row(**TRAIN | {"step": 4.0}), "Expected `int`, got `float` - at `$.step`"),
        (row(**TRAIN | {"step": True}), "Expected `int`, got `bool` - at `$.step`"),
        (row(**TRAIN | {"step": "4\n"}), "Expected `int`, got `str` - at `$.step`"),
        (row(**TRAIN | {"step": None}), "Expected `int`, got `null` - at `$.step`"),
        (row(**TRAIN | {"seconds": None}), "Expected `float`, got `null` - at `$.seconds`"),
        (row(**TRAIN | {"loss": "0.5"}), "Expected `float | null`, got `str` - at `$.loss`"),
        (row(**TRAIN | {"loss": True}), "Expected `float | null`, got `bool` - at `$.loss`"),
        (row(**TRAIN | {"loss": math.nan}), "JSON is malformed"),
        (row(**TRAIN | {"g": [1]}), "Expected `float | null`, got `array` - at `$.g`"),
        (row(**TRAIN | {"skipped": 0}), "Expected `bool`, got `int` - at `$.skipped`"),
        (row(**TRAIN | {"skipped": None}), "Expected `bool`, got `null` - at `$.skipped`"),
        (row(**TRAIN | {"phases": []}), "Expected `object`, got `array` - at `$.phases`"),
        (row(**TRAIN | {"phases": {"data": None}}), "Expected `float`, got `null` - at `$.phases[...]`"),
        (row(**TRAIN).replace(b"0.25", b"1e999"), "Number out of range"),
        (row(**TRAIN).replace(b"0.25", b"1" + b"0" * 400), "Number out of range - at `$.loss`"),
        (row(**TRAIN).replace(b"0.25", b"1" + b"0" * 5000), "Integer value out of range"),
        (row(**DEV), "a second dev row of step 3"),
        (row(**DEV | {"step": 4}), "step 4 after step 3"),
        (row(step=3, seconds=0.0, test_loss=None, test_score=0.5), "a second test row of step 3"),
    ],
    ids=lambda value: value[:60].decode("latin1") if isinstance(value, bytes) else "",
)  # fmt: skip
def test_a_damaged_line_is_named_with_a_way_out(line: bytes, reason: str, run: Run) -> None:
    lines, whole = run.lines, run.end()
    run.write_lines([*lines[:6], line + b"\n", *lines[7:]])
    with pytest.raises(FolderError) as caught:
        run.past()
    message = str(caught.value)
    assert message.startswith(f"{run.folder / 'metrics.jsonl'}, line 7: not a row of this run (")
    assert reason in message and "\n" not in message
    assert message.endswith("; remove it and the lines behind it, and their steps are made again")
    run.write_lines(lines[:6])  # the way out
    run.trained(run.past())
    assert run.end() == whole


@pytest.mark.parametrize(
    ("number", "old", "new", "step"),
    [
        (2, b'"dev_loss": 0.1', b'"dev_loss": 0.2', 0),
        (4, b'"skipped": true', b'"skipped": false', 2),
        (5, b'"skipped": false', b'"skipped": true', 3),
        (6, b'"dev_loss": 0.7', b'"dev_loss": 0.8', 3),
        (6, b'"dev_loss": 0.7', b'"dev_loss": null', 3),
        (10, b'"dev_loss": null', b'"dev_loss": 0.0', 6),
    ],
)
def test_metrics_that_tell_something_else_than_the_journal_are_refused(
    number: int, old: bytes, new: bytes, step: int, run: Run
) -> None:
    lines = run.lines
    assert old in lines[number - 1]
    lines[number - 1] = lines[number - 1].replace(old, new)
    run.write_lines(lines)
    with refused(FolderError, f"line {number}: ", f"step {step} ", "journal.bin"):
        run.past()


@pytest.mark.parametrize("journaled", [True, False])
def test_missing_and_surplus_dev_rows_are_refused(journaled: bool, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", journaled=journaled)
    run.trained()
    lines = run.lines
    run.write_lines([*lines[:5], *lines[6:]])
    with refused(FolderError, "line 6: ", "dev row", "step 4"):
        run.past()
    run.write_lines([*lines[:7], lines[5].replace(b'"step": 3', b'"step": 4'), *lines[7:]])
    with refused(FolderError, "line 9: ", "dev row", "step 5"):
        run.past()


def test_a_journal_that_lacks_a_dev_loss_is_told_by_the_metrics(run: Run) -> None:
    journal = Journal(run.folder / "journal.bin", Header(ORIGIN, RECIPE))
    for step in range(1, 8):
        journal.trained(train_row(step, 0.0, Stateless().step(step - 1, 0.0)))
    journal.close()
    with refused(FolderError, "line 2: ", "step 0", "journal.bin"):
        run.past()


def test_a_damaged_journal_is_refused(run: Run) -> None:
    file = run.folder / "journal.bin"
    content = bytearray(file.read_bytes())
    content[-50] ^= 1
    file.write_bytes(content)
    with refused(FolderError, "journal.bin: ", f"byte {len(content) - 60}: "):
        run.past()


def test_a_folder_with_the_remains_of_a_run_is_refused(run: Run) -> None:
    (run.folder / "config.yaml").unlink()
    for resume in (True, False):
        with refused(FolderError, "journal.bin", "config.yaml"):
            RunFolder(run.folder, resume=resume)
    (run.folder / "journal.bin").unlink()
    RunFolder(run.folder).close()  # metrics and a result alone are a run that had not begun
    (run.folder / "checkpoints").mkdir()
    with refused(FolderError, "checkpoints", "config.yaml"):
        RunFolder(run.folder)


def yaml(*overrides: str) -> str:
    return compose(["train.steps=100", *overrides]).yaml


def test_changes_are_refused_and_growth_is_seen(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml())
    refuse_changes(tmp_path, yaml("resume=auto", "train.steps=200"))
    with refused(FolderError, "seed was 0 and is 1"):
        refuse_changes(tmp_path, yaml("seed=1"))
    assert asks_for_more(tmp_path, yaml("train.steps=101"))
    assert not asks_for_more(tmp_path, yaml("log=wandb"))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a: [", b"- 1", b"a: ${b}", b"3", b"\t", b"{" * 5000])
def test_a_damaged_configuration_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(FolderError) as caught:
        refuse_changes(tmp_path, yaml())
    assert "\n" not in str(caught.value)
    assert "config.yaml: not the configuration of a run (" in str(caught.value) or "was unset" in str(
        caught.value
    )


def test_origins_are_compared_field_by_field() -> None:
    other: dict[str, Any] = {name: "x" for name in asdict(ORIGIN)} | {"noise": 2}
    named = [line.split(":")[0] for line in ORIGIN.differences(Provenance(**other))]
    assert named == [
        "base weights",
        "tokenizer",
        "data (rows, prompts or their tokens)",
        "dtype of the weights",
        "noise version",
        "configuration",
    ]
    assert ORIGIN.differences(replace(ORIGIN, code="x")) == []
