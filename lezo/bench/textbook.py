"""The published zeroth-order step as a reference to time and to test against; lezo never trains with it.

Restated from the published code's behaviour: the weights themselves are moved by +eps, -2 eps and +eps along
noise that is drawn again in every pass, in each tensor's own dtype, and a fourth pass updates them. Every
candidate is a row of its own, padded on the left; the forward keeps a key/value cache and scores the whole
vocabulary at every position. Left out are its waits for the device between kernels, so a comparison with it
is on the cautious side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lezo.data.encode import Encoded, padded
from lezo.model.layout import Layout
from lezo.noise import seeds
from lezo.zo.blocks import BlockChooser
from lezo.zo.step import Stopwatch

MULTIPLE = 8  # what rows are padded to
_IGNORED = -100
_NO_DECAY = ("bias", "layer_norm", "layernorm")


@dataclass(frozen=True)
class Rows:
    """A batch in the published form, R rows of T tokens, T a multiple of 8.

    ``input_ids``, ``attention_mask``: (R, T) int64. ``scored``: (R, T - 1) bool, the targets that belong to
    an answer. ``candidates``: how many rows each example has. ``gold``: (examples,) int64, None for the LM
    loss.
    """

    input_ids: Tensor
    attention_mask: Tensor
    scored: Tensor
    candidates: tuple[int, ...]
    gold: Tensor | None


@dataclass(frozen=True)
class TextbookReport:
    """What a step measured: the losses at theta + eps z and theta - eps z, and their slope."""

    loss_plus: float
    loss_minus: float
    g: float


class Textbook:
    """MeZO where ``blocks`` takes every block, LeZO where it takes some; what is outside the blocks always moves.

    ``lm`` scores the gold answer's tokens only. ``watch`` gets the phases data, forward, perturb and update.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        blocks: BlockChooser,
        watch: Stopwatch,
        *,
        lm: bool,
        pad: int,
        lr: float,
        eps: float,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.model, self.layout, self.blocks, self.watch = model, layout, blocks, watch
        self.lm, self.pad = lm, pad
        self.lr, self.eps, self.weight_decay, self.seed = lr, eps, weight_decay, seed

    def step(self, step: int, examples: Sequence[Encoded]) -> TextbookReport:
        """Four passes over the active tensors and two forwards; the weights stay as rounding leaves them."""
        seed = seeds.step_seed(self.seed, step)
        active = self.layout.active(self.blocks(step, seed))
        with self.watch("data"):
            rows = candidate_rows(examples, lm=self.lm, pad=self.pad, device=self._device())
        self._perturb(active, seed, 1)
        plus = self._loss(rows)
        self._perturb(active, seed, -2)
        minus = self._loss(rows)
        g = float((plus - minus) / (2 * self.eps))  # in the losses' own dtype, as published
        self._perturb(active, seed, 1)
        self._update(active, seed, g)
        return TextbookReport(float(plus), float(minus), g)

    @torch.no_grad()
    def _perturb(self, active: Sequence[str], seed: int, scale: float) -> None:
        with self.watch("perturb"):
            for _, theta, z in self._drawn(active, seed):
                theta.add_(scale * z * self.eps)

    @torch.no_grad()
    def _update(self, active: Sequence[str], seed: int, g: float) -> None:
        """theta <- theta - lr (g z + wd theta); the decay is computed also where it is zero, as published."""
        with self.watch("update"):
            for name, theta, z in self._drawn(active, seed):
                spared = any(part in name for part in _NO_DECAY)
                theta.sub_(self.lr * (g * z if spared else g * z + self.weight_decay * theta))

    def _drawn(self, active: Sequence[str], seed: int) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Each active tensor with its noise: one stream for all of them, the same in every pass."""
        stream = torch.Generator(self._device()).manual_seed(seed)
        for name in active:
            theta = self.model.get_parameter(name)
            z = torch.normal(0.0, 1.0, theta.shape, generator=stream, dtype=theta.dtype, device=theta.device)
            yield name, theta, z

    def _loss(self, rows: Rows) -> Tensor:
        with self.watch("forward"), torch.inference_mode():
            return textbook_loss(self.model, rows)

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


class ForeachTextbook(Textbook):
    """The same step with torch._foreach_ operations over many tensors at a time: each pass has few launches.

    It reads and writes weights and noise fewer times than the published one, whose every operation is a pass of its own,
    and rounds once where that rounds twice. Noise is drawn for at most ``GROUP`` bytes of weights at a time.
    """

    GROUP = 2**30

    @torch.no_grad()
    def _perturb(self, active: Sequence[str], seed: int, scale: float) -> None:
        with self.watch("perturb"):
            for thetas, noise, _ in self._groups(active, seed):
                torch._foreach_add_(thetas, noise, alpha=scale * self.eps)

    @torch.no_grad()
    def _update(self, active: Sequence[str], seed: int, g: float) -> None:
        with self.watch("update"):
            for thetas, noise, decaying in self._groups(active, seed):
                if self.weight_decay and decaying:
                    torch._foreach_mul_(decaying, 1 - self.lr * self.weight_decay)
                torch._foreach_add_(thetas, noise, alpha=-self.lr * g)

    def _groups(
        self, active: Sequence[str], seed: int
    ) -> Iterator[tuple[list[Tensor], list[Tensor], list[Tensor]]]:
        """Weights, their noise, and those weights that decay; the noise is the published form's."""
        thetas: list[Tensor] = []
        noise: list[Tensor] = []
        decaying: list[Tensor] = []
        for name, theta, z in self._drawn(active, seed):
            thetas.append(theta)
            noise.append(z)
            if not any(part in name for part in _NO_DECAY):
                decaying.append(theta)
            if sum(one.nbytes for one in thetas) >= self.GROUP:
                yield thetas, noise, decaying
                thetas, noise, decaying = [], [], []
        if thetas:
            yield thetas, noise, decaying


def candidate_rows(examples: Sequence[Encoded], *, lm: bool, pad: int, device: torch.device) -> Rows:
    """A row for every candidate of every example, example by example; for the LM loss the gold one's only."""
    kept = [(example.gold[0],) if lm else range(len(example.input_ids)) for example in examples]
    chosen = [(example, k) for example, ks in zip(examples, kept, strict=True) for k in ks]
    ids, mask = padded([example.input_ids[k] for example, k in chosen], pad, MULTIPLE)
    scored = torch.zeros(ids.shape[0], ids.shape[1] - 1, dtype=torch.bool)
    for row, (example, k) in enumerate(chosen):  # a target is a place to the left of its token
        left = ids.shape[1] - len(example.input_ids[k]) - 1
        scored[row, [left + place for place in example.scored(k)]] = True
    gold = None if lm else torch.tensor([example.gold[0] for example in examples]).to(device)
    return Rows(ids.to(device), mask.to(device), scored.to(device), tuple(map(len, kept)), gold)


def textbook_loss(model: nn.Module, rows: Rows) -> Tensor:
    """The batch's loss, () in the logits' own dtype: cross-entropy over candidates, or over answer tokens."""
    output: Any = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=True)
    logits = output.logits[:, :-1].contiguous()  # (R, T - 1, vocabulary)
    targets = rows.input_ids[:, 1:]
    if rows.gold is None:
        wanted = targets.masked_fill(~rows.scored, _IGNORED)
        return functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=_IGNORED)
    token = logits.log_softmax(-1).gather(2, targets[:, :, None]).squeeze(2)
    means = token.masked_fill(~rows.scored, 0).sum(1) / rows.scored.sum(1)
    if len(set(rows.candidates)) == 1:
        return functional.cross_entropy(means.view(len(rows.gold), -1), rows.gold)
    apart = zip(torch.split(means, list(rows.candidates)), rows.gold, strict=True)
    return torch.stack([functional.cross_entropy(scores, right) for scores, right in apart]).mean()
