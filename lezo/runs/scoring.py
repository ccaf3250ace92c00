"""Models scored again, one after the other, by what a run scores with; a table of them. No run's folder is written to."""

from __future__ import annotations

import gc
import json
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lezo.config.schema import ConfigError, EvaluateConfig, RunConfig, Split
from lezo.config.task import DemoSets
from lezo.data.dataset import EvalSet
from lezo.data.source import DataError
from lezo.model.evaluate import Evaluation, Evaluator
from lezo.model.hashes import examples_hash, weights_hash
from lezo.model.load import ModelError
from lezo.records.files import FolderError, finite, json_line
from lezo.records.folder import CONFIG, METRICS
from lezo.records.format import clock, score
from lezo.runs import banner
from lezo.runs.build import LoadedModel, load_model, make_evaluator
from lezo.runs.console import console
from lezo.runs.outcome import message_of
from lezo.runs.plan import Plan, make_plan
from lezo.runs.predictions import in_words
from lezo.runs.subjects import Subject, subject_of

_SAME = "same"


@dataclass(frozen=True)
class Scored:
    """A subject's scores on a split. ``run_score``: what its run wrote of the same rows; ``zero_shot``: of its base."""

    subject: Subject
    plan: Plan
    split: Split
    rows: int
    evaluation: Evaluation
    weights: str
    seconds: float

    @property
    def metric(self) -> str:
        """What the score is."""
        return self.plan.parts.task.metric

    @property
    def title(self) -> str:
        """The task and its data."""
        return banner.title(self.subject.config)

    @property
    def calibration(self) -> str:
        """How answers were calibrated: none, sfc or icl_sfc."""
        return self.subject.config.eval.calibration.value

    @property
    def run_score(self) -> float | None:
        """The run's own score, where it is of the same rows."""
        key = {Split.test: "test", Split.dev: "dev"}.get(self.split)
        return self.subject.result.get(key) if key and self.subject.as_run else None

    @property
    def zero_shot(self) -> float | None:
        """The base model's, where it is known: its own, or what the run wrote before its first step."""
        if self.subject.kind == "base" and not self.subject.config.task.demos:
            return self.evaluation.score
        known = self.split is Split.test and self.subject.as_run
        return self.subject.result.get("zero_shot") if known else None

    def record(self) -> dict[str, Any]:
        """As JSON has it: score and loss as in result.json, null where there is none."""
        config, subject = self.subject.config, self.subject
        return {
            "model": subject.word,
            "kind": subject.kind,
            "step": subject.step,
            "task": config.task.name,
            "title": self.title,
            "split": self.split.value,
            "metric": self.metric,
            "score": self.evaluation.score,
            "loss": self.evaluation.loss,
            "rows": self.rows,
            "zero_shot": self.zero_shot,
            "run_score": self.run_score,
            "calibration": self.calibration,
            "demos": config.task.demos,
            "data_seed": config.task.data_seed,
            "dtype": self.plan.dtype_name,
            "device": str(self.plan.device),
            "truncated": self.plan.truncated,
            "weights": self.weights,
            "seconds": round(self.seconds, 3),
        }


def score_all(names: Sequence[str], words: Sequence[str], options: EvaluateConfig) -> int:
    """Score what the names name, and tell. Returns the exit code: 0, or 1 where one of them failed."""
    _refuse_places(names, options)
    out = console(sys.stderr if options.json else None)
    scored: list[Scored] = []
    failed = False
    for number, name in enumerate(names, start=1):
        if len(names) > 1:
            out.print(f"{number} of {len(names)}: {name}")
        try:
            subject = subject_of(name, words)
            if subject.kind == "base" and subject.config.model.path == name and not Path(name).exists():
                out.print(f"{name}: no such folder or file here, so the model of this name on the hub")
            scored.append(_scored(subject, options.split, out))
        except ConfigError as error:
            if len(names) == 1:
                raise
            failed = _complain(str(error).replace("\n", "; "), name)
        except Exception as error:
            message = message_of(error)
            failed = _complain(message or traceback.format_exc().rstrip(), name)
        _let_go()
    _tell(scored, options, out)
    return 1 if failed else 0


def _complain(message: str, name: str) -> bool:
    named = message if message.startswith(name) else f"{name}: {message}"
    print(f"error: {named}", file=sys.stderr)
    return True


def _let_go() -> None:
    """Of the model before, whose memory the next one needs."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _scored(subject: Subject, split: Split, out: Console) -> Scored:
    start, config = time.perf_counter(), subject.config
    plan = make_plan(config)
    rows = _rows(plan, config, split)
    with tempfile.TemporaryDirectory(prefix="lezo-eval-") as blocks:  # those of model.home=disk
        loaded = load_model(config, plan, out.print, subject.start, Path(blocks))
        if subject.first:
            _check_origin(subject, loaded, out)
        subject.bring(loaded, out)
        weights = weights_hash(loaded.model)
        wanted = subject.result.get("weights")
        if wanted is not None and weights != wanted:
            out.print(
                f"warning: the weights have sha256 {weights[:12]}, and in the run's result {wanted[:12]}"
            )
        size = config.eval.batch_size
        evaluator = make_evaluator(loaded.plan, loaded.network, size)
        with _progress(out, evaluator, rows, split) as counted:
            evaluation = counted(rows)
    found = Scored(subject, loaded.plan, split, len(rows), evaluation, weights, time.perf_counter() - start)
    out.print(
        f"{split.value}: {found.metric} {score(evaluation.score)}, {len(rows)} rows, {clock(found.seconds)} in all"
    )
    return found


def _rows(plan: Plan, config: RunConfig, split: Split) -> EvalSet:
    """The split's examples. Raises DataError where there are none."""
    rows = plan.test if split is Split.test else plan.dev if split is Split.dev else plan.parts.scored_train()
    if not len(rows):
        each = config.task.demo_sets is DemoSets.each
        own = "task.demo_sets=each gives every test example demonstrations, and draws no train and dev rows"
        sizes = f"task.num_{split.value}=N draws some, of {plan.parts.rows}"
        raise DataError(
            f"split={split.value}: {config.task.name} has no such rows here; {own if each else sizes}"
        )
    return rows


def _check_origin(subject: Subject, loaded: LoadedModel, out: Console) -> None:
    """Raise ModelError where the base model is not the run's; say where its rows are others."""
    origin, first = subject.origin or {}, loaded.base.first_hash()
    if "weights" in origin and first != origin["weights"]:
        raise ModelError(
            f"{loaded.base.source.path}: not the base weights of {subject.word} (sha256 {first[:12]}, the run's are "
            f"{origin['weights'][:12]}, in {origin.get('dtype')}); model.path=DIR names the right ones"
        )
    plan = loaded.plan
    rows = examples_hash([plan.train, plan.dev.scored, plan.dev.prompts, plan.test.scored, plan.test.prompts])
    if subject.as_run and origin.get("data") not in (None, rows):
        out.print(
            "warning: rows, prompts or their tokens are no longer those of the run: its scores are of others"
        )


@contextmanager
def _progress(out: Console, evaluator: Evaluator, rows: EvalSet, split: Split) -> Iterator[Evaluator]:
    """The evaluator, which on a terminal moves a bar with each forward."""
    if not out.is_terminal:
        out.print(f"scoring {len(rows)} {split.value} rows")
        yield evaluator
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task(f"{split.value} forwards", total=evaluator.forwards(rows))
        yield replace(evaluator, forwarded=lambda: bar.advance(task))


def _tell(scored: Sequence[Scored], options: EvaluateConfig, out: Console) -> None:
    """The table or the records, the file and the predictions."""
    records = [finite(one.record()) for one in scored]
    if options.json:
        print(json.dumps(records, indent=2, ensure_ascii=False))
    elif scored:
        out.print("\n" + table_of(scored))
    if options.out is not None:
        _write(Path(options.out), json.dumps(records, indent=2, ensure_ascii=False) + "\n", out)
    if options.predictions is not None:
        for name, one in _file_names(scored).items():
            examples = getattr(one.plan.parts.splits, one.split.value)
            lines = "".join(json_line(row) for row in in_words(one.evaluation.predictions, examples))
            _write(Path(options.predictions) / name, lines, out)


def table_of(scored: Sequence[Scored]) -> str:
    """A row a model; what all share is said once, above."""
    titles, metrics = {one.title for one in scored}, {one.metric for one in scored}
    head = scored[0]
    shared = [head.title] if len(titles) == 1 else []
    calibrations = {one.calibration for one in scored}
    shared += [f"split {head.split.value}"]
    shared += [f"calibrated ({name})" for name in calibrations - {"none"} if len(calibrations) == 1]
    metric = "score" if len(metrics) > 1 else head.metric
    rows = [_cells(one, metric, titles, metrics, calibrations) for one in scored]
    names = [name for name in rows[0] if any(row[name] != "-" for row in rows)]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}
    lines = [{name: name for name in names}, *rows]
    left = ("model", "task", "metric", "calibration")
    shown = [
        "  ".join(
            f"{line[name]:<{widths[name]}}" if name in left else f"{line[name]:>{widths[name]}}"
            for name in names
        )
        for line in lines
    ]
    return "\n".join([", ".join(shared), *(f"  {line.rstrip()}" for line in shown)])


def _cells(
    one: Scored, metric: str, titles: set[str], metrics: set[str], calibrations: set[str]
) -> dict[str, str]:
    own = "-" if one.run_score is None else score(one.run_score)
    loss = one.evaluation.loss
    cells = {"model": one.subject.word}
    cells |= {"task": one.title} if len(titles) > 1 else {}
    cells |= {"metric": one.metric} if len(metrics) > 1 else {}
    cells |= {"calibration": one.calibration} if len(calibrations) > 1 else {}
    return cells | {
        "step": "-" if one.subject.step is None else str(one.subject.step),
        metric: score(one.evaluation.score),
        "loss": "-" if loss is None else f"{loss:.4f}",
        "rows": str(one.rows),
        "zero-shot": score(None if one.subject.config.task.demos else one.zero_shot),
        "in the run": own if one.run_score != one.evaluation.score else f"{own} ({_SAME})",
    }


def _refuse_places(names: Sequence[str], options: EvaluateConfig) -> None:
    """Raise ConfigError for an output in a run's folder, or that is there already."""
    for key, given in (("eval.out", options.out), ("eval.predictions", options.predictions)):
        if given is None:
            continue
        place = Path(given).expanduser().absolute()
        if any(
            {CONFIG, METRICS} <= {file.name for file in parent.glob("*.*")}
            for parent in (place, *place.parents)
            if parent.is_dir()
        ):
            raise ConfigError(
                [
                    f"{key}={given}: is in the folder of a run, which lezo-eval never writes to; choose another place"
                ]
            )
        if place.is_file() or (key == "eval.predictions" and place.is_dir() and any(place.iterdir())):
            raise ConfigError([f"{key}={given}: is there already; remove it, or choose another place"])


def _write(path: Path, text: str, out: Console) -> None:
    try:
        path = path.expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FolderError(f"{path}: cannot write it ({error.strerror}); choose another place") from None
    out.print(f"wrote {path}")


def _file_names(scored: Sequence[Scored]) -> Mapping[str, Scored]:
    """A file of predictions for each, by what the command calls it."""
    named: dict[str, Scored] = {}
    for one in scored:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", one.subject.word).strip("._")[-100:] or "model"
        name, number = plain, 2
        while f"{name}.jsonl" in named:
            name, number = f"{plain}-{number}", number + 1
        named[f"{name}.jsonl"] = one
    return named
