"""A run's model rebuilt from its journal, written or checked."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lezo.config.identity import run_hash, settings
from lezo.config.schema import Home, ReplayConfig
from lezo.model.adapter import Adapter
from lezo.model.chat import PLAIN_NAME, choose_template, chosen_template, lead_template
from lezo.model.device import named_device, named_devices
from lezo.model.hashes import tokenizer_hash, weights_hash
from lezo.model.layout import layout
from lezo.model.load import TINY, ModelError, Source, load_config, load_tokenizer, skeleton
from lezo.model.place import Place
from lezo.model.placement import Placement, placed
from lezo.noise import seeds
from lezo.records import reader
from lezo.records.files import FolderError
from lezo.records.folder import CHECKPOINTS, CONFIG, JOURNAL, METRICS, MODEL, PREFIX_START, RESULT
from lezo.records.format import size, table
from lezo.records.journal import JournalError, JournalFile, read_journal
from lezo.records.rows import TrainRow
from lezo.records.schema import Header, ReplaySpec, Result
from lezo.records.strict import read_result, read_rows
from lezo.runs import console
from lezo.runs.build import BaseModel, place_of_blocks
from lezo.runs.card import Card
from lezo.runs.model_settings import settings_text
from lezo.runs.prepare import around
from lezo.runs.resume import events_of_journal, events_of_rows
from lezo.zo.parts import refuse_unknown, updates_of
from lezo.zo.timeline import Timeline

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_RIGHT = "everything is right (scores and predictions are not checked: lezo-eval RUN computes them again)"


def replayed(run: Path, options: ReplayConfig) -> int:
    """Make the model again. Returns the exit code: 0, or 1 for a failure or a check that does not hold."""
    try:
        replay = Replay(run, options, console.console())
        if options.verify:
            problems = list(replay.problems())
            replay.out.print("\n".join(f"NOT RIGHT: {problem}" for problem in problems) or _RIGHT)
            if problems:
                return 1
        if options.out is not None or not options.verify:
            replay.write()
        return 0
    except (JournalError, ModelError, FolderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


class Replay:
    """The model of the run in the folder, or the journal, ``run``; at first its base weights.

    Raises JournalError, ModelError and FolderError for what is not there, damaged or another model's.
    """

    def __init__(self, run: Path, options: ReplayConfig, out: Console) -> None:
        self.file, self.out = _journal_of(run), out
        self.folder, self.journal = self.file.parent, read_journal(self.file)
        refuse_foreign(self.file, self.journal.header)
        self.step = _wanted_step(self.journal, options.step, self.file)
        self.target = Path(options.out or self.folder / _model_folder(self.folder, self.step))
        if (options.out is not None or not options.verify) and self.target.exists():
            ways = "remove it, or choose another folder with replay.out=DIR"
            raise FolderError(f"{self.target}: is there already; {ways}")
        recipe = self.journal.header.recipe
        self.base = self._loaded(recipe, options)
        updates = updates_of(recipe, self.base.model, layout(self.base.model))
        rebase = partial(self.base.rebase, self.journal.header.origin.weights)
        self.timeline = Timeline(self.base.model, rebase, updates)

    def write(self) -> None:
        """Write the model of the wanted step for `from_pretrained`, with its tokenizer and model card."""
        start = time.perf_counter()
        self._bring_to(self.step)
        weights = weights_hash(self.base.model)
        self.base.save(self.target, self._card(weights).text(), self._model_settings(weights))
        rows = {
            "model": str(self.target),
            "step": f"{self.step} of {self.journal.step}",
            "weights": f"sha256 {weights}",
            "journal": f"{size(self.file.stat().st_size)}, {len(self.journal.records)} records",
            "time": f"{time.perf_counter() - start:.1f} s",
        }
        console.print_table(self.out, table(rows, f"replayed {self.file}"))

    def _card(self, weights: str) -> Card:
        """What the model says of itself: what the journal knows, and the run's files where they are beside it."""
        header, file = self.journal.header, self.folder / CONFIG
        known = _settings(file) if _run_hash(file) == header.origin.config else {}
        result = reader.read_result(self.folder, [])
        if (result.get("origin") or {}).get("config") != header.origin.config:  # of another run, or none
            result = {}
        path, text = self.base.source.path, self.base.config.get_text_config()
        try:
            before, _ = around(path, known.get("model.bos"), text, self.base.tokenizer)
        except ModelError:  # the run was told, and the journal was not
            before = ()
        return Card(header, self.step, weights, before, self.base.config.model_type, result, known)

    def _model_settings(self, weights: str) -> str | None:
        """What the model tells lezo-eval; a journal alone knows no task."""
        header, file = self.journal.header, self.folder / CONFIG
        if _run_hash(file) != header.origin.config:
            return None
        return settings_text(file.read_text(encoding="utf-8"), header, self.step, weights)

    def problems(self) -> Iterator[str]:
        """What is not right with the run; loading has checked the records and the base weights already."""
        origin, records = self.journal.header.origin, len(self.journal.records)
        self.out.print(f"{records} records up to step {self.journal.step}, checksums and order right")
        self.out.print(f"base weights sha256 {origin.weights}")
        if torn := self.journal.torn:
            yield f"{self.file}: its last {torn} bytes are a record cut short (resume=auto mends it)"
        if tokenizer_hash(self.base.tokenizer) != origin.tokenizer:
            yield "the tokenizer is not the one that the run had"
        if (config := self.folder / CONFIG).exists() and _run_hash(config) != origin.config:
            yield f"{config}: not the configuration of the journal's run"
        if (self.folder / METRICS).exists():
            yield from self._metrics_problems(self.folder / METRICS)
        if (result := read_result(self.folder)) is not None:
            yield from self._result_problems(self.folder / RESULT, result)

    def _metrics_problems(self, file: Path) -> Iterator[str]:
        """Where metrics.jsonl and the journal differ, or a row's lr * g, as clipped, is not the journal's coefficient."""
        rows = read_rows(file)
        written, journaled = events_of_rows(rows), events_of_journal(self.journal)
        self.out.print(f"{len(written)} metrics rows")
        if written != journaled:
            pairs = zip_longest(written, journaled)
            step = next((one or other)[1] for one, other in pairs if one != other)
            yield f"{file}: tells of another run than the journal from step {step} on"
        measures = {line.step: line.row.measures for line in rows if isinstance(line.row, TrainRow)}
        for record in self.journal.steps(0, self.journal.step):
            row, coefficient = measures.get(record.step, {}), sum(record.values)
            product = row.get("lr", math.nan) * row.get("g_clipped", row.get("g", math.nan))
            if not math.isnan(product) and not math.isclose(product, coefficient, rel_tol=1e-5):
                yield f"{file}: step {record.step} has lr * g = {product:g}, and the journal {coefficient:g}"
                return

    def _result_problems(self, file: Path, result: Result) -> Iterator[str]:
        """Whether the final weights are those that the result names."""
        if result["status"] != "finished":
            self.out.print("the run has not finished: its final weights cannot be compared")
            return
        best, last = self.journal.best(), self.journal.step
        if (result.get("best_step"), result.get("steps")) != (best, last):
            steps = f"best step {result.get('best_step')} of {result.get('steps')}"
            yield f"{file}: has {steps}, and the journal {best} of {last}"
        losses = {record.step: record.value for record in self.journal.devs()}
        if best is not None and result.get("dev_loss") != losses[best]:
            yield f"{file}: has a dev loss of {result.get('dev_loss')}, and the journal {losses[best]}"
        self._bring_to(best or last)
        weights = weights_hash(self.base.model)
        self.out.print(f"weights of step {best or last} sha256 {weights}")
        if weights != result.get("weights"):
            yield f"weights of step {best or last}: the result has sha256 {result.get('weights')}"

    def _bring_to(self, step: int) -> None:
        with console.replaying(self.out, step) as replayed:
            self.timeline.bring_to(step, self.journal, [], progress=replayed)

    def _loaded(self, recipe: ReplaySpec, options: ReplayConfig) -> BaseModel:
        """The base model with the run's adapter. Raises ModelError where it is not the run's."""
        origin, source = self.journal.header.origin, _source(recipe, options.base)
        words = recipe.tokenizer or source.path
        tokenizer = load_tokenizer(words, None if recipe.tokenizer else source.revision)
        dtype, config = _dtype(self.file, origin.dtype), load_config(source)
        self._give_template(tokenizer, config, recipe)
        self.out.print(f"loading {source.path}")
        placement = _placement(options, config, dtype)
        place = self._place(options) if options.devices is None else Place()
        given = source, config, tokenizer
        base = BaseModel(*given, dtype=dtype, placement=placement, seed=recipe.seed, place=place)
        if recipe.peft is not None:
            base.attach(_adapter(self.file, recipe.peft), self.folder / PREFIX_START)
        if (weights := base.first_hash()) != origin.weights:
            prefix = recipe.peft is not None and recipe.peft.get("name") == "prefix"
            of_prefix = f", and a prefix's first values {PREFIX_START} beside the journal" if prefix else ""
            raise ModelError(
                f"{source.path}: not the base weights of this run (sha256 {weights[:12]}, the journal's are "
                f"{origin.weights[:12]}, in {origin.dtype}); replay.base=DIR names the right ones{of_prefix}"
            )
        return base

    def _give_template(self, tokenizer: Any, config: Any, recipe: ReplaySpec) -> None:
        """Of a run on conversations the tokenizer is written with the chat template that they had."""
        of_run = _settings(self.folder / CONFIG)
        if "task.chat_template" not in of_run:
            return
        try:
            chosen, bos = chosen_template(of_run["task.chat_template"], recipe.model), of_run.get("model.bos")
            choose_template(tokenizer, chosen)
            if chosen == PLAIN_NAME or bos is not None:
                lead_template(
                    tokenizer, around(str(recipe.path), bos, config.get_text_config(), tokenizer)[0]
                )
        except ModelError as gone:
            self.out.print(f"warning: {gone}; the tokenizer has its own chat template, if any")

    def _place(self, options: ReplayConfig) -> Place:
        """Where the options, else the run's configuration, let the blocks live."""
        of_run = _settings(self.folder / CONFIG)
        known = {home.value: home for home in Home}
        home = options.home or known.get(str(of_run.get("model.home")), Home.device)
        return place_of_blocks(home, options.home_dir or of_run.get("model.home_dir"), self.folder)


def _placement(options: ReplayConfig, config: Any, dtype: torch.dtype) -> Placement:
    if options.devices is None:
        return Placement((named_device(options.device, "replay.device"),))
    if options.device != "auto":
        raise ModelError(
            f"replay.device={options.device}: replay.devices names the devices too; leave out one of them"
        )
    return placed(skeleton(config, dtype), named_devices(options.devices, "replay.devices"))


def _journal_of(run: Path) -> Path:
    file = run / JOURNAL if run.is_dir() else run
    if file.is_file():
        return file
    if (run / CHECKPOINTS).is_dir():
        way = f"its own command with save_model=true resume=auto hydra.run.dir={run} writes its model"
        raise JournalError(f"{run}: a first-order run has no journal; {way}")
    raise JournalError(
        f"{run}: no run with a journal; expected the folder of a zeroth-order run, or its {JOURNAL}"
    )


def refuse_foreign(file: Path, header: Header) -> None:
    """Raise JournalError where this lezo cannot make the journal's updates, or not alone."""
    if header.recipe.blocks is not None:
        way = "make the model as that program did, and lezo.apply_journal(model, path) does the rest"
        raise JournalError(f"{file}: written by a program of one's own for its {header.recipe.model}; {way}")
    if (noise := header.origin.noise) != seeds.VERSION:
        raise JournalError(f"{file}: made with noise {noise}, and this lezo draws noise {seeds.VERSION}")
    refuse_unknown(header.recipe, file)


def _wanted_step(journal: JournalFile, step: int | None, file: Path) -> int:
    wanted = step if step is not None else journal.best() or journal.step
    if not 0 <= wanted <= journal.step:
        raise JournalError(f"replay.step={wanted}: {file} has the steps 0 to {journal.step}")
    return wanted


def _model_folder(folder: Path, step: int) -> str:
    """Where ``step``'s model belongs: in a run's MODEL, only if it is the one that its result is about."""
    result = read_result(folder)
    ended = result if result is not None and result["status"] == "finished" else None
    of_result = ended is not None and step == (ended.get("best_step") or ended.get("steps"))
    return MODEL if of_result or not (folder / CONFIG).exists() else f"{MODEL}-step-{step}"


def _source(recipe: ReplaySpec, base: str | None) -> Source:
    path = os.path.expanduser(base or recipe.path or (str(TINY) if recipe.model == "tiny" else ""))
    return Source(
        path, None if base else recipe.revision, recipe.shape, recipe.random_weights, recipe.quantization
    )


def _dtype(file: Path, name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise JournalError(f"{file}: weights of {name}; expected one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _adapter(file: Path, settings: Mapping[str, Any]) -> Adapter:
    try:
        return Adapter.of(settings)
    except (ValueError, TypeError, KeyError) as error:
        raise JournalError(f"{file}: not the settings of an adapter ({error})") from None


def _settings(config: Path) -> dict[str, Any]:
    """A run's, or none of a file that is missing or damaged, which `Replay.problems` finds."""
    try:
        return settings(config.read_text(encoding="utf-8"))
    except Exception:
        return {}


def _run_hash(config: Path) -> str | None:
    """None of a file that is no configuration: yaml and omegaconf have many ways to say so."""
    try:
        return run_hash(config.read_text(encoding="utf-8"))
    except Exception:
        return None
