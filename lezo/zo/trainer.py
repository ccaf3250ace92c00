"""MeZO and LeZO in Hugging Face's Trainer and its heirs: probes where they have backward passes, and all else stays their own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers import Trainer

from lezo.model.compatibility import write_for_version_4
from lezo.zo.optimizers import LeZO
from lezo.zo.parts import LoopMethod
from lezo.zo.parts import method as method_named
from lezo.zo.trained_card import write_card

_Trainer: Any = Trainer if TYPE_CHECKING else object  # whose methods the mixin calls


class ZOStep(_Trainer):  # type: ignore[misc] # transformers is untyped
    """Makes a trainer of Trainer's kind fine-tune with forward passes only: ``class ZOSFT(lezo.ZOStep, trl.SFTTrainer): pass``.

    Its other arguments, and what it does, are the trainer's. It stands first among the bases. The trainer's ``training_step``
    must come to the same for the same batch, however often it is called; what the trainer counts of batches it counts of forwards.

    ``args`` gives learning rate, its schedule, weight decay and seed; ``sparsity`` (0: MeZO), ``method``, ``eps``, ``blocks``,
    ``rounding`` and ``journal`` are those of `lezo.LeZO`. ``zo`` is the optimizer, once training has begun. Scheduler,
    evaluation, checkpoints and going on from them work as ever: a run that is resumed makes the same bits. Batches of
    gradient_accumulation_steps are probed at one z, and make one update. Losses are computed by ``compute_loss``
    in eval mode: dropout is off, as published. ``max_grad_norm`` and ``optim`` have no effect, for there are no
    gradients. Logs get ``projected_gradient``, g, and ``update_skipped``, 1 where the last loss was not finite.

    Several processes (torchrun, accelerate launch) see a batch each, as Trainer has it, exchange two losses a step and
    make the same update; there is no DistributedDataParallel, whose buffers are for gradients. The first writes the journal.

    Raises ValueError for what needs gradients or is not done here: fp16=True, several GPUs in one process, DeepSpeed,
    FSDP, a trainer that generates as it trains, an optimizer that is not `lezo.LeZO`; with several processes also for one that has no ``across``.
    """

    optimizer: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        ahead = cls.__mro__[: cls.__mro__.index(ZOStep)]
        if any("training_step" in vars(base) and not issubclass(base, ZOStep) for base in ahead):
            bases = ", ".join(base.__name__ for base in cls.__bases__)
            raise TypeError(f"class {cls.__name__}({bases}): expected lezo.ZOStep before the trainer")

    def __init__(
        self,
        *args: Any,
        eps: float = 1e-3,
        sparsity: float | None = None,
        method: str | LoopMethod | None = None,
        blocks: Sequence[str | nn.Module] | None = None,
        rounding: Literal["nearest", "stochastic"] = "nearest",
        journal: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.zo_settings: dict[str, Any] = {
            "eps": eps,
            "sparsity": sparsity,
            "method": method,
            "blocks": blocks,
        }
        self.zo_settings |= {"rounding": rounding, "journal": journal}
        _refuse(self)
        self.zo: LeZO | None = self.optimizer

    def create_accelerator_and_postprocess(self) -> None:
        """The trainer's, with nothing in the place of the backward pass, and the model as it is in all processes."""
        super().create_accelerator_and_postprocess()
        self.accelerator.backward = lambda loss, **_: None
        self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """LeZO of the trainer's settings, where none was given."""
        if self.optimizer is None:
            several = self.args.world_size > 1
            if several:
                self._share_weights()
            if several and not self.is_world_process_zero():
                self.zo_settings["journal"] = None
            self.optimizer = self.zo = LeZO(
                self.model if model is None else model,
                lr=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                seed=self.args.seed,
                across=self._mean_of_processes if several else None,
                **self.zo_settings,
            )
        return self.optimizer  # type: ignore[no-any-return]

    def _share_weights(self) -> None:
        """Give all processes the first one's: a new head, say, has values of its own in each."""
        from accelerate.utils import broadcast  # of the extra that Trainer asks for

        for tensor in (*self.model.parameters(), *self.model.buffers()):
            broadcast(tensor.data)

    def _mean_of_processes(self, losses: Tensor) -> Tensor:
        """Of (n,) losses of each, as the method measures: in the order of their numbers, so that all come to the same bits."""
        return self.accelerator.gather(losses[None]).mean(0)  # type: ignore[no-any-return]

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The trainer's, at theta + eps z and theta - eps z; the update is the optimizer's step, which it takes itself."""
        assert self.zo is not None
        return self.zo.probe(partial(super().training_step, *args, **kwargs))

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The trainer's, in eval mode."""
        with _in_eval_mode(model, self.model):
            return super().compute_loss(model, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The trainer's, with what the latest step measured in the place of a gradient's norm."""
        if "loss" in logs and self.zo is not None and self.zo.last is not None:
            last = self.zo.last
            logs = {name: value for name, value in logs.items() if name != "grad_norm"}
            logs |= {"projected_gradient": last.measures["g"], "update_skipped": float(not last.applied)}
        super().log(logs, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The trainer's, so that transformers 4 reads it too, and, but for a checkpoint, with a model card."""
        super().save_model(output_dir, _internal_call)
        folder = Path(output_dir or self.args.output_dir)
        if not self.args.should_save or not folder.is_dir():
            return
        write_for_version_4(folder)
        if not _internal_call and hasattr(getattr(self.model, "config", None), "model_type"):
            args, steps = self.args, self.zo.steps if self.zo is not None else 0
            settings = {
                "learning_rate": args.learning_rate,
                "schedule": args.lr_scheduler_type.value,
                "seed": args.seed,
            }
            settings |= {"weight_decay": args.weight_decay, "batch_size": args.train_batch_size}
            write_card(folder, self.model, {**settings, **self.zo_settings}, steps)


class ZOTrainer(ZOStep, Trainer):  # type: ignore[misc] # transformers is untyped
    """A Trainer that fine-tunes with forward passes only; see `ZOStep`."""


@contextmanager
def _in_eval_mode(*roots: nn.Module) -> Iterator[None]:
    """While it lasts, forwards of the first run in eval mode. Between them ``training`` of these modules is what it was, and
    after it too: TRL's trainers ask it whether what they measure belongs to training or to an evaluation.
    """
    training = roots[-1].training

    def said(value: bool) -> None:
        for root in roots:
            root.training = value

    roots[0].eval()
    said(training)
    hooks = (
        roots[0].register_forward_pre_hook(lambda *_: said(False), prepend=True),
        roots[0].register_forward_hook(lambda *_: said(training), always_call=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _refuse(trainer: Any) -> None:
    """Raise ValueError for what was asked for and cannot be, with the way out."""
    args, optimizer, journal = trainer.args, trainer.optimizer, trainer.zo_settings["journal"]
    constant = args.lr_scheduler_type == "constant"
    for refused, what, expected in (
        (args.fp16, "fp16=True", "use bf16=True, or a model loaded in torch.float16"),
        (
            args.n_gpu > 1,
            f"{args.n_gpu} GPUs in one process",
            "start a process for each by torchrun, or one with CUDA_VISIBLE_DEVICES=0",
        ),
        (
            args.world_size > 1 and isinstance(optimizer, LeZO) and not optimizer.shared,
            f"{args.world_size} processes and an optimizer without across",
            "give it one (see lezo.LeZO), or none: it is made then",
        ),
        (
            hasattr(trainer, "_buffered_inputs"),  # TRL's GRPO, RLOO and distillation
            "a trainer that generates as it trains",
            "one whose batches are its data, such as SFTTrainer: a step measures the same batch twice",
        ),
        (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled, "DeepSpeed or FSDP", "train without it"),
        (
            optimizer is not None and not isinstance(optimizer, LeZO),
            f"optimizers=({type(optimizer).__name__}, ...)",
            "give a lezo.LeZO or none",
        ),
        (trainer.optimizer_cls_and_kwargs is not None, "optimizer_cls_and_kwargs", "leave it out"),
        (
            journal is not None and args.weight_decay > 0 and not constant,
            f"a journal with weight_decay={args.weight_decay:g} and lr_scheduler_type={args.lr_scheduler_type}",
            "a journal has one decay for all steps: weight_decay=0 or lr_scheduler_type='constant'",
        ),
        (
            journal is not None and _keeps_rate(trainer.zo_settings["method"]) and not constant,
            f"a journal of this method with lr_scheduler_type={args.lr_scheduler_type}",
            "its journal has one learning rate for all steps: lr_scheduler_type='constant', or no journal",
        ),
    ):
        if refused:
            raise ValueError(f"{what}: {type(trainer).__name__} cannot do that; {expected}")


def _keeps_rate(method: str | LoopMethod | None) -> bool:
    """Whether the learning rate is in the rule itself, as Adam's is, and so in a journal's header."""
    made = method_named(method) if isinstance(method, str) else method
    return made is not None and "lr" in made.composition(1.0).rule.settings
