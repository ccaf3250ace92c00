"""Whole runs in this process, for tests to start and to look into."""

import json
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lezo.cli import run
from lezo.config.compose import compose
from lezo.config.schema import RunConfig
from tests.lezo.refusals import names
from tests.lezo.stand_ins import users_of

SMALL = ["task.num_train=32", "task.num_dev=8", "task.num_test=8", "train.steps=4", "train.eval_every=3"]
SMALL += ["model.device=cpu"]  # the same numbers on a machine with a GPU


@dataclass(frozen=True)
class Ran:
    """What a run left behind."""

    code: Any
    out: str
    err: str
    folder: Path

    def refused(self, *named: str, code: int = 1) -> None:
        """The run ended with this exit code and one line that says "error: " and names these files and keys."""
        assert (self.code, self.err[:7]) == (code, "error: "), self.err
        names(self.err, *named)

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.folder / "result.json").read_text())  # type: ignore[no-any-return]

    def rows(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]

    def training(self) -> list[dict[str, Any]]:
        return [row for row in self.rows("metrics.jsonl") if "loss" in row]

    def evaluations(self) -> list[dict[str, Any]]:
        return [row for row in self.rows("metrics.jsonl") if "dev_loss" in row]


@dataclass(frozen=True)
class Kept:
    """Runs by their overrides, each with a folder that nobody changes."""

    folder: Path
    runs: dict[tuple[str, ...], tuple[Ran, Path]] = field(default_factory=dict)


@cache
def try_rows_once() -> None:
    """Whether rows may be packed is found out by forwards that take as long as a short run: of a model once."""
    from lezo.model.forward import Network
    from lezo.model.hashes import weights_hash
    from lezo.runs import session  # noqa: F401  # with all that has imported network_for
    from lezo.zo import packing_check

    real, packed = packing_check.network_for, set[tuple[Any, ...]]()

    def network_for(model: Any, *given: Any, **options: Any) -> Network:
        if next(model.parameters()).device.type != "cpu":
            return real(model, *given, **options)
        about = type(model), model.dtype, model.config.to_json_string(), *options.items()
        key = (weights_hash(model), *about)
        if key in packed:
            return Network(model)
        network = real(model, *given, **options)
        if not network.plain:
            packed.add(key)
        return network

    for module in users_of("lezo", "network_for", real):
        vars(module)["network_for"] = network_for


class Runner:
    """lezo-run in this process, in an empty folder; ``folder`` names the run folder."""

    def __init__(self, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str], kept: Kept) -> None:
        self._patch, self._capture, self._kept = patch, capture, kept

    def __call__(self, *overrides: str, folder: str = "out") -> Ran:
        try_rows_once()
        arguments = ["lezo-run", *SMALL, *overrides, f"hydra.run.dir={folder}"]
        self._patch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            run.main()
        out, err = self._capture.readouterr()
        return Ran(ended.value.code, out, err, Path(folder))

    def once(self, *overrides: str, folder: str = "out") -> Ran:
        """The same for a test that does not care who made the run: a copy of the one that another test made.

        Not for a run that what the test has patched or written is to change.
        """
        if overrides in self._kept.runs:
            ran, store = self._kept.runs[overrides]
            shutil.copytree(store, folder)
            return replace(ran, folder=Path(folder))
        ran, store = self(*overrides, folder=folder), self._kept.folder / str(len(self._kept.runs))
        self._kept.runs[overrides] = ran, store
        shutil.copytree(folder, store)
        return ran


@cache
def _composed(overrides: tuple[str, ...]) -> RunConfig:
    return compose(overrides).config


def config_of(*overrides: str) -> RunConfig:
    """A checked configuration, composed once, for a test to change: a folder that is not there yet may be "."."""
    return deepcopy(_composed(overrides))


def little_model(folder: str | Path) -> None:
    """A model of four narrow blocks in ``folder``, with the embedded tokenizer."""
    import torch  # not before a test needs it: every worker imports this module
    from transformers import OPTForCausalLM

    from lezo.model.load import TINY
    from tests.lezo.small_models import opt_config

    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__", "*.safetensors"))
    torch.manual_seed(0)
    OPTForCausalLM(opt_config(vocab_size=1024, max_position_embeddings=512)).save_pretrained(folder)


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    """A row without clocks and memory: what is the same in every run."""
    return {k: v for k, v in row.items() if k not in ("seconds", "eval_seconds", "phases", "memory")}


def typed(
    name: str, main: Callable[[], None], patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """A command in this process: its arguments -> exit code, output and errors."""

    def call(*arguments: str) -> tuple[int, str, str]:
        patch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capture.readouterr()

    return call


def imported_by(module: str, *libraries: str) -> str:
    """Code of a command that ends well and prints which of these libraries it has imported."""
    ends = "\nexcept SystemExit as ended:\n    assert not ended.code"
    told = f"print(sorted({set(libraries)!r} & set(sys.modules)))"
    return f"import sys\nfrom {module} import main\ntry:\n    main(){ends}\n{told}"


@contextmanager
def limited(size: int) -> Iterator[None]:
    """Meanwhile no file of this process can grow beyond so many bytes, as on a full disk; pytest's own neither."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
