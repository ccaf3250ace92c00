"""How a run ends: finished, failed or interrupted; its result, and the message of what went wrong."""

from __future__ import annotations

import statistics
import sys
import time
import traceback
from dataclasses import asdict, dataclass

import torch

from lezo.config.schema import RunConfig
from lezo.data.encode import EncodeError
from lezo.data.source import DataError
from lezo.model.load import ModelError
from lezo.ranks.ranks import RankError
from lezo.records.environment import peak_memory
from lezo.records.files import FolderError
from lezo.records.folder import TRACEBACK, RunFolder
from lezo.records.schema import Result, Seconds
from lezo.runs import banner
from lezo.runs.begin import Request, Session
from lezo.runs.loop import AlikeError, DivergedError, Progress
from lezo.runs.plan import Plan
from lezo.tasks.metrics import MetricError
from lezo.zo.parts import PartError

# Expected errors: a message, no traceback.
EXPECTED = (DataError, ModelError, EncodeError, PartError, MetricError, DivergedError, FolderError, RankError)


@dataclass(frozen=True)
class Ending:
    """``status``: finished, failed or interrupted; ``code``: the process's exit code; ``diverged``: whether by its losses it failed."""

    status: str
    error: str | None = None
    code: int = 0
    diverged: bool = False


def result_of(request: Request, ending: Ending, plan: Plan | None, session: Session | None) -> Result:
    """The run's result, as far as it came. Scores are fractions 0..1 or perplexities, seconds are wall-clock."""
    config, optim = request.config, request.config.optim
    plan = session.plan if session else plan
    progress = session.progress if session else Progress()
    dev = progress.best if config.trains else progress.dev
    return {
        "status": ending.status,
        "error": ending.error,
        "diverged": ending.diverged,
        "task": config.task.name,
        "title": banner.title(config),
        "name": request.composed.name,
        "notes": config.log.notes,
        "data": config.data.name,
        "synthetic": config.data.name == "sample",
        "metric": plan.parts.task.metric if plan else None,
        "model": banner.model_name(config),
        "dequantised": plan.parts.dequantised if plan else None,
        "optim": optim.name,
        "peft": config.peft.name,
        "lr": getattr(optim, "lr", None),
        "eps": getattr(optim, "eps", None),
        "sparsity": getattr(optim, "sparsity", config.method.sparsity),
        "weight_decay": getattr(optim, "weight_decay", None),
        "blocks": banner.skipped(plan) if plan and config.method.zeroth_order else None,
        "steps": progress.step,
        "objective": "metric" if config.minimises_metric else "loss",
        "seed": config.seed,
        "data_seed": config.task.data_seed,
        "test": progress.test.score if progress.test else None,
        "dev": dev.score if dev else None,
        "dev_loss": dev.loss if dev else None,
        "zero_shot": progress.zero_shot.score if progress.zero_shot else None,
        "zero_shot_from": progress.zero_shot.zero_shot_from if progress.zero_shot else None,
        "best_step": progress.best_step,
        "weights": progress.weights,
        "origin": asdict(session.header.origin) if session else None,
        "seconds": _seconds(progress, request.started),
        "peak_memory_bytes": peak_memory(),
        "memory_bytes": _memory(plan, session),
        "skipped_steps": progress.skipped,
        "rows": session.loaded.network.rows if session else None,
        "truncated": plan.truncated if plan else None,
        "prompts_at_once": plan.prompts_at_once if plan and plan.parts.task.generates else None,
        "examples": {name: len(getattr(plan, name)) for name in ("train", "dev", "test")} if plan else None,
        "command": request.command,
    }


def _memory(plan: Plan | None, session: Session | None) -> dict[str, int | None]:
    """What the banner expected of the device, and the most that the run took beside what was held before."""
    if plan is None or session is None:
        return {"expected": plan.memory.total if plan else None, "used": None}
    peak = peak_memory()
    used = peak["device"] if plan.device.type == "cuda" else max(peak["host"] - session.loaded.held, 0)
    return {"expected": plan.memory.total, "used": used}


def _seconds(progress: Progress, started: float) -> Seconds:
    median = statistics.median(progress.step_seconds) if progress.step_seconds else None
    total = progress.elapsed + time.perf_counter() - started
    spent: Seconds = {"total": total, "train": progress.train_seconds, "eval": progress.eval_seconds}
    phases = {phase: progress.phases.get(phase) for phase in ("forward", "perturb", "update", "data")}
    return {**spent, "step_median": median, **phases}  # type: ignore[typeddict-item]


def failure(error: Exception, request: Request, folder: RunFolder, plan: Plan | None) -> Ending:
    """Print what went wrong; a traceback goes into the folder where it may be a bug."""
    message = message_of(error, request, plan, can_go_on=folder.begun)
    if message is None and folder.begun:
        folder.text(TRACEBACK, traceback.format_exc())
    _complain(message)
    return Ending("failed", message or repr(error), code=1, diverged=isinstance(error, DivergedError))


def failed(error: Exception) -> int:
    """Print what went wrong. Returns the exit code."""
    _complain(message_of(error))
    return 1


def _complain(message: str | None) -> None:
    print(f"error: {message}" if message else traceback.format_exc(), file=sys.stderr)


def out_of_memory(error: Exception) -> bool:
    """Whether device or host had no more; torch says it of the host in a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def message_of(
    error: Exception, request: Request | None = None, plan: Plan | None = None, *, can_go_on: bool = False
) -> str | None:
    """The message of an error that is nobody's bug; None for one that may be."""
    if out_of_memory(error):
        return _memory_message(error, request, plan, can_go_on)
    if isinstance(error, DivergedError) and request is not None and plan is not None:
        if isinstance(error, AlikeError):
            return f"{error}; weights in {plan.dtype_name}: try a larger optim.eps"
        eps = " or optim.eps" if request.config.method.zeroth_order else ""
        wider = ", or model.dtype=bfloat16 or float32" if plan.dtype is torch.float16 else ""
        return f"{error}; weights in {plan.dtype_name}: try a smaller optim.lr{eps}{wider}"
    return str(error) if isinstance(error, EXPECTED) else None


def _memory_message(error: Exception, request: Request | None, plan: Plan | None, can_go_on: bool) -> str:
    """What was asked for, what there was, what to lower; torch's later sentences are about its allocator."""
    sentences = str(error).strip().split("\n")[0].split(". ")
    asked = ". ".join(sentences[:3]).rstrip(".") or type(error).__name__
    sizes, lower = "", "lower train.micro_batch_size or eval.batch_size"
    if request is not None and plan is not None:
        sizes, lower = _sizes(request.config, plan)
    more = "or choose a narrower model.dtype or a smaller model (dry_run=true shows what is expected)"
    again = ""
    if request is not None and can_go_on:
        command = f"the same command with the smaller size and {banner.resume_words(request.folder)}"
        again = f"; nothing is lost: {command} goes on where this one stopped"
    return f"out of memory ({asked}){sizes}; {lower}, {more}{again}"


def _sizes(config: RunConfig, plan: Plan) -> tuple[str, str]:
    """How large the run's forwards are, and which settings lower them."""
    batch, rows = min(config.train.batch_size, len(plan.train)), config.eval.batch_size
    part = min(config.train.micro_batch_size or batch, batch)
    steps = f"steps of {batch} examples in forwards of {part}, " if config.trains else ""
    median, longest = plan.lengths
    lengths = f"{median} tokens at the median and {longest} at most"
    settings = [("train.micro_batch_size", part), ("eval.batch_size", rows)]
    lower = [f"{key} (now {size})" for key, size in settings if size > 1]
    sizes = f" with {steps}evaluations of {rows} sequences a forward, {lengths}"
    return sizes, f"lower {' or '.join(lower)}" if lower else "take shorter rows"
