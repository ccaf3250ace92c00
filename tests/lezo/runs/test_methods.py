"""Whole runs of methods beyond MeZO and LeZO: stopped and gone on with, with checkpoints and without, and made again."""

from pathlib import Path

import pytest

from lezo.cli import replay
from lezo.config.compose import compose
from lezo.records.journal import read_journal
from lezo.runs.banner import summary
from tests.lezo.arranged import ctrl_c_in_step
from tests.lezo.runs.killing import end
from tests.lezo.whole_runs import Runner, typed

MORE = ["train.steps=6", "train.eval_every=2", "resume=auto"]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["optim=adalezo", "optim.keep=0.4", "optim.alpha=0.5", "optim.clip=0.05"], "adalezo"),
        (["optim=zo-lisa", "optim.keep=1", "optim.period=4", "peft=lora"], "lisa"),
        (["optim=zo-momentum", "model.dtype=bfloat16", "optim.rounding=stochastic"], "momentum"),
        (["optim=zo-adam", "optim.sparsity=0.5", "peft=prefix", "optim.lr=0.1"], "adam"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_run_that_stops_ends_as_one_that_does_not_and_is_replayed(
    options: list[str],
    part: str,
    lezo_run: Runner,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = lezo_run(*MORE, *options, folder="whole")
    assert whole.code == 0, whole.err
    assert f" {part} " in whole.out.partition("  optimizer ")[2].partition("\n")[0]  # the banner
    with monkeypatch.context() as patch:
        ctrl_c_in_step(patch, 5)
        assert lezo_run(*MORE, *options, "train.checkpoint_every=2").code == 130
    assert sorted(folder.name for folder in Path("out/checkpoints").iterdir()) == ["step-2", "step-4"]
    again = lezo_run(*MORE, *options, "train.checkpoint_every=2")
    ended, expected = end(again.folder), end(whole.folder)
    assert (ended["rows"], again.result["weights"]) == (expected["rows"], whole.result["weights"])
    verify = typed("lezo-replay", replay.main, monkeypatch, capsys)
    code, out, err = verify("whole", "replay.verify=true", "replay.device=cpu")
    assert (code, err) == (0, "") and "everything is right" in out
    composition = read_journal(Path("whole/journal.bin")).header.recipe.composition or {}
    assert part in {composition.get(kind, {}).get("name") for kind in ("blocks", "rule")}


def test_blocks_that_the_model_lacks_are_refused_with_their_number(lezo_run: Runner) -> None:
    lezo_run("optim=zo-blocks", "optim.blocks=[0,8]", "dry_run=true").refused("blocks=[0, 8]", "model's 8")
    lezo_run("optim=zo-blocks", "optim.blocks=[0,a]", "dry_run=true").refused("optim.blocks=[0, 'a']", code=2)
    nothing = ["optim=zo-blocks", "optim.blocks=[]", "optim.non_block=false", "dry_run=true"]
    lezo_run(*nothing).refused("moves none of the 8 blocks")
    lezo_run("optim=adalezo", "peft=head", "dry_run=true").refused("peft=head: ", "optim=mezo", code=2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["optim=adalezo"], "at most 2 of 10 groups (8 blocks, embeddings, the rest outside)"),
        (["optim=adalezo", "peft=prefix"], "at most 1 of 8 groups (8 blocks)"),
        (["optim=zo-blocks", "optim.blocks=[3,-1]"], "blocks 3, 7 of 8 and what is outside them"),
        (["optim=zo-lisa"], "2 of 8 blocks, drawn anew every 20 steps"),
        (["optim=zo-adam"], "rule adam lr=0.0009 beta1=0.9 beta2=0.999 adam_eps=1e-08"),
        (["optim=zo-momentum"], "lr 3e-05"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_banner_says_the_method(options: list[str], said: str, lezo_run: Runner) -> None:
    ran = lezo_run(*options, "dry_run=true")
    assert (ran.code, said in ran.out) == (0, True), ran.out + ran.err


@pytest.mark.parametrize("optim", ["optim=mezo optim.probes=2", "optim=fzoo optim.probes=2", "optim=exzo"])
def test_a_run_whose_slopes_were_clipped_is_right(
    optim: str, lezo_run: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What moves the weights is g as clipped, which the rows have beside g as measured."""
    ran = lezo_run(*optim.split(), "optim.clip=0.01", "train.steps=4")
    assert any(row["g_clipped"] != row["g"] for row in ran.training())
    verify = typed("lezo-replay", replay.main, monkeypatch, capsys)
    code, out, _ = verify("out", "replay.verify=true", "replay.device=cpu")
    assert (code, "everything is right" in out) == (0, True), out


def test_steps_of_fzoo_without_a_deviation_are_not_called_losses_that_are_not_finite(
    lezo_run: Runner,
) -> None:
    """Along so small an eps all losses of a step are the same number."""
    ran = lezo_run("optim=fzoo", "optim.eps=1e-12", "train.steps=4", "train.max_bad_steps=2")
    assert ran.code == 1 and "2 steps in a row whose losses were all alike (loss 0." in ran.err
    assert "try a larger optim.eps" in ran.err
    told = {
        optim: summary(ran.result, ran.folder, compose([f"optim={optim}"]).config)
        for optim in ("fzoo", "mezo")
    }
    assert "2 steps changed nothing: a loss was not finite\n" in told["mezo"]
    assert "a loss was not finite, or all losses of the step were alike\n" in told["fzoo"]
