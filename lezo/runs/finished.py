"""What is left to do in a folder that holds a run already? Perhaps nothing but to tell its end, or to write its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lezo.config.compose import with_sizes
from lezo.config.schema import Resume
from lezo.model.hashes import weights_hash
from lezo.model.linear_probe import fit_head
from lezo.records.files import FolderError
from lezo.records.folder import CONFIG, RunFolder
from lezo.records.schema import Header, Result
from lezo.records.strict import read_result, wrong_result
from lezo.runs import banner
from lezo.runs.build import load_model, provenance, replay_spec
from lezo.runs.console import replaying, tell
from lezo.runs.plan import Plan, make_plan
from lezo.runs.request import Request
from lezo.runs.restore import bring_back
from lezo.runs.resume import (
    begun_with,
    grows,
    is_same,
    made_no_step,
    moved,
    refuse_changes,
    refuse_other_provenance,
)


def planned(request: Request) -> Plan:
    """Read everything but the weights and say what the run will do. Raises what reading raises."""
    plan = make_plan(request.config)
    tell(request.out, banner.banner(request.config, plan, request.folder))
    return plan


def go_on(request: Request) -> Request:
    """The request with the sizes that the folder's run has, where it goes on with one."""
    holds_run = (request.folder / CONFIG).exists() and not made_no_step(request.folder)
    if request.config.resume is not Resume.auto or not holds_run:
        return request
    return request.of(with_sizes(request.composed, begun_with(request.folder, request.composed.yaml)))


def made_way(request: Request, folder: RunFolder) -> Request:
    """Clear the folder of a run that made no step, unless this one goes on with it, then with the sizes that it has."""
    if not folder.holds_run:
        return request
    if not made_no_step(folder.path):
        return go_on(request)
    if request.config.resume is not Resume.auto or not is_same(folder.path, request.composed.yaml):
        folder.clear()
    return request


def finished_before(request: Request, folder: RunFolder) -> Plan | None:
    """The plan of the folder's run where nothing of it is left to do. Raises FolderError where it is another run."""
    if not folder.holds_run:
        return None
    yaml, config = request.composed.yaml, request.config
    refuse_changes(folder.path, yaml)
    result = read_result(folder.path)
    if result is None or result["status"] != "finished" or (config.trains and grows(folder.path, yaml)):
        return None
    plan = planned(request)
    refuse_other_content(request, plan, folder.path, result.get("origin"))
    return plan


def refuse_other_content(request: Request, plan: Plan, path: Path, then: dict[str, Any] | None) -> None:
    """Raise FolderError where data, tokenizer or a base model elsewhere are not what the finished run started from."""
    weights = str((then or {}).get("weights"))
    if moved(path, request.composed.yaml):
        weights = weights_hash(load_model(request.config, plan, request.out.print, path).model)
    refuse_other_provenance(path, then, provenance(request.composed.yaml, plan, weights))


def tell_again(request: Request, folder: RunFolder, plan: Plan) -> int:
    """Say what a finished run came to, and write its model where that is wanted and not there. Returns the exit code."""
    result = read_result(folder.path)
    assert result is not None, "finished before"
    told = summary_of(result, folder.path)
    wanted = request.config.save_model and not folder.model.exists()
    if wanted:
        save_again(request, plan, folder, result)
    tell(request.out, told)
    done = f"its model was written to {folder.model}" if wanted else "nothing was left to do"
    request.out.print(f"this run was finished before; {done}")
    return 0


def summary_of(result: Result, folder: Path) -> str:
    """Of an earlier end. Raises FolderError where the result lacks what every run writes."""
    try:
        return banner.summary(result, folder)
    except (KeyError, TypeError) as error:  # nothing, or null, where there is a value in a run's
        raise wrong_result(folder, f"{type(error).__name__}: {error}") from None


def save_again(request: Request, plan: Plan, folder: RunFolder, result: Result) -> None:
    """Write the model of a finished run, made again without a step. Raises FolderError where it is another."""
    config, path = request.config, folder.path
    loaded = load_model(config, plan, request.out.print, path)
    origin = provenance(request.composed.yaml, plan, weights_hash(loaded.model))
    refuse_other_provenance(path, result.get("origin"), origin)
    if config.trains:
        step = int(result["best_step"] or result["steps"])
        with replaying(request.out, f"weights of step {step}") as told:
            bring_back(loaded, Header(origin, replay_spec(config)), path, step, config, told)
    if config.fits_head:
        fit_head(loaded.network, plan.train, batch_size=config.eval.batch_size, pad=plan.parts.pad)
    if (found := weights_hash(loaded.model)) != result.get("weights"):
        reason = f"its weights come to sha256 {found[:12]} here, and were {str(result.get('weights'))[:12]}"
        raise FolderError(
            f"{path}: cannot write the model of this run: {reason}; the device or torch is another"
        )
    loaded.save(folder.model)
