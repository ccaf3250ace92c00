"""What every test may use."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from copy import copy, deepcopy
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.lezo.stand_ins import users_of
from tests.lezo.whole_runs import Kept, Runner

# Small models gain nothing from more threads, and on a busy machine lose much; also for the runs tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure() -> None:
    """Without a GPU Triton's kernels run in its interpreter, which must be known before they are defined."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    _remember()


def _remember() -> None:
    """What a run takes longest for without being what it is about: its configuration and the sample's rows.

    Hydra composes the same overrides again and again; it parses each of them, and OmegaConf each file and
    interpolation anew, to trees that nobody changes.
    """
    import yaml
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import grammar_parser, omegaconf

    from lezo.config import compose, diagnosis
    from lezo.data import source

    once = _composing_once(compose.hydra_compose)
    vars(compose)["hydra_compose"] = vars(diagnosis)["hydra_compose"] = once

    real = grammar_parser.parse
    remembered = cache(real)
    for module in users_of("omegaconf", "parse", real):
        vars(module)["parse"] = remembered
    vars(omegaconf)["yaml"] = SimpleNamespace(**{**vars(yaml), "load": _loading_once(yaml.load)})
    OverridesParser.parse_rule = _parsing_once(OverridesParser.parse_rule)
    source.sample_rows = cache(source.sample_rows)


def _loading_once(real: Callable[..., Any]) -> Callable[..., Any]:
    """YAML's load, which knows texts again; of a text that is none the error says where it stands."""
    known: dict[str, Any] = {}

    def load(stream: Any, Loader: Any) -> Any:
        text = stream if isinstance(stream, str) else stream.read()
        if text not in known:
            if text is not stream:
                stream.seek(0)
            known[text] = real(stream, Loader)
        return known[text]

    return load


def _parsing_once(real: Callable[..., Any]) -> Callable[..., Any]:
    """The parser of overrides, which gives a copy of what it gave for the same one."""
    known: dict[tuple[str, str], Any] = {}

    def parse_rule(parser: Any, text: str, rule: str) -> Any:
        if (text, rule) not in known:
            known[text, rule] = real(parser, text, rule)
        return copy(known[text, rule])

    return parse_rule


def _composing_once(real: Callable[..., Any]) -> Callable[..., Any]:
    """Hydra's compose, which gives a copy of what it gave for the same overrides; other configurations in between."""
    from lezo.config.methods import METHODS
    from lezo.tasks import TASKS

    known: dict[tuple[str, ...], Any] = {}

    def composed(name: str, overrides: Sequence[str] = (), **options: Any) -> Any:
        elsewhere = any("hydra.searchpath" in text for text in overrides)
        if elsewhere or METHODS.installed() or TASKS.installed():
            return real(name, [*overrides], **options)
        key = (name, *overrides, str(options))
        if key not in known:
            known[key] = real(name, [*overrides], **options)
        return deepcopy(known[key])

    return composed


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference folder beside the repository; its tests skip where the project lives alone."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"reference folder {folder} is absent")
    return folder


@pytest.fixture
def quiet_transformers() -> Iterator[None]:
    """transformers shows errors alone, and no progress: its trainers print a line for each step."""
    from transformers.utils import logging  # not before a test needs it

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    logging.set_verbosity(before)


@pytest.fixture(scope="session")
def kept_runs(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return Kept(tmp_path_factory.mktemp("kept"))


@pytest.fixture
def lezo_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kept_runs: Kept
) -> Iterator[Runner]:
    """Runs of a test; signal handlers and working folder come back afterwards."""
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield Runner(monkeypatch, capsys, kept_runs)
    for number, handler in handlers.items():
        signal.signal(number, handler)
