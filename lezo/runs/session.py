"""One run, from a checked configuration to its folder's result. Read from top to bottom."""

from __future__ import annotations

import time
from contextlib import closing
from functools import partial

from lezo.config.compose import Composed
from lezo.config.identity import settings
from lezo.ranks.ranks import ALONE, RankError, Ranks
from lezo.records.files import FolderError, finite
from lezo.records.folder import RESULT, RunFolder
from lezo.records.rows import TestRow
from lezo.runs import banner
from lezo.runs.begin import (
    Request,
    Session,
    begin,
    claim,
    clear_failed_start,
    open_folder,
    show_plan,
    with_sizes_of_folder,
)
from lezo.runs.card import Card
from lezo.runs.console import console, print_table
from lezo.runs.finished import plan_of_finished, show_finished
from lezo.runs.loop import DivergedError, Progress, dev_row, train
from lezo.runs.model_settings import settings_text
from lezo.runs.outcome import Ending, failed, failure, result_of
from lezo.runs.plan import Plan
from lezo.runs.predictions import in_words
from lezo.runs.restore import History
from lezo.runs.resume import ResumeState
from lezo.runs.zero_shot import zero_shot


def run(composed: Composed, command: str, ranks: Ranks = ALONE) -> int:
    """Run, go on with a run or, with dry_run, plan. Returns the exit code: 0, 1 failed, 130 interrupted.

    Of several ``ranks`` this is rank 0; the others `follow`.
    """
    request = Request(composed, command, console(), ranks)
    request.stop.listen()
    try:
        if composed.config.dry_run:
            show_plan(with_sizes_of_folder(request))
            return 0
        with closing(open_folder(request)) as folder:
            clear_failed_start(request, folder)
            return run_in(with_sizes_of_folder(request), folder)
    except Exception as error:
        return failed(error)
    except KeyboardInterrupt:
        return 130


def run_in(request: Request, folder: RunFolder) -> int:
    """Do what there is to do in the folder. Returns the exit code."""
    plan = plan_of_finished(request, folder)
    return execute(request, folder) if plan is None else show_finished(request, folder, plan)


def execute(request: Request, folder: RunFolder) -> int:
    """Plan, load, train and score; once the folder is this run's, its result is written whatever happens."""
    plan: Plan | None = None
    session: Session | None = None
    ending = Ending("finished")
    try:
        if not folder.holds_run:
            claim(request, folder, ResumeState())
        plan = show_plan(request)
        session = begin(request, folder, plan)
        train_and_score(session)
        keep_model(session)
    except KeyboardInterrupt:
        ending = interruption(request, folder, session)
    except Exception as error:
        ending = failure(error, request, folder, session.plan if session else plan)
    return end(request, folder, ending, plan, session) if folder.begun else ending.code


def interruption(request: Request, folder: RunFolder, session: Session | None) -> Ending:
    """Stopped by a signal; that of a launcher may mean that another rank was lost."""
    lost = request.ranks.lost() if request.stop.terminated else None
    if lost is not None:
        return failure(RankError(lost), request, folder, session.plan if session else None)
    return Ending("interrupted", f"stopped at step {session.progress.step if session else 0}", code=130)


def train_and_score(session: Session) -> None:
    """Score zero-shot, train, and score after it."""
    config, plan, progress = session.config, session.plan, session.progress
    if session.resumed.zero_shot is None:
        tell(session, zero_shot(session))
    if config.trains:
        with closing(session.shown):
            train_model(session)
        step = progress.best_step or progress.step
        test(session, f"at step {step}", step=step)
    elif config.fits_head:
        start = time.perf_counter()
        session.together.fit_head()
        progress.train_seconds = time.perf_counter() - start
        test(session, f"with a head fitted to {len(plan.train)} rows")
    if not config.trains and len(plan.dev):
        evaluated = dev_row(0, time.perf_counter(), partial(session.together.evaluate, "dev"))
        for sink in session.sinks:
            sink.evaluated(evaluated)
    progress.weights = session.together.hash()


def test(session: Session, weights: str, *, step: int = 0) -> None:
    """Score the test set by the run's last weights, which ``weights`` says in words."""
    start = time.perf_counter()
    scored = session.together.evaluate("last test")
    seconds = time.perf_counter() - start
    tell(session, TestRow(step, 0.0, scored.loss, scored.score, scored.predictions, weights, True, seconds))


def tell(session: Session, row: TestRow) -> None:
    """Let all that keep or show rows have this one; predictions of the run's last weights in words."""
    if row.last:
        row = row.predicting(in_words(row.predictions, session.plan.parts.splits.test))
    for sink in session.sinks:
        sink.tested(row)


def train_model(session: Session) -> None:
    """Go on from where the earlier sessions ended to the last step, and back to the best one."""
    progress, together = session.progress, session.together
    limits, stop = session.config.train, session.request.stop
    with together.training(), closing(History(session)) as history:
        history.go_back()
        try:
            train(
                together,
                together.batches,
                partial(together.evaluate, "dev"),
                [*history.sinks(), *session.displays],
                progress,
                steps=limits.steps,
                eval_every=limits.eval_every,
                max_seconds=limits.max_seconds,
                max_bad_steps=min(limits.max_bad_steps, limits.steps),
                held=stop.held,
            )
        except KeyboardInterrupt:
            if not stop.broken_off:
                history.keep(progress.step)
            raise
    if progress.best_step is None:
        raise DivergedError(f"step {progress.step}: no dev loss since step 0 is finite")
    if progress.best_step != progress.step:
        history.bring_to(progress.best_step)


def keep_model(session: Session) -> None:
    """Write the model where it is wanted; no other stays in its place."""
    if session.config.save_model:
        card = card_of(session)
        told = settings_text(session.request.composed.yaml, card.header, card.step, card.weights)
        session.loaded.base.save(session.folder.model, card.text(), told)
    else:
        session.folder.drop_model()  # that of an earlier end, which somebody replayed meanwhile


def card_of(session: Session) -> Card:
    """What the model of a session that has ended says of itself."""
    request, progress = session.request, session.progress
    return Card(
        session.header,
        progress.best_step or progress.step,
        progress.weights,
        session.plan.parts.encoder.before,
        session.loaded.base.config.model_type,
        finite(result_of(request, Ending("finished"), session.plan, session)),
        settings(request.composed.yaml),
    )


def end(
    request: Request, folder: RunFolder, ending: Ending, plan: Plan | None, session: Session | None
) -> int:
    """Write the result, finish the mirror, print the summary. Returns the exit code."""
    result = result_of(request, ending, plan, session)
    try:
        folder.json(RESULT, result)
    except FolderError as unwritten:
        return failed(unwritten)
    if session is not None and session.events is not None:
        session.events.close()
    if session is not None and session.mirror is not None:
        sent = request.config.log.artifact and ending.status == "finished"
        session.mirror.close(result, folder.model if sent else None)
    files = f"see {folder.path}"
    print_table(
        request.out,
        files if ending.status == "failed" else banner.summary(result, folder.path, request.config),
    )
    progress = session.progress if session else Progress()
    lasts = ending.status == "interrupted" or progress.step > 0  # what failed before would fail again
    if ending.status != "finished" and lasts and progress.bad < request.config.train.max_bad_steps:
        request.out.print(f"to resume  {banner.going_on(request.command, folder.path)}")
    return ending.code
