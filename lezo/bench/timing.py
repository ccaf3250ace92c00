"""lezo-bench's work: the memory of each variant, then all of them timed in turns, then a window of a run's steps."""

from __future__ import annotations

import gc
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lezo import __version__
from lezo.bench.hardware import Gauges
from lezo.bench.published import published_methods
from lezo.bench.table import Peak, Sample, findings, markdown, picture
from lezo.bench.variants import (
    ENGINE,
    SLOWER,
    Setup,
    Variant,
    Work,
    lezo_blocks,
    make_variant,
    typical_work,
    variants_of,
    window,
)
from lezo.config.compose import Composed
from lezo.config.schema import BenchConfig, BenchVariant, RunConfig
from lezo.model.forward import Network
from lezo.records.environment import environment, forget_peak_memory, peak_memory
from lezo.records.folder import BENCH, CONFIG, ENVIRONMENT, RunFolder
from lezo.records.format import clock, count, table
from lezo.runs import banner, console
from lezo.runs.build import load_model
from lezo.runs.outcome import failed, out_of_memory
from lezo.runs.plan import Plan, make_plan

SLOW = 10.0  # seconds of a step that is not warmed up, and of a textbook step that is timed once
_REPEATS = {"cuda": 20, "cpu": 5}  # timed steps of a variant, where none are asked for
_TEXTBOOK = 5  # of those that are slower than ours, at most
_WINDOW = {"cuda": 40, "cpu": 4}  # consecutive steps of a run


class ChildError(RuntimeError):
    """A child that failed; the message is what it said."""


@dataclass(frozen=True)
class Turn:
    """A variant's step. Step 0 warms up and does not count."""

    variant: BenchVariant
    step: int

    def __str__(self) -> str:
        return f"{self.variant.value} {f'step {self.step}' if self.step else 'warm-up'}"


def benchmark(composed: Composed, child: Sequence[str], command: str) -> int:
    """Bench, or with bench.variant measure one variant's memory. Returns the exit code: 0, 1 or 130.

    ``child`` is the command line of this same bench, to which bench.variant=NAME is added.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if composed.config.bench.variant is not None:
            print(json.dumps(asdict(alone(composed.config, composed.config.bench.variant))))
        else:
            bench(composed, child, command, console.console())
        return 0
    except ChildError as error:
        print(error, file=sys.stderr)
        return 1
    except Exception as error:
        return failed(error)
    except KeyboardInterrupt:
        return 130


def alone(config: RunConfig, name: BenchVariant) -> Peak:
    """One step of one variant in this process, which does nothing else."""
    plan = make_plan(config)
    try:
        setup = Setup(config, plan, typical_work(config, plan), loaded(config, plan))
    except Exception as error:
        if not out_of_memory(error):
            raise
        return Peak(error="out of memory")
    return peak_of(partial(make_variant, setup), name, plan.device)


def peak_of(make: Callable[[BenchVariant], Variant], name: BenchVariant, device: torch.device) -> Peak:
    """One step of a variant that is let go of again: on CUDA the device's peak, else that of all the process holds."""
    cuda = device.type == "cuda"
    gc.collect()  # what the variant before held in circles
    if cuda:
        torch.cuda.empty_cache()
    forget_peak_memory()  # of loading, of finding out how the model runs, of other variants
    try:
        sample = timed(make(name), 0, device)
    except Exception as error:
        if not out_of_memory(error):
            raise
        return Peak(error="out of memory")
    if not cuda:
        return Peak(peak_memory()["host"], sample.seconds)
    reserved = sum(map(torch.cuda.max_memory_reserved, range(torch.cuda.device_count())))
    return Peak(peak_memory()["device"], sample.seconds, reserved=reserved)


def bench(composed: Composed, child: Sequence[str], command: str, out: Console) -> None:
    """Measure and write the folder. Raises what reading, loading and writing raise, and ChildError."""
    start, config = time.perf_counter(), composed.config
    if config.bench.mezo_path is not None:
        published_methods(config.bench.mezo_path)  # before anything is measured
    plan = make_plan(config)
    settings = settled(config.bench, plan.device)
    work = typical_work(config, plan)
    described = described_work(config, plan, work, command)
    console.print_table(out, _banner(config, described, settings, composed.run_dir))
    folder = RunFolder(composed.run_dir)
    folder.begin()
    folder.text(CONFIG, composed.yaml)
    folder.json(ENVIRONMENT, {"command": command, **environment(plan.device)})
    cuda, names = plan.device.type == "cuda", variants_of(config)
    peaks = {} if cuda else _peaks(child, names, out)
    network = loaded(config, plan)
    if network.plain:
        out.print(f"rows {network.rows}")
        work = typical_work(config, plan, plain=True)
        described = described_work(config, plan, work, command) | {"rows": network.rows}
    setup = Setup(config, plan, work, network)
    make = partial(make_variant, setup)
    for name in names if cuda else []:  # a process each would load the model each time
        peaks[name] = peak_of(make, name, plan.device)
    rounds, samples = Rounds(plan.device, make, peaks), []
    with Gauges(plan.device) as gauges:
        for sample in rounds(settings, out):
            row = {"step": sample.step, "variant": sample.variant.value, "seconds": sample.seconds}
            folder.row(row | dict(sample.phases))
            samples.append(sample)
        windows = {name: window_of(setup, name, settings, rounds) for name in ENGINE}
    measured = findings([sample for sample in samples if sample.step], rounds.peaks, windows)
    result = described | measured | {"gauges": gauges.summary(), "seconds": time.perf_counter() - start}
    folder.json(BENCH, result)
    folder.text("table.md", markdown(result))
    folder.data("steps.png", picture(result))
    if config.bench.profile:
        _profile(rounds, folder)
    folder.close()
    out.print(f"\n{markdown(result)}\nsee {folder.path}")


def settled(settings: BenchConfig, device: torch.device) -> BenchConfig:
    """The settings with those filled in that the device decides."""
    repeats = settings.repeats or _REPEATS[device.type]
    steps = _WINDOW[device.type] if settings.window is None else settings.window
    return replace(settings, repeats=repeats, window=steps)


def window_of(setup: Setup, name: BenchVariant, settings: BenchConfig, rounds: Rounds) -> list[float]:
    """Seconds of consecutive real steps; none where none are wanted, or where they do not fit."""
    if not settings.window or name not in rounds.expected:
        return []
    try:
        return window(setup, name, settings.window)
    except Exception as error:
        if not out_of_memory(error):
            raise
        rounds.drop(name, "out of memory in a run's own batches")
        return []


class Rounds:
    """Takes the turns. A variant that runs out of memory beside the others is left out from then on.

    ``expected``: the seconds of a step of each variant that is not left out.
    """

    def __init__(
        self,
        device: torch.device,
        make: Callable[[BenchVariant], Variant],
        peaks: Mapping[BenchVariant, Peak],
    ) -> None:
        self.peaks = dict(peaks)
        self._device, self._make = device, make
        self._variants: dict[BenchVariant, Variant] = {}
        self.expected = {name: peak.seconds for name, peak in peaks.items() if peak.seconds is not None}

    def __call__(self, settings: BenchConfig, out: Console) -> Iterator[Sample]:
        """Every timed step, also those that warm up."""
        assert settings.repeats is not None  # `settled`
        turns = schedule(self.expected, settings.repeats, settings.textbook_repeats)
        for number, turn in enumerate(turns):
            if turn.variant in self.expected:
                left = clock(sum(self.expected.get(later.variant, 0) for later in turns[number:]))
                out.print(f"timing {number + 1}/{len(turns)}: {turn}, about {left} left")
                yield from self.take(turn)

    def take(self, turn: Turn) -> list[Sample]:
        """The turn's sample, or none for want of memory."""
        try:
            if turn.variant not in self._variants:
                self._variants[turn.variant] = self._make(turn.variant)
            sample = timed(self._variants[turn.variant], turn.step, self._device)
        except Exception as error:
            if not out_of_memory(error):
                raise
            self.drop(turn.variant, "out of memory beside the other variants")
            return []
        self.expected[turn.variant] = sample.seconds
        return [sample]

    def drop(self, name: BenchVariant, why: str) -> None:
        """Leave the variant out from now on."""
        self.expected.pop(name, None)
        self._variants.pop(name, None)
        self.peaks[name] = replace(self.peaks[name], error=why)


def schedule(first: Mapping[BenchVariant, float], repeats: int, textbook_repeats: int | None) -> list[Turn]:
    """Who steps when: round by round, so that what slows the machine slows everyone.

    ``first`` holds the seconds of each variant's first step. A slow one is not warmed up; slow textbook steps
    are timed once where ``textbook_repeats`` does not say more, others at most five times.
    """
    slow = {name for name, seconds in first.items() if seconds > SLOW}
    steps = dict.fromkeys(first, repeats)
    for name in first.keys() & {*SLOWER}:
        steps[name] = textbook_repeats or (1 if name in slow else min(repeats, _TEXTBOOK))
    rounds = max(steps.values(), default=0)
    spread = {name: _spread(count, rounds) for name, count in steps.items()}
    warm = [Turn(name, 0) for name in first if name not in slow]
    return warm + [Turn(name, i) for i in range(1, rounds + 1) for name in first if i in spread[name]]


def _spread(count: int, rounds: int) -> set[int]:
    """``count`` of the rounds 1 to ``rounds``, evenly; a single one is the middle one."""
    return {-(-(2 * i - 1) * rounds // (2 * count)) for i in range(1, count + 1)}


def timed(variant: Variant, step: int, device: torch.device) -> Sample:
    """One step, from a device at rest to a device at rest."""
    variant.watch.lap()
    _at_rest(device)
    start = time.perf_counter()
    variant.step(step)
    _at_rest(device)
    return Sample(variant.name, step, time.perf_counter() - start, variant.watch.lap())


def loaded(config: RunConfig, plan: Plan) -> Network:
    """The model, on its device, with its adapter where there is one, as lezo-run runs it."""
    return load_model(config, plan, lambda _: None, None).network


def _peaks(child: Sequence[str], names: Sequence[BenchVariant], out: Console) -> dict[BenchVariant, Peak]:
    """Each variant's memory, one process after the other, before this one loads anything."""
    peaks = {}
    for number, name in enumerate(names, 1):
        out.print(f"memory {number}/{len(names)}: {name.value}, one step in a process of its own")
        peaks[name] = measured_in_a_child([*child, f"bench.variant={name.value}"])
    return peaks


def measured_in_a_child(command: Sequence[str]) -> Peak:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == -signal.SIGKILL:  # as the kernel ends who takes the memory of all
        return Peak(error="killed, as for want of memory")
    if done.returncode != 0:
        raise ChildError(done.stderr.strip() or f"error: a child ended with {done.returncode}: {command}")
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def _profile(rounds: Rounds, folder: RunFolder) -> None:
    """A torch profiler trace of one lezo step, for chrome://tracing or Perfetto."""
    with torch.profiler.profile() as profiler:
        rounds.take(Turn(BenchVariant.lezo, 0))
    profiler.export_chrome_trace(str(folder.path / "trace.json"))


def _at_rest(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _banner(config: RunConfig, described: Mapping[str, Any], settings: BenchConfig, folder: Path) -> str:
    batch, repeats, textbook = described["batch"], settings.repeats, settings.textbook_repeats or 1
    lengths, tokens = batch["lengths"], batch["tokens"]
    sequences = f"sequences of {lengths['median']:g} tokens (median) to {lengths['longest']}"
    weights = f"{count(described['parameters'])} parameters, {described['dtype']} on {described['device']}"
    rows = {
        "task": f"{described['title']}: {batch['examples']} examples a step, {sequences}",
        "model": f"{described['model']}: {weights}" + (", random weights" * described["random_weights"]),
        "tokens": f"{tokens['padded']} in the textbook's forward, {tokens['real']} without its padding, "
        f"{tokens['ours']} in ours",
        "lezo": f"{described['blocks']} each step",
        "timing": f"{repeats} steps each in turns; a textbook step above {SLOW:g} s: {textbook}; then "
        f"{settings.window} consecutive steps of a run",
        "folder": str(folder),
    }
    return table(rows, f"lezo-bench {__version__}")


def described_work(config: RunConfig, plan: Plan, work: Work, command: str) -> dict[str, Any]:
    """What was timed, for bench.json and the headings."""
    blocks, lengths = lezo_blocks(config, plan), work.lengths
    threads = "" if plan.device.type == "cuda" else f", threads: {torch.get_num_threads()}"
    return {
        "task": config.task.name,
        "title": banner.title(config),
        "data": config.data.name,
        "model": banner.model_name(config),
        "random_weights": config.model.random_weights,
        "parameters": plan.parameters,
        "dtype": plan.dtype_name,
        "device": f"{environment(plan.device)['device']}{threads}",
        "sparsity": blocks.sparsity,
        "blocks": f"{blocks.total - blocks.keep} of {blocks.total} blocks skipped",
        "seed": config.seed,
        "batch": {
            "place": work.place,
            "examples": len(work.examples),
            "lengths": {"median": statistics.median(lengths), "longest": max(lengths)},
            "tokens": {"padded": work.padded, "real": work.real, "ours": work.ours},
        },
        "command": command,
    }
