"""Runs whose blocks are over several devices, of one kind: the bits of a run on one. The CPU stands for each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lezo.cli.replay import main as replay
from lezo.config.schema import ConfigError
from lezo.model.load import ModelError
from lezo.runs.banner import banner
from lezo.runs.plan import make_plan
from tests.lezo.arranged import ctrl_c_in_step
from tests.lezo.refusals import refused
from tests.lezo.runs.killing import end
from tests.lezo.whole_runs import SMALL, Runner, config_of, little_model, typed

ONE = ["model=hf", "model.path=one", "data=sample", "optim.lr=1e-4", "train.batch_size=5", "save_model=true"]
TWO = ["model.device=auto", "model.devices=[cpu,cpu]"]
THREE = ["model.device=auto", "model.devices=[cpu,cpu,cpu]"]
KINDS = {
    "in micro-batches": ["optim=lezo", "optim.sparsity=0.5", "train.micro_batch_size=2"],
    "that is scored by texts": [
        "optim=mezo",
        "task=squad",
        "task.num_test=2",
        "task.num_dev=2",
        "train.steps=2",
        "train.eval_every=2",
    ],
    "of LoRA": ["optim=lezo", "peft=lora", "model.dtype=bfloat16"],
    "of a prefix": [
        "optim=lezo",
        "peft=prefix",
        "task=squad",
        "task.num_test=2",
        "task.num_dev=2",
        "train.steps=2",
    ],
    "of the head": ["optim=mezo", "peft=head"],
    "of random weights": ["optim=mezo", "model.random_weights=true", "model.tokenizer=one"],
    "of the metric itself": ["optim=lezo", "optim.objective=metric", "train.steps=2"],
}


def same(folder: Path) -> dict[str, Any]:
    """A run's end without its configuration and the command in its model's card, which name the devices."""
    ended = end(folder)
    del ended["files"]["config.yaml"]
    ended["files"].pop("model/README.md", None)
    return ended


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_has_the_bits_of_one_on_one_device(kind: str, lezo_run: Runner) -> None:
    little_model("one")
    whole = lezo_run(*ONE, *KINDS[kind], folder="whole")
    apart = lezo_run(*ONE, *KINDS[kind], *(THREE if kind == "in micro-batches" else TWO), folder="apart")
    assert (whole.code, apart.code) == (0, 0), whole.err + apart.err
    assert same(apart.folder) == same(whole.folder)


def test_a_run_goes_on_with_other_devices_and_is_replayed_on_others(
    lezo_run: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    little_model("one")
    whole = lezo_run(*ONE, "optim=lezo", "train.steps=6", folder="whole")
    for folder, devices in (("stopped", TWO), ("out", [])):
        with monkeypatch.context() as patch:
            ctrl_c_in_step(patch, 5)
            assert lezo_run(*ONE, "optim=lezo", "train.steps=6", *devices, folder=folder).code == 130
    first = lezo_run(*ONE, "optim=lezo", "train.steps=6", "resume=auto", folder="stopped")
    second = lezo_run(*ONE, "optim=lezo", "train.steps=6", "resume=auto", *THREE, folder="out")
    assert same(first.folder) == same(second.folder) == same(whole.folder)
    call = typed("lezo-replay", replay, monkeypatch, capsys)
    for options in (["replay.device=cpu"], ["replay.devices=[cpu,cpu]"]):
        code, out, err = call("out", "replay.verify=true", *options)
        assert code == 0 and "everything is right" in out, (out, err)


def test_the_banner_says_which_blocks_are_where() -> None:
    words = ["model=tiny", "optim=lezo", "optim.sparsity=0.5", *SMALL[:-1]]
    config = config_of(*words, "model.devices=[cpu,cpu,cpu]")
    plan, alone = make_plan(config), make_plan(config_of(*words, "model.device=cpu"))
    said = " ".join(banner(config, plan, Path()).split())
    assert "cpu (blocks 0-0), cpu (blocks 1-4), cpu (blocks 5-7)" in said, said
    assert plan.memory.weights == alone.memory.weights
    assert [memory.weights > alone.memory.weights / 5 for memory in plan.memories] == [True] * 3


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["model.devices=[cpu,cpu]", "model.device=cpu"], ["model.device=cpu", "model.devices"]),
        (["model.devices=[cuda:0,cpu]"], ["model.devices", "different CUDA devices", "[cuda:0,cuda:1]"]),
        (["model.devices=auto", "optim=fo-sgd"], ["model.devices", "fo-sgd", "optim=lezo"]),
        (["model.devices=auto", "model.compile=true"], ["model.devices", "model.compile=true"]),
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_refused(words: list[str], named: list[str]) -> None:
    with refused(ConfigError, *named):
        config_of("model=tiny", *words)


def test_more_devices_than_blocks_are_refused() -> None:
    config = config_of("model=tiny", f"model.devices=[{','.join(['cpu'] * 9)}]")
    with refused(ModelError, "model.devices", "9 devices", "8 blocks"):
        make_plan(config)
