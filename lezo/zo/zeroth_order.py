"""A zeroth-order step: some blocks, a direction, losses along it, and a step of some size. MeZO and LeZO are made so."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lezo.model.home import home_of
from lezo.model.layout import Layout
from lezo.noise import seeds
from lezo.noise.operands import sent
from lezo.zo.blocks import BlockChooser, Learner, Periodic, Weighted, active
from lezo.zo.direction import GAUSSIAN, Direction, moving
from lezo.zo.probe import Estimator
from lezo.zo.rule import Move, Rule, Sgd
from lezo.zo.step import Optimizer, StepReport, Stopwatch
from lezo.zo.step_size import Clipping, Constant, StepSize


class SeededUpdate:
    """theta <- theta - (sum of c_i z_i + decay theta) on a step's active tensors: a function of (seed, step, c) alone.

    ``blocks`` chooses those that take part, and may weight them; what is outside the blocks takes part unless it chooses
    that too. ``rule``: by what rule they move, if not as above; with a memory, it is a function of all c so far. A step decays
    weights by ``decay`` (lr * weight decay) times ``step_size``'s share. The same bits on every device, and in every replay.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        blocks: BlockChooser,
        *,
        direction: Direction = GAUSSIAN,
        step_size: StepSize | None = None,
        rule: Rule | None = None,
        seed: int,
        decay: float = 0.0,
        rounding: Literal["nearest", "stochastic"] = "nearest",
    ) -> None:
        self.model, self.direction, self.home = model, direction, home_of(model)
        self.layout = moving(direction, model, layout)
        self.blocks, self._initial_blocks = blocks, deepcopy(blocks)
        self._chosen: _Choice | None = None  # of the latest step
        self.step_size, self.rule = step_size or Constant(), rule or Sgd()
        self.seed, self.decay, self.rounding = seed, decay, rounding
        self.theta = dict(model.named_parameters())  # finding one by name is slower than a small update
        wide = any(theta.dtype == torch.float64 for theta in self.theta.values())
        self.dtype = torch.float64 if wide else torch.float32  # of coefficients, as steps are computed

    def drawn(self, step: int) -> tuple[int, tuple[str, ...]]:
        """The seed of step ``step``, counted from 0, and the names of its active tensors."""
        choice = self._choice(step)
        return choice.seed, active(self.layout, self.blocks, choice.blocks)

    def _choice(self, step: int) -> _Choice:
        if self._chosen is None or self._chosen.step != step:
            seed = seeds.step_seed(self.seed, step)
            self._begin(step)
            factors = self.blocks.factors(step, seed) if isinstance(self.blocks, Weighted) else {}
            self._chosen = _Choice(step, seed, self.blocks(step, seed), factors)
        return self._chosen

    def _begin(self, step: int) -> None:
        """Tell what keeps its draws for a period of which one step ``step`` is."""
        for part in (self.blocks, self.direction):
            if isinstance(part, Periodic):
                part.begin(seeds.step_seed(self.seed, step - step % part.period))

    @torch.no_grad()
    def apply(self, step: int, coefficients: Tensor) -> None:
        """Make step ``step``'s update, each direction in fp32 and rounded once. Nothing if a c is not finite.

        ``coefficients``: (q,) on the device, one a direction.
        """
        seed, names = self.drawn(step)
        coefficients, share = coefficients.to(self.dtype), self.step_size.share(step)
        if len(coefficients) > 1:  # with one direction the kernel checks it
            coefficients = coefficients.where(coefficients.isfinite().all(), math.nan)
        settings = self.direction, seed, coefficients, self.decay * share, self.rounding, share
        by = Move(*settings, self._factors(step))
        for thetas in self.home.updates({name: self.theta[name] for name in names}):
            self.rule.move(thetas, self.theta, by)

    def _factors(self, step: int) -> dict[str, float]:
        """Of tensors, where a chooser of blocks has some."""
        factors = self._choice(step).factors.items()
        return {name: factor for group, factor in factors for name in self.layout.of(group)}

    def learn(self, step: int, coefficients: Sequence[float]) -> None:
        """Step ``step`` is made, and came to this: for the rule, and a chooser of blocks that learns."""
        self.rule.made(self.drawn(step)[1], all(map(math.isfinite, coefficients)))
        self._observe(step, coefficients)

    def _observe(self, step: int, coefficients: Sequence[float]) -> None:
        if isinstance(self.blocks, Learner):
            self.blocks.observe(step, self._choice(step).blocks, coefficients)
            self._chosen = None

    def relearn(self, past: Iterable[tuple[int, Sequence[float]]]) -> None:
        """Choose blocks as after ``past``, the steps before the next one, in order; what was learned else is forgotten."""
        self.blocks, self._chosen = deepcopy(self._initial_blocks), None
        if not isinstance(self.blocks, Learner):
            return
        for step, coefficients in past:
            self._observe(step, coefficients)

    def state(self) -> Mapping[str, Tensor]:
        """What the rule remembers, on the device; weights and journal do not have it."""
        return self.rule.state(self.theta)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Remember this instead; nothing: as before the first step. ValueError for a state that is not the rule's."""
        self.rule.restore(state, self.theta)

    def replay(self, past: Sequence[tuple[int, Sequence[float]]]) -> Iterator[int]:
        """Make a journal's updates of these steps again, in order, and learn from them; yields each step when it is made.

        The coefficients go to the device together, before the first update; nothing waits for it in between.
        """
        device = next(iter(self.theta.values())).device
        together = torch.tensor([c for _, coefficients in past for c in coefficients], dtype=self.dtype)
        rows = torch.split(sent(together, device), [len(coefficients) for _, coefficients in past])
        for (step, coefficients), row in zip(past, rows, strict=True):
            self.apply(step, row)
            self.learn(step, coefficients)
            yield step


@dataclass(frozen=True)
class _Choice:
    """A step's seed, its blocks (or groups, see `lezo.zo.blocks.GroupChooser`), and their factors where they have some."""

    step: int
    seed: int
    blocks: tuple[int, ...]
    factors: Mapping[int, float]


class ZerothOrder(Optimizer):
    """Measure the losses along z on some blocks, and step along z by their slope; five parts decide how.

    ``blocks`` and ``direction`` say which weights are moved where, ``estimator`` measures, ``step_size`` is a factor
    of ``lr``, ``rule`` moves. MeZO: all blocks, Gaussian, at theta +- eps z, constant, SGD; LeZO: blocks drawn uniformly.
    ``estimator`` draws the same z as ``direction``.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        blocks: BlockChooser,
        estimator: Estimator,
        *,
        direction: Direction = GAUSSIAN,
        step_size: StepSize | None = None,
        rule: Rule | None = None,
        lr: float,
        eps: float,
        weight_decay: float = 0.0,
        rounding: Literal["nearest", "stochastic"] = "nearest",
        seed: int = 0,
        watch: Stopwatch | None = None,
    ) -> None:
        self.update = SeededUpdate(
            model,
            layout,
            blocks,
            direction=direction,
            step_size=step_size,
            rule=rule,
            seed=seed,
            decay=lr * weight_decay,
            rounding=rounding,
        )
        self.estimator, self.lr, self.eps = estimator, lr, eps
        self.watch = watch or Stopwatch(next(model.parameters()).device)

    def state(self) -> Mapping[str, Tensor]:
        """See `SeededUpdate.state`."""
        return self.update.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `SeededUpdate.restore`."""
        self.update.restore(state)

    def step(self, step: int, batch: Any) -> StepReport:
        """Measure and, where all losses are finite, update. The device is waited for once, at the end."""
        return self.move(step, self.measure(step, batch))

    def measure(self, step: int, batch: Any) -> Tensor:
        """The estimator's losses, (n,), of step ``step``; those of parts of a batch add up."""
        seed, active = self.update.drawn(step)
        return self.estimator(batch, active, seed=seed, eps=self.eps)

    def move(self, step: int, losses: Tensor) -> StepReport:
        """Update by what `measure` found, where all is finite, in the losses' precision: c_i = rate * slope_i / q."""
        measured, sizes = self.estimator.slopes(losses, self.eps), self.update.step_size
        slopes = sizes.clipped(measured) if isinstance(sizes, Clipping) else measured
        rate = self.lr * sizes(step, slopes)
        coefficients = rate / len(slopes) * slopes
        with self.watch("update"):
            self.update.apply(step, coefficients)
        read = [losses, measured, coefficients]
        if slopes is not measured:
            read.append(slopes.mean().reshape(1))
        if isinstance(rate, Tensor):
            read.append(rate.reshape(1))
        values = torch.cat([part.to(losses.dtype) for part in read]).tolist()
        n, q = len(losses), len(slopes)
        losses_read, slopes_read, (c, *more) = values[:n], values[n : n + q], values[n + q : n + 2 * q]
        self.update.learn(step, (c, *more))
        measures = {"g": sum(slopes_read) / q, "lr": values[-1] if isinstance(rate, Tensor) else rate}
        if slopes is not measured:
            measures["g_clipped"] = values[n + 2 * q]
        measures |= self.estimator.measures(losses_read)
        applied = all(map(math.isfinite, (c, *more)))
        return StepReport(sum(losses_read) / n, applied, measures, c, self.watch.lap(), more=tuple(more))
