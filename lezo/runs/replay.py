"""A run's model made again from its journal, written or checked."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lezo.config.identity import run_hash
from lezo.config.schema import ReplayConfig
from lezo.model.adapter import Adapter, Attached
from lezo.model.device import named_device
from lezo.model.hashes import tokenizer_hash, weights_hash
from lezo.model.layout import layout
from lezo.model.load import TINY, ModelError, Source, load, load_config, load_tokenizer, rebase, save_model
from lezo.noise import seeds
from lezo.records.files import FolderError
from lezo.records.folder import CHECKPOINTS, CONFIG, JOURNAL, METRICS, MODEL, RESULT, START
from lezo.records.format import size, table
from lezo.records.journal import JournalError, JournalFile, read_journal
from lezo.records.rows import TrainRow
from lezo.records.schema import ReplaySpec, Result
from lezo.records.strict import read_result, read_rows
from lezo.runs import console
from lezo.runs.resume import told_by_journal, told_by_rows
from lezo.zo.parts import refuse_unknown, updates_of
from lezo.zo.timeline import Timeline

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


_RIGHT = "everything is right (scores and predictions are not checked: that takes forwards)"


def replayed(run: Path, options: ReplayConfig) -> int:
    """Make the model again. Returns the exit code: 0, or 1 for a failure or a check that does not hold."""
    try:
        out = console.console()
        remade = Replay(run, options, out)
        if options.verify:
            problems = list(remade.problems())
            out.print("\n".join(f"NOT RIGHT: {problem}" for problem in problems) or _RIGHT)
            if problems:
                return 1
        if options.out is not None or not options.verify:
            remade.write()
        return 0
    except (JournalError, ModelError, FolderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


class Replay:
    """The model of the run in the folder, or the journal, ``run``; at first its base weights.

    Raises JournalError, ModelError and FolderError for what is not there, damaged or another model's.
    """

    def __init__(self, run: Path, options: ReplayConfig, out: Console) -> None:
        self.file, self.options, self.out = _journal_of(run), options, out
        self.journal = read_journal(self.file)
        recipe, origin = self.journal.header.recipe, self.journal.header.origin
        if recipe.blocks is not None:
            way = "make the model as that program did, and lezo.apply_journal(model, path) does the rest"
            raise JournalError(
                f"{self.file}: written by a program of one's own for its {recipe.model}; {way}"
            )
        self.step = _asked(self.journal, options.step, self.file)
        self.target = Path(options.out or self.file.parent / _name(self.file.parent, self.step))
        if not (options.verify and options.out is None):
            _refuse_taken(self.target)
        if origin.noise != seeds.VERSION:
            raise JournalError(
                f"{self.file}: made with noise {origin.noise}, and this lezo draws noise {seeds.VERSION}"
            )
        refuse_unknown(recipe, self.file)
        self.source = _source(recipe, options.base)
        self.tokenizer = _tokenizer(recipe, self.source)
        self.model = self._loaded()
        updates = updates_of(recipe, self.model, layout(self.model))
        self.timeline = Timeline(self.model, self._rebase, updates)

    def write(self) -> None:
        """Write the model of the wanted step for `from_pretrained`, tokenizer included."""
        start = time.perf_counter()
        self._bring_to(self.step)
        save_model(self._write, self.tokenizer, self.target)
        rows = {
            "model": str(self.target),
            "step": f"{self.step} of {self.journal.step}",
            "weights": f"sha256 {weights_hash(self.model)}",
            "journal": f"{size(self.file.stat().st_size)}, {len(self.journal.records)} records",
            "time": f"{time.perf_counter() - start:.1f} s",
        }
        console.tell(self.out, table(rows, f"replayed {self.file}"))

    def problems(self) -> Iterator[str]:
        """What is not right with the run; loading has checked the records and the base weights already."""
        origin, folder = self.journal.header.origin, self.file.parent
        self.out.print(
            f"{len(self.journal.records)} records up to step {self.journal.step}, checksums and order right"
        )
        self.out.print(f"base weights sha256 {origin.weights}")
        if self.journal.torn:
            yield f"{self.file}: its last {self.journal.torn} bytes are a record cut short (resume=auto mends it)"
        if tokenizer_hash(self.tokenizer) != origin.tokenizer:
            yield "the tokenizer is not the one that the run had"
        if (config := folder / CONFIG).exists() and _run_hash(config) != origin.config:
            yield f"{config}: not the configuration of the journal's run"
        if (folder / METRICS).exists():
            yield from self._metrics_problems(folder)
        if (result := read_result(folder)) is not None:
            yield from self._result_problems(folder / RESULT, result)

    def _metrics_problems(self, folder: Path) -> Iterator[str]:
        """Where metrics.jsonl and the journal tell of different runs."""
        rows = read_rows(folder / METRICS)
        told, kept = told_by_rows(rows), told_by_journal(self.journal)
        self.out.print(f"{len(told)} metrics rows")
        if told != kept:
            pairs = zip_longest(told, kept)
            step = next((one or other)[1] for one, other in pairs if one != other)
            yield f"{folder / METRICS}: tells of another run than the journal from step {step} on"
        measures = {line.step: line.row.measures for line in rows if isinstance(line.row, TrainRow)}
        yield from self._coefficient_problems(folder, measures)

    def _coefficient_problems(
        self, folder: Path, measures: Mapping[int, Mapping[str, float]]
    ) -> Iterator[str]:
        """Where a row's lr * g is not what the journal multiplied the noise with."""
        for record in self.journal.steps(0, self.journal.step):
            row, moved = measures.get(record.step, {}), sum(record.values)
            told = row.get("lr", math.nan) * row.get("g", math.nan)
            if not math.isnan(told) and not math.isclose(told, moved, rel_tol=1e-5):
                yield f"{folder / METRICS}: step {record.step} has lr * g = {told:g}, and the journal {moved:g}"
                return

    def _result_problems(self, file: Path, result: Result) -> Iterator[str]:
        """Whether the final weights are those that the result names."""
        if result["status"] != "finished":
            self.out.print("the run has not finished: its final weights cannot be compared")
            return
        best, last = self.journal.best(), self.journal.step
        if (result.get("best_step"), result.get("steps")) != (best, last):
            told = f"best step {result.get('best_step')} of {result.get('steps')}"
            yield f"{file}: has {told}, and the journal {best} of {last}"
        devs = {record.step: record.value for record in self.journal.devs()}
        if best is not None and result.get("dev_loss") != devs[best]:
            yield f"{file}: has a dev loss of {result.get('dev_loss')}, and the journal {devs[best]}"
        self._bring_to(best or last)
        found = weights_hash(self.model)
        self.out.print(f"weights of step {best or last} sha256 {found}")
        if found != result.get("weights"):
            yield f"weights of step {best or last}: the result has sha256 {result.get('weights')}"

    def _bring_to(self, step: int) -> None:
        with console.replaying(self.out, f"weights of step {step}") as told:
            self.timeline.bring_to(step, self.journal, [], progress=told)

    def _loaded(self) -> Any:
        origin = self.journal.header.origin
        self.out.print(f"loading {self.source.path}")
        dtype = _DTYPES.get(origin.dtype)
        if dtype is None:
            raise JournalError(
                f"{self.file}: weights of {origin.dtype}; expected one of {', '.join(_DTYPES)}"
            )
        model_config = load_config(self.source)
        device = named_device(self.options.device, "replay.device")
        recipe = self.journal.header.recipe
        model = load(self.source, model_config, dtype=dtype, device=device, seed=recipe.seed)
        self._write: Callable[[Path], object] = model.save_pretrained
        self._rebase = partial(rebase, model, self.source, model_config, recipe.seed, origin.weights)
        if recipe.peft is not None:
            self._attach(model, recipe)
        if (found := weights_hash(model)) != origin.weights:
            prefix = recipe.peft is not None and recipe.peft.get("name") == "prefix"
            of_prefix = f", and a prefix's first values {START} beside the journal" if prefix else ""
            raise ModelError(
                f"{self.source.path}: not the base weights of this run (sha256 {found[:12]}, the journal's are "
                f"{origin.weights[:12]}, in {origin.dtype}); replay.base=DIR names the right ones{of_prefix}"
            )
        return model

    def _attach(self, model: Any, recipe: ReplaySpec) -> None:
        """Give the base model the run's adapter, at its first values."""
        start = self.file.parent / START
        try:
            adapter = Adapter.of(recipe.peft or {})
        except (ValueError, TypeError, KeyError) as error:
            raise JournalError(f"{self.file}: no adapter has its settings ({error})") from None
        attached = Attached(model, adapter, seed=recipe.seed, start=start if start.exists() else None)
        self._write = partial(attached.save, base=self.source.path, revision=self.source.revision)
        self._rebase = partial(attached.rebase, self.journal.header.origin.weights)


def _journal_of(run: Path) -> Path:
    file = run / JOURNAL if run.is_dir() else run
    if file.is_file():
        return file
    if (run / CHECKPOINTS).is_dir():
        way = f"its own command with save_model=true resume=auto hydra.run.dir={run} writes its model"
        raise JournalError(f"{run}: a first-order run has no journal; {way}")
    raise JournalError(
        f"{run}: no run with a journal; expected the folder of a lezo or mezo run, or its {JOURNAL}"
    )


def _asked(journal: JournalFile, step: int | None, file: Path) -> int:
    found = step if step is not None else journal.best() or journal.step
    if not 0 <= found <= journal.step:
        raise JournalError(f"replay.step={found}: {file} has the steps 0 to {journal.step}")
    return found


def _name(folder: Path, step: int) -> str:
    """Where ``step``'s model belongs: in a run's MODEL, only if it is the one that its result is about."""
    result = read_result(folder)
    ended = result if result is not None and result["status"] == "finished" else None
    tells = ended is not None and step == (ended.get("best_step") or ended.get("steps"))
    return MODEL if tells or not (folder / CONFIG).exists() else f"{MODEL}-step-{step}"


def _refuse_taken(target: Path) -> None:
    if target.exists():
        raise FolderError(
            f"{target}: is there already; remove it, or choose another folder with replay.out=DIR"
        )


def _source(recipe: ReplaySpec, base: str | None) -> Source:
    path = base or recipe.path or (str(TINY) if recipe.model == "tiny" else "")
    return Source(
        os.path.expanduser(path), None if base else recipe.revision, recipe.shape, recipe.random_weights
    )


def _tokenizer(recipe: ReplaySpec, source: Source) -> Any:
    return load_tokenizer(recipe.tokenizer or source.path, None if recipe.tokenizer else source.revision)


def _run_hash(config: Path) -> str | None:
    """None of a file that is no configuration: yaml and omegaconf have many ways to say so."""
    try:
        return run_hash(config.read_text(encoding="utf-8"))
    except Exception:
        return None
