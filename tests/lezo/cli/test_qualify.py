"""lezo-qualify from its words to its page and its exit code, in small."""

import json
import os
import signal
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lezo.bench import killed
from lezo.bench import qualify as work
from lezo.bench.killed import Killed
from lezo.bench.qualify import SECTIONS
from lezo.cli.qualify import HELP, main
from lezo.config.compose import compose
from lezo.noise import directions
from lezo.runs.session import run
from lezo.zo import rule
from tests.lezo.sweeps.forked import Forked
from tests.lezo.whole_runs import try_rows_once, typed

SMALL = ["model.device=cpu", "task.num_train=24", "task.num_dev=8", "task.num_test=8", "train.batch_size=2"]
SMALL += ["bench.repeats=1", "bench.window=1", "qualify.tasks=[rte]", "qualify.out=out"]

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def qualify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Call]:
    """Words -> exit code, output and errors of lezo-qualify in an empty folder."""
    monkeypatch.chdir(tmp_path)
    try_rows_once()
    handler = signal.getsignal(signal.SIGTERM)
    call = typed("lezo-qualify", main, monkeypatch, capsys)
    yield lambda *words: call(*SMALL, *words)
    signal.signal(signal.SIGTERM, handler)


class Forking:
    """A run as `killed.start` starts one, in a fork of this process, which has imported everything."""

    def __init__(self, words: Sequence[str], folder: Path) -> None:
        overrides = [*words, "resume=auto", f"hydra.run.dir={folder}"]
        self._child, self.returncode = Forked(lambda: run(compose(overrides), "killed")), None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self._child.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = 60) -> int:
        if self.returncode is None:
            self.returncode = self._child.waited(timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self._child.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def page() -> dict[str, Any]:
    return json.loads(Path("out/page.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.slow
def test_all_of_it_in_small(qualify: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(killed, "start", Forking)
    code, out, err = qualify("qualify.steps=12")
    assert (code, err) == (0, ""), out
    found, text = page(), Path("out/page.md").read_text()
    kinds = ["bits", "steps", "steps", "killed", "load", "times"]
    assert [(one["kind"], one["verdict"]) for one in found["sections"]] == [(k, "right") for k in kinds]
    assert found["over"] and found["ok"] and found["bars"] == []
    noise, lezo, mezo, gone_on, _, times = found["sections"]
    assert len(noise["data"]["comparisons"]) == 51
    assert {(one["data"]["method"], one["data"]["dtype"]) for one in (lezo, mezo)} == {
        ("lezo", "float16"),
        ("mezo", "bfloat16"),
    }
    assert gone_on["data"]["steps"] == 12 and 4 <= gone_on["data"]["at"] < 12
    assert times["data"]["ratios"]["textbook_mezo/lezo"] > 0
    assert {name for name, one in times["data"]["window"].items() if one["steps"] == 1} == {"lezo", "mezo"}
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings[0].endswith(f"all right, {headings[0].split()[-1]}")
    assert headings[1:] == ["## Step times", "## A run's own steps", "## Device"]
    assert "51 of 51 comparisons have the same bits" in text and "absent (no clocks" in text
    assert Path("out/page.png").read_bytes().startswith(b"\x89PNG")
    assert {file.name for file in Path("out").iterdir()} == {"page.json", "page.md", "page.png"}
    assert text in out


def test_noise_that_differs_in_one_bit_fails(qualify: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after is tried all the same, and the page says what differs."""
    real = directions.perturb

    def perturb(theta: torch.Tensor, *given: Any, **options: Any) -> Any:
        plus, minus = real(theta, *given, **options)
        if theta.dtype == torch.bfloat16 and theta.numel() == 5000:
            plus.view(torch.int16)[4999] ^= 1
        return plus, minus

    monkeypatch.setattr(directions, "perturb", perturb)
    tried: list[str] = []
    monkeypatch.setattr(work, "stepped", lambda composed, *_: tried.append(composed.config.optim.name))
    code, _, _ = qualify("qualify.sections=[noise,steps]")
    assert (code, tried) == (1, ["lezo", "mezo"])
    noise = page()["sections"][0]
    assert noise["verdict"] == "FAILED" and noise["said"].startswith("50 of 51")
    assert noise["error"] == "not the CPU's bits: perturb bfloat16, 5000 elements"
    text = Path("out/page.md").read_text()
    assert "NOT ALL RIGHT" in text and "## FAILED: noise equals the CPU's" in text
    assert page()["over"]


def test_an_update_that_replay_does_not_make_again_fails(
    qualify: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps' own updates are larger than those that their journal makes."""
    real, calls = rule.update_all_, [0]

    def update(direction: Any, thetas: dict[str, torch.Tensor], *given: Any, **options: Any) -> None:
        real(direction, thetas, *given, **options)
        calls[0] += 1
        if calls[0] == 1:
            next(iter(thetas.values())).detach().view(torch.int16).view(-1)[0] ^= 1

    monkeypatch.setattr(rule, "update_all_", update)
    monkeypatch.setattr(work, "noise_checks", lambda device: [])
    assert qualify("qualify.sections=[steps]")[0] == 1
    lezo, mezo = page()["sections"]
    assert (lezo["verdict"], mezo["verdict"]) == ("FAILED", "right")
    assert "replay to OTHER bits on cpu" in lezo["said"] and "replayed" in lezo["error"]


def test_a_killed_run_that_ends_otherwise_fails(qualify: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "killed_and_resumed", lambda *_: Killed(12, 4, journal=True, weights=False))
    assert qualify("qualify.sections=[killed]")[0] == 1
    assert "journal the same, weights NOT the same" in page()["sections"][0]["said"]


def test_a_run_that_was_over_before_it_was_killed_says_so_and_is_not_gone_on_with(
    qualify: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(words: Sequence[str], steps: int, folder: Path, seconds: float) -> Killed:
        folder.mkdir()
        return Killed(12, 12, journal=True, weights=True)

    monkeypatch.setattr(work, "killed_and_resumed", ended)
    assert qualify("qualify.sections=[killed]")[0] == 1
    assert page()["sections"][0]["error"].startswith("it was over before it was killed; give it more steps")
    code, out, err = qualify("qualify.sections=[killed]")
    assert (code, out) == (2, "") and err.startswith("error: qualify.out=out: out/killed is left of")


def test_a_run_to_kill_that_fails_says_how(qualify: Call) -> None:
    """A real one, as a process of its own: its words do not compose."""
    assert qualify("qualify.sections=[killed]", "qualify.tasks=[squad]", "optim.rounding=up")[0] == 2
    assert not Path("out").exists()
    with pytest.raises(killed.ChildFailed, match=r"ended with 2 before:\nerror: optim\.rounding=up"):
        killed.killed_and_resumed(["optim.rounding=up"], 12, Path("runs"), 60)


def test_without_time_nothing_is_timed_and_that_is_said(qualify: Call) -> None:
    assert qualify("qualify.minutes=0.01", "qualify.sections=[times]")[0] == 1
    (late,) = page()["sections"]
    assert late["error"] == "no time left (qualify.minutes=0.01)" and page()["over"]


def test_a_section_that_breaks_leaves_its_traceback_and_the_next_one_begins(
    qualify: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(work, "noise_checks", broken)
    monkeypatch.setattr(work, "stepped", broken)
    assert qualify("qualify.sections=[noise,steps]")[0] == 1
    assert [one["verdict"] for one in page()["sections"]] == ["FAILED"] * 3
    assert "RuntimeError: CUDA error" in Path("out/page.md").read_text()


def test_a_model_is_let_go_of_before_the_next_one_loads(
    qualify: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its timings fail: two of 30B parameters do not fit."""

    class Stood:
        plain, rows = False, "packed"

    alive: list[weakref.ref[Stood]] = []

    def loaded(*_: Any) -> Stood:
        assert not [one for one in alive if one() is not None]
        network = Stood()
        alive.append(weakref.ref(network))
        return network

    def timed_in(setup: Any, share: float, command: str) -> Any:
        raise RuntimeError(f"timed in {share:.0f} s")

    monkeypatch.setattr(work, "loaded", loaded)
    monkeypatch.setattr(work, "timed_in", timed_in)
    assert qualify("qualify.sections=[times]", "qualify.models=[tiny,opt-125m]", "qualify.minutes=8")[0] == 1
    verdicts = {one["name"]: one["verdict"] for one in page()["sections"]}
    assert verdicts == {
        "tiny loads": "right",
        "tiny rte": "FAILED",
        "opt-125m loads": "right",
        "opt-125m rte": "FAILED",
    }
    shares = [float(one["error"].split()[-2]) for one in page()["sections"] if one["error"]]
    assert 150 < shares[0] <= 240 and 300 < shares[1] <= 480  # of eight minutes a half, then what is left


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("qualify.sections=[bits]", "expected some of noise, steps, killed, times"),
        ("qualify.minutes=0", "a number above 0"),
        ("qualify.steps=2", "a whole number from 3"),
        ("model.device=gpu", "expected auto, cpu, cuda or cuda:N"),
        ("qualify.model=tiny", "unknown option"),
        ("model=opt-13b", "qualify.models=[NAME]"),
        ("train.batch_size=none", "train.batch_size"),
    ],
)
def test_bad_words_end_with_2_and_leave_nothing(word: str, said: str, qualify: Call) -> None:
    code, out, err = qualify(word)
    assert (code, out) == (2, "") and err.startswith("error: ") and said in err
    assert not Path("out").exists()


def test_help_names_options_and_sections() -> None:
    own = ("out", "models", "tasks", "sections", "minutes", "steps")
    assert all(f"\n  qualify.{name}" in HELP for name in own)
    assert all(f"\n  {name} " in HELP for name in SECTIONS)
    assert "lezo-qualify" in sys.modules["lezo.cli.qualify"].__doc__
