"""The first hour: what docs/start.md says is run, in its order, in an empty folder, with fewer steps."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lezo.cli import replay, report, run, show
from tests.lezo.whole_runs import try_rows_once, typed

PAGE = Path(__file__).resolve().parents[1] / "docs" / "start.md"
BLOCKS = re.findall(
    r"^```(bash|python)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
)
COMMANDS = {
    "lezo-run": run.main,
    "lezo-inspect": show.main,
    "lezo-replay": replay.main,
    "lezo-report": report.main,
}
FEWER = {
    "train.steps=200": "train.steps=4",
    "train.steps=100": "train.steps=4",
    "train.eval_every=50": "train.eval_every=2",
}
FEWER |= {"optim.lr_scale=0.3,1,3": "optim.lr_scale=3", "seed=0,1": "seed=0"}


def shortened(line: str) -> list[str]:
    return [FEWER.get(word, word) for word in shlex.split(line)]


def test_the_first_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    try_rows_once()
    for kind, code in BLOCKS:
        if kind == "python":
            exec(compile(code, str(PAGE), "exec"), {})
            assert capsys.readouterr().out in ("happy\n", "unhappy\n")
        elif not code.startswith("lezo-"):
            subprocess.run(
                ["bash", "-ec", code],
                check=True,
                env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
            )
        else:
            for name, *words in map(shortened, code.splitlines()):
                ended, out, err = typed(name, COMMANDS[name], monkeypatch, capsys)(*words)
                assert ended == 0, f"{name} {words}\n{out}\n{err}"
    assert Path("first/model/README.md").exists() and Path("report.html").exists()
    assert len(list(Path("runs/sweeps").glob("guests-*"))) == 1


def test_the_words_that_are_shortened_are_on_the_page() -> None:
    written = {word for kind, code in BLOCKS if kind == "bash" for word in code.split()}
    assert {*FEWER} <= written
