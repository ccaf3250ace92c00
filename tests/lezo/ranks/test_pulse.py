"""Who is to blame where an exchange fails, by what processes say of themselves in a store that both can read."""

import time
from collections.abc import Iterator, Sequence

import pytest

from lezo.ranks import pulse
from lezo.ranks.pulse import Pulse

NAMES = ["here, process 10", "here, process 11", "there, process 12"]


class Store:
    """The store where processes meet, in this one."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        return [self.values[key].encode() for key in keys]


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Pulse]]:
    store = Store()
    monkeypatch.setattr(pulse, "TCPStore", lambda *given, **options: None)
    monkeypatch.setattr(pulse, "PrefixStore", lambda prefix, client: store)
    for name, seconds in (("BEAT", 0.02), ("SILENT", 1.0), ("PATIENCE", 1.3)):
        monkeypatch.setattr(pulse, name, seconds)
    made = [Pulse("here", 1, rank, 3, 5.0) for rank in range(3)]
    for one in made:
        one._tell()
    for one in made:
        one.start(lambda own: NAMES)
    yield made
    for one in made:
        one.close()


def _wait_for(codes: list[int]) -> None:
    """Until there is an exit code, on a busy machine too."""
    deadline = time.monotonic() + 30
    while not codes and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_process_that_falls_silent_is_named(three: list[Pulse]) -> None:
    three[2].close()
    assert (
        three[0]
        .why(RuntimeError("connection reset"))
        .startswith("rank 2 (there, process 12) does not answer")
    )
    assert three[1].lost() == three[0].lost()


def test_one_that_failed_says_why(three: list[Pulse]) -> None:
    three[1].say(failed="out of memory")
    assert three[0].why(RuntimeError("connection reset")) == "rank 1 (here, process 11) failed: out of memory"


def test_one_that_ended_has_an_exit_code(three: list[Pulse]) -> None:
    three[0].say(ended=130)
    three[0].close()
    assert three[2].why(RuntimeError("connection reset")) == "rank 0 (here, process 10) has ended"
    assert (three[2].ended(0), three[2].ended(1)) == (130, None)


def test_one_that_lives_and_does_not_come_is_named_by_where_it_is(three: list[Pulse]) -> None:
    three[0].exchanges = three[2].exchanges = 7
    for one in (three[2], three[0]):
        one._beat()
    said = three[0].why(RuntimeError("Timed out waiting 5000ms for recv operation to complete"))
    assert (
        said == "rank 1 (here, process 11) did not come to where others waited for 5 s (train.rank_timeout)"
    )


def test_where_all_are_there_the_exchange_itself_is_to_blame(three: list[Pulse]) -> None:
    assert three[0].why(RuntimeError("no route\nto host")) == "an exchange between the ranks failed: no route"
    assert three[0].lost() is None


def test_a_process_that_waits_ends_where_another_is_lost(
    three: list[Pulse], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing else would tell it."""
    codes: list[int] = []
    monkeypatch.setattr(pulse, "GONE", 1.0)
    monkeypatch.setattr(pulse.os, "_exit", codes.append)
    three[1].close()
    _wait_for(codes)
    assert codes and set(codes) == {1}
    assert "error: rank 0: rank 1 (here, process 11) does not answer any more" in capsys.readouterr().err


def test_a_process_ends_with_its_launcher(
    three: list[Pulse], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(pulse.os, "_exit", codes.append)
    monkeypatch.setattr(pulse.os, "getppid", lambda: 1)  # who takes in processes whose parent is gone
    _wait_for(codes)
    assert codes and set(codes) == {1}
    assert "the launcher of this process is gone" in capsys.readouterr().err
