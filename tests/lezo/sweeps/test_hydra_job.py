"""A run that one of Hydra's launchers started, perhaps in a process of the launcher's own."""

import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lezo.runs.stop import Stop
from lezo.sweeps.hydra_job import LaunchedRun, Notice

CODE = """
import pickle, sys
from omegaconf import OmegaConf
task = pickle.loads(sys.stdin.buffer.read())
assert callable(task) and OmegaConf.has_resolver("lezo_job") and "torch" not in sys.modules
"""


@pytest.fixture
def handlers() -> Iterator[None]:
    """Signal handlers come back afterwards."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_a_launchers_process_knows_how_jobs_are_named() -> None:
    subprocess.run([sys.executable, "-c", CODE], input=pickle.dumps(LaunchedRun()), check=True)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_schedulers_notice_waits_for_the_step(number: signal.Signals, handlers: None) -> None:
    heard: list[int] = []
    signal.signal(number, lambda number, _: heard.append(number))
    stop = Stop()
    stop.listen()
    notice, finished = Notice(), False
    with pytest.raises(KeyboardInterrupt), stop.held():
        signal.raise_signal(number)
        finished = True
    assert finished and heard == []
    notice.pass_on()
    assert heard == [number]
    signal.raise_signal(number)
    assert heard == [number, number]


def test_a_notice_that_never_came_is_not_passed_on(handlers: None) -> None:
    heard: list[int] = []
    signal.signal(signal.SIGUSR2, lambda number, _: heard.append(number))
    Notice().pass_on()
    assert heard == []
