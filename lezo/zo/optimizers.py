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
from lezo.zo.blocks import UniformBlocks
from lezo.zo.journaled import LoopJournal
from lezo.zo.probe import PlainProbe
from lezo.zo.step import StepReport
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
    ``sparsity``: the share of blocks skipped in a step, 0 to 1. ``blocks``: modules of the model or their names, none
    inside another; None: those of its longest list of modules (``opt.blocks`` says which). ``weight_decay`` spares
    tensors of one dimension. ``rounding``: "stochastic" keeps the small updates of 16-bit weights. ``journal``: a file
    that gets 20 bytes a step, from which `lezo.apply_journal` makes the weights after any step again. ``across``: with
    several processes that each see a part of a batch, what makes the losses of all of one process's, (2,): the same in
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
        sparsity: float = 0.75,
        blocks: Sequence[str | nn.Module] | None = None,
        weight_decay: float = 0.0,
        rounding: Literal["nearest", "stochastic"] = "nearest",
        seed: int = 0,
        journal: str | os.PathLike[str] | None = None,
        across: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        refuse_no_module(model, f"lezo.{type(self).__name__}")
        settings: dict[str, Any] = {
            "lr": lr,
            "eps": eps,
            "sparsity": sparsity,
            "weight_decay": weight_decay,
            "seed": seed,
            "rounding": rounding,
            "steps": 0,
        }
        if not lr > 0:
            raise ValueError(f"lr={lr}: expected a number above 0")
        parameters = list(trainable(model).values())
        self.model = model
        if blocks is None:  # where nothing is skipped, nothing need be told apart
            blocks = trainable_blocks(model) if sparsity else ()
        self.layout = layout_of(model, blocks)
        self.blocks = self.layout.modules
        _refuse(settings, self.layout)
        self.last: StepReport | None = None
        self._probed: Tensor | None = None
        self._across = across
        self._journal = None if journal is None else LoopJournal(Path(journal))
        super().__init__(parameters, settings)

    @property
    def shared(self) -> bool:
        """Whether several processes make its steps together."""
        return self._across is not None

    @property
    def steps(self) -> int:
        """How many were taken, skipped updates included. Set it to go on with weights that are those after a step."""
        return int(self._settings["steps"])

    @steps.setter
    def steps(self, steps: int) -> None:
        self._settings["steps"] = steps
        self._restart()

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
            self._journal.expect(self.steps, zeroth_order.update, self.blocks, self._settings["sparsity"])
        self.last, self._probed = zeroth_order.move(self.steps, losses), None
        self._settings["steps"] += 1
        if self._journal is not None:
            self._journal.trained(self.steps, self.last)
        return losses.mean()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget what was probed since the last step. There are no gradients; those of others are reset as usual."""
        self._probed = None
        super().zero_grad(set_to_none)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Take step count, seed and settings of ``state_dict``. The weights are the model's own state."""
        super().load_state_dict(dict(state_dict))
        self._restart()

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

    def _zeroth_order(self) -> ZerothOrder:
        """The step by the present settings."""
        now = self._settings
        _refuse(now, self.layout)
        return ZerothOrder(
            self.model,
            self.layout,
            UniformBlocks(len(self.blocks), now["sparsity"]),
            PlainProbe(self.model, lambda model, closure: closure()),
            lr=float(now["lr"]),
            eps=now["eps"],
            weight_decay=now["weight_decay"],
            rounding=now["rounding"],
            seed=now["seed"],
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
