"""Begin a run or go on with one: its folder, its model, and what earlier sessions left."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console

from lezo.config.compose import Composed, with_sizes
from lezo.config.methods import method_name
from lezo.config.schema import Resume, RunConfig
from lezo.model.evaluate import Evaluator
from lezo.records.environment import environment
from lezo.records.files import FolderError
from lezo.records.folder import CONFIG, PREFIX_START, RunFolder
from lezo.records.rows import Sink
from lezo.records.schema import Header
from lezo.runs import banner
from lezo.runs.build import LoadedModel, load_model, make_evaluator, make_header
from lezo.runs.console import ConsoleSink, print_table
from lezo.runs.loop import Progress
from lezo.runs.plan import Plan, make_plan
from lezo.runs.prepare import device_of
from lezo.runs.resume import ResumeState, made_no_step, open_sizes_of, read_resume_state, same_run
from lezo.runs.stop import Stop
from lezo.tracking.mirror import WandbMirror


@dataclass(frozen=True)
class Request:
    """A run as it was asked for. ``started``: the clock (perf_counter) when it was."""

    composed: Composed
    command: str
    out: Console
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
    evaluate: Evaluator
    shown: ConsoleSink
    mirror: WandbMirror | None

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
        """What shows rows and keeps none: the console, and wandb where it is wanted."""
        return [self.shown, *([self.mirror] if self.mirror else [])]


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
    """The request with the sizes of the folder's run, where it goes on with one and leaves them open."""
    path, composed = request.folder, request.composed
    holds_run = (path / CONFIG).exists() and not made_no_step(path)
    if request.config.resume is not Resume.auto or not holds_run:
        return request
    return replace(request, composed=with_sizes(composed, open_sizes_of(path, composed.yaml)))


def show_plan(request: Request) -> Plan:
    """Read everything but the weights and print what the run will do. Raises what reading raises."""
    plan = make_plan(request.config)
    print_table(request.out, banner.banner(request.config, plan, request.folder))
    return plan


def begin(request: Request, folder: RunFolder, plan: Plan) -> Session:
    """Load the model and find what there is to go on from; then the folder is this run's.

    Raises FolderError where the folder holds another run, or a damaged one, and what loading raises.
    """
    config = request.config
    goes_on = folder.holds_run and not made_no_step(folder.path)
    known = folder.path / PREFIX_START if goes_on else None
    loaded = load_model(config, plan, request.out.print, known, folder.path)
    header = make_header(request.composed.yaml, config, loaded)
    resumed = resume_state(request, folder, header)
    if not folder.begun:
        claim(request, folder, resumed)
    if (adapter := loaded.base.adapter) is not None and (start := adapter.start()) is not None:
        folder.data(PREFIX_START, start)
    shown = ConsoleSink(request.out, config.train.steps if config.trains else None, plan.parts.task.metric)
    evaluate = make_evaluator(loaded.plan, loaded.network, config.eval.batch_size)
    mirror = make_mirror(request, folder)
    return Session(request, folder, loaded, header, resumed, resumed.progress(), evaluate, shown, mirror)


def claim(request: Request, folder: RunFolder, resumed: ResumeState) -> None:
    """Make the folder this run's, cut to the steps that it goes on from."""
    folder.begin(b"".join(row.line for row in resumed.rows))
    resumed.forget()
    folder.text(CONFIG, request.composed.yaml)
    origin = {"command": request.command, "from_step": resumed.step}
    folder.session({**origin, **environment(device_of(request.config))})


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


def make_mirror(request: Request, folder: RunFolder) -> WandbMirror | None:
    """What sends rows to wandb, where that is wanted."""
    config, log = request.config, request.config.log
    if log.name != "wandb":
        return None
    settings = {
        "config": OmegaConf.to_container(OmegaConf.create(request.composed.yaml)),
        "project": log.project,
        "group": log.group,
        "job_type": method_name(config.optim.name, config.peft.name),
        "tags": [banner.title(config), config.optim.name, config.model.name, *log.tags],
        "id": folder.run_id(),
    }
    return WandbMirror(
        folder.path, settings, log.mode.value, lambda text: request.out.print(f"warning: {text}")
    )
