"""Begin a run or go on with one: its folder, its model, and what earlier sessions left."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from lezo.config.compose import Composed, with_dtype, with_names, with_sizes
from lezo.config.methods import method_name
from lezo.config.schema import Resume, RunConfig
from lezo.ranks.ranks import ALONE, Ranks
from lezo.records.environment import environment
from lezo.records.files import FolderError
from lezo.records.folder import CONFIG, PREFIX_START, RunFolder
from lezo.records.rows import Sink
from lezo.records.schema import Header
from lezo.runs import banner
from lezo.runs.build import LoadedModel, load_model, make_header
from lezo.runs.console import ConsoleSink, print_table
from lezo.runs.loop import Progress
from lezo.runs.plan import Plan, make_plan
from lezo.runs.prepare import devices_of
from lezo.runs.resume import (
    ResumeState,
    dtype_of_run,
    made_no_step,
    micro_batch_size_of,
    names_of,
    open_sizes_of,
    read_resume_state,
    same_run,
)
from lezo.runs.stop import Stop
from lezo.runs.together import Start, Together, refuse_other_starts, share_start
from lezo.tasks.metrics import PERPLEXITY
from lezo.tracking.events import EventFiles
from lezo.tracking.mirror import WandbMirror


@dataclass(frozen=True)
class Request:
    """A run as it was asked for. ``started``: the clock (perf_counter) when it was. ``ranks``: whose rank 0 this is."""

    composed: Composed
    command: str
    out: Console
    ranks: Ranks = ALONE
    stop: Stop = field(default_factory=Stop)
    started: float = field(default_factory=time.perf_counter)

    @property
    def config(self) -> RunConfig:
        """The checked configuration."""
        return self.composed.config

    @property
    def folder(self) -> Path:
        """Where the run's files are."""
        return self.composed.run_dir


@dataclass(frozen=True)
class Session:
    """A session of a run, ready to train and score. ``progress`` changes as it does; all else stays."""

    request: Request
    folder: RunFolder
    loaded: LoadedModel
    header: Header
    resumed: ResumeState
    progress: Progress
    together: Together
    shown: ConsoleSink
    mirror: WandbMirror | None
    events: EventFiles | None

    @property
    def config(self) -> RunConfig:
        """The checked configuration."""
        return self.request.config

    @property
    def plan(self) -> Plan:
        """The plan, with the memory of the rows that the model runs in."""
        return self.loaded.plan

    @property
    def sinks(self) -> list[Sink]:
        """What hears of every row."""
        return [self.progress, self.folder, *self.displays]

    @property
    def displays(self) -> list[Sink]:
        """What shows rows and keeps none: the console, and wandb and TensorBoard where they are wanted."""
        return [self.shown, *(told for told in (self.mirror, self.events) if told is not None)]


def open_folder(request: Request) -> RunFolder:
    """Create and lock the run folder. Raises FolderError where it holds a run that must not be replaced."""
    auto = request.config.resume is Resume.auto
    return RunFolder(request.folder, resume=auto, replaces=made_no_step)


def clear_failed_start(request: Request, folder: RunFolder) -> None:
    """Empty the folder of a run that made no step, unless this one goes on with it."""
    if folder.holds_run and made_no_step(folder.path):
        auto = request.config.resume is Resume.auto
        if not (auto and same_run(folder.path, request.composed.yaml)):
            folder.clear()


def with_sizes_of_folder(request: Request) -> Request:
    """The request with the sizes and the dtype of the folder's run, where it goes on with one and leaves them open, its name and notes.

    Ranks take parts of a batch of their own size, unless the run was begun with other parts: their size is in the bits.
    """
    path, composed, ranks = request.folder, request.composed, request.ranks
    holds_run = (path / CONFIG).exists() and not made_no_step(path)
    goes_on = request.config.resume is Resume.auto and holds_run
    part = micro_batch_size_of(path) if goes_on else shared_size(request.config, ranks)
    if goes_on:
        composed = with_names(with_sizes(composed, open_sizes_of(path, composed.yaml)), names_of(path))
        composed = with_dtype(composed, dtype_of_run(path))
    return replace(request, composed=in_parts(composed, part))


def shared_size(config: RunConfig, ranks: Ranks) -> int | None:
    """The examples of a micro-batch that give each of several ranks one."""
    shares = config.trains and not config.minimises_metric and ranks.size > 1
    return -(-config.train.batch_size // ranks.size) if shares else None


def in_parts(composed: Composed, micro_batch_size: int | None) -> Composed:
    """The same with micro-batches of a size, where it leaves that open. What it says of itself stays."""
    if micro_batch_size is None or composed.config.train.micro_batch_size is not None:
        return composed
    config = deepcopy(composed.config)
    config.train.micro_batch_size = micro_batch_size
    return replace(composed, config=config)


def show_plan(request: Request) -> Plan:
    """Read everything but the weights and print what the run will do. Raises what reading raises."""
    plan = make_plan(request.config)
    print_table(request.out, banner.banner(request.config, plan, request.folder, request.ranks.size))
    return plan


def begin(request: Request, folder: RunFolder, plan: Plan) -> Session:
    """Load the model and find what there is to go on from; then the folder is this run's.

    Raises FolderError where the folder holds another run, or a damaged one, and what loading raises.
    """
    config, ranks = request.config, request.ranks
    goes_on = folder.holds_run and not made_no_step(folder.path)
    ranks.tell(Start.of(request.composed).words())
    known = folder.path / PREFIX_START if goes_on else None
    loaded = load_model(config, plan, request.out.print, known, folder.path)
    share_start(ranks, loaded)
    header = make_header(request.composed.yaml, config, loaded)
    refuse_other_starts(ranks, header.origin)
    resumed = resume_state(request, folder, header)
    if not folder.begun:
        claim(request, folder, resumed)
    if (adapter := loaded.base.adapter) is not None and (start := adapter.start()) is not None:
        folder.data(PREFIX_START, start)
    shown = ConsoleSink(request.out, config.train.steps if config.trains else None, plan.parts.task.metric)
    together = Together(ranks, config, loaded)
    mirror = make_mirror(request, folder, plan.parts.task.metric)
    events = make_events(request, folder, resumed, plan.parts.task.metric)
    told = shown, mirror, events
    return Session(request, folder, loaded, header, resumed, resumed.progress(), together, *told)


def claim(request: Request, folder: RunFolder, resumed: ResumeState) -> None:
    """Make the folder this run's, cut to the steps that it goes on from."""
    folder.begin(b"".join(row.line for row in resumed.rows))
    resumed.forget()
    folder.text(CONFIG, request.composed.yaml)
    origin = {"command": request.command, "from_step": resumed.step, "ranks": request.ranks.size}
    origin["micro_batch_size"] = request.config.train.micro_batch_size
    folder.session({**origin, **environment(*devices_of(request.config))})


def resume_state(request: Request, folder: RunFolder, header: Header) -> ResumeState:
    """What the folder's run has to go on from. Raises FolderError where it is another's, or damaged."""
    config = request.config
    if not folder.holds_run or not config.trains:  # scoring alone has nothing to go on from
        return ResumeState()
    recipe = None if config.first_order else header.recipe
    limits = {"steps": config.train.steps, "eval_every": config.train.eval_every}
    try:
        return read_resume_state(folder.path, header.origin, recipe, **limits)
    except FolderError:
        if not made_no_step(folder.path):
            raise
        folder.clear()  # begun with other data or weights, and without a step
        return ResumeState()


def make_mirror(request: Request, folder: RunFolder, metric: str) -> WandbMirror | None:
    """What sends rows to wandb, where that is wanted; ``metric``: what scores are."""
    config, log = request.config, request.config.log
    if not log.wandb:
        return None
    settings = {
        "config": settings_of_run(request.composed.yaml),
        "name": log.name,
        "called": request.composed.name,
        "notes": log.notes,
        "project": log.project,
        "group": log.group,
        "job_type": method_name(config.optim.name, config.peft.name),
        "tags": [banner.title(config), config.optim.name, config.model.name, *log.tags],
        "id": folder.run_id(),
    }
    cost = config.method.forwards_a_step(config.optim) if config.trains else None
    return WandbMirror(
        folder.path,
        settings,
        log.mode.value,
        _warner(request),
        cost=cost,
        score=metric if metric == PERPLEXITY else "score",
        texts=log.texts,
    )


def make_events(request: Request, folder: RunFolder, resumed: ResumeState, metric: str) -> EventFiles | None:
    """What writes rows for TensorBoard, where that is wanted."""
    if not request.config.log.tensorboard:
        return None
    before, score = (line.row for line in resumed.rows), PERPLEXITY if metric == PERPLEXITY else "score"
    return EventFiles(folder.path, before, _warner(request), score=score)


def _warner(request: Request) -> Callable[[str], None]:
    return lambda text: request.out.print(f"warning: {text}")


def settings_of_run(yaml: str) -> dict[str, Any]:
    """The groups of a configuration that are about a run, not about other commands."""
    tree = OmegaConf.to_container(OmegaConf.create(yaml))
    assert isinstance(tree, dict)
    return {str(group): value for group, value in tree.items() if group not in ("bench", "inspect")}
