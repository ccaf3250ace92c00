"""A folder whose run has finished: print its summary again, and write its model where it is missing."""

from __future__ import annotations

from pathlib import Path

from lezo.config.identity import settings
from lezo.config.schema import RunConfig
from lezo.model.hashes import weights_hash
from lezo.model.linear_probe import fit_head
from lezo.records.files import FolderError
from lezo.records.folder import PREFIX_START, RunFolder
from lezo.records.schema import Result
from lezo.records.strict import read_result, wrong_result
from lezo.runs import banner
from lezo.runs.begin import Request, make_mirror, show_plan
from lezo.runs.build import load_model, make_header, provenance
from lezo.runs.card import Card
from lezo.runs.console import print_table
from lezo.runs.model_settings import settings_text
from lezo.runs.plan import Plan
from lezo.runs.restore import bring_back
from lezo.runs.resume import asks_for_more, model_moved, refuse_changes, refuse_other_provenance


def plan_of_finished(request: Request, folder: RunFolder) -> Plan | None:
    """The plan of the folder's run where it has finished. Raises FolderError where it is another run."""
    path, yaml, config = folder.path, request.composed.yaml, request.config
    if not folder.holds_run:
        return None
    refuse_changes(path, yaml)
    result = read_result(path)
    if result is None or result["status"] != "finished" or (config.trains and asks_for_more(path, yaml)):
        return None
    plan, origin = show_plan(request), result.get("origin")
    weights = str((origin or {}).get("weights"))
    if model_moved(path, yaml):
        weights = load_model(config, plan, request.out.print, path / PREFIX_START, path).base.first_hash()
    refuse_other_provenance(path, origin, provenance(yaml, plan, weights))
    return plan


def show_finished(request: Request, folder: RunFolder, plan: Plan) -> int:
    """Print the summary, and write the model where it is wanted and missing. Returns the exit code."""
    result = read_result(folder.path)
    assert result is not None, "plan_of_finished read it"
    summary = summary_of(result, folder.path, request.config)
    wanted = request.config.save_model and not folder.model.exists()
    if wanted:
        save_again(request, plan, folder, result)
    if request.config.log.artifact:
        send_model(request, plan, folder, result)
    print_table(request.out, summary)
    done = f"its model is now in {folder.model}" if wanted else "nothing is left to do"
    request.out.print(f"this run has finished already; {done}")
    return 0


def send_model(request: Request, plan: Plan, folder: RunFolder, result: Result) -> None:
    """Give wandb's run of this folder its model."""
    mirror = make_mirror(request, folder, plan.parts.task.metric)
    assert mirror is not None, "log.artifact asks for wandb"
    mirror.close(result, folder.model)


def summary_of(result: Result, folder: Path, config: RunConfig) -> str:
    """The summary of an earlier end. Raises FolderError where the result lacks what every run writes."""
    try:
        return banner.summary(result, folder, config)
    except (KeyError, TypeError) as error:  # nothing, or null, where there is a value in a run's
        raise wrong_result(folder, f"{type(error).__name__}: {error}") from None


def save_again(request: Request, plan: Plan, folder: RunFolder, result: Result) -> None:
    """Write the model of a finished run, made again without a step. Raises FolderError for another one."""
    config, path = request.config, folder.path
    loaded = load_model(config, plan, request.out.print, path / PREFIX_START, path)
    header = make_header(request.composed.yaml, config, loaded)
    refuse_other_provenance(path, result.get("origin"), header.origin)
    step = int(result.get("best_step") or result.get("steps") or 0)
    if config.trains:
        bring_back(loaded, header, path, step, request.out, journaled=not config.first_order)
    if config.fits_head:
        fit_head(loaded.network, plan.train, batch_size=config.eval.batch_size, pad=plan.parts.pad)
    if (weights := weights_hash(loaded.model)) != result.get("weights"):
        reason = f"its weights come to sha256 {weights[:12]} here, and were {str(result.get('weights'))[:12]}"
        raise FolderError(
            f"{path}: cannot write the model of this run: {reason}; the device or torch is another"
        )
    before, kind = plan.parts.encoder.before, loaded.base.config.model_type
    card = Card(header, step, weights, before, kind, result, settings(request.composed.yaml))
    loaded.base.save(folder.model, card.text(), settings_text(request.composed.yaml, header, step, weights))
