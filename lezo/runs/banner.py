"""The table that a run prints before it starts, and the one when it ends."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lezo import __version__
from lezo.config.compose import quoted
from lezo.config.methods import FirstOrderConfig, Part, Schedule, ZerothOrderConfig, method_name
from lezo.config.schema import Calibration, Home, RunConfig
from lezo.config.task import ChatConfig, Turns
from lezo.model.adapter import Adapter
from lezo.records.format import clock, count, duration, first_score, score, size, table
from lezo.runs.plan import Plan


def banner(config: RunConfig, plan: Plan, folder: Path, ranks: int = 1) -> str:
    """Task, model, optimizer, sizes, lengths, forwards, memory and folder, one a line; of a run of several ``ranks``."""
    median, longest = plan.lengths
    rows = {
        "task": _task(config, plan),
        "rows": plan.parts.rows,
        "model": _model(config, plan),
        "lengths": f"median {median} tokens, longest {longest}{_cut(plan)}",
    }
    if isinstance(config.task, ChatConfig):
        rows["chat"] = _chat(config.task, plan)
    if plan.adapter is not None:
        rows["trained"] = f"{_adapter(plan.adapter)}: {count(plan.trained)} parameters"
    if config.task.demos:
        own = ", other ones for each test example" if plan.parts.splits.own_demos else ""
        rows["demos"] = f"{config.task.demos} solved examples in every prompt{own}"
    if config.eval.calibration is not Calibration.none:
        rows["calibration"] = f"{config.eval.calibration.name}: less the score after a prompt without content"
    if config.trains:
        rows["optimizer"] = _optimizer(config, plan)
    rows["training"] = _training(config, plan)
    rows["forwards"] = _forwards(config, plan)
    if ranks > 1:
        rows["ranks"] = _ranks(config, plan, ranks)
    rows["memory"] = _memory(config, plan) + (" on each rank" if ranks > 1 else "")
    if config.model.home is not Home.device:
        rows["blocks"] = _blocks(config, plan)
    rows["folder"] = "none: dry_run=true runs nothing" if config.dry_run else str(folder)
    return table(rows, f"lezo {__version__}")


def summary(result: Mapping[str, Any], folder: Path, config: RunConfig) -> str:
    """Scores, time and memory of a result, where its files are, and how to repeat it."""
    metric, status, error = result["metric"] or "score", result["status"], result["error"]
    rows = {"status": status if error is None else f"{status}: {error}"}
    if result["zero_shot"] is not None:
        before = f" {score(result['zero_shot'])}" if config.needs_examples else ""
        rows[f"test {metric}"] = f"{score(result['test'])}  ({first_score(config.task.demos)}{before})"
    if result["dev"] is not None:
        at = "" if result["best_step"] is None else f"  (at the lowest dev loss: step {result['best_step']})"
        rows[f"dev {metric}"] = score(result["dev"]) + at
    rows |= {"time": _time(result["seconds"]), "peak memory": _peak(result)}
    if result["skipped_steps"]:
        rows["skipped"] = f"{result['skipped_steps']} steps changed nothing: {_why_skipped(config)}"
    rows |= {"files": str(folder), "repeat": result["command"]}
    method = method_name(result["optim"], result.get("peft", "none"))
    name = f"{result['name']}: " if result.get("name") else ""
    return table(rows, f"{name}{result['title']}, {result['model']}, {method}")


def _why_skipped(config: RunConfig) -> str:
    parts = config.composition
    alike = parts is not None and parts.step_size.name == "deviation"
    return "a loss was not finite" + (", or all losses of the step were alike" if alike else "")


def going_on(command: str, folder: Path) -> str:
    """The command that takes up a run where it stopped."""
    return f"{command} {resume_words(folder)}"


def resume_words(folder: Path) -> str:
    """The words that a command takes to go on in a run's folder."""
    return shlex.join(["resume=auto", f"hydra.run.dir={quoted(str(folder))}"])


def title(config: RunConfig) -> str:
    """The task, and beside it the data where they are not the published ones."""
    data = config.data
    if data.name == "hub":
        return config.task.name if data.path is None else f"{config.task.name} ({data.path})"
    return f"{config.task.name} ({data.name})"


def model_name(config: RunConfig) -> str:
    """The model's name; for `model=hf` its folder or hub id."""
    return config.model.path or "hf" if config.model.name == "hf" else config.model.name


def skipped(plan: Plan) -> str:
    """What LeZO leaves out, in the words that cannot be misread; what another chooser of blocks says of itself."""
    total = len(plan.layout.blocks)
    if type(plan.blocks).__str__ not in (object.__str__, type(plan.blocks).__repr__):
        return str(plan.blocks)
    return f"{total - plan.blocks.keep} of {total} blocks skipped each step"


def _task(config: RunConfig, plan: Plan) -> str:
    sizes = f"{len(plan.train)} train, {len(plan.dev)} dev, {len(plan.test)} test"
    warning = "; synthetic rows, not to be compared with published numbers"
    return (
        f"{title(config)}: {sizes}; {plan.parts.task.metric}{warning if config.data.name == 'sample' else ''}"
    )


def _cut(plan: Plan) -> str:
    """How many examples were too long, and what became of them."""
    ways = ((plan.shortened, "by their oldest turns"), (plan.truncated, "from the left"))
    most = plan.parts.encoder.max_length
    return "".join(f"; {number} longer than {most} cut {way}" for number, way in ways if number)


def _chat(task: ChatConfig, plan: Plan) -> str:
    """By which template, what is scored, and for how many replies are asked."""
    own = "the tokenizer's own" if plan.parts.template is None else plan.parts.template
    turns = "each of the assistant's turns" if task.turns is Turns.all else "the assistant's last turn"
    replies = f"; {len(plan.test.samples)} test replies written at the end" if plan.test.samples else ""
    return f"template {own}; {turns} is learnt from{replies}"


def _model(config: RunConfig, plan: Plan) -> str:
    weights = ", random weights" if config.model.random_weights else ""
    if plan.parts.dequantised:
        weights = f", weights dequantised from {plan.parts.dequantised}"
    if plan.parts.bits:
        weights = f", linear layers frozen in {plan.parts.bits} bits (bitsandbytes)"
    sizes = f"{count(plan.parameters)} parameters, {len(plan.layout.blocks)} decoder blocks"
    where = f"{plan.dtype_name} on {_devices(plan)}{weights}"
    return f"{model_name(config)}: {sizes}, {where}; {_around(plan)}"


def _devices(plan: Plan) -> str:
    """Where the model is; of several devices, which blocks are where."""
    devices, places = plan.placement.devices, plan.placement.places
    if len(devices) == 1:
        return str(plan.device)
    firsts = [places.index(place) for place in range(len(devices))]
    lasts = [after - 1 for after in (*firsts[1:], len(places))]
    pairs = zip(firsts, lasts, devices, strict=True)
    return ", ".join(f"{device} (blocks {first}-{last})" for first, last, device in pairs)


def _around(plan: Plan) -> str:
    """What stands before and after every text: BOS alone by its id, anything else in its own words."""
    encoder, decode = plan.parts.encoder, plan.parts.tokenizer.decode
    if encoder.chat is not None and not encoder.chat.before:
        return "BOS as the template has it"
    first = encoder.before[0] if encoder.before else None
    before = f"BOS {first}" if len(encoder.before) < 2 else f"{decode(encoder.before)} before each text"
    return before + (f", {decode(encoder.after)} after it" if encoder.after else "")


def _adapter(adapter: Adapter) -> str:
    match adapter.name:
        case "lora":
            targets = ", ".join(adapter.targets)
            return f"LoRA of rank {adapter.rank}, alpha {adapter.alpha} on {targets}"
        case "prefix":
            return f"a prefix of {adapter.tokens} keys and values in each block"
        case "head":
            return "the head alone, untied from the embeddings"


def _optimizer(config: RunConfig, plan: Plan) -> str:
    optim, parts = config.optim, config.composition
    if isinstance(optim, ZerothOrderConfig):
        metric = f"; minimises 1 - {plan.parts.task.metric}" if config.minimises_metric else ""
        others = ""
        if parts is not None and not parts.is_lezo:  # by their names in the journal
            others = f"; blocks {parts.blocks}, direction {parts.direction}, losses {parts.estimator}"
            others += f", step size {parts.step_size}"
            others += "" if parts.rule == Part("sgd") else f", rule {parts.rule}"
        rate = _rate(optim) if optim.schedule is not Schedule.constant or optim.warmup else f"lr {optim.lr:g}"
        clip = "" if optim.clip is None else f", |g| at most {optim.clip:g}"
        several = "" if optim.probes == 1 else f"; {optim.probes} directions a step"
        settings = f"{rate}, eps {optim.eps:g}{clip}{several}"
        return f"{optim.name}: {settings}; {skipped(plan)}{metric}{others}"
    assert isinstance(optim, FirstOrderConfig)
    clip = "" if optim.clip_norm is None else f", gradient norm at most {optim.clip_norm:g}"
    return f"{optim.name}: {_rate(optim)}{clip}; every block, through gradients"


def _rate(optim: FirstOrderConfig | ZerothOrderConfig) -> str:
    warmup = f" after {optim.warmup} steps of warm-up" if optim.warmup else ""
    return f"lr {optim.lr:g} {optim.schedule.value}{warmup}"


def _training(config: RunConfig, plan: Plan) -> str:
    if config.fits_head:
        rows = f"logistic regression of the head's rows of the answers on {len(plan.train)} rows"
        return f"{rows}; no steps, and train.* has no effect"
    if not config.trains:
        return f"none: optim={config.optim.name} takes no step, and train.* has no effect"
    settings = config.train
    size = min(settings.batch_size, len(plan.train))
    short = f" (all there are; train.batch_size={settings.batch_size})" if size < settings.batch_size else ""
    part = settings.micro_batch_size or size
    micro = f" in forwards of {part}" if part < size else ""
    limit = f", at most {settings.max_seconds:g} s" if settings.max_seconds else ""
    steps = f"{settings.steps} steps of {size} examples{short}{micro}"
    return f"{steps}; dev every {settings.eval_every}; seed {config.seed}{limit}"


def _forwards(config: RunConfig, plan: Plan) -> str:
    backward = " with backward" if config.first_order else ""
    counts = {**plan.forwards}
    training = f"{counts.pop('training')} training{backward}"
    return ", ".join([training, *(f"{count} {name}" for name, count in counts.items())])


def _ranks(config: RunConfig, plan: Plan, ranks: int) -> str:
    """How a step and an evaluation are shared; whether some ranks have nothing to do in a step."""
    if not config.trains:
        return f"{ranks}, each with a part of the evaluations"
    if config.minimises_metric:
        return f"{ranks}, each with a part of every step's evaluations"
    size = min(config.train.batch_size, len(plan.train))
    parts = -(-size // (config.train.micro_batch_size or size))
    idle = ""
    if parts < ranks:
        fitting = f"train.micro_batch_size={-(-size // ranks)}"
        idle = f"; {ranks - parts} have none, {fitting} gives each one (the same run up to rounding)"
    return f"{ranks}, which share the {parts} forward{'s' if parts > 1 else ''} of a step and those of an evaluation{idle}"


def _blocks(config: RunConfig, plan: Plan) -> str:
    """Where they live, and what a step moves."""
    visits = plan.visits
    if visits is None:
        return f"on the device: on a CPU model.home={config.model.home.name} is the same place"
    place = "host memory" if config.model.home is Home.host else "a file"
    moved = f"moves {size(visits.there)} to the device and {size(visits.back)} back"
    if plan.device.type == "cpu":
        moved = f"reads {size(visits.there)} of it and writes {size(visits.back)}, less what memory keeps"
    rate = f"about {visits.seconds:,.1f} s at {visits.rate / 1e9:.3g} GB/s, {visits.source}"
    return f"{size(visits.stored)} in {place}; a {'step' if config.trains else 'forward'} {moved}: {rate}"


def _memory(config: RunConfig, plan: Plan) -> str:
    expected = plan.memory
    parts = {"weights": expected.weights, "update": expected.update, "activations": expected.activations}
    parts |= {"the rule's memory": expected.state} if expected.state else {}
    sizes = ", ".join(f"{name} {size(taken)}" for name, taken in parts.items())
    beside = "" if plan.device.type == "cuda" else ", beside Python and libraries"
    fewer = f"; {plan.prompts_at_once} prompts are generated for at a time, as many as fit, not {config.eval.batch_size}"
    fits = plan.prompts_at_once == config.eval.batch_size
    shares = _shares(plan) if len(plan.memories) > 1 else ""
    return f"about {size(expected.total)} expected ({sizes}){beside}{shares}{'' if fits else fewer}"


def _shares(plan: Plan) -> str:
    """What is expected of each device, and what a CUDA device has."""
    said = []
    for device, memory in zip(plan.placement.devices, plan.memories, strict=True):
        lacks = "" if memory.total <= memory.free else ", too little"
        of = f" of {size(int(memory.free))} free{lacks}" if math.isfinite(memory.free) else ""
        said.append(f"{device} {size(memory.total)}{of}")
    return f": {', '.join(said)}"


def _peak(result: Mapping[str, Any]) -> str:
    """The peaks of device and process, and of the one that the banner speaks of what the run itself took."""
    peaks, own = result["peak_memory_bytes"], result.get("memory_bytes") or {}
    whole = ", ".join(f"{where} {size(used)}" for where, used in peaks.items() if used)
    if own.get("used") is None:
        return whole
    expected = f"about {size(own['expected'])} expected"
    if own["used"] == peaks["device"]:
        return f"{whole}; {expected} on the device"
    used = f"{size(own['used'])} since the model was loaded, with the libraries' code in use"
    return f"{whole}, of which {used}; {expected}"


def _time(seconds: Mapping[str, float | None]) -> str:
    total, train, evaluation, step = (seconds[key] for key in ("total", "train", "eval", "step_median"))
    parts = f"{clock(total or 0)} in all; training {clock(train or 0)}, evaluation {clock(evaluation or 0)}"
    return parts if step is None else f"{parts}; median step {duration(step)}"
