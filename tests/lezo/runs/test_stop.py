"""Signals: once after the step, twice at once."""

import errno
import os
import signal
from collections.abc import Iterator

import pytest

from lezo.runs.stop import Stop


@pytest.fixture
def stop() -> Iterator[Stop]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    listening = Stop()
    listening.listen()
    yield listening
    for number, handler in handlers.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_step_is_finished_first(
    number: signal.Signals, stop: Stop, capfd: pytest.CaptureFixture[str]
) -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), stop.held():
        send(number)
        done.append("step")
    assert done == ["step"] and stop.asked and not stop.broken_off
    assert capfd.readouterr().err == "\nstopping after this step; Ctrl-C again stops at once\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_between_steps_it_stops_at_once(number: signal.Signals, stop: Stop) -> None:
    with stop.held():
        pass
    with pytest.raises(KeyboardInterrupt):
        send(number)
    assert stop.asked and not stop.broken_off


def test_a_second_ctrl_c_breaks_the_step_off(stop: Stop) -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), stop.held():
        send(signal.SIGTERM)
        done.append("first")
        send(signal.SIGTERM)  # a scheduler's second one changes nothing
        done.append("second")
        send(signal.SIGINT)
        done.append("never")
    assert done == ["first", "second"] and stop.broken_off


def test_a_terminal_that_is_gone_breaks_no_step_off(stop: Stop, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> int:
        raise OSError(errno.EIO, "gone")

    monkeypatch.setattr("lezo.runs.stop.os.write", gone)
    done = []
    with pytest.raises(KeyboardInterrupt), stop.held():
        signal.raise_signal(signal.SIGTERM)
        done.append("step")
    assert done == ["step"]


def test_an_error_within_a_step_goes_before_the_stop(stop: Stop) -> None:
    with pytest.raises(ZeroDivisionError), stop.held():
        send(signal.SIGINT)
        _ = 1 / 0
