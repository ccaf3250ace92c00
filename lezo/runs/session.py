"""One run, from a checked configuration to its folder's result. Read from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from omegaconf import OmegaConf

from lezo.config.compose import Composed
from lezo.config.schema import Resume
from lezo.model.evaluate import Evaluator
from lezo.model.hashes import weights_hash
from lezo.model.linear_probe import fit_head
from lezo.records.environment import environment
from lezo.records.files import FolderError
from lezo.records.folder import CONFIG, RESULT, START, RunFolder
from lezo.records.rows import DevRow, Sink, TestRow
from lezo.records.schema import Header, Result
from lezo.runs import banner
from lezo.runs.build import (
    LoadedModel,
    load_model,
    make_batches,
    make_evaluator,
    make_optimizer,
    provenance,
    replay_spec,
)
from lezo.runs.console import ConsoleSink, console, replaying, tell
from lezo.runs.finished import finished_before, go_on, made_way, planned, tell_again
from lezo.runs.loop import DivergedError, Progress, train
from lezo.runs.outcome import Ending, failed, failure, result_of, way_out
from lezo.runs.plan import Plan
from lezo.runs.prepare import device_of
from lezo.runs.request import Request
from lezo.runs.restore import History
from lezo.runs.resume import ResumeState, made_no_step, read_resume_state
from lezo.tracking.mirror import WandbMirror


def run(composed: Composed, command: str) -> int:
    """Run, go on with a run or, with dry_run, plan. Returns the exit code: 0, 1 for a failure, 130 for an interruption."""
    request = Request(composed, command, console())
    request.stop.listen()
    try:
        if composed.config.dry_run:
            planned(go_on(request))
            return 0
        with closing(open_folder(request)) as folder:
            return run_in(made_way(request, folder), folder)
    except Exception as error:
        return failed(error)
    except KeyboardInterrupt:
        return 130


def open_folder(request: Request) -> RunFolder:
    """Create and lock the run folder. Raises FolderError where it holds a run that must not be replaced."""
    auto = request.config.resume is Resume.auto
    return RunFolder(request.folder, resume=auto, replaces=made_no_step)


def run_in(request: Request, folder: RunFolder) -> int:
    """Do what is left to do in the folder. Returns the exit code."""
    if (plan := finished_before(request, folder)) is not None:
        return tell_again(request, folder, plan)
    return execute(request, folder)


def execute(request: Request, folder: RunFolder) -> int:
    """Plan, load, train and score; once the folder is this run's, its result is written whatever happens."""
    plan: Plan | None = None
    loaded: LoadedModel | None = None
    header: Header | None = None
    mirror: WandbMirror | None = None
    weights, progress, ending = None, Progress(), Ending("finished")
    try:
        if not folder.holds_run:
            begin(request, folder, ResumeState())
        plan = planned(request)
        loaded = load_model(request.config, plan, request.out.print, made_steps(folder))
        header = make_header(request, plan, loaded)
        past = resume_state_of(request, folder, header)
        if not folder.begun:
            begin(request, folder, past)
        progress = past.progress()
        keep_start(loaded, folder)
        mirror = make_mirror(request, folder)
        train_and_score(request, folder, loaded, header, past, progress, [mirror] if mirror else [])
        weights = weights_hash(loaded.model)
        keep_model(request, loaded, folder)
    except KeyboardInterrupt:
        ending = Ending("interrupted", f"stopped at step {progress.step}", code=130)
    except Exception as error:
        ending = failure(error, request, folder, plan)
    if not folder.begun:
        return ending.code
    result = result_of(request, ending, loaded.plan if loaded else plan, loaded, header, progress, weights)
    return end(request, folder, ending, result, progress, mirror)


def begin(request: Request, folder: RunFolder, past: ResumeState) -> None:
    """Make the folder this run's, cut to what lasts of the past."""
    folder.begin(b"".join(row.line for row in past.rows))
    past.forget()
    folder.text(CONFIG, request.composed.yaml)
    now = {"command": request.command, "from_step": past.step}
    folder.session({**now, **environment(device_of(request.config))})


def made_steps(folder: RunFolder) -> Path | None:
    """The folder of the run that is gone on with, if it made a step."""
    return folder.path if folder.holds_run and not made_no_step(folder.path) else None


def make_header(request: Request, plan: Plan, loaded: LoadedModel) -> Header:
    """What the journal begins with: what the run starts from, and what makes its updates again."""
    origin = provenance(request.composed.yaml, plan, weights_hash(loaded.model))
    return Header(origin, replay_spec(request.config))


def resume_state_of(request: Request, folder: RunFolder, header: Header) -> ResumeState:
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
        folder.clear()  # begun with other data or weights, and nothing came of it
        return ResumeState()


def keep_start(loaded: LoadedModel, folder: RunFolder) -> None:
    """Write what an adapter begins with, where only a file can tell."""
    if loaded.adapter is not None and (start := loaded.adapter.start()) is not None:
        folder.data(START, start)


def make_mirror(request: Request, folder: RunFolder) -> WandbMirror | None:
    """What tells wandb, where that is wanted."""
    config, log = request.config, request.config.log
    if log.name != "wandb":
        return None
    return WandbMirror(
        folder.path,
        config=OmegaConf.to_container(OmegaConf.create(request.composed.yaml)),  # type: ignore[arg-type]
        project=log.project,
        group=log.group,
        tags=[banner.title(config), config.optim.name, config.model.name, *log.tags],
        mode=log.mode.value,
        run_id=folder.run_id(),
        warn=lambda text: request.out.print(f"warning: {text}"),
    )


def train_and_score(
    request: Request,
    folder: RunFolder,
    loaded: LoadedModel,
    header: Header,
    past: ResumeState,
    progress: Progress,
    mirrors: Sequence[WandbMirror],
) -> None:
    """Score before training, train, and score after it. All that keeps or shows rows hears the same ones."""
    config, plan = request.config, loaded.plan
    evaluator = make_evaluator(plan, loaded.network, config.eval.batch_size)
    shown = ConsoleSink(request.out, config.train.steps if config.trains else None, plan.parts.task.metric)
    sinks: list[Sink] = [progress, folder, shown, *mirrors]
    if past.zero_shot is None:
        test(evaluator, plan, sinks, "before training", last=not config.learns)
    if config.trains:
        with closing(shown):
            train_model(request, folder, loaded, header, past, progress, evaluator, [shown, *mirrors])
        step = progress.best_step or progress.step
        test(evaluator, plan, sinks, f"at step {step}", step=step)
        return
    if config.fits_head:
        start = time.perf_counter()
        fit_head(loaded.network, plan.train, batch_size=config.eval.batch_size, pad=plan.parts.pad)
        progress.train_seconds = time.perf_counter() - start
        test(evaluator, plan, sinks, f"with a head fitted to {len(plan.train)} rows")
    if len(plan.dev):
        dev = evaluator(plan.dev)
        for sink in sinks:
            sink.evaluated(DevRow(0, 0.0, dev.loss, dev.score))


def test(
    evaluator: Evaluator,
    plan: Plan,
    sinks: Sequence[Sink],
    weights: str,
    *,
    step: int = 0,
    last: bool = True,
) -> None:
    """Score the test set, and tell."""
    start = time.perf_counter()
    found = evaluator(plan.test)
    seconds = time.perf_counter() - start
    row = TestRow(step, 0.0, found.loss, found.score, found.predictions, weights, last, seconds)
    for sink in sinks:
        sink.tested(row)


def train_model(
    request: Request,
    folder: RunFolder,
    loaded: LoadedModel,
    header: Header,
    past: ResumeState,
    progress: Progress,
    evaluator: Evaluator,
    shown: Sequence[Sink],
) -> None:
    """Go on from where the past ended to the last step, and back to the best one."""
    config, plan, settings = request.config, loaded.plan, request.config.train
    optimizer = make_optimizer(config, loaded.network, plan.layout, plan.blocks, evaluator)
    history = History(folder, loaded, header, past, progress, optimizer, config)
    go_back(request, history, past)
    with (
        closing(history),
        closing(make_batches(config, plan, plain=loaded.network.plain)) as batches,
    ):
        try:
            train(
                optimizer,
                batches,
                partial(evaluator, plan.dev),
                [*history.sinks(), *shown],
                progress,
                steps=settings.steps,
                eval_every=settings.eval_every,
                max_seconds=settings.max_seconds,
                max_bad_steps=min(settings.max_bad_steps, settings.steps),
                held=request.stop.held,
            )
            if progress.best is None:
                raise DivergedError(f"step {progress.step}: no dev loss since step 0 is finite")
        except DivergedError as error:
            raise DivergedError(f"{error}; weights in {plan.dtype_name}: {way_out(config, plan)}") from error
        except KeyboardInterrupt:
            if not request.stop.torn:
                history.interrupted(progress.step)
            raise
    if progress.best_step is not None and progress.best_step != progress.step:
        with replaying(request.out, f"weights of step {progress.best_step}") as told:
            history.bring_to(progress.best_step, told)


def go_back(request: Request, history: History, past: ResumeState) -> None:
    """Bring the weights to where the earlier sessions left them."""
    if past.step or past.rows:
        steps = request.config.train.steps
        request.out.print(f"going on with this run after step {past.step} of {steps}")
    if past.step:
        with replaying(request.out, f"weights of step {past.step}") as told:
            history.go_back(past.step, told)


def keep_model(request: Request, loaded: LoadedModel, folder: RunFolder) -> None:
    """Write the model where it is wanted; no other stays in its place."""
    if request.config.save_model:
        loaded.save(folder.model)
    else:
        folder.drop_model()  # that of an earlier end, which somebody replayed meanwhile


def end(
    request: Request,
    folder: RunFolder,
    ending: Ending,
    result: Result,
    progress: Progress,
    mirror: WandbMirror | None,
) -> int:
    """Write the result, finish the mirror, print the summary. Returns the exit code."""
    try:
        folder.json(RESULT, result)
    except FolderError as unwritten:
        return failed(unwritten)
    if mirror is not None:
        mirror.close(result)
    files = f"see {folder.path}"
    tell(request.out, files if ending.status == "failed" else banner.summary(result, folder.path))
    lasts = ending.status == "interrupted" or progress.step > 0  # what failed before would fail again
    if ending.status != "finished" and lasts and progress.bad < request.config.train.max_bad_steps:
        request.out.print(f"go on with  {banner.going_on(request.command, folder.path)}")
    return ending.code
