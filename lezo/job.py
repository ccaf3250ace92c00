"""One run, from a checked configuration to its folder's result."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from omegaconf import OmegaConf
from rich.console import Console
from torch import nn

from lezo import banner, story
from lezo.batches import Batches
from lezo.compose import Composed
from lezo.config import FirstOrderConfig, MezoConfig, RunConfig
from lezo.evaluate import Evaluation, Evaluator
from lezo.mirror import WandbMirror
from lezo.model import Layout, load, set_dropout
from lezo.network import Network, check
from lezo.objective import contributions
from lezo.optim import FirstOrder, Optimizer, StepReport, TwoPoint, UniformBlocks
from lezo.plan import Plan, make_plan
from lezo.probe import StreamProbe
from lezo.record import RunFolder, environment, peak_memory
from lezo.stopwatch import Stopwatch
from lezo.streams import Streams
from lezo.train import DivergedError, Listener, Progress, train


class Job:
    """A run's parts, in the order in which they come into being; ``result`` can be asked for at any moment."""

    def __init__(self, composed: Composed, command: str, out: Console) -> None:
        self.composed, self.config, self.command, self.out = composed, composed.config, command, out
        self.started, self.progress = time.perf_counter(), Progress()
        self.plan: Plan | None = None
        self.mirror: WandbMirror | None = None
        self.zero_shot: Evaluation | None = None
        self.dev: Evaluation | None = None
        self.test: Evaluation | None = None

    def prepare(self) -> Plan:
        """Read everything but the weights and say what the run will do. Raises what reading raises."""
        self.plan = make_plan(self.config)
        self.out.print(banner.banner(self.config, self.plan, self.composed.run_dir))
        return self.plan

    def execute(self, folder: RunFolder) -> None:
        """Load, score, train, score again, and write the folder's files except the result."""
        folder.text("config.yaml", self.composed.yaml)
        plan = self.prepare()
        folder.json("environment.json", {"command": self.command, **environment(plan.device)})
        self._start_mirror(folder)
        model = self._load(plan)
        evaluator = make_evaluator(plan, model, self.config.eval.batch_size)
        self.zero_shot = self.test = self._scored(evaluator, plan, "test before training")
        if self.config.trains:
            self.test = None
            self._train(plan, model, evaluator, folder)
            self.test = self._scored(
                evaluator, plan, f"test at step {self.progress.best_step or self.progress.step}"
            )
        elif len(plan.dev):
            self.dev = evaluator(plan.dev)
            folder.evaluated(0, 0.0, self.dev)
        folder.lines("predictions.jsonl", self.test.predictions)
        if self.config.save_model:
            model.save_pretrained(folder.path / "model")
            plan.parts.tokenizer.save_pretrained(folder.path / "model")

    def finish(self, status: str, error: str | None, folder: RunFolder) -> None:
        """Write the result, finish the mirror, print the summary."""
        result = self.result(status, error)
        folder.json("result.json", result)
        if self.mirror is not None:
            self.mirror.close(result)
        self.out.print(f"see {folder.path}" if status == "failed" else banner.summary(result, folder.path))

    def result(self, status: str, error: str | None) -> dict[str, Any]:
        """What the run came to. Scores are fractions 0..1, seconds are wall-clock."""
        config, plan, done, optim = self.config, self.plan, self.progress, self.config.optim
        settings = {key: getattr(optim, key, None) for key in ("lr", "eps", "sparsity", "weight_decay")}
        if config.optim.name == "mezo":
            settings["sparsity"] = 0.0
        return {
            "status": status,
            "error": error,
            "task": config.task.name,
            "title": banner.title(config),
            "data": config.data.name,
            "synthetic": config.data.name == "sample",
            "metric": plan.parts.task.metric if plan else None,
            "model": banner.model_name(config),
            "optim": optim.name,
            **settings,
            "blocks": banner.skipped(plan) if plan and config.trains and not config.first_order else None,
            "steps": done.step,
            "seed": config.seed,
            "data_seed": config.task.data_seed,
            "test": _score(self.test),
            "dev": _score(self.dev or done.best),
            "dev_loss": (self.dev or done.best or Evaluation(None, 0.0)).loss,
            "zero_shot": _score(self.zero_shot),
            "best_step": done.best_step,
            "seconds": self._seconds(),
            "peak_memory_bytes": peak_memory(),
            "skipped_steps": done.skipped,
            "truncated": plan.truncated if plan else None,
            "command": self.command,
        }

    def _seconds(self) -> dict[str, float | None]:
        done = self.progress
        median = statistics.median(done.step_seconds) if done.step_seconds else None
        total = time.perf_counter() - self.started
        phases = {phase: done.phases.get(phase) for phase in ("forward", "perturb", "update", "data")}
        spent = {"train": done.train_seconds, "eval": done.eval_seconds, "step_median": median}
        return {"total": total, **spent, **phases}

    def _load(self, plan: Plan) -> Any:
        self.out.print(f"loading {plan.parts.source.path}")
        model = load(
            plan.parts.source,
            plan.parts.model_config,
            dtype=plan.dtype,
            device=plan.device,
            seed=self.config.seed,
        )
        check(Network(model), vocabulary=plan.parts.model_config.vocab_size, longest=plan.lengths[1])
        optim = self.config.optim
        if isinstance(optim, FirstOrderConfig) and optim.dropout is not None:
            set_dropout(model, optim.dropout)
        return model

    def _scored(self, evaluator: Evaluator, plan: Plan, what: str) -> Evaluation:
        start = time.perf_counter()
        test = evaluator(plan.test)
        self.progress.eval_seconds += time.perf_counter() - start
        self.out.print(f"{what}: {plan.parts.task.metric} {test.score:.4f}")
        return test

    def _train(self, plan: Plan, model: Any, evaluator: Evaluator, folder: RunFolder) -> None:
        settings, best = self.config.train, BestWeights(model)
        shown = story.ProgressStory(self.out, settings.steps, plan.parts.task.metric)
        batches = make_batches(self.config, plan)
        try:
            train(
                make_optimizer(self.config, model, plan.layout, plan.blocks),
                batches,
                partial(evaluator, plan.dev),
                best.keep,
                Listeners([folder, shown, *([self.mirror] if self.mirror else [])]),
                self.progress,
                steps=settings.steps,
                eval_every=settings.eval_every,
                max_seconds=settings.max_seconds,
                max_bad_steps=settings.max_bad_steps,
            )
        except DivergedError as error:
            raise DivergedError(f"{error}; weights in {banner.dtype_name(plan)}: {_way_out(plan)}") from error
        finally:
            shown.close()
            batches.close()
        best.restore()

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
                warn=lambda text: self.out.print(f"warning: {text}"),
            )


class BestWeights:
    """The trainable weights of the best step, in host memory."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._kept: dict[str, torch.Tensor] = {}

    def keep(self) -> None:
        """Copy the weights as they are now."""
        self._kept = {name: p.detach().to("cpu", copy=True) for name, p in self._parameters.items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Bring the kept weights back, if any were kept."""
        for name, kept in self._kept.items():
            self._parameters[name].copy_(kept)


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


def make_evaluator(plan: Plan, model: Any, batch_size: int) -> Evaluator:
    """The evaluator of the plan's task; a generation ends at a newline or the end of text."""
    task, tokenizer = plan.parts.task, plan.parts.tokenizer
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"][-1:]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return Evaluator(
        network=Network(model),
        loss=task.loss,
        metric=task.metric,
        batch_size=batch_size,
        pad=plan.parts.pad,
        device=plan.device,
        decode=partial(tokenizer.decode, skip_special_tokens=True),
        stop=[*newline, *end],
    )


def make_optimizer(config: RunConfig, model: nn.Module, layout: Layout, blocks: UniformBlocks) -> Optimizer:
    """The configured optimizer over the model's trainable tensors."""
    optim, device = config.optim, next(model.parameters()).device
    if isinstance(optim, MezoConfig):
        assert optim.lr is not None  # config.check saw to it
        watch = Stopwatch(device)
        return TwoPoint(
            model,
            layout,
            blocks,
            StreamProbe(Streams(model, layout, watch, compiled=config.model.compile)),
            lr=optim.lr,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            rounding=optim.rounding.value,
            seed=config.seed,
            watch=watch,
        )
    assert isinstance(optim, FirstOrderConfig) and optim.lr is not None
    return FirstOrder(
        model,
        partial(contributions, Network(model)),
        algorithm="adamw" if optim.name == "fo-adamw" else "sgd",
        lr=optim.lr,
        steps=config.train.steps,
        weight_decay=optim.weight_decay,
        momentum=optim.momentum,
        schedule=optim.schedule.value,
        clip_norm=optim.clip_norm,
        dropout=optim.dropout != 0,
        seed=config.seed,
        autocast=partial(torch.autocast, device.type, torch.bfloat16, enabled=device.type == "cuda"),
    )


def make_batches(config: RunConfig, plan: Plan) -> Batches:
    """The stream of the plan's batches."""
    return Batches(
        plan.train,
        loss=plan.parts.task.loss,
        seed=config.seed,
        batch_size=config.train.batch_size,
        micro_batch_size=config.train.micro_batch_size,
        pad=plan.parts.pad,
        device=plan.device,
    )


def _way_out(plan: Plan) -> str:
    """What to try where losses are no longer finite."""
    wider = ", or model.dtype=bfloat16 or float32" if plan.dtype is torch.float16 else ""
    return f"try a smaller optim.lr{wider}"


def _score(evaluation: Evaluation | None) -> float | None:
    return None if evaluation is None else evaluation.score
