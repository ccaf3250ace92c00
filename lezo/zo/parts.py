"""A method's parts by their names: lezo's own, and those that installed packages register.

A package registers what makes a part, in one of five groups of entry points; ``settings`` are those of its `Part`.

- ``lezo.blocks``: ``(total, **settings)`` -> `BlockChooser` of ``total`` blocks
- ``lezo.directions``: ``(**settings)`` -> `Direction`
- ``lezo.estimators``: ``(context, **settings)`` -> `Estimator`, which measures by what a `Site` has, the `EstimatorContext`
- ``lezo.step_sizes``: ``(**settings)`` -> `StepSize`
- ``lezo.rules``: ``(**settings)`` -> `Rule`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from lezo.config.checks import out_of_range
from lezo.config.method import Composition as Composition
from lezo.config.method import Method, OptimConfig, Part
from lezo.config.methods import METHODS
from lezo.model.forward import Network
from lezo.model.layout import Layout
from lezo.model.loss import total
from lezo.noise.low_rank import LowRank
from lezo.noise.rademacher import Rademacher
from lezo.ranks.ranks import ALONE, Ranks
from lezo.records.files import FolderError
from lezo.records.journal import JournalError
from lezo.records.schema import ReplaySpec
from lezo.tasks.registry import Registry, RegistryError
from lezo.zo.blocks import AllBlocks, BlockChooser, GroupChooser, UniformBlocks
from lezo.zo.direction import GAUSSIAN, Direction, moving
from lezo.zo.graphs import Recorder
from lezo.zo.methods.adalezo import AdaLezo
from lezo.zo.methods.adam import Adam
from lezo.zo.methods.cycle import GivenBlocks, LisaBlocks
from lezo.zo.methods.deviation import Deviation
from lezo.zo.methods.example_wise import ExampleWise, RankOneOfLinear
from lezo.zo.methods.last_blocks import LastBlocks
from lezo.zo.methods.momentum import Momentum
from lezo.zo.methods.one_sided import OneSided
from lezo.zo.methods.several import Several
from lezo.zo.packing_check import probe_for
from lezo.zo.probe import Estimator, PlainProbe, Site, TwoSided
from lezo.zo.rule import Rule, Sgd
from lezo.zo.step import Stopwatch
from lezo.zo.step_size import Constant, Linear, Scheduled, StepSize
from lezo.zo.zeroth_order import SeededUpdate


class PartError(FolderError):
    """A part that is not here, or not with such settings, though a configuration or a run's files name it."""


@dataclass(frozen=True)
class EstimatorContext:
    """What an estimator is given to measure with.

    ``direction``: the z that updates go along. ``error``: one minus the task's metric on a batch of examples, for the
    estimator ``metric``. ``compiled``: whether blocks run through torch.compile; ``recordings``: makes what
    replays their forwards. ``ranks``: the processes of the run, each of which has some of a batch's micro-batches.
    """

    network: Network
    layout: Layout
    direction: Direction
    watch: Stopwatch
    error: Callable[[Any], float] | None = None
    compiled: bool = False
    recordings: Recorder | None = None
    ranks: Ranks = ALONE

    def probe(self, direction: Direction | None = None) -> TwoSided:
        """The fast probe of the batches' loss at theta +- eps z, z of another ``direction`` than the updates'."""
        return probe_for(
            self.network,
            self.layout,
            self.watch,
            direction=direction or self.direction,
            compiled=self.compiled,
            recordings=self.recordings,
            ranks=self.ranks,
        )

    def examples(self, probes: int) -> ExampleWise:
        """The probe of each example's loss along directions of its own. Raises ModelError where rows are not packed."""
        tensors = moving(self.direction, self.network.model, self.layout)
        return ExampleWise.of(self.network, tensors, self.watch, probes, self.ranks, self.recordings)

    def loss(self, batch: Any, *, seed: int = 0) -> Tensor:
        """A batch's mean loss at theta itself, (), in fp32 or wider; the same on all ranks. It draws nothing."""
        return total(self.network, batch, self.ranks)

    def metric(self) -> TwoSided:
        """The probe of one minus the metric at theta +- eps z, evaluated as in an evaluation."""
        error = self.error
        assert error is not None  # such batches come with what judges them
        return PlainProbe(self.network.model, lambda _, batch: error(batch), self.direction)


@dataclass(frozen=True)
class ClosureContext:
    """What an estimator is given to measure with in a loop of one's own: a batch is a closure that runs ``module``."""

    module: nn.Module
    direction: Direction = GAUSSIAN

    def probe(self, direction: Direction | None = None) -> PlainProbe:
        """The probe of what a closure returns, at theta +- eps z."""
        return PlainProbe(self.module, lambda _, closure: closure(), direction or self.direction)

    def loss(self, batch: Any, *, seed: int = 0) -> Tensor:
        """What a closure returns at theta itself, ()."""
        return self.probe().at_theta(batch, seed=seed)


Maker = Callable[..., Any]


def _maker(name: str, value: Any) -> Maker:
    if not callable(value):
        raise TypeError("expected a class or function that makes the part")
    return value  # type: ignore[no-any-return]


def _two_sided(context: Site, probes: int = 1) -> Estimator:
    return context.probe() if probes == 1 else Several(context.probe(), probes)


def _example_wise(context: Site, probes: int = 1) -> ExampleWise:
    if not isinstance(context, EstimatorContext):
        raise PartError(
            "exzo moves each example of a packed batch otherwise, which a closure cannot; choose another method"
        )
    if probes < 1:
        raise ValueError(f"probes={probes}: expected at least 1")
    return context.examples(probes)


def _deviation(**settings: Any) -> StepSize:
    return Deviation(Scheduled(**settings))


def _metric(context: EstimatorContext, probes: int = 1) -> Estimator:
    return context.metric() if probes == 1 else Several(context.metric(), probes)


_CHOOSERS: dict[str, Maker] = {
    "all": AllBlocks,
    "uniform": UniformBlocks,
    "lisa": LisaBlocks,
    "given": GivenBlocks,
    "last": LastBlocks,
    "adalezo": AdaLezo,
}
_DIRECTIONS: dict[str, Maker] = {
    "gaussian": lambda: GAUSSIAN,
    "rademacher": Rademacher,
    "low-rank": LowRank,
    "rank-one": RankOneOfLinear,
}
_ESTIMATORS: dict[str, Maker] = {
    "two-sided": _two_sided,
    "metric": _metric,
    "one-sided": OneSided,
    "example-wise": _example_wise,
}
_STEP_SIZES: dict[str, Maker] = {
    "constant": Constant,
    "linear": Linear,
    "scheduled": Scheduled,
    "deviation": _deviation,
}
BLOCKS = Registry[Maker]("lezo.blocks", _CHOOSERS, _maker)
DIRECTIONS = Registry[Maker]("lezo.directions", _DIRECTIONS, _maker)
ESTIMATORS = Registry[Maker]("lezo.estimators", _ESTIMATORS, _maker)
STEP_SIZES = Registry[Maker]("lezo.step_sizes", _STEP_SIZES, _maker)
RULES = Registry[Maker]("lezo.rules", {"sgd": Sgd, "momentum": Momentum, "adam": Adam}, _maker)


def blocks_of(composition: Composition | None, layout: Layout) -> BlockChooser:
    """What chooses of a model's blocks; all, where there is no zeroth-order method. Raises PartError."""
    if composition is None:
        return AllBlocks(len(layout.blocks))
    blocks: BlockChooser = _part(BLOCKS, composition.blocks, len(layout.blocks))
    if isinstance(blocks, GroupChooser):
        return blocks.over(layout.groups, step_size_of(composition).share)
    return blocks


def direction_of(composition: Composition) -> Direction:
    """What draws z. Raises PartError."""
    return _part(DIRECTIONS, composition.direction)  # type: ignore[no-any-return]


def estimator_of(composition: Composition, context: Site) -> Estimator:
    """What measures. Raises PartError."""
    return _part(ESTIMATORS, composition.estimator, context)  # type: ignore[no-any-return]


def step_size_of(composition: Composition) -> StepSize:
    """How far a step goes. Raises PartError."""
    return _part(STEP_SIZES, composition.step_size)  # type: ignore[no-any-return]


def rule_of(composition: Composition) -> Rule:
    """What moves theta; its memory is empty. Raises PartError."""
    return _part(RULES, composition.rule)  # type: ignore[no-any-return]


def uniform(sparsity: float) -> Composition:
    """LeZO: blocks drawn uniformly, all else as MeZO has it, and MeZO at sparsity 0."""
    return Composition(Part("uniform", {"sparsity": sparsity}))


_OF_LOOP = ("name", "lr", "lr_scale", "eps", "weight_decay", "rounding", "objective", "schedule", "warmup")


@dataclass(frozen=True)
class LoopMethod:
    """A zeroth-order method for a loop of one's own: its name, and those of its settings that are not the default's."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def registered(self) -> Method:
        """What lezo knows of it. ValueError for an unknown name or setting."""
        found = METHODS.get(self.name)
        if found is None or found.compose is None:
            known = sorted(name for name, one in METHODS.items() if one.compose is not None)
            raise ValueError(f"method {self.name!r}: expected one of {', '.join(known)}")
        known = [one.name for one in fields(found.schema) if one.name not in _OF_LOOP]
        if unknown := [name for name in self.settings if name not in known]:
            own = "lr, eps, weight_decay and rounding are the optimizer's, a schedule the loop's"
            raise ValueError(
                f"{self.name} has no setting {unknown[0]!r}; expected {', '.join(known)} ({own})"
            )
        return found

    def composition(self, lr: float) -> Composition:
        """Its parts, at this learning rate. ValueError for what `method` refuses; values have the types of their fields."""
        found = self.registered
        optim = found.schema(name=self.name, **{"lr": lr, **self.settings})  # type: ignore[arg-type]
        if problems := [*out_of_range(optim), *found.problems(optim)]:
            raise ValueError(f"{self.name}: {problems[0]}")
        assert found.compose is not None, "that of a method that is registered for loops"
        return found.compose(optim, 1)


def method(name: str, /, **settings: Any) -> LoopMethod:
    """A method of `lezo.LeZO` or `lezo.ZOTrainer`, by its name in ``optim=`` and the settings that docs/methods.md has for it.

    ``lezo.method("adalezo", keep=0.4)``. Learning rate, eps, weight decay and rounding are the optimizer's arguments, and a
    schedule is the loop's. ValueError for an unknown name or setting, and for a value out of its range.
    """
    given = LoopMethod(name, settings)
    made = LoopMethod(name, _typed(given.registered.schema(name=name), settings))
    made.composition(1.0)
    return made


def _typed(optim: OptimConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as their fields have them, numbers also from numpy's. ValueError for a value of another type."""
    node = OmegaConf.structured(optim)
    for key, value in settings.items():
        plain = value.item() if hasattr(value, "item") else value
        try:
            if isinstance(plain, bool) and not isinstance(node[key], bool):
                raise ValueError("a truth value")
            node[key] = plain
        except (OmegaConfBaseException, ValueError):
            one = next(one for one in fields(optim) if one.name == key)
            within = one.metadata.get("range")
            expected = one.type if within is None else within.expected
            raise ValueError(f"{optim.name}: {key}={value!r}: expected {expected}") from None
    made = OmegaConf.to_object(node)
    return {key: getattr(made, key) for key in settings}


def composition_of(recipe: ReplaySpec) -> Composition:
    """The parts that a journal names. Older journals name none, and are LeZO's. Raises PartError."""
    if recipe.composition is None:
        return uniform(recipe.sparsity)
    try:
        return Composition.of(recipe.composition)
    except ValueError as error:
        raise PartError(str(error)) from None


def refuse_unknown(recipe: ReplaySpec, file: Path) -> None:
    """Raise JournalError where a part that makes the updates of the journal ``file`` is not registered here."""
    try:
        parts = composition_of(recipe)
        _ = BLOCKS[parts.blocks.name], DIRECTIONS[parts.direction.name], STEP_SIZES[parts.step_size.name]
        _ = RULES[parts.rule.name]
    except (PartError, RegistryError) as error:
        raise JournalError(f"{file}: its method cannot be made here: {error}") from None


def updates_of(recipe: ReplaySpec, model: nn.Module, layout: Layout) -> SeededUpdate:
    """What makes a journal's updates again on ``model``, whose tensors ``layout`` sorts.

    Raises PartError where a part of the method is not registered here. What measured the losses is not needed.
    """
    parts = composition_of(recipe)
    return SeededUpdate(
        model,
        layout,
        blocks_of(parts, layout),
        direction=direction_of(parts),
        step_size=step_size_of(parts),
        rule=rule_of(parts),
        seed=recipe.seed,
        decay=recipe.decay,
        rounding="stochastic" if recipe.rounding == "stochastic" else "nearest",
    )


def _part(registry: Registry[Maker], part: Part, *about: Any) -> Any:
    try:
        return registry[part.name](*about, **part.settings)
    except RegistryError as error:
        raise PartError(str(error)) from None
    except (TypeError, ValueError) as error:
        raise PartError(f"{registry.group}: {part}: not its settings ({error})") from None
