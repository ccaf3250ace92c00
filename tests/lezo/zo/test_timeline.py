"""The weights after any step, made again bit for bit: from the base, from where the model is, from checkpoints."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lezo.model.hashes import weights_hash
from lezo.model.layout import layout
from lezo.model.load import TINY, ModelError, Source, load, load_config, rebase
from lezo.records.checkpoint import Checkpoints, find_checkpoints
from lezo.records.files import FolderError
from lezo.records.journal import Journal, JournalFile, Kind, read_journal
from lezo.records.rows import DevRow
from lezo.records.schema import Header, Provenance, ReplaySpec
from lezo.runs.loop import train_row
from lezo.zo.blocks import UniformBlocks
from lezo.zo.first_order import FirstOrder
from lezo.zo.methods.adam import Adam
from lezo.zo.methods.momentum import Momentum
from lezo.zo.probe import PlainProbe
from lezo.zo.rule import Sgd
from lezo.zo.timeline import Timeline, model_state
from lezo.zo.zeroth_order import ZerothOrder
from tests.lezo.refusals import refused
from tests.lezo.small_models import CONFIGS, CPU, Bowl, small_model, weights

ORIGIN = Provenance("w" * 64, "t" * 64, "d" * 64, "float32", 1, "c" * 64, "0.1.0")
HEADER = Header(ORIGIN, ReplaySpec("tiny", None, None, None, True, None, 3, 0.5, 1e-5, "nearest"))
STEPS = 8
SKIPPED = (3, 6)  # steps, counted from 1, whose losses are not finite


def two_point(model: nn.Module, **settings: Any) -> ZerothOrder:
    """An optimizer of the sum of squares of all weights; its batch is the factor."""
    found = layout(model)

    def objective(forward: Callable[..., Any], batch: float) -> Tensor:
        logits = forward(input_ids=torch.tensor([[0, 5, 9, 33]])).logits
        return batch * logits.float().square().mean()

    rules = {None: Sgd, "momentum": Momentum, "adam": partial(Adam, 0.01)}
    settings["rule"] = rules[settings.get("rule")]()
    probe = PlainProbe(model, objective)
    blocks = UniformBlocks(len(found.blocks), 0.5)
    return ZerothOrder(model, found, blocks, probe, **{"lr": 0.01, "eps": 1e-2, "seed": 3, **settings})


class Trained:
    """A model trained for STEPS steps, with its journal, its checkpoints, and its weights after every step."""

    def __init__(self, folder: Path, dtype: torch.dtype, every: int | None = None, **settings: Any) -> None:
        self.model, self.folder = small_model("opt", dtype), folder / "checkpoints"
        self.base = weights(self.model)
        optimizer = two_point(self.model, **settings)
        self.timeline = Timeline(self.model, self.rebase, optimizer.update)
        journal = Journal(folder / "journal.bin", HEADER)
        state = partial(model_state, self.model, optimizer)
        keep = {"every": every, "keep": 2, "at_evaluations": False, "best": lambda: None}
        listeners = [journal, Checkpoints(self.folder, ORIGIN, state, **keep), self.timeline]  # type: ignore[arg-type]
        self.after = [self.base]
        for number in range(1, STEPS + 1):
            report = optimizer.step(number - 1, math.inf if number in SKIPPED else 1.0)
            for listener in listeners:
                listener.trained(train_row(number, 0.0, report))
            self.after.append(weights(self.model))
        journal.close()
        self.journal: JournalFile = read_journal(folder / "journal.bin")
        self.rebased = 0

    def rebase(self) -> None:
        self.rebased += 1
        with torch.no_grad():
            for name, theta in self.model.named_parameters():
                theta.copy_(self.base[name])

    def bring_to(self, step: int, **given: Any) -> list[int]:
        """Go there; returns the steps whose updates were made."""
        made: list[int] = []
        checkpoints = find_checkpoints(self.folder)
        self.timeline.bring_to(step, self.journal, checkpoints, progress=made.append, **given)
        return made

    def is_at(self, step: int) -> bool:
        assert self.timeline.at == step
        return all(torch.equal(theta, self.after[step][name]) for name, theta in weights(self.model).items())


@pytest.mark.parametrize(
    ("every", "dtype", "settings"),
    [
        (None, torch.float32, {"weight_decay": 0.5}),
        (None, torch.float16, {"rounding": "stochastic", "weight_decay": 0.5}),
        (3, torch.float64, {"weight_decay": 0.5}),
        (3, torch.float16, {}),
        (3, torch.bfloat16, {"rounding": "stochastic"}),
        (None, torch.float32, {"rule": "momentum", "weight_decay": 0.5}),
        (3, torch.bfloat16, {"rule": "momentum", "rounding": "stochastic"}),
        (3, torch.float32, {"rule": "adam", "weight_decay": 0.5}),
        (None, torch.float16, {"rule": "adam"}),
    ],
    ids=str,
)
def test_any_step_comes_back_bit_for_bit(
    every: int | None, dtype: torch.dtype, settings: dict[str, Any], tmp_path: Path
) -> None:
    run = Trained(tmp_path, dtype, every, **settings)
    moved = [
        not torch.equal(a["model.decoder.embed_tokens.weight"], b["model.decoder.embed_tokens.weight"])
        for a, b in zip(run.after, run.after[1:], strict=False)
    ]
    assert moved == [step not in SKIPPED for step in range(1, STEPS + 1)]
    assert [record.step for record in run.journal.records if record.kind is Kind.skipped] == list(SKIPPED)
    assert run.is_at(STEPS)
    for step in (5, 0, 8, 6, 7, 2):  # back and forth
        run.bring_to(step)
        assert run.is_at(step)


@pytest.mark.parametrize("rule", ["momentum", "adam"])
def test_another_process_goes_on_from_any_checkpoint_with_its_memory(rule: str, tmp_path: Path) -> None:
    run = Trained(tmp_path, torch.float32, 3, rule=rule)
    for step in (5, 7, 8):  # from the checkpoints 3 and 6
        model = small_model("opt")
        updates = two_point(model, rule=rule).update
        timeline = Timeline(model, lambda: None, updates)
        made: list[int] = []
        timeline.bring_to(step, run.journal, find_checkpoints(run.folder), progress=made.append)
        assert made[0] == step // 3 * 3 + 1
        assert all(torch.equal(theta, run.after[step][name]) for name, theta in weights(model).items())


@pytest.mark.parametrize("lost", ["optimizer.", "optimizer.m.", "optimizer.moves"])
def test_a_checkpoint_without_the_rules_memory_is_refused(lost: str, tmp_path: Path) -> None:
    run = Trained(tmp_path, torch.float32, 6, rule="momentum")
    assert run.timeline.updates is not None
    state = {f"optimizer.{key}": value for key, value in run.timeline.updates.state().items()}
    state |= {f"model.{name}": theta for name, theta in weights(run.model).items()}
    state = {key: value for key, value in state.items() if not key.startswith(lost)}
    keep = {"every": None, "keep": 9, "at_evaluations": True, "best": lambda: None}
    Checkpoints(run.folder, ORIGIN, lambda: state, **keep).save(7)  # type: ignore[arg-type]
    run.bring_to(2)
    with refused(FolderError, f"{run.folder / 'step-7'}: ", "remove the folder"):
        run.bring_to(7)


def test_it_goes_the_shortest_way(tmp_path: Path) -> None:
    run = Trained(tmp_path, torch.float32, every=3)  # checkpoints 3 and 6
    assert run.bring_to(8) == []  # it is there
    assert run.bring_to(7) == [7]  # from checkpoint 6
    assert run.bring_to(8) == [8]  # from where it is
    assert run.bring_to(6) == [] and run.rebased == 0
    assert run.bring_to(2) == [1, 2] and run.rebased == 1
    assert run.bring_to(4) == [4]  # from checkpoint 3, which is nearer than where it is
    assert run.bring_to(5) == [5] and run.bring_to(8) == [7, 8] and run.rebased == 1


def test_a_resumed_model_begins_at_its_base(tmp_path: Path) -> None:
    run = Trained(tmp_path, torch.float32)
    run.rebase()
    run.timeline = Timeline(run.model, run.rebase, run.timeline.updates)
    assert run.bring_to(0) == [] and run.is_at(0) and run.rebased == 1
    assert run.bring_to(5) == [1, 2, 3, 4, 5] and run.is_at(5) and run.rebased == 1


def test_an_evaluation_moves_nothing(tmp_path: Path) -> None:
    run = Trained(tmp_path, torch.float32)
    run.timeline.evaluated(DevRow(3, 0.0, 0.5, 0.5))
    assert run.timeline.at == STEPS


@pytest.mark.parametrize("every", [None, 3])
def test_beyond_the_end_is_refused(every: int | None, tmp_path: Path) -> None:
    run = Trained(tmp_path, torch.float32, every)
    with refused(FolderError, "step 9", "step 8"):
        run.bring_to(9)
    run.bring_to(8)
    assert run.is_at(8)


def first_order(model: nn.Module) -> FirstOrder:
    def objective(batch: float) -> Iterator[Tensor]:
        yield model(batch)

    return FirstOrder(model, objective, algorithm="adamw", lr=0.05)


def test_a_first_order_run_has_its_checkpoints_only(tmp_path: Path) -> None:
    model = Bowl(torch.float32)
    base, after, optimizer = weights(model), {}, first_order(model)
    best = {"every": None, "keep": 9, "at_evaluations": True, "best": lambda: None}
    writer = Checkpoints(tmp_path, ORIGIN, partial(model_state, model, optimizer), **best)  # type: ignore[arg-type]

    def put_back() -> None:
        for name, theta in model.named_parameters():
            theta.data.copy_(base[name])

    timeline = Timeline(model, put_back, None)
    for step in range(1, 7):
        timeline.trained(train_row(step, 0.0, optimizer.step(step - 1, 1.0)))
        if step % 2 == 0:
            writer.evaluated(DevRow(step, 0.0, 0.5, 0.5))
            after[step] = weights(model)
    for step in (4, 2, 6):
        timeline.bring_to(step, None, find_checkpoints(tmp_path), optimizer)
        assert all(torch.equal(p, after[step][name]) for name, p in weights(model).items())
    state = optimizer.state()
    assert state["0.step"] == 6 and state["0.exp_avg"].abs().sum() > 0
    for step, reached in ((5, 4), (7, 6), (1, 0)):
        with refused(FolderError, f"step {step}", f"step {reached}"):
            timeline.bring_to(step, None, find_checkpoints(tmp_path), optimizer)
    timeline.bring_to(0, None, find_checkpoints(tmp_path), optimizer)
    assert all(torch.equal(p, base[name]) for name, p in weights(model).items())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state | {"model.more": torch.zeros(2)}, "model.more"),
        (lambda state: {k: v for k, v in state.items() if k != "model.head"}, "model.head"),
        (lambda state: state | {"model.head": torch.zeros(4)}, "model.head"),
        (lambda state: state | {"model.head": torch.zeros(3).half()}, "model.head"),
        (lambda state: state | {"head": torch.zeros(3)}, "head"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], named: str, tmp_path: Path
) -> None:
    model = Bowl(torch.float32)
    state = change(model_state(model, first_order(model)))
    keep = {"every": None, "keep": 1, "at_evaluations": True, "best": lambda: None}
    Checkpoints(tmp_path, ORIGIN, lambda: state, **keep).save(3)  # type: ignore[arg-type]
    with refused(FolderError, f"{tmp_path / 'step-3'}: ", named, f"remove the folder {tmp_path / 'step-3'}"):
        Timeline(model, lambda: None, None).bring_to(3, None, find_checkpoints(tmp_path))


def test_a_damaged_checkpoint_is_refused_before_anything_is_taken(tmp_path: Path) -> None:
    run = Trained(tmp_path, torch.float32, every=3)
    run.bring_to(2)
    file = run.folder / "step-6" / "00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with refused(FolderError, str(file), "SHA-256", "remove the folder"):
        run.bring_to(7)
    assert run.is_at(2)


def test_the_base_weights_of_a_file_come_back() -> None:
    assert_rebased(Source(str(TINY)), load_config(Source(str(TINY))), torch.bfloat16)


@pytest.mark.parametrize(("name", "dtype"), [("opt", torch.float32), ("qwen2-tied", torch.float16)], ids=str)
def test_random_base_weights_come_back(name: str, dtype: torch.dtype) -> None:
    assert_rebased(Source("random", random_weights=True), CONFIGS[name], dtype)


def assert_rebased(source: Source, config: Any, dtype: torch.dtype) -> None:
    """After any change a rebased model is what another load gives, and random ones depend on the seed."""
    first, again = (load(source, config, dtype=dtype, device=CPU, seed=5) for _ in range(2))
    expected, places = weights(first), [p.data_ptr() for p in again.parameters()]
    with torch.no_grad():
        for theta in again.parameters():
            theta.add_(1)
    rebase(again, source, config, 5, weights_hash(first))
    assert {p.dtype for p in again.parameters()} == {dtype}
    assert [p.data_ptr() for p in again.parameters()] == places
    assert all(torch.equal(theta, expected[n]) for n, theta in weights(again).items())
    if source.random_weights:
        with refused(ModelError, source.path):
            rebase(again, source, config, 6, weights_hash(first))
        assert not all(torch.equal(theta, expected[n]) for n, theta in weights(again).items())
