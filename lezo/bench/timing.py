"""lezo-bench's work: the memory of each variant in a process of its own, then all of them timed in turns."""

from __future__ import annotations

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
from lezo.bench.table import Peak, Sample, findings, markdown, picture
from lezo.bench.variants import Setup, Variant, Work, lezo_blocks, make_variant, typical_work
from lezo.config.compose import Composed
from lezo.config.schema import BenchConfig, BenchVariant, RunConfig
from lezo.model.forward import Network
from lezo.model.load import load
from lezo.records.environment import environment, forget_peak_memory, peak_memory
from lezo.records.folder import BENCH, CONFIG, ENVIRONMENT, RunFolder
from lezo.records.format import clock, count, table
from lezo.runs import banner, console
from lezo.runs.outcome import failed, out_of_memory
from lezo.runs.plan import Plan, make_plan
from lezo.zo.packing_check import network_for

SLOW = 10.0  # seconds of a step that is not warmed up, and of a textbook step that is timed once


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
        forget_peak_memory()  # of loading, and of finding out how the model runs
        sample = timed(make_variant(setup, name), 0, plan.device)
    except Exception as error:
        if not out_of_memory(error):
            raise
        return Peak(error="out of memory")
    cuda = plan.device.type == "cuda"
    used = torch.cuda.max_memory_allocated(plan.device) if cuda else peak_memory()["host"]
    return Peak(used, sample.seconds)


def bench(composed: Composed, child: Sequence[str], command: str, out: Console) -> None:
    """Measure and write the folder. Raises what reading, loading and writing raise, and ChildError."""
    start, config = time.perf_counter(), composed.config
    plan = make_plan(config)
    work = typical_work(config, plan)
    described = _described(config, plan, work, command)
    console.print_table(out, _banner(config, described, composed.run_dir))
    folder = RunFolder(composed.run_dir)
    folder.begin()
    folder.text(CONFIG, composed.yaml)
    folder.json(ENVIRONMENT, {"command": command, **environment(plan.device)})
    peaks = _peaks(child, out)
    network = loaded(config, plan)
    if network.plain:
        out.print(f"rows {network.rows}")
        work = typical_work(config, plan, plain=True)
        described = _described(config, plan, work, command) | {"rows": network.rows}
    rounds = Rounds(plan.device, partial(make_variant, Setup(config, plan, work, network)), peaks)
    samples = []
    for sample in rounds(config.bench, out):
        row = {"step": sample.step, "variant": sample.variant.value, "seconds": sample.seconds}
        folder.row(row | dict(sample.phases))
        samples.append(sample)
    measured = findings([sample for sample in samples if sample.step], rounds.peaks)
    result = described | measured | {"seconds": time.perf_counter() - start}
    folder.json(BENCH, result)
    folder.text("table.md", markdown(result))
    folder.data("steps.png", picture(result))
    if config.bench.profile:
        _profile(rounds, folder)
    folder.close()
    out.print(f"\n{markdown(result)}\nsee {folder.path}")


class Rounds:
    """Takes the turns. A variant that runs out of memory beside the others is left out from then on."""

    def __init__(
        self,
        device: torch.device,
        make: Callable[[BenchVariant], Variant],
        peaks: Mapping[BenchVariant, Peak],
    ) -> None:
        self.peaks = dict(peaks)
        self._device, self._make = device, make
        self._variants: dict[BenchVariant, Variant] = {}
        self._expected = {name: peak.seconds for name, peak in peaks.items() if peak.seconds is not None}

    def __call__(self, settings: BenchConfig, out: Console) -> Iterator[Sample]:
        """Every timed step, also those that warm up."""
        turns = schedule(self._expected, settings.repeats, settings.textbook_repeats)
        for number, turn in enumerate(turns):
            if turn.variant in self._expected:
                left = clock(sum(self._expected.get(later.variant, 0) for later in turns[number:]))
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
            self._expected.pop(turn.variant, None)
            why = "out of memory beside the other variants"
            self.peaks[turn.variant] = replace(self.peaks[turn.variant], error=why)
            return []
        self._expected[turn.variant] = sample.seconds
        return [sample]


def schedule(first: Mapping[BenchVariant, float], repeats: int, textbook_repeats: int | None) -> list[Turn]:
    """Who steps when: round by round, so that what slows the machine slows everyone.

    ``first`` holds the seconds of each variant's first step. A slow one is not warmed up; slow textbook steps
    are timed once where ``textbook_repeats`` does not say more.
    """
    slow = {name for name, seconds in first.items() if seconds > SLOW}
    steps = dict.fromkeys(first, repeats)
    for name in first.keys() & {BenchVariant.textbook_mezo, BenchVariant.textbook_lezo}:
        steps[name] = textbook_repeats or (1 if name in slow else repeats)
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
    """The model, on its device, as lezo-run runs it."""
    source, model_config = plan.parts.source, plan.parts.model_config
    model = load(source, model_config, dtype=plan.dtype, device=plan.device, seed=config.seed)
    return network_for(model, plan.layout, longest=plan.lengths[1])


def _peaks(child: Sequence[str], out: Console) -> dict[BenchVariant, Peak]:
    """Each variant's memory, one process after the other, before this one loads anything."""
    peaks = {}
    for number, name in enumerate(BenchVariant, 1):
        out.print(f"memory {number}/{len(BenchVariant)}: {name.value}, one step in a process of its own")
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


def _banner(config: RunConfig, described: Mapping[str, Any], folder: Path) -> str:
    batch, repeats, textbook = described["batch"], config.bench.repeats, config.bench.textbook_repeats or 1
    lengths, tokens = batch["lengths"], batch["tokens"]
    sequences = f"sequences of {lengths['median']:g} tokens (median) to {lengths['longest']}"
    weights = f"{count(described['parameters'])} parameters, {described['dtype']} on {described['device']}"
    rows = {
        "task": f"{described['title']}: {batch['examples']} examples a step, {sequences}",
        "model": f"{described['model']}: {weights}" + (", random weights" * described["random_weights"]),
        "tokens": f"{tokens['padded']} in the textbook's forward, {tokens['real']} without its padding, "
        f"{tokens['ours']} in ours",
        "lezo": f"{described['blocks']} each step",
        "timing": f"{repeats} steps each in turns; a textbook step above {SLOW:g} s: {textbook}",
        "folder": str(folder),
    }
    return table(rows, f"lezo-bench {__version__}")


def _described(config: RunConfig, plan: Plan, work: Work, command: str) -> dict[str, Any]:
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
