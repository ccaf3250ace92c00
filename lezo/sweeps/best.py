"""Which run is the best of its task, model and method by dev loss, and what makes its model? Never by a test score."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lezo.config.compose import quoted
from lezo.config.methods import METHODS, NO_METHOD, method_name
from lezo.config.schema import ConfigError
from lezo.records.folder import JOURNAL, MODEL
from lezo.records.format import score
from lezo.records.reader import read_result, run_folders
from lezo.tasks.metrics import PERPLEXITY


@dataclass(frozen=True)
class Ended:
    """A run that has finished; ``label``: what sets it apart from the others."""

    folder: Path
    result: Mapping[str, Any]
    label: str

    @property
    def kind(self) -> tuple[str, str, str]:
        """Task and data, model, method: only runs that have these alike are compared."""
        method = method_name(str(self.result.get("optim")), str(self.result.get("peft") or "none"))
        return str(self.result.get("title", self.result.get("task"))), str(self.result.get("model")), method

    def rank(self, by: str) -> float | None:
        """Its dev loss or dev score as a number of which the lowest is best; None where it has none."""
        value = self.result.get(by)
        higher = by == "dev" and self.result.get("metric") != PERPLEXITY
        return None if value is None else -value if higher else value

    def model_words(self) -> str:
        """Where its model is, or the command that writes it."""
        if (self.folder / MODEL).is_dir():
            return f"{self.folder / MODEL} (written already)"
        if (self.folder / JOURNAL).exists():
            return shlex.join(["lezo-replay", str(self.folder)])
        method = METHODS.get(str(self.result.get("optim")), NO_METHOD)
        if method is not NO_METHOD and not (method.trains or method.fits_head):
            return "the base model: nothing was trained"
        where = f"hydra.run.dir={quoted(str(self.folder))}"
        return f"{self.result.get('command')} {shlex.join(['save_model=true', 'resume=auto', where])}"


@dataclass(frozen=True)
class Best:
    """The best of ``runs``, all of one kind, by ``by``: dev_loss, or dev where there is no loss. Of equals it is the first."""

    run: Ended
    by: str
    runs: Sequence[Ended]

    def lines(self) -> Iterator[str]:
        """What is chosen, among how many, its folder, and what makes its model."""
        result = self.run.result
        scores = (
            f"dev loss {score(result.get('dev_loss'))}, dev {result.get('metric')} {score(result.get('dev'))}"
        )
        chosen = "dev loss" if self.by == "dev_loss" else f"dev {result.get('metric')}, without a dev loss"
        yield f"best by {chosen}: {', '.join(self.run.kind)}: {self.run.label}{self._among()}"
        yield f"  scores  {scores}, test {score(result.get('test'))}"
        yield f"  folder  {self.run.folder}"
        yield f"  model   {self.run.model_words()}"

    def _among(self) -> str:
        """How many runs it is chosen from, and what a reader must know of them."""
        equal = [run for run in self.runs if run.rank(self.by) == self.run.rank(self.by)]
        ties = f", the first of {len(equal)} equals" if equal[1:] else ""
        rows = {(str(run.result.get("data_seed")), _dev_rows(run)) for run in self.runs}
        apart = ", whose dev rows differ" if len(rows) > 1 else ""
        return f" (of {len(self.runs)} run{'s' if self.runs[1:] else ''}{apart}{ties})"


def best_runs(runs: Iterable[Ended]) -> list[Best]:
    """The best of each kind, in the order in which kinds come; none of a kind without any dev score."""
    kinds: dict[tuple[str, str, str], list[Ended]] = {}
    for run in runs:
        kinds.setdefault(run.kind, []).append(run)
    return [best for alike in kinds.values() if (best := _best(alike)) is not None]


def _best(alike: Sequence[Ended]) -> Best | None:
    for by in ("dev_loss", "dev"):
        ranked = [(rank, run) for run in alike if (rank := run.rank(by)) is not None]
        if ranked:
            return Best(min(ranked, key=lambda pair: pair[0])[1], by, [run for _, run in ranked])
    return None


def best_text(runs: Sequence[Ended]) -> str:
    """What there is to say of the best of some runs, several lines."""
    found = best_runs(runs)
    if not found:
        return (
            "best: no run has finished with a dev loss or a dev score, and none is chosen by its test score"
        )
    return "\n".join(line for best in found for line in best.lines())


def best_below(folder: Path) -> Path:
    """The folder of the best run below ``folder``.

    Raises ConfigError where it holds none, or runs of several kinds, whose best ones are printed.
    """
    if not folder.is_dir():
        raise ConfigError([f"{folder}: no such folder; expected one with runs in it, as a sweep's"])
    runs = ended_below(folder)
    if not runs:
        raise ConfigError([f"{folder}: no finished run in it; expected a folder of runs, as a sweep's"])
    found = best_runs(runs)
    if not found:
        way = "name the run that is wanted: lezo-replay RUN"
        raise ConfigError([f"{folder}: none of its {len(runs)} finished runs has a dev loss; {way}"])
    if len(found) > 1:
        print(best_text(runs))
        kinds = f"runs of {len(found)} tasks, models or methods, which no dev loss compares"
        raise ConfigError([f"{folder}: holds {kinds}; expected those of one; say one of the commands above"])
    print("\n".join([*found[0].lines()][:-1]))
    return found[0].run.folder


def ended_below(folder: Path) -> list[Ended]:
    """The finished runs at and below a folder, by name; what is damaged is none."""
    found = ((place, read_result(place, [])) for place in run_folders(folder))
    return [
        Ended(place, result, _label(result)) for place, result in found if result.get("status") == "finished"
    ]


def _label(result: Mapping[str, Any]) -> str:
    rate = result.get("lr")
    return f"seed {result.get('seed')}" if rate is None else f"lr {rate:g}, seed {result.get('seed')}"


def _dev_rows(run: Ended) -> Any:
    return (run.result.get("examples") or {}).get("dev")
