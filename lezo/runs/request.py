"""What was asked for: one configuration, the command that gave it, and where its output goes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from lezo.config.compose import Composed
from lezo.config.schema import RunConfig
from lezo.runs.stop import Stop


@dataclass(frozen=True)
class Request:
    """A run as it was asked for. ``started``: the clock (perf_counter) when it was."""

    composed: Composed
    command: str
    out: Console
    stop: Stop = field(default_factory=Stop)
    started: float = field(default_factory=time.perf_counter)

    def of(self, composed: Composed) -> Request:
        """The same with another configuration."""
        return replace(self, composed=composed)

    @property
    def config(self) -> RunConfig:
        """The checked configuration."""
        return self.composed.config

    @property
    def folder(self) -> Path:
        """Where the run's files are."""
        return self.composed.run_dir
