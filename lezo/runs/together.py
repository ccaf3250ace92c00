"""What the ranks of a run do together: rank 0 says each thing, and all do it, each with a whole model.

Ranks share the micro-batches of a step and the forwards of an evaluation, and exchange their losses. Everything else is
rank 0's: folder, journal, console, and what comes next.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lezo.config.compose import Composed
from lezo.config.identity import shared_hash
from lezo.config.schema import RunConfig
from lezo.data.batches import Batches, MicroBatches
from lezo.data.dataset import EvalSet
from lezo.model.evaluate import Evaluation
from lezo.model.hashes import checksum, weights_hash
from lezo.model.linear_probe import fit_head
from lezo.ranks.ranks import RankError, Ranks
from lezo.records.schema import Provenance
from lezo.runs.build import LoadedModel, make_batches, make_evaluator, make_optimizer
from lezo.zo.step import Optimizer, StepReport
from lezo.zo.zeroth_order import ZerothOrder

Past = Sequence[tuple[int, Sequence[float]]]
"""Steps, counted from 0, and their coefficients."""

BEGIN, END = "begin", "end"


@dataclass(frozen=True)
class Start:
    """What rank 0 says first: the sizes that its folder or its ranks chose, and which run it is."""

    num_train: int | None
    num_dev: int | None
    micro_batch_size: int | None
    folder: str
    config: str

    @staticmethod
    def of(composed: Composed) -> Start:
        """Of rank 0's own configuration."""
        config = composed.config
        sizes = config.task.num_train, config.task.num_dev, config.train.micro_batch_size
        return Start(*sizes, str(composed.run_dir.resolve()), shared_hash(composed.yaml))

    def folder_here(self) -> Path | None:
        """Rank 0's folder, where this rank's machine has it too."""
        folder = Path(self.folder)
        return folder if folder.is_dir() and os.access(folder, os.W_OK) else None

    def words(self) -> list[Any]:
        """As it is told."""
        return [BEGIN, asdict(self)]

    def applied_to(self, composed: Composed) -> Composed:
        """Another rank's configuration with these sizes. Raises RankError where it is another run's."""
        if (own := shared_hash(composed.yaml)) != self.config:
            raise RankError(
                f"its settings are another run's (hash {own[:8]}, rank 0 has {self.config[:8]}); start all ranks by one "
                "command, in folders with the same files"
            )
        config = deepcopy(composed.config)
        config.task.num_train, config.task.num_dev = self.num_train, self.num_dev
        config.train.micro_batch_size = self.micro_batch_size
        return replace(composed, config=config)


class Together(Optimizer):
    """The run's evaluator, optimizer and batches, on all ranks at rank 0's word. A run of one process has one rank."""

    def __init__(self, ranks: Ranks, config: RunConfig, loaded: LoadedModel) -> None:
        self.ranks, self.config, self.loaded = ranks, config, loaded
        fewest = min(ranks.exchange(loaded.plan.prompts_at_once, patient=True))  # a rank may have less room
        self.plan = replace(loaded.plan, prompts_at_once=fewest)
        self.evaluator = make_evaluator(self.plan, loaded.network, config.eval.batch_size, ranks)
        self._verbs: Mapping[str, Callable[..., Any]] = {
            "evaluate": self._evaluate,
            "train": lambda: self.optimizer,
            "step": lambda step: self.optimizer.step(step, self.batches(step)),
            "weights": self._take_weights,
            "fit head": self._fit_head,
            "hash": self._hash,
        }

    @cached_property
    def optimizer(self) -> Optimizer:
        """This rank's own, made on all ranks at once: those of gradients share their weights as they are made."""
        network, plan = self.loaded.network, self.plan
        return make_optimizer(self.config, network, plan.layout, plan.blocks, self.evaluator, self.ranks)

    @cached_property
    def batches(self) -> Batches:
        """This rank's micro-batches."""
        share = self.ranks.rank, self.ranks.size
        return make_batches(self.config, self.plan, plain=self.loaded.network.plain, share=share)

    @contextmanager
    def training(self) -> Iterator[None]:
        """While it lasts, steps may be made, and batches are prepared ahead."""
        self._all("train")
        with closing(self.batches):
            yield

    def evaluate(self, split: str) -> Evaluation:
        """The split ``dev`` or ``test`` by the present weights, or ``last test`` with what is only looked at. Raises RankError where ranks have other weights."""
        return self._all("evaluate", split)  # type: ignore[no-any-return]

    def split(self, name: str) -> EvalSet:
        """What is evaluated under this name."""
        test = self.plan.test
        return {"dev": self.plan.dev, "test": replace(test, samples=()), "last test": test}[name]

    def step(self, step: int, batch: MicroBatches) -> StepReport:
        """The optimizer's step; ``batch``: rank 0's micro-batches."""
        self.ranks.tell(["step", step])
        return self.optimizer.step(step, batch)

    def fit_head(self) -> None:
        """Linear probing (see `lezo.model.linear_probe`)."""
        self._all("fit head")

    def hash(self) -> str:
        """The hash of the weights. Raises RankError where another rank's are others."""
        return self._all("hash")  # type: ignore[no-any-return]

    def spread_weights(self, past: Past) -> None:
        """Give all ranks rank 0's trained weights and optimizer's state; choosers of blocks learn again from ``past``."""
        if self.ranks.size > 1:
            state = self.optimizer.state()
            shapes = [[key, str(t.dtype).removeprefix("torch."), list(t.shape)] for key, t in state.items()]
            self.ranks.tell(["weights", shapes, past])
            self.ranks.send([*_trained(self.loaded), *self._on_device(state.values())])

    def follow(self) -> int:
        """On the other ranks: do what rank 0 says, until it ends. Returns its exit code."""
        while (heard := self.ranks.hear())[0] != END:
            verb, *arguments = heard
            self._verbs[verb](*arguments)
        return int(heard[1])

    def _all(self, verb: str, *arguments: Any) -> Any:
        self.ranks.tell([verb, *arguments])
        return self._verbs[verb](*arguments)

    def _evaluate(self, split: str) -> Evaluation:
        if self.ranks.size > 1:
            self._same(checksum(self.loaded.model))
        return self.evaluator(self.split(split))

    def _fit_head(self) -> None:
        size, pad = self.config.eval.batch_size, self.plan.parts.pad
        fit_head(self.loaded.network, self.plan.train, batch_size=size, pad=pad)

    def _hash(self) -> str:
        return str(self._same(weights_hash(self.loaded.model)))

    def _same(self, sum_: Any) -> Any:
        """What all ranks' weights come to. Raises RankError where they differ."""
        refuse_others(self.ranks, {"weights": sum_}, "after the same steps")
        return sum_

    @torch.no_grad()
    def _take_weights(self, shapes: Sequence[tuple[str, str, Sequence[int]]], past: Past) -> None:
        state = {key: torch.empty(size, dtype=getattr(torch, dtype)) for key, dtype, size in shapes}
        on_device = self._on_device(state.values())
        self.ranks.send([*_trained(self.loaded), *on_device])
        self.optimizer.restore(dict(zip(state, on_device, strict=True)))
        if isinstance(self.optimizer, ZerothOrder):
            self.optimizer.update.relearn((step, values) for step, values in past)

    def _on_device(self, tensors: Any) -> list[Tensor]:
        return [tensor.to(self.plan.device) for tensor in tensors]


def share_start(ranks: Ranks, loaded: LoadedModel) -> None:
    """Give all ranks rank 0's adapter: the first values of a prefix are what a forward gave it."""
    if loaded.base.adapter is not None and ranks.size > 1:
        ranks.exchange("loaded", patient=True)  # some take longer
        ranks.send(_trained(loaded))


def refuse_other_starts(ranks: Ranks, origin: Provenance) -> None:
    """Raise RankError where a rank starts from other weights, data or code than rank 0."""
    refuse_others(ranks, {**asdict(origin), "torch": torch.__version__}, "", patient=True)


def refuse_others(ranks: Ranks, own: Mapping[str, Any], when: str, *, patient: bool = False) -> None:
    """Raise RankError, on every rank, where one's values are not rank 0's."""
    first, *others = ranks.exchange(dict(own), patient=patient)
    for rank, other in enumerate(others, 1):
        if differing := [key for key in first if other[key] != first[key]]:
            what = "; ".join(
                f"{key} {_short(other[key])}, rank 0 has {_short(first[key])}" for key in differing
            )
            raise RankError(
                f"{ranks.name(rank)} differs {when}".rstrip() + f": {what}; expected the same on all ranks"
            )


def _short(value: Any) -> str:
    return str(value)[:60] if " " in str(value) else str(value)[:12]


def _trained(loaded: LoadedModel) -> list[Tensor]:
    return [p.detach() for p in loaded.model.parameters() if p.requires_grad]
