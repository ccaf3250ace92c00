"""lezo-qualify's work: section after section, the page written after each, whatever fails."""

from __future__ import annotations

import gc
import json
import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lezo.bench.bits import Stepped, noise_checks, stepped
from lezo.bench.hardware import Gauges, driver, profiled
from lezo.bench.killed import killed_and_resumed
from lezo.bench.page import TIMES, Page, Section, markdown, picture
from lezo.bench.table import Sample, findings, gauges_line
from lezo.bench.timing import (
    Rounds,
    Turn,
    described_work,
    loaded,
    peak_of,
    settled,
    window_of,
)
from lezo.bench.variants import (
    ENGINE,
    SLOWER,
    Setup,
    Variant,
    heaviest,
    make_variant,
    typical_work,
    variants_of,
)
from lezo.config.compose import Composed, compose
from lezo.config.ranges import DEVICE
from lezo.config.schema import BenchConfig, BenchVariant, ConfigError, QualifyConfig
from lezo.model.device import named_device
from lezo.model.load import TINY
from lezo.records.environment import code_version, environment, package_version
from lezo.records.files import finite, remove_folder, replace_file
from lezo.records.format import size
from lezo.runs.console import console
from lezo.runs.outcome import failed, message_of
from lezo.runs.plan import make_plan

SECTIONS = ("noise", "steps", "killed", TIMES)
# What each section chooses for itself.
_OWN = ("model", "task", "optim", "hydra.run.dir", "dry_run", "resume")
_CUDA_MODELS, _CPU_MODELS = ["opt-1.3b", "opt-13b", "opt-30b"], ["tiny"]
_STEPS = 5  # that are replayed
_LEAST = 15.0  # seconds without which nothing more is timed
_KILLED = 0.5  # of all time, at most for the run that is killed
_ROOM = 2**30  # bytes a model must leave free to be tried
_KILLED_RUNS = "killed"  # the folder of a run that is killed and of its twin; gone when they end alike


def qualify(settings: QualifyConfig, words: Sequence[str], command: str) -> int:
    """Go through the sections. Returns the exit code: 0, 1 where one failed, 130; raises ConfigError.

    ``words``: overrides of lezo-run's for all that is run.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        qualification = Qualification(settings, words, command, console())
        try:
            qualification()
        except KeyboardInterrupt:
            qualification.write()
            return 130
        return 0 if qualification.page.ok else 1
    except ConfigError:
        raise
    except Exception as error:
        return failed(error)


class Qualification:
    """Its page grows with each section. Raises ConfigError for words that do not compose."""

    def __init__(self, settings: QualifyConfig, words: Sequence[str], command: str, out: Console) -> None:
        self.settings, self.words, self.out = settings, _refused_own(words), out
        self.started = time.monotonic()
        self.until = self.started + 60 * settings.minutes
        self.device = named_device(_device_name(words), "model.device")
        self.cuda = self.device.type == "cuda"
        self.models = settings.models or (_CUDA_MODELS if self.cuda else _CPU_MODELS)
        self.chosen = _chosen(settings.sections)
        self.folder = Path(settings.out or time.strftime("runs/qualify/%Y-%m-%d_%H-%M-%S"))
        if "killed" in self.chosen:
            _refuse_left_over(self.folder / _KILLED_RUNS)
        self.runs = {(m, t): self._composed(m, t) for m in self.models for t in settings.tasks}
        self.page, self.drawn = Page(_device(self.device), command), 0  # timings in the picture

    def __call__(self) -> None:
        """All sections. A GPU has room for the killed run beside those that time nothing."""
        self.write()
        with ThreadPoolExecutor(1) as beside:
            killed = beside.submit(self._killed) if "killed" in self.chosen and self.cuda else None
            if "noise" in self.chosen:
                self.section("bits", "noise equals the CPU's", self._noise)
            if "steps" in self.chosen:
                for method in ("lezo", "mezo"):
                    self.section("steps", f"{method} steps and their replay", partial(self._steps, method))
            if "killed" in self.chosen:
                ended = killed.result if killed is not None else self._killed
                self.section("killed", "a killed run goes on to the same end", ended)
        for model in self.models if TIMES in self.chosen else []:
            self._model(model)
            gc.collect()  # nothing holds the model any more, and the next one needs its room
            if self.cuda:
                torch.cuda.empty_cache()
        self.page.over = True
        self.write()
        self.out.print(f"\n{markdown(self.page)}\nsee {self.folder}")

    def section(self, kind: str, name: str, work: Callable[[], Section]) -> None:
        """Do ``work``; whatever it raises is the section's failure, and the page is written."""
        start = time.monotonic()
        try:
            section = work()
        except Exception as error:
            section = Section(kind, name, False, error=message_of(error) or traceback.format_exc())
        section.kind, section.name, section.seconds = kind, name, time.monotonic() - start
        self.page.sections.append(section)
        self.out.print(f"{section.verdict:>6}  {name}: {section.said or section.error}")
        self.write()

    def write(self) -> None:
        """page.json, page.md and page.png as they are now; a picture that cannot be drawn is no failure."""
        self.page.seconds = time.monotonic() - self.started
        self.folder.mkdir(parents=True, exist_ok=True)
        plain = json.dumps(finite(self.page.plain()), indent=1)
        replace_file(self.folder / "page.json", plain.encode())
        replace_file(self.folder / "page.md", markdown(self.page).encode())
        if len(self.page.timed) > self.drawn:
            self.drawn = len(self.page.timed)
            try:
                replace_file(self.folder / "page.png", picture(self.page))
            except Exception as error:
                self.out.print(f"no picture: {error}")

    def _noise(self) -> Section:
        checks = list(noise_checks(self.device))
        wrong = [check.what for check in checks if not check.same]
        said = f"{len(checks) - len(wrong)} of {len(checks)} comparisons have the same bits"
        if wrong:
            return Section("", "", False, said, error="not the CPU's bits: " + "; ".join(wrong))
        return Section("", "", True, said, data={"comparisons": [check.what for check in checks]})

    def _steps(self, method: str) -> Section:
        rounding = ["model.dtype=bfloat16", "optim.rounding=stochastic"]
        own = rounding if method == "mezo" else ["model.dtype=float16", "optim.weight_decay=0.01"]
        composed = self._composed(
            self._small[0], self.settings.tasks[0], method, *self._small[1:], *own, "optim.lr=1e-4"
        )
        found = stepped(composed, _STEPS, self.folder / "steps")
        waited = found.waits is not None and len(found.waits) > 1
        said = (
            f"{found.steps} steps in {found.dtype} replay to {'the same' if found.same else 'OTHER'} bits on "
        )
        said += " and ".join(found.replayed)
        if found.waits is not None:
            said += f"; the host waits {len(found.waits)} times a step"
        return Section(
            "", "", found.same and not waited, said, data=asdict(found), error=_wrong(found, waited)
        )

    @property
    def _small(self) -> list[str]:
        """A model of few blocks, with the overrides that make it so."""
        return ["opt-125m", "model.shape.num_hidden_layers=4"] if self.cuda else ["tiny"]

    def _killed(self) -> Section:
        """In a thread of its own; only its children compute."""
        steps, folder, start = self.settings.steps, self.folder / _KILLED_RUNS, time.monotonic()
        model = "opt-125m" if self.cuda else "tiny"
        words = self._words(model, self.settings.tasks[0], "lezo", "optim.lr=1e-5", f"train.steps={steps}")
        words += [f"train.eval_every={max(steps // 4, 1)}", "task.num_dev=32", "task.num_test=32"]
        seconds = min(self.until - time.monotonic(), _KILLED * 60 * self.settings.minutes)
        found = killed_and_resumed(words, steps, folder, seconds)
        said = (
            f"{found.steps} steps of {model} in {time.monotonic() - start:.0f} s, killed at step {found.at}: "
        )
        said += f"journal {_alike(found.journal)}, weights {_alike(found.weights)}"
        if found.same:
            remove_folder(folder)
        late = f"it was over before it was killed; give it more steps than qualify.steps={steps}"
        return Section(
            "", "", found.same, said, data=asdict(found), error=late if found.at >= found.steps else None
        )

    def _model(self, model: str) -> None:
        """The timings of a model on each task, loaded once; each task is a section."""
        found: dict[str, Any] = {}
        if not self._late:
            self.section("load", f"{model} loads", partial(self._loaded, model, found))
            if "network" not in found:
                return
        for task in self.settings.tasks:
            self.section(TIMES, f"{model} {task}", partial(self._timed, model, task, found))

    @property
    def _late(self) -> bool:
        return self.until - time.monotonic() < _LEAST

    def _loaded(self, model: str, found: dict[str, Any]) -> Section:
        """Load the model into ``found``, where it fits."""
        configs = {task: self.runs[model, task].config for task in self.settings.tasks}
        plans = {task: make_plan(config) for task, config in configs.items()}
        plan, config = next(iter(plans.values())), next(iter(configs.values()))
        need, free = plan.memory.weights + _ROOM, self._free()
        if need > free:
            return Section("", "", None, f"does not fit: needs {size(need)}, and {size(free)} are free")
        longest = max(one.lengths[1] for one in plans.values())
        start = time.monotonic()
        network = loaded(config, replace(plan, lengths=(plan.lengths[0], longest)))
        found |= {"plans": plans, "network": network}
        said = f"{size(plan.memory.weights)} in {time.monotonic() - start:.1f} s; rows {network.rows}"
        return Section("", "", True, said)

    def _free(self) -> float:
        return float(torch.cuda.mem_get_info(self.device)[0]) if self.cuda else float("inf")

    def _timed(self, model: str, task: str, found: Mapping[str, Any]) -> Section:
        """Of the model in ``found``; nothing where the time is up."""
        if self._late:
            return Section("", "", False, error=f"no time left (qualify.minutes={self.settings.minutes:g})")
        config, plan, network = self.runs[model, task].config, found["plans"][task], found["network"]
        setup = Setup(config, plan, typical_work(config, plan, plain=network.plain), network)
        names = {section.name for section in self.page.sections}
        left = [key for key in self.runs if " ".join(key) not in names]
        data = timed_in(setup, (self.until - time.monotonic()) / len(left), self.page.command)
        lezo = data["variants"]["lezo"]["step_seconds"]
        said = ["lezo did not run" if lezo is None else f"lezo {1000 * lezo:.1f} ms"]
        for name in ("textbook_mezo/lezo", "lezo/floor"):
            said += [f"{name} {value:.2f}" for value in [data["ratios"][name]] if value]
        said += [f"{name}: {one['error']}" for name, one in data["variants"].items() if one["error"]]
        return Section("", "", lezo is not None, ", ".join(said), data=data)

    def _words(self, model: str, task: str, optim: str, *more: str) -> list[str]:
        random = [] if model == "tiny" else ["model.random_weights=true", f"model.tokenizer={TINY}"]
        defaults = [*random, "data=sample"]
        words = [w for w in self.words if optim == "lezo" or not w.startswith("optim.sparsity=")]
        given = {word.partition("=")[0] for word in (*words, *more)}
        chosen = [f"model={model}", f"task={task}", f"optim={optim}"]
        return [*chosen, *(w for w in defaults if w.partition("=")[0] not in given), *words, *more]

    def _composed(self, model: str, task: str, optim: str = "lezo", *more: str) -> Composed:
        return compose(self._words(model, task, optim, *more))


def timed_in(setup: Setup, share: float, command: str) -> dict[str, Any]:
    """All about a model on a task, as bench.json has it, in about ``share`` seconds; device memory and one step beside."""
    config, device, cuda = setup.config, setup.plan.device, setup.plan.device.type == "cuda"
    make, names = partial(make_variant, setup), variants_of(config)
    peaks = {name: peak_of(make, name, device) for name in names}
    if not cuda:  # one process holds all of them
        peaks = {name: replace(peak, bytes=None) for name, peak in peaks.items()}
    rounds = Rounds(device, make, peaks)
    for name in list(rounds.expected):
        rounds.take(Turn(name, 0))  # the first step of all was no measure of the next
    settings = settled(config.bench, device)
    assert settings.repeats is not None and settings.window is not None
    settings.repeats, settings.window = _fitting(settings, rounds.expected, share)
    with Gauges(device) as gauges:
        samples: list[Sample] = [s for s in rounds(settings, Console(quiet=True)) if s.step]
        windows = {name: window_of(setup, name, settings, rounds) for name in ENGINE}
    found = described_work(config, setup.plan, setup.work, command) | findings(samples, rounds.peaks, windows)
    tried = [name for name in ENGINE if name in rounds.expected and cuda]
    del rounds  # and what its variants hold
    profiles = {name.value: _profile(make, name, device) for name in tried}
    memory = {"expected": setup.plan.memory.total, **(_heaviest(setup) if cuda else {"used": None})}
    return found | {"gauges": gauges.summary(), "profiles": profiles, "memory": memory}


def _profile(
    make: Callable[[BenchVariant], Variant], name: BenchVariant, device: torch.device
) -> dict[str, Any]:
    """What `profiled` finds; what was timed before stands also where this fails."""
    try:
        return profiled(make(name).step, device)
    except Exception as error:
        return {"error": _first_line(error)}


def _heaviest(setup: Setup) -> dict[str, Any]:
    """``used``: the most bytes of the device, or devices, that are allocated where the plan expects most; None with an ``error``.

    What was allocated before, beside the weights, is left out: it is what matrix products of other steps keep.
    """
    gc.collect()
    torch.cuda.empty_cache()
    devices = setup.plan.placement.devices
    for device in devices:
        torch.cuda.reset_peak_memory_stats(device)
    before = sum(map(torch.cuda.memory_allocated, devices)) - setup.plan.memory.weights
    try:
        heaviest(setup)
    except Exception as error:
        return {"used": None, "error": _first_line(error)}
    return {"used": sum(map(torch.cuda.max_memory_allocated, devices)) - before}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"


def _fitting(settings: BenchConfig, seconds: Mapping[BenchVariant, float], share: float) -> tuple[int, int]:
    """Repeats, and steps of the window, as many as are wanted or as fit into ``share`` seconds, a few in any case."""
    wanted, window = settings.repeats or 1, settings.window or 0
    slower = sum(one for name, one in seconds.items() if name in SLOWER)
    ours = sum(seconds.values()) - slower
    repeats = (0.6 * share - min(wanted, 5) * slower) / max(ours, 1e-9)
    steps = 0.3 * share / max(sum(seconds.get(name, 0.0) for name in ENGINE), 1e-9)
    return max(min(wanted, int(repeats)), min(3, wanted)), max(min(window, int(steps)), min(5, window))


def _refused_own(words: Sequence[str]) -> Sequence[str]:
    """Raise ConfigError where overrides choose what the sections choose."""
    taken = [word for word in words if word.partition("=")[0] in _OWN]
    ways = "qualify.models=[NAME], qualify.tasks=[NAME] and qualify.out=DIR choose; leave it out"
    if taken:
        raise ConfigError([f"{word}: each section has its own; {ways}" for word in taken])
    return words


def _chosen(sections: Sequence[str] | None) -> Sequence[str]:
    unknown = [name for name in sections or () if name not in SECTIONS]
    if unknown:
        known = ", ".join(SECTIONS)
        raise ConfigError([f"qualify.sections={name}: expected some of {known}" for name in unknown])
    return SECTIONS if sections is None else sections


def _refuse_left_over(runs: Path) -> None:
    """Raise ConfigError where an earlier qualification left its runs, with which this one's would go on."""
    if runs.exists():
        raise ConfigError(
            [f"qualify.out={runs.parent}: {runs} is left of an earlier one; remove it or name another folder"]
        )


def _device_name(words: Sequence[str]) -> str:
    """What the words say of it, the last of them. Raises ConfigError for what is no name of one."""
    name = ["auto", *(word.partition("=")[2] for word in words if word.startswith("model.device="))][-1]
    if not DEVICE.holds(name):
        raise ConfigError([f"model.device={name}: expected {DEVICE.expected}"])
    return name


def _device(device: torch.device) -> dict[str, Any]:
    """The device and what it is driven by, in words."""
    around = environment(device)
    with Gauges(device) as gauges:
        pass
    found = {"device": around["device"], "driver": driver(device), "CUDA": around.get("cuda")}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["memory"] = size(properties.total_memory)
        found["capability"] = (
            f"sm_{properties.major}{properties.minor}, {properties.multi_processor_count} SMs"
        )
    packages = ("torch", "triton", "transformers", "numpy", "numba")
    found |= {name: package_version(name) for name in packages}
    found |= {"lezo": code_version(), "python": around["python"], "platform": around["platform"]}
    found |= {"CPU threads": around["cpu_threads"], "at rest": gauges_line(gauges.summary())}
    return {**found, "started": around["started"]}


def _alike(same: bool) -> str:
    return "the same" if same else "NOT the same"


def _wrong(found: Stepped, waited: bool) -> str | None:
    """What is not as it should be."""
    problems = []
    if not found.moved:
        problems.append("the steps moved no weight")
    if any(weights != found.weights for weights in found.replayed.values()):
        problems.append(f"weights {found.weights[:12]}, replayed {found.replayed}")
    if waited:
        problems.append("expected one wait a step, and saw:\n" + "\n".join(found.waits or ()))
    return "\n".join(problems) or None
