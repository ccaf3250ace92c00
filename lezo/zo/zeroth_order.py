"""A zeroth-order step: some blocks, a direction, losses along it, and a step of some size. MeZO and LeZO are made so."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lezo.model.home import home_of
from lezo.model.layout import Layout
from lezo.noise import seeds
from lezo.noise.operands import sent
from lezo.zo.blocks import BlockChooser, Learner, Periodic
from lezo.zo.direction import GAUSSIAN, Direction, update_all_
from lezo.zo.probe import Estimator
from lezo.zo.step import Optimizer, StepReport, Stopwatch
from lezo.zo.step_size import Constant, StepSize


class SeededUpdate:
    """theta <- theta - (sum of c_i z_i + decay theta) on a step's active tensors: a function of (seed, step, c) alone.

    ``blocks`` chooses those that take part; what is outside the blocks always does. A step decays weights by
    ``decay`` (lr * weight decay) times ``step_size``'s share of it. The same bits on every device, and in every replay.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        blocks: BlockChooser,
        *,
        direction: Direction = GAUSSIAN,
        step_size: StepSize | None = None,
        seed: int,
        decay: float = 0.0,
        rounding: Literal["nearest", "stochastic"] = "nearest",
    ) -> None:
        self.model, self.layout, self.direction, self.home = model, layout, direction, home_of(model)
        self.blocks, self._initial_blocks = blocks, deepcopy(blocks)
        self._chosen: tuple[int, int, tuple[int, ...]] | None = None  # the latest step, its seed, its blocks
        self.step_size = step_size or Constant()
        self.seed, self.decay, self.rounding = seed, decay, rounding
        self.theta = dict(model.named_parameters())  # finding one by name is slower than a small update

    def drawn(self, step: int) -> tuple[int, tuple[str, ...]]:
        """The seed of step ``step``, counted from 0, and the names of its active tensors."""
        seed, blocks = self._choice(step)
        return seed, self.layout.active(blocks)

    def _choice(self, step: int) -> tuple[int, tuple[int, ...]]:
        if self._chosen is None or self._chosen[0] != step:
            seed = seeds.step_seed(self.seed, step)
            self._begin(step)
            self._chosen = step, seed, self.blocks(step, seed)
        return self._chosen[1:]

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
        seed, active = self.drawn(step)
        if len(coefficients) > 1:  # with one direction the kernel checks it
            coefficients = coefficients.where(coefficients.isfinite().all(), math.nan)
        decay = self.decay * self.step_size.share(step)
        for thetas in self.home.updates({name: self.theta[name] for name in active}):
            for number, coefficient in enumerate(coefficients):
                along = seeds.direction_seed(seed, number)
                each = {n: decay if number == 0 and decays(theta) else 0.0 for n, theta in thetas.items()}
                update_all_(self.direction, thetas, along, coefficient, each, rounding=self.rounding)

    def learn(self, step: int, coefficients: Sequence[float]) -> None:
        """Tell a chooser of blocks that learns what step ``step`` came to."""
        if isinstance(self.blocks, Learner):
            self.blocks.observe(step, self._choice(step)[1], coefficients)
            self._chosen = None

    def relearn(self, past: Iterable[tuple[int, Sequence[float]]]) -> None:
        """Forget what was learned, and learn from ``past``: the steps before the next one, in order."""
        self.blocks, self._chosen = deepcopy(self._initial_blocks), None
        if not isinstance(self.blocks, Learner):
            return
        for step, coefficients in past:
            self.learn(step, coefficients)

    def replay(self, past: Sequence[tuple[int, Sequence[float]]]) -> Iterator[int]:
        """Make a journal's updates of these steps again, in order, and learn from them; yields each step when it is made.

        The coefficients go to the device together, before the first update; nothing waits for it in between.
        """
        theta = next(iter(self.theta.values()))
        dtype = torch.float64 if theta.dtype == torch.float64 else torch.float32
        together = torch.tensor([c for _, coefficients in past for c in coefficients], dtype=dtype)
        rows = torch.split(sent(together, theta.device), [len(coefficients) for _, coefficients in past])
        for (step, coefficients), row in zip(past, rows, strict=True):
            self.apply(step, row)
            self.learn(step, coefficients)
            yield step


class ZerothOrder(Optimizer):
    """Measure the losses along z on some blocks, and step along z by their slope; four parts decide how.

    ``blocks`` and ``direction`` say which weights are moved where, ``estimator`` measures, ``step_size`` is a factor
    of ``lr``. MeZO: all blocks, Gaussian, at theta +- eps z, constant; LeZO: blocks drawn uniformly. ``estimator`` draws
    the same z as ``direction``.
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
            seed=seed,
            decay=lr * weight_decay,
            rounding=rounding,
        )
        self.estimator, self.lr, self.eps = estimator, lr, eps
        self.watch = watch or Stopwatch(next(model.parameters()).device)

    def step(self, step: int, batch: Any) -> StepReport:
        """Measure and, where all losses are finite, update. The device is waited for once, at the end."""
        return self.move(step, self.measure(step, batch))

    def measure(self, step: int, batch: Any) -> Tensor:
        """The estimator's losses, (n,), of step ``step``; those of parts of a batch add up."""
        seed, active = self.update.drawn(step)
        return self.estimator(batch, active, seed=seed, eps=self.eps)

    def move(self, step: int, losses: Tensor) -> StepReport:
        """Update by what `measure` found, where all is finite, in the losses' precision: c_i = rate * slope_i / q."""
        slopes = self.estimator.slopes(losses, self.eps)
        rate = self.lr * self.update.step_size(step, slopes)
        coefficients = rate / len(slopes) * slopes
        with self.watch("update"):
            self.update.apply(step, coefficients)
        read = [losses, slopes, coefficients]
        if isinstance(rate, Tensor):
            read.append(rate.reshape(1))
        values = torch.cat([part.to(losses.dtype) for part in read]).tolist()
        n, q = len(losses), len(slopes)
        losses_read, slopes_read, (c, *more) = values[:n], values[n : n + q], values[n + q : n + 2 * q]
        self.update.learn(step, (c, *more))
        measures = {"g": sum(slopes_read) / q, "lr": values[-1] if isinstance(rate, Tensor) else rate}
        measures |= self.estimator.measures(losses_read)
        applied = all(map(math.isfinite, (c, *more)))
        return StepReport(sum(losses_read) / n, applied, measures, c, self.watch.lap(), more=tuple(more))


def decays(theta: Tensor) -> bool:
    """Weight decay spares biases and norm gains: the tensors of one dimension."""
    return theta.ndim > 1
