"""Journals of loops of one's own: the same weights again, a killed loop gone on with, and others' refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import lezo
from lezo.config.compose import command_options
from lezo.config.schema import ReplayConfig
from lezo.records.files import FolderError
from lezo.records.journal import RECORD, Journal, JournalError, Kind, read_journal
from lezo.records.schema import Header
from lezo.runs.replay import replayed
from lezo.zo.optimizers import LeZO, MeZO
from tests.lezo.refusals import refused
from tests.lezo.small_models import Bowl


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.journal"


def train(model, file, steps=6, **changes):
    settings = {"lr": 0.05, "sparsity": 0.5, "seed": 3, "journal": file, **changes}
    return go_on(LeZO(model, **settings), steps)


def go_on(optimizer, steps):
    for _ in range(steps):
        scale = float("nan") if optimizer.steps == 4 else 1.0
        optimizer.step(lambda: optimizer.model(scale))  # noqa: B023
    return optimizer


def same(one, other):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("dtype", "rounding"),
    [
        (torch.bfloat16, "stochastic"),
        (torch.float16, "nearest"),
        (torch.float32, "nearest"),
        (torch.float64, "nearest"),
    ],
)
def test_a_journal_makes_the_weights_after_any_step_again(file, dtype, rounding):
    trained = Bowl(dtype)
    optimizer = train(trained, file, 3, weight_decay=0.1, rounding=rounding, eps=0.05)
    early = Bowl(dtype)
    early.load_state_dict(trained.state_dict())
    go_on(optimizer, 4)
    for step, expected in ((None, trained), (3, early), (0, Bowl(dtype))):
        again = Bowl(dtype)
        assert lezo.apply_journal(again, file, step) == (7 if step is None else step)
        assert same(again, expected)
    kinds = [record.kind for record in lezo.read_journal(file).records]
    assert kinds == [Kind.update] * 4 + [Kind.skipped] + [Kind.update] * 2


def test_a_changing_learning_rate_is_in_the_coefficients(file):
    trained, again = Bowl(), Bowl()
    optimizer = train(trained, file, 0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for _ in range(4):
        go_on(optimizer, 1)
        schedule.step()
    lezo.apply_journal(again, str(file))
    assert same(trained, again)


def test_mezo_and_named_blocks_and_frozen_tensors_are_made_again(file, tmp_path):
    trained, again = Bowl(), Bowl()
    go_on(MeZO(trained, 0.05, journal=tmp_path / "mezo"), 3)
    lezo.apply_journal(again, tmp_path / "mezo")
    assert same(trained, again)
    pair = [Bowl(), Bowl()]
    for model in pair:
        model.head.requires_grad_(False)
    train(pair[0], file, 3, blocks=["blocks.1", pair[0].blocks[3]])
    lezo.apply_journal(pair[1], file)
    assert same(*pair)


def test_a_killed_loop_goes_on_from_its_journal_alone(file):
    through, killed, after = Bowl(), Bowl(), Bowl()
    train(through, file.with_name("through"), 7)
    train(killed, file, 4)
    file.write_bytes(file.read_bytes()[:-3])  # a record cut short
    optimizer = train(after, file, 0)
    optimizer.steps = lezo.apply_journal(after, file)
    assert optimizer.steps == 3
    go_on(optimizer, 4)
    assert same(through, after)
    assert file.read_bytes() == file.with_name("through").read_bytes()


def test_a_loop_goes_on_from_its_state_and_the_steps_behind_it_are_made_anew(file):
    through, model = Bowl(), Bowl()
    optimizer = train(model, file, 3)
    weights, state = model.state_dict(), optimizer.state_dict()
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    go_on(optimizer, 3)
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    go_on(optimizer, 4)
    train(through, file.with_name("through"), 7)
    assert same(through, model)
    assert file.read_bytes() == file.with_name("through").read_bytes()


def test_a_fresh_optimizer_leaves_a_journal_that_is_there(file):
    train(Bowl(), file)
    before = file.read_bytes()
    with refused(JournalError, str(file), "opt.steps = lezo.apply_journal"):
        train(Bowl(), file)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 4}, "seed was 3 and is 4"),
        ({"sparsity": 0.25}, "sparsity was 0.5 and is 0.25"),
        ({"weight_decay": 0.1}, "decay was 0.0 and is 0.005"),
        ({"rounding": "stochastic"}, "rounding was nearest and is stochastic"),
        ({"blocks": ["blocks.0", "blocks.1"]}, "the 5 that are trainable"),
        ({"steps": 9}, "step 9"),
    ],
)
def test_another_loop_cannot_go_on_with_it(file, changes, named):
    train(Bowl(), file)
    steps = changes.pop("steps", 6)
    optimizer = train(Bowl(), file, 0, **changes)
    optimizer.steps = steps
    before = file.read_bytes()
    with refused(JournalError, str(file), named):
        go_on(optimizer, 1)
    assert file.read_bytes() == before
    assert same(optimizer.model, Bowl())


def test_a_journal_has_one_decay(file):
    optimizer = train(Bowl(), file, 2, weight_decay=0.1)
    optimizer.param_groups[0]["lr"] = 0.01
    with refused(JournalError, "decay was 0.005", "is 0.001", "weight_decay=0"):
        go_on(optimizer, 1)


def test_other_models_are_refused_and_left_alone(file):
    train(Bowl(), file)
    moved, frozen = Bowl(), Bowl()
    moved.head.data += 1
    frozen.head.requires_grad_(False)
    for model, named in ((moved, "base weights"), (frozen, "requires_grad")):
        before = {name: p.clone() for name, p in model.named_parameters()}
        with refused(JournalError, str(file), named):
            lezo.apply_journal(model, file)
        assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    with refused(JournalError, str(file), "Bowl", "block 'blocks.0'"):
        lezo.apply_journal(nn.Linear(2, 2), file)


def test_a_step_beyond_it_is_refused_and_damage_is_noticed(file):
    train(Bowl(), file)
    with refused(FolderError, "step 9", "step 6"):
        lezo.apply_journal(Bowl(), file, 9)
    content = bytearray(file.read_bytes())
    content[-3 * RECORD.size] ^= 1
    file.write_bytes(content)
    with refused(JournalError, str(file), "damaged at byte"):
        lezo.apply_journal(Bowl(), file)
    with refused(JournalError, str(file.with_name("none"))):
        lezo.apply_journal(Bowl(), file.with_name("none"))


def test_the_command_and_the_function_send_each_others_journals_back(file, capsys, tmp_path):
    train(Bowl(), file)
    assert replayed(file, command_options(ReplayConfig, [f"replay.out={tmp_path / 'out'}"])) == 1
    assert "written by a program of one's own for its Bowl" in capsys.readouterr().err
    header = read_journal(file).header
    Journal(file, Header(header.origin, replace(header.recipe, blocks=None))).close()
    with refused(JournalError, f"lezo-replay {file}"):
        lezo.apply_journal(Bowl(), file)
