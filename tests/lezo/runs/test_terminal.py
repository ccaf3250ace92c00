"""Streams that take nothing, or not everything, stop no command."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest

from lezo.cli import bench, dashboard, replay, report, run, show
from lezo.runs import terminal
from tests.lezo.whole_runs import SMALL


def test_a_reader_that_has_gone_is_written_to_without_an_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with terminal.steady(writer, "utf-8", lines=True) as stream:
        for _ in range(3):
            print("word " * 10_000, file=stream, flush=True)
    os.close(writer)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_full_disk_is_written_to_without_an_error(unbuffered: bool) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with terminal.steady(full, "utf-8", lines=False, unbuffered=unbuffered) as stream:
        assert stream.write("words\n") == 6
        stream.flush()
    os.close(full)


def test_a_pipe_that_does_not_wait_gets_everything() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    found: list[bytes] = []

    def read() -> None:
        time.sleep(0.05)  # the pipe is full by now
        while piece := os.read(reader, 50_000):
            found.append(piece)

    reading = threading.Thread(target=read)
    reading.start()
    with terminal.steady(writer, "utf-8", lines=True) as stream:
        for number in range(3):
            print(str(number) * 200_000, file=stream)
    os.close(writer)
    reading.join()
    os.close(reader)
    assert b"".join(found).decode() == "".join(f"{str(number) * 200_000}\n" for number in range(3))


@pytest.mark.parametrize(
    ("encoding", "said"), [("ascii", rb"\xab\u4e2d\udcff"), ("latin-1", b"\xab\\u4e2d\\udcff")]
)
def test_what_an_encoding_lacks_is_escaped(encoding: str, said: bytes, tmp_path: Path) -> None:
    with (
        (tmp_path / "said").open("wb") as file,
        terminal.steady(file.fileno(), encoding, lines=True) as stream,
    ):
        stream.write("\u00ab\u4e2d\udcff")
    assert (tmp_path / "said").read_bytes() == said


def test_a_stream_that_somebody_has_put_there_stays() -> None:
    before = sys.stdin, sys.stdout, sys.stderr
    terminal.open_streams()
    assert (sys.stdin, sys.stdout, sys.stderr) == before


class Opened(Exception):
    """Raised in the place of opening the streams."""


@pytest.mark.parametrize("program", [run, show, replay, bench, report, dashboard])
def test_every_command_opens_its_streams_first(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened() -> None:
        raise Opened

    opening = (
        program if hasattr(program, "open_streams") else run
    )  # commands without flags begin in that one's file
    monkeypatch.setattr(opening, "open_streams", opened)
    with pytest.raises(Opened):
        program.main()


def test_a_run_without_any_stream_is_whole_and_no_file_takes_a_streams_place(tmp_path: Path) -> None:
    told = "import os; from lezo.cli.run import main; main()"
    words = [sys.executable, "-c", told, *SMALL, "hydra.run.dir=out"]
    closed = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words], cwd=tmp_path)
    out = tmp_path / "out"
    assert closed.returncode == 0
    assert json.loads((out / "result.json").read_text())["status"] == "finished"
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "g" in row] == [1, 2, 3, 4]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_what_hydra_prints_onto_a_full_disk_ends_quietly() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lezo.cli.run", "--help"], stdout=full, stderr=subprocess.PIPE
        )
    assert (done.returncode, done.stderr) == (0, b"")
