"""One run, from a checked configuration to its folder's result."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from rich.console import Console

from lezo.config.compose import Composed
from lezo.config.identity import run_hash
from lezo.config.methods import FirstOrderConfig
from lezo.config.schema import RunConfig
from lezo.model.adapter import Attached
from lezo.model.evaluate import Evaluation, Evaluator
from lezo.model.forward import Network
from lezo.model.hashes import examples_hash, tokenizer_hash, weights_hash
from lezo.model.layout import layout
from lezo.model.linear_probe import fit_head
from lezo.model.load import load, rebase, save_model, set_dropout
from lezo.noise import seeds
from lezo.records.checkpoint import find_checkpoints
from lezo.records.folder import (
    CHECKPOINTS,
    JOURNAL,
    MODEL,
    START,
    FolderError,
    RunFolder,
    code_version,
    environment,
    peak_memory,
    resident_memory,
)
from lezo.records.journal import read_journal
from lezo.records.schema import Header, Origin
from lezo.runs import banner, story
from lezo.runs.build import make_batches, make_evaluator, make_optimizer, make_recipe
from lezo.runs.durable import Durable
from lezo.runs.loop import DivergedError, Listener, Progress, train
from lezo.runs.plan import Plan, make_plan
from lezo.runs.prepare import device_of
from lezo.runs.resume import Past, made_no_step, read_past, refuse_other_origin
from lezo.runs.stop import Stop
from lezo.tracking.mirror import WandbMirror
from lezo.zo.parts import updates_of
from lezo.zo.rows import network_for
from lezo.zo.step import Optimizer, StepReport
from lezo.zo.timeline import Timeline


class Job:
    """A run's parts, in the order in which they come into being; ``result`` can be asked for at any moment.

    ``began``: whether the folder is this run's to write to; before that nothing in it is touched.
    """

    def __init__(self, composed: Composed, command: str, out: Console, stop: Stop | None = None) -> None:
        self.configure(composed)
        self.command, self.out = command, out
        self.started, self.progress, self.stop = time.perf_counter(), Progress(), stop or Stop()
        self.past, self.began = Past(), False
        self.plan: Plan | None = None
        self.held: int | None = None  # bytes of host memory before the model was loaded
        self.origin: Origin | None = None
        self.adapter: Attached | None = None
        self.network: Network | None = None
        self.weights: str | None = None
        self.mirror: WandbMirror | None = None
        self.zero_shot: Evaluation | None = None
        self.dev: Evaluation | None = None
        self.test: Evaluation | None = None

    def configure(self, composed: Composed) -> None:
        """Take another configuration, before anything was prepared by the one before it."""
        self.composed, self.config = composed, composed.config

    def prepare(self) -> Plan:
        """Read everything but the weights and say what the run will do. Raises what reading raises."""
        self.plan = make_plan(self.config)
        story.tell(self.out, banner.banner(self.config, self.plan, self.composed.run_dir))
        return self.plan

    def refuse_other_content(self, path: Path, then: Any, *, loads: bool) -> None:
        """Raise FolderError where data, tokenizer or, ``loads``, weights are not what a finished run started from."""
        plan = self.prepare()
        known = then.get("weights") if isinstance(then, dict) else None
        now = self._origin(plan, weights_hash(self._load(plan, path)) if loads else str(known))
        refuse_other_origin(path, then, now)

    def save(self, path: Path, result: Mapping[str, Any]) -> None:
        """Write the model of the finished run at ``path``, made again without a step. Raises FolderError where it is another."""
        plan = self.plan or self.prepare()
        model = self._load(plan, path)
        header = Header(self._origin(plan, weights_hash(model)), make_recipe(self.config))
        refuse_other_origin(path, result.get("origin"), header.origin)
        if self.config.trains:
            self._bring_back(plan, model, header, path, int(result["best_step"] or result["steps"]))
        if self.config.fits_head:
            assert self.network is not None
            fit_head(self.network, plan.train, batch_size=self.config.eval.batch_size, pad=plan.parts.pad)
        if (found := weights_hash(model)) != result.get("weights"):
            reason = (
                f"its weights come to sha256 {found[:12]} here, and were {str(result.get('weights'))[:12]}"
            )
            raise FolderError(
                f"{path}: cannot write the model of this run: {reason}; the device or torch is another"
            )
        self._save(plan, model, path)

    def _bring_back(self, plan: Plan, model: Any, header: Header, path: Path, step: int) -> None:
        """Give a model just loaded the weights that ``step`` had, by the journal or a checkpoint of the run at ``path``."""
        first_order = self.config.first_order
        updates = None if first_order else updates_of(header.recipe, model, plan.layout)
        timeline = Timeline(model, self._rebase(plan, model, header), updates)
        journal = None if first_order else read_journal(path / JOURNAL)
        with story.replaying(self.out, f"weights of step {step}") as told:
            timeline.bring_to(step, journal, find_checkpoints(path / CHECKPOINTS), progress=told)

    def execute(self, folder: RunFolder) -> None:
        """Load, score, train, score again, and write the folder's files except the result."""
        if not folder.holds_run:
            self._begin(folder)
        plan = self.prepare()
        lasts = folder.holds_run and not made_no_step(folder.path)
        model = self._load(plan, folder.path if lasts else None)
        assert self.network is not None
        self.origin = self._origin(plan, weights_hash(model))
        header = Header(self.origin, make_recipe(self.config))
        if folder.holds_run:
            self.past = self._read_past(folder, header)
            self._begin(folder)
        if self.adapter is not None and (start := self.adapter.start()) is not None:
            folder.data(START, start)
        self._start_mirror(folder)
        evaluator = make_evaluator(plan, self.network, self.config.eval.batch_size)
        self.zero_shot = self.test = self.past.zero_shot or self._zero_shot(evaluator, plan, folder)
        if self.config.trains:
            self.test = None
            self._train(plan, model, evaluator, folder, header)
            self.test = self._scored(
                evaluator, plan, f"test at step {self.progress.best_step or self.progress.step}"
            )
        if self.config.fits_head:
            self._fit_head(plan, evaluator)
        if not self.config.trains and len(plan.dev):
            self.dev = evaluator(plan.dev)
            folder.evaluated(0, 0.0, self.dev)
            if self.mirror:
                self.mirror.evaluated(0, 0.0, self.dev)
        if self.mirror and self.test:
            self.mirror.tested(self.progress.best_step or self.progress.step, self.test, last=True)
        self._keep(plan, model, folder)

    def finish(self, status: str, error: str | None, folder: RunFolder) -> None:
        """Write the result, finish the mirror, print the summary."""
        result = self.result(status, error)
        folder.json("result.json", result)
        if self.mirror is not None:
            self.mirror.close(result)
        story.tell(
            self.out, f"see {folder.path}" if status == "failed" else banner.summary(result, folder.path)
        )
        lasts = status == "interrupted" or self.progress.step > 0  # what failed before would fail again
        if status != "finished" and lasts and self.progress.bad < self.config.train.max_bad_steps:
            self.out.print(f"go on with  {banner.going_on(self.command, folder.path)}")

    def result(self, status: str, error: str | None) -> dict[str, Any]:
        """What the run came to. Scores are fractions 0..1, seconds are wall-clock."""
        config, plan, done, optim = self.config, self.plan, self.progress, self.config.optim
        settings = {key: getattr(optim, key, None) for key in ("lr", "eps", "sparsity", "weight_decay")}
        if config.method.sparsity is not None:
            settings["sparsity"] = config.method.sparsity
        return {
            "status": status,
            "error": error,
            "task": config.task.name,
            "title": banner.title(config),
            "data": config.data.name,
            "synthetic": config.data.name == "sample",
            "metric": plan.parts.task.metric if plan else None,
            "model": banner.model_name(config),
            "dequantised": plan.parts.dequantised if plan else None,
            "optim": optim.name,
            "peft": config.peft.name,
            **settings,
            "blocks": banner.skipped(plan) if plan and config.method.zeroth_order else None,
            "steps": done.step,
            "objective": "metric" if config.judged else "loss",
            "seed": config.seed,
            "data_seed": config.task.data_seed,
            "test": _score(self.test),
            "dev": _score(self.dev or done.best),
            "dev_loss": (self.dev or done.best or Evaluation(None, 0.0)).loss,
            "zero_shot": _score(self.zero_shot),
            "best_step": done.best_step,
            "weights": self.weights,
            "origin": None if self.origin is None else asdict(self.origin),
            "seconds": self._seconds(),
            "peak_memory_bytes": peak_memory(),
            "memory_bytes": self._memory(),
            "skipped_steps": done.skipped,
            "rows": None if self.network is None else self.network.rows,
            "truncated": plan.truncated if plan else None,
            "examples": {name: len(getattr(plan, name)) for name in ("train", "dev", "test")}
            if plan
            else None,
            "command": self.command,
        }

    def _memory(self) -> dict[str, int | None]:
        """What the banner expected of the device, and the most that the run took of it beside what was held before."""
        plan, peak, before = self.plan, peak_memory(), self.held
        if plan is None or before is None:
            return {"expected": plan.memory.total if plan else None, "used": None}
        used = peak["device"] if plan.device.type == "cuda" else max(peak["host"] - before, 0)
        return {"expected": plan.memory.total, "used": used}

    def _seconds(self) -> dict[str, float | None]:
        done = self.progress
        median = statistics.median(done.step_seconds) if done.step_seconds else None
        total = done.elapsed + time.perf_counter() - self.started
        phases = {phase: done.phases.get(phase) for phase in ("forward", "perturb", "update", "data")}
        spent = {"train": done.train_seconds, "eval": done.eval_seconds, "step_median": median}
        return {"total": total, **spent, **phases}

    def _load(self, plan: Plan, run: Path | None) -> Any:
        """The model as training finds it, its adapter as it was at first in the folder ``run``, where there is one."""
        self.out.print(f"loading {plan.parts.source.path}")
        self.network = self.adapter = None  # a model that was loaded to be compared goes first
        self.held = resident_memory()
        model = load(
            plan.parts.source,
            plan.parts.model_config,
            dtype=plan.dtype,
            device=plan.device,
            seed=self.config.seed,
        )
        self.network = network_for(
            model,
            layout(model),
            longest=plan.lengths[1] + (plan.adapter.positions if plan.adapter else 0),
            probes=self.config.method.zeroth_order,
        )
        if plan.adapter is not None:
            start = run / START if run is not None and (run / START).exists() else None
            self.adapter = Attached(model, plan.adapter, seed=self.config.seed, start=start)
        optim = self.config.optim
        if isinstance(optim, FirstOrderConfig) and optim.dropout is not None:
            set_dropout(model, optim.dropout)
        if self.network.plain is not None:
            self.out.print(f"rows {self.network.rows}; so {self._in_plain_rows(plan, model)}")
        return model

    def _in_plain_rows(self, plan: Plan, model: Any) -> str:
        """What is done instead, and what it costs."""
        how = "one sequence a row by the model's own forward"
        if self.config.method.zeroth_order:
            sizes = [model.get_parameter(n).nbytes for n in plan.layout.active(range(plan.blocks.keep))]
            memory = replace(plan.memory, update=sum(sizes) + max(sizes))  # of one tensor both signs' copies
            self.plan = replace(plan, memory=memory)
            how += ", one sign after the other on copies of all active tensors; about "
            how += f"{story.size(memory.total)} expected in all, of which {story.size(memory.update)} copies"
        return how + (", not compiled" if self.config.model.compile else "")

    def _origin(self, plan: Plan, weights: str) -> Origin:
        return Origin(
            weights=weights,
            tokenizer=tokenizer_hash(plan.parts.tokenizer),
            data=examples_hash(
                [plan.train, plan.dev.scored, plan.dev.prompts, plan.test.scored, plan.test.prompts]
            ),
            dtype=banner.dtype_name(plan),
            noise=seeds.VERSION,
            config=run_hash(self.composed.yaml),
            code=code_version(),
        )

    def _read_past(self, folder: RunFolder, header: Header) -> Past:
        if not self.config.trains:  # scoring alone has nothing to go on from
            return Past()
        recipe = None if self.config.first_order else header.recipe
        settings = self.config.train
        try:
            return read_past(
                folder.path, header.origin, recipe, steps=settings.steps, eval_every=settings.eval_every
            )
        except FolderError:
            if not made_no_step(folder.path):
                raise
            folder.clear()  # begun with other data or weights, and nothing came of it
            return Past()

    def _begin(self, folder: RunFolder) -> None:
        """Make the folder this run's, cut to what lasts of the past."""
        folder.begin(b"".join(row.line for row in self.past.rows))
        self.past.forget()
        self.progress = self.past.progress()
        self.began = True
        folder.text("config.yaml", self.composed.yaml)
        now = {"command": self.command, "from_step": self.past.step}
        folder.session({**now, **environment(device_of(self.config))})

    def _zero_shot(self, evaluator: Evaluator, plan: Plan, folder: RunFolder) -> Evaluation:
        test = self._scored(evaluator, plan, "test before training")
        folder.row({"step": 0, "seconds": 0.0, "test_loss": test.loss, "test_score": test.score})
        if self.mirror and self.config.trains:
            self.mirror.tested(0, test, last=False)
        return test

    def _scored(self, evaluator: Evaluator, plan: Plan, what: str) -> Evaluation:
        start = time.perf_counter()
        test = evaluator(plan.test)
        self.progress.eval_seconds += time.perf_counter() - start
        self.out.print(f"{what}: {plan.parts.task.metric} {test.score:.4f}")
        return test

    def _train(self, plan: Plan, model: Any, evaluator: Evaluator, folder: RunFolder, header: Header) -> None:
        settings, done = self.config.train, self.progress
        optimizer = make_optimizer(self.config, evaluator.network, plan.layout, plan.blocks, evaluator)
        durable = self._durable(folder, header, plan, model, optimizer)
        self._go_back(durable)
        shown = story.ProgressStory(self.out, settings.steps, plan.parts.task.metric)
        batches = make_batches(self.config, plan, plain=evaluator.network.plain is not None)
        mirror = [self.mirror] if self.mirror else []
        try:
            train(
                optimizer,
                batches,
                partial(evaluator, plan.dev),
                Listeners([*durable.listeners(), shown, *mirror]),
                done,
                steps=settings.steps,
                eval_every=settings.eval_every,
                max_seconds=settings.max_seconds,
                max_bad_steps=min(settings.max_bad_steps, settings.steps),
                held=self.stop.held,
            )
            if done.best is None:
                raise DivergedError(f"step {done.step}: no dev loss since step 0 is finite")
        except DivergedError as error:
            raise DivergedError(
                f"{error}; weights in {banner.dtype_name(plan)}: {_way_out(self.config, plan)}"
            ) from error
        except KeyboardInterrupt:
            if not self.stop.torn:
                durable.interrupted(done.step)
            raise
        finally:
            shown.close()
            batches.close()
            durable.close()
        if done.best_step is not None and done.best_step != done.step:
            with story.replaying(self.out, f"weights of step {done.best_step}") as told:
                durable.bring_to(done.best_step, told)

    def _fit_head(self, plan: Plan, evaluator: Evaluator) -> None:
        start = time.perf_counter()
        fit_head(evaluator.network, plan.train, batch_size=self.config.eval.batch_size, pad=plan.parts.pad)
        self.progress.train_seconds = time.perf_counter() - start
        self.test = self._scored(evaluator, plan, f"test with a head fitted to {len(plan.train)} rows")

    def _durable(
        self, folder: RunFolder, header: Header, plan: Plan, model: Any, optimizer: Optimizer
    ) -> Durable:
        return Durable(
            folder.path,
            folder,
            header,
            self.past,
            model,
            optimizer,
            self._rebase(plan, model, header),
            every=self.config.train.checkpoint_every,
            keep=self.config.train.keep_checkpoints,
            best=lambda: self.progress.best_step,
        )

    def _rebase(self, plan: Plan, model: Any, header: Header) -> Callable[[], None]:
        """What gives the model its base weights back."""
        parts, weights = plan.parts, header.origin.weights
        if self.adapter is not None:
            return partial(self.adapter.rebase, weights)
        return partial(rebase, model, parts.source, parts.model_config, self.config.seed, weights)

    def _go_back(self, durable: Durable) -> None:
        """Bring the weights to where the earlier sessions left them."""
        step = self.past.step
        if step or self.past.rows:
            self.out.print(f"going on with this run after step {step} of {self.config.train.steps}")
        if step:
            with story.replaying(self.out, f"weights of step {step}") as told:
                durable.go_back(step, told)

    def _keep(self, plan: Plan, model: Any, folder: RunFolder) -> None:
        """Write the predictions and what is known of the final weights, and the model where it is wanted."""
        assert self.test is not None
        self.weights = weights_hash(model)
        folder.lines("predictions.jsonl", self.test.predictions)
        if self.config.save_model:
            self._save(plan, model, folder.path)
        else:
            folder.drop_model()  # that of an earlier end, which somebody replayed meanwhile

    def _save(self, plan: Plan, model: Any, path: Path) -> None:
        """Write the model, or its adapter, into the run folder ``path``."""
        write = model.save_pretrained
        if self.adapter is not None:
            source = plan.parts.source
            write = partial(self.adapter.save, base=source.path, revision=source.revision)
        save_model(write, plan.parts.tokenizer, path / MODEL)

    def _start_mirror(self, folder: RunFolder) -> None:
        log = self.config.log
        if log.name == "wandb":
            self.mirror = WandbMirror(
                folder.path,
                config=OmegaConf.to_container(OmegaConf.create(self.composed.yaml)),  # type: ignore[arg-type]
                project=log.project,
                group=log.group,
                tags=[banner.title(self.config), self.config.optim.name, self.config.model.name, *log.tags],
                mode=log.mode.value,
                run_id=folder.run_id(),
                warn=lambda text: self.out.print(f"warning: {text}"),
            )


class Listeners:
    """Tells several listeners of everything, in turn."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = listeners

    def trained(self, step: int, seconds: float, report: StepReport) -> None:
        """After an update."""
        for listener in self._listeners:
            listener.trained(step, seconds, report)

    def evaluated(self, step: int, seconds: float, dev: Evaluation) -> None:
        """After a dev evaluation."""
        for listener in self._listeners:
            listener.evaluated(step, seconds, dev)


def _way_out(config: RunConfig, plan: Plan) -> str:
    """What to try where losses are no longer finite."""
    eps = " or optim.eps" if config.method.zeroth_order else ""
    wider = ", or model.dtype=bfloat16 or float32" if plan.dtype is torch.float16 else ""
    return f"try a smaller optim.lr{eps}{wider}"


def _score(evaluation: Evaluation | None) -> float | None:
    return None if evaluation is None else evaluation.score
