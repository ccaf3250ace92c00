"""What the run says of itself before it starts and when it ends."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lezo import __version__
from lezo.config.compose import quoted
from lezo.config.methods import FirstOrderConfig, ZerothOrderConfig, method_name
from lezo.config.schema import Calibration, RunConfig
from lezo.model.adapter import Adapter
from lezo.records.format import clock, count, score, size, table
from lezo.runs.plan import Plan


def banner(config: RunConfig, plan: Plan, folder: Path) -> str:
    """Task, model, optimizer, sizes, lengths, forwards, memory and folder, one a line."""
    rows = {"task": _task(config, plan), "rows": _rows(config, plan)}
    rows |= {"model": _model(config, plan), "lengths": _lengths(plan)}
    if plan.adapter is not None:
        rows["trained"] = _trained(plan, plan.adapter)
    if config.task.demos:
        own = ", other ones for each test example" if plan.parts.splits.own_demos else ""
        rows["demos"] = f"{config.task.demos} solved examples in every prompt{own}"
    if config.eval.calibration is not Calibration.none:
        rows["calibration"] = f"{config.eval.calibration.name}: less the score after a prompt without content"
    if config.fits_head:
        fitted = f"logistic regression of the head's rows of the answers on {len(plan.train)} rows"
        rows["training"] = f"{fitted}; no steps, and train.* has no effect"
    if not config.trains and not config.fits_head:
        rows["training"] = f"none: optim={config.optim.name} takes no step, and train.* has no effect"
    if config.trains:
        rows |= {"optimizer": _optimizer(config, plan), "training": _training(config, plan)}
    rows |= {"forwards": _forwards(config, plan), "memory": _memory(plan)}
    rows["folder"] = "none: dry_run=true runs nothing" if config.dry_run else str(folder)
    return table(rows, f"lezo {__version__}")


def summary(result: Mapping[str, Any], folder: Path) -> str:
    """Scores, time and memory of a result, where its files are, and how to repeat it."""
    seconds, metric = result["seconds"], result["metric"] or "score"
    rows = {
        "status": result["status"] if result["error"] is None else f"{result['status']}: {result['error']}"
    }
    if result["zero_shot"] is not None:
        rows[f"test {metric}"] = f"{score(result['test'])}  (before training {score(result['zero_shot'])})"
    if result["dev"] is not None:
        at = "" if result["best_step"] is None else f"  (best of the dev losses: step {result['best_step']})"
        rows[f"dev {metric}"] = score(result["dev"]) + at
    rows["time"] = _time(seconds)
    rows["peak memory"] = _peak(result)
    if result["skipped_steps"]:
        rows["skipped"] = f"{result['skipped_steps']} steps had a non-finite loss and changed nothing"
    rows |= {"files": str(folder), "repeat": result["command"]}
    method = method_name(result["optim"], result.get("peft", "none"))
    return table(rows, f"{result['title']}, {result['model']}, {method}")


def going_on(command: str, folder: Path) -> str:
    """The command that takes up a run where it stopped."""
    return f"{command} {shlex.join(['resume=auto', f'hydra.run.dir={quoted(str(folder))}'])}"


def title(config: RunConfig) -> str:
    """The task, and beside it the data where they are not the published ones."""
    return config.task.name if config.data.name == "hub" else f"{config.task.name} ({config.data.name})"


def model_name(config: RunConfig) -> str:
    """The model's name; for `model=hf` its folder or hub id."""
    return config.model.path or "hf" if config.model.name == "hf" else config.model.name


def skipped(plan: Plan) -> str:
    """What LeZO leaves out, in the words that cannot be misread."""
    total = len(plan.layout.blocks)
    return f"{total - plan.blocks.keep} of {total} blocks skipped each step"


def _task(config: RunConfig, plan: Plan) -> str:
    sizes = f"{len(plan.train)} train, {len(plan.dev)} dev, {len(plan.test)} test"
    warning = (
        "; synthetic rows, not to be compared with published numbers" if config.data.name == "sample" else ""
    )
    return f"{title(config)}: {sizes}; {plan.parts.task.metric}{warning}"


def _rows(config: RunConfig, plan: Plan) -> str:
    """Which files, or published sets, the splits are drawn from, and where a size left open is not the published one."""
    own, task, dev = config.data.name == "local", plan.parts.task, len(plan.dev)
    train_from, test_from = ("train.jsonl", "val.jsonl") if own else ("the train set", "the validation set")
    few = own and config.task.num_dev is None and 0 < dev < task.num_dev
    short = (
        f"; few rows: {dev} of them are dev, not {task.num_dev} (task.num_dev=N asks for N)" if few else ""
    )
    return f"train and dev from {train_from}, test from {test_from}{short}"


def _model(config: RunConfig, plan: Plan) -> str:
    weights = ", random weights" if config.model.random_weights else ""
    if plan.parts.dequantised:
        weights = f", weights dequantised from {plan.parts.dequantised}"
    parts = f"{count(plan.parameters)} parameters, {len(plan.layout.blocks)} decoder blocks"
    return f"{model_name(config)}: {parts}, {plan.dtype_name} on {plan.device}{weights}; {_around(plan)}"


def _around(plan: Plan) -> str:
    """What stands before and after every text: BOS alone by its id, anything else in its own words."""
    encoder, decode = plan.parts.encoder, plan.parts.tokenizer.decode
    first = encoder.before[0] if encoder.before else None
    before = f"BOS {first}" if len(encoder.before) < 2 else f"{decode(encoder.before)} before each text"
    return before + (f", {decode(encoder.after)} after it" if encoder.after else "")


def _trained(plan: Plan, adapter: Adapter) -> str:
    words = {
        "lora": f"LoRA of rank {adapter.rank}, alpha {adapter.alpha} on {', '.join(adapter.targets)}",
        "prefix": f"a prefix of {adapter.tokens} keys and values in each block",
        "head": "the head alone, untied from the embeddings",
    }
    return f"{words[adapter.name]}: {count(plan.trained)} parameters"


def _lengths(plan: Plan) -> str:
    median, longest = plan.lengths
    cut = (
        f"; {plan.truncated} longer than {plan.parts.encoder.max_length} cut from the left"
        if plan.truncated
        else ""
    )
    return f"median {median} tokens, longest {longest}{cut}"


def _optimizer(config: RunConfig, plan: Plan) -> str:
    optim = config.optim
    if isinstance(optim, ZerothOrderConfig):
        metric = f"; minimises 1 - {plan.parts.task.metric}" if config.minimises_metric else ""
        return f"{optim.name}: lr {optim.lr:g}, eps {optim.eps:g}; {skipped(plan)}{metric}{_others_parts(config)}"
    assert isinstance(optim, FirstOrderConfig)
    clip = "" if optim.clip_norm is None else f", gradient norm at most {optim.clip_norm:g}"
    return f"{optim.name}: lr {optim.lr:g} {optim.schedule.value}{clip}; every block, through gradients"


def _others_parts(config: RunConfig) -> str:
    """The parts of a method that are none of lezo's own, by their names in the journal."""
    parts = config.composition
    if parts is None or config.method.family == "lezo":
        return ""
    return f"; blocks {parts.blocks}, direction {parts.direction}, losses {parts.estimator}, step size {parts.step_size}"


def _training(config: RunConfig, plan: Plan) -> str:
    settings = config.train
    size = min(settings.batch_size, len(plan.train))
    short = f" (all there are; train.batch_size={settings.batch_size})" if size < settings.batch_size else ""
    part = settings.micro_batch_size or size
    micro = f" in forwards of {part}" if part < size else ""
    limit = f", at most {settings.max_seconds:g} s" if settings.max_seconds else ""
    return f"{settings.steps} steps of {size} examples{short}{micro}; dev every {settings.eval_every}; seed {config.seed}{limit}"


def _forwards(config: RunConfig, plan: Plan) -> str:
    backward = " with backward" if config.first_order else ""
    counts = {**plan.forwards}
    training = f"{counts.pop('training')} training{backward}"
    return ", ".join([training, *(f"{count} {name}" for name, count in counts.items())])


def _memory(plan: Plan) -> str:
    memory = plan.memory
    parts = f"weights {size(memory.weights)}, update {size(memory.update)}, activations {size(memory.activations)}"
    beside = "" if plan.device.type == "cuda" else ", beside Python and libraries"
    return f"about {size(memory.total)} expected ({parts}){beside}"


def _peak(result: Mapping[str, Any]) -> str:
    """The peaks of device and process, and of the one that the banner speaks of what the run itself took."""
    peaks, own = result["peak_memory_bytes"], result.get("memory_bytes") or {}
    whole = ", ".join(f"{where} {size(used)}" for where, used in peaks.items() if used)
    if own.get("used") is None:
        return whole
    expected = f"about {size(own['expected'])} expected"
    if own["used"] == peaks["device"]:
        return f"{whole}; {expected} on the device"
    return f"{whole}, of which {size(own['used'])} since the model was loaded, with the libraries' code in use; {expected}"


def _time(seconds: Mapping[str, float | None]) -> str:
    total, train, evaluation, step = (seconds[key] for key in ("total", "train", "eval", "step_median"))
    parts = f"{clock(total or 0)} in all; training {clock(train or 0)}, evaluation {clock(evaluation or 0)}"
    return parts if step is None else f"{parts}; median step {1000 * step:.1f} ms"
