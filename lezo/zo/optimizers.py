"""MeZO and LeZO for any module and loss, in a training loop of one's own: optimizers in the manner of torch.optim."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lezo.model.layout import Layout, layout_of, refuse_no_module, trainable, trainable_blocks
from lezo.zo.blocks import Learner, UniformBlocks
from lezo.zo.journaled import LoopJournal
from lezo.zo.methods.adam import Adam
from lezo.zo.parts import (
    ClosureContext,
    Composition,
    LoopMethod,
    PartError,
    blocks_of,
    direction_of,
    estimator_of,
    rule_of,
    step_size_of,
    uniform,
)
from lezo.zo.parts import (
    method as method_named,
)
from lezo.zo.step import StepReport, Stopwatch
from lezo.zo.zeroth_order import ZerothOrder

Closure = Callable[[], Tensor | float]
"""Runs the model and returns the loss: a tensor of one element, or a number. It calls no backward."""


class LeZO(torch.optim.Optimizer):
    """Layer-wise sparse zeroth-order SGD: each step perturbs and updates some of the blocks, and all else.

    ``opt.step(closure)`` calls the closure twice, with the model at theta + eps z and at theta - eps z, and makes
    theta <- theta - lr g z, g = (l+ - l-) / (2 eps). Or in two parts, where a loop has ``loss.backward()``:
    ``opt.probe(closure)``, which adds up over the parts of a batch until ``opt.step()``.

    While it probes, the model has perturbed copies in the places of its parameters. Theta itself is only read, so
    it is bit-identical after a probe, also where the closure raises. What the closure draws from torch's generators,
    such as dropout's masks, is the same in both calls, follows from (seed, step), and leaves the generators as they
    were. BatchNorm in training mode takes into its running statistics what theta - eps z saw.

    Memory: one forward's without gradients, a copy of the active tensors (all that is not in a skipped block), and a
    second copy of the largest. Time: two forwards, three passes of noise over the active tensors.
    Weights in 16 bits are perturbed in 16 bits, where eps z below half a unit of the last place is lost; compute the
    loss in fp32.

    ``model``: any module; its tensors with requires_grad, as they are at the start, are trained, tied ones once.
    ``sparsity``: the share of blocks skipped in a step, 0 to 1; None 0.75. ``method``: another method of lezo-run in the place of
    LeZO, by its name or, with settings, as ``lezo.method("adalezo", keep=0.4)``; sparsity is then one of its settings. What
    it remembers or has learned is in ``state_dict()``. ``blocks``: modules of the model or their names, none
    inside another; None: those of its longest list of modules (``opt.blocks`` says which). ``weight_decay`` spares
    tensors of one dimension. ``rounding``: "stochastic" keeps the small updates of 16-bit weights. ``journal``: a file
    that gets 20 bytes a step, from which `lezo.apply_journal` makes the weights after any step again. ``across``: with
    several processes that each see a part of a batch, what makes the losses of all of one process's, (2,), 2N with
    probes=N and N + 1 with fzoo: the same in
    each, as ``lambda losses: accelerator.gather(losses[None]).mean(0)`` is.

    A learning-rate scheduler sets ``lr`` in ``param_groups[0]``, as with any optimizer. ``last`` is the latest step's
    report: a loss that is not finite skips the update, and ``last.applied`` is False.

    Raises ValueError for a setting out of range, a model without trainable tensors and blocks that are not its own;
    TypeError for parameters in place of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        *,
        eps: float = 1e-3,
        sparsity: float | None = None,
        method: str | LoopMethod | None = None,
        blocks: Sequence[str | nn.Module] | None = None,
        weight_decay: float = 0.0,
        rounding: Literal["nearest", "stochastic"] = "nearest",
        seed: int = 0,
        journal: str | os.PathLike[str] | None = None,
        across: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        refuse_no_module(model, f"lezo.{type(self).__name__}")
        if method is not None and sparsity is not None:
            given = f"sparsity={sparsity} and method={method!r}"
            raise ValueError(f"{given}: a method has its own, as in lezo.method('zo-adam', sparsity=0.5)")
        if isinstance(method, str):
            method = method_named(method)
        if not isinstance(method, LoopMethod | None):
            raise TypeError(f"method={method!r}: expected a name, a lezo.method(...) or None")
        settings: dict[str, Any] = {
            "lr": lr,
            "eps": eps,
            "sparsity": (0.75 if method is None else 0.0) if sparsity is None else sparsity,
            "weight_decay": weight_decay,
            "seed": seed,
            "rounding": rounding,
            "steps": 0,
        }
        if not lr > 0:
            raise ValueError(f"lr={lr}: expected a number above 0")
        if method is not None:
            settings["method"] = [method.name, dict(method.settings)]
        parameters = list(trainable(model).values())
        self.model = model
        if blocks is None:  # where nothing is skipped, nothing need be told apart
            blocks = () if _moves_all(settings) else trainable_blocks(model)
        self.layout = layout_of(model, blocks)
        self.blocks = self.layout.modules
        _refuse(settings, self.layout)
        self.last: StepReport | None = None
        self._probed: Tensor | None = None
        self._across = across
        self._journal = None if journal is None else LoopJournal(Path(journal))
        self._made: tuple[Any, ZerothOrder] | None = None
        # Of all steps the coefficients, where a chooser of blocks learns from them.
        self._past: list[tuple[float, ...]] = []
        super().__init__(parameters, settings)
        self._zeroth_order()  # refuses now what it would refuse at the first step

    @property
    def shared(self) -> bool:
        """Whether several processes make its steps together."""
        return self._across is not None

    @property
    def steps(self) -> int:
        """How many were taken, skipped updates included. Set it to go on with weights that are those after a step.

        ValueError for a method that remembers earlier steps: see `lezo.apply_journal`, whose ``optimizer`` goes on with them.
        """
        return int(self._settings["steps"])

    @steps.setter
    def steps(self, steps: int) -> None:
        zeroth_order = self._zeroth_order()
        if steps and steps != self.steps and (zeroth_order.state() or self._learns):
            raise ValueError(
                f"steps={steps}: the method remembers earlier steps, which a number does not bring back; expected "
                "lezo.apply_journal(model, journal, optimizer=opt), or opt.load_state_dict(...)"
            )
        if not steps:
            self.go_on(0, {}, [])
        self._settings["steps"] = steps
        self._restart()

    def go_on(self, steps: int, state: Mapping[str, Tensor], past: Sequence[Sequence[float]]) -> None:
        """Be after ``steps`` steps, whose coefficients were ``past``, with ``state`` for the rule's memory.

        ValueError where the state is another rule's.
        """
        self._settings["steps"] = steps
        self._restart()
        update = self._zeroth_order().update
        update.restore(state)
        self._past = [tuple(values) for values in past] if self._learns else []
        update.relearn(enumerate(self._past))

    def probe(self, closure: Closure) -> Tensor:
        """Measure the loss at theta +- eps z: returns the mean of the two, (), in fp32 or wider, on the device.

        Called more than once before a step, at the same z, the losses add up: give the loss of each part of a batch
        its share of the whole. ValueError where the closure returns no single number, TypeError where it is none.
        """
        if not callable(closure):
            expected = "a function that runs the model and returns its loss, as in opt.step(lambda: loss_of(model(x)))"
            raise TypeError(f"closure is a {type(closure).__name__}; expected {expected}")
        losses = self._zeroth_order().measure(self.steps, closure)
        self._probed = losses if self._probed is None else self._probed + losses
        return losses.mean()

    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Probe with ``closure``, if it is given, and update by what was probed since the last step.

        Returns the mean of the losses at theta + eps z and theta - eps z, (). RuntimeError where nothing was probed.
        The device is waited for once.
        """
        if closure is not None:
            self._probed = None
            self.probe(closure)
        if self._probed is None:
            raise RuntimeError("step() has no losses; expected step(closure), or probe(closure) before it")
        losses = self._probed if self._across is None else self._across(self._probed)
        zeroth_order = self._zeroth_order()
        if self._journal is not None:
            self._journal.expect(self.steps, zeroth_order.update, self.blocks, _composition(self._settings))
        self.last, self._probed = zeroth_order.move(self.steps, losses), None
        if self._learns:
            self._past.append(self.last.coefficients)
        self._settings["steps"] += 1
        if self._journal is not None:
            self._journal.trained(self.steps, self.last)
        return losses.mean()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget what was probed since the last step. There are no gradients; those of others are reset as usual."""
        self._probed = None
        super().zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]
        """Step count, seed and settings; of a method that remembers earlier steps also its memory, as tensors."""
        update = self._zeroth_order().update
        told = {"rule": {key: value.clone() for key, value in update.state().items()}}
        if self._learns:
            told["past"] = torch.tensor(self._past, dtype=torch.float64)  # type: ignore[assignment]
        return super().state_dict() | {key: value for key, value in told.items() if len(value)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Take step count, seed and settings of ``state_dict``, and memory. The weights are the model's own state.

        ValueError where the memory is not the method's, or is lacking.
        """
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        rule, past = state_dict.get("rule", {}), state_dict.get("past", ())
        self._made = None
        if self.steps and (
            (self._zeroth_order().state() and not rule) or (self._learns and len(past) < self.steps)
        ):
            raise ValueError(
                "the state lacks what the method remembers of earlier steps; expected that of state_dict()"
            )
        self.go_on(self.steps, rule, [[float(c) for c in values] for values in past])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused: a step has one learning rate."""
        if self.param_groups:
            raise ValueError(
                "one group of parameters is all a zeroth-order step has; expected the tensors to train in the model"
            )
        super().add_param_group(param_group)

    @property
    def _settings(self) -> dict[str, Any]:
        return self.param_groups[0]

    def _restart(self) -> None:
        """Forget what was probed or opened for the next step, for steps are counted from elsewhere now."""
        self._probed = None
        if self._journal is not None:
            self._journal.close()

    @property
    def _learns(self) -> bool:
        """Whether blocks are chosen by what earlier steps came to."""
        return isinstance(self._zeroth_order().update.blocks, Learner)

    def _zeroth_order(self) -> ZerothOrder:
        """The step by the present settings; made once for a method, a seed and a kind of weights."""
        now, theta = self._settings, next(iter(self.param_groups[0]["params"]))
        _refuse(now, self.layout)
        key = now.get("method"), now["sparsity"], now["seed"], theta.dtype, theta.device
        if self._made is None or self._made[0] != key:
            self._made = key, self._new()
        made, lr = self._made[1], float(now["lr"])
        made.lr, made.eps = lr, now["eps"]
        made.update.decay, made.update.rounding = lr * now["weight_decay"], now["rounding"]
        if isinstance(made.update.rule, Adam):
            made.update.rule.lr = lr
        return made

    def _new(self) -> ZerothOrder:
        now, parts = self._settings, _composition(self._settings)
        try:
            blocks, direction = blocks_of(parts, self.layout), direction_of(parts)
            estimator = estimator_of(parts, ClosureContext(self.model, direction))
        except PartError as error:
            raise ValueError(str(error)) from None
        if not self.layout.non_block and not blocks.keep:
            raise ValueError(
                f"the method moves none of the {len(self.blocks)} blocks, and there is nothing else to train; "
                "expected settings by which some move, such as a lower sparsity"
            )
        watch = Stopwatch(next(self.model.parameters()).device)
        return ZerothOrder(
            self.model,
            self.layout,
            blocks,
            estimator,
            direction=direction,
            step_size=step_size_of(parts),
            rule=rule_of(parts),
            lr=float(now["lr"]),
            eps=now["eps"],
            seed=now["seed"],
            watch=watch,
        )


class MeZO(LeZO):
    """Zeroth-order SGD on every trainable tensor in every step: LeZO that skips nothing, and needs no blocks."""

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        *,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        rounding: Literal["nearest", "stochastic"] = "nearest",
        seed: int = 0,
        journal: str | os.PathLike[str] | None = None,
        across: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(
            model,
            lr,
            eps=eps,
            sparsity=0.0,
            blocks=(),
            weight_decay=weight_decay,
            rounding=rounding,
            seed=seed,
            journal=journal,
            across=across,
        )


def _composition(settings: Mapping[str, Any]) -> Composition:
    """The parts of the method: LeZO's, where none is named."""
    if (given := settings.get("method")) is None:
        return uniform(settings["sparsity"])
    lr = float(settings["lr"]) or 1.0  # nothing at a warm-up's start, where no part needs to know it
    return LoopMethod(given[0], given[1]).composition(lr)


def _moves_all(settings: Mapping[str, Any]) -> bool:
    """Whether no block is told from another."""
    parts = _composition(settings)
    return parts.blocks.name == "all" or (
        parts.blocks.name == "uniform" and not parts.blocks.settings["sparsity"]
    )


def _refuse(settings: Mapping[str, Any], layout: Layout) -> None:
    """ValueError for a setting out of range, and for those that leave nothing to train."""
    for name, low, high in (("lr", 0.0, math.inf), ("weight_decay", 0.0, math.inf), ("sparsity", 0.0, 1.0)):
        if not (low <= settings[name] <= high and math.isfinite(settings[name])):
            expected = f"a number from 0 to {high:g}" if high < math.inf else "a finite number, not below 0"
            raise ValueError(f"{name}={settings[name]}: expected {expected}")
    if not 0 < settings["eps"] < math.inf:
        raise ValueError(f"eps={settings['eps']}: expected a number above 0, such as 1e-3")
    if settings["rounding"] not in ("nearest", "stochastic"):
        raise ValueError(f"rounding={settings['rounding']!r}: expected nearest or stochastic")
    if not isinstance(settings["seed"], int) or settings["seed"] < 0:
        raise ValueError(f"seed={settings['seed']!r}: expected a whole number, not below 0")
    sparsity, blocks = settings["sparsity"], len(layout.blocks)
    if sparsity and not blocks:
        raise ValueError(f"sparsity={sparsity} of no blocks; name some with blocks=[...], or use lezo.MeZO")
    if not layout.non_block and not UniformBlocks(blocks, sparsity).keep:
        raise ValueError(
            f"sparsity={sparsity} of {blocks} blocks leaves nothing to train, for all tensors are in blocks; "
            "expected a lower sparsity"
        )
