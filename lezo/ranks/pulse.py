"""Who is still there? Each process says each second that it is alive and how far it has come."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

BEAT = 1.0  # seconds between two
SILENT = 5.0  # seconds without one, after which a process that an exchange fails with is held for dead
GONE = 60.0  # the same where no exchange has failed: something may keep Python busy for a while
PATIENCE = 15.0  # seconds that a failed exchange is looked into


class RankError(RuntimeError):
    """Another rank does not answer, failed, or has other code, data or weights."""


@dataclass(frozen=True)
class State:
    """What a process says of itself: its beats, the exchanges it came to, why it failed, its exit code."""

    beat: int = 0
    exchanges: int = 0
    failed: str | None = None
    ended: int | None = None


class Pulse:
    """Says to all that this process lives, and hears it of them, in a thread, by way of the store where they met.

    ``timeout``: seconds that an exchange waits. The thread ends the process where another is lost and nothing tells the
    main thread so, which waits for a GPU or for rank 0; and at once where its launcher is gone.
    """

    def __init__(self, host: str, port: int, rank: int, size: int, timeout: float) -> None:
        self.rank, self.size, self.timeout, self._launcher = rank, size, timeout, os.getppid()
        self.exchanges = 0
        self._own = State()
        self._names: list[str] = []
        self._seen = {other: (State(), time.monotonic()) for other in range(size)}
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._warned: float | None = None
        client = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=10))
        started = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = PrefixStore(f"lezo/{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{started}", client)
        self._thread = threading.Thread(target=self._run, daemon=True, name="pulse")

    def start(self, exchange: Callable[[str], list[str]]) -> None:
        """Begin, once all processes are there to be heard."""
        self._tell()
        self._names = exchange(f"{socket.gethostname()}, process {os.getpid()}")
        self._thread.start()

    def say(self, *, failed: str | None = None, ended: int | None = None) -> None:
        """Say why this process ends, or that it does."""
        self._own = State(failed=failed or self._own.failed, ended=ended)
        self._beat()

    def close(self) -> None:
        """Be silent from now on."""
        self._closed.set()

    def ended(self, rank: int) -> int | None:
        """The exit code of a rank that has left."""
        return self._seen[rank][0].ended

    def name(self, rank: int) -> str:
        """What a rank is called in messages."""
        return f"rank {rank} ({self._names[rank]})"

    def why(self, error: Exception) -> str:
        """What to say of an exchange that failed with ``error``: who is to blame, as far as that can be found out."""
        late = "timed out" in str(error).lower()
        behind = [rank for rank in self._others() if self._seen[rank][0].exchanges < self.exchanges]
        found = self._blamed(SILENT) if late and behind else self._watched(PATIENCE)
        if found is None and late and behind:
            found = f"{self._all(behind)} did not come to where others waited for {self.timeout:g} s (train.rank_timeout)"
        return found or f"an exchange between the ranks failed: {str(error).splitlines()[0]}"

    def lost(self) -> str | None:
        """Who failed or falls silent now; None where all are there."""
        return self._watched(SILENT + 2 * BEAT)

    def _watched(self, seconds: float) -> str | None:
        """Who failed, left or falls silent within so many seconds."""
        deadline = time.monotonic() + seconds
        while (found := self._blamed(SILENT)) is None and time.monotonic() < deadline:
            self._beat()
            time.sleep(BEAT / 4)
        return found

    def _blamed(self, silent: float) -> str | None:
        """Who failed, left or has been silent for so many seconds."""
        now, states = time.monotonic(), {rank: self._seen[rank] for rank in self._others()}
        for rank, (state, _) in states.items():
            if state.failed is not None:
                return f"{self.name(rank)} failed: {state.failed}"
        if left := [rank for rank, (state, _) in states.items() if state.ended is not None]:
            return f"{self._all(left)} has ended"
        if lost := [rank for rank, (_, heard) in states.items() if now - heard > silent]:
            return f"{self._all(lost)} does not answer any more: it was killed or stopped, or its machine is gone"
        return None

    def _all(self, ranks: list[int]) -> str:
        return " and ".join(map(self.name, ranks))

    def _others(self) -> list[int]:
        return [rank for rank in range(self.size) if rank != self.rank]

    def _run(self) -> None:
        while not self._closed.wait(BEAT):
            self._beat()
            if os.getppid() != self._launcher:
                self._exit("the launcher of this process is gone")
            if self._own.ended is None:
                self._exit_after_loss()

    def _exit_after_loss(self) -> None:
        found, now = self._blamed(GONE), time.monotonic()
        self._warned = (self._warned or now) if found else None
        if found is not None and self._warned is not None and now - self._warned > GONE:
            self._exit(found)

    def _exit(self, reason: str) -> None:
        print(f"error: rank {self.rank}: {reason}", file=sys.stderr, flush=True)
        os._exit(1)

    def _beat(self) -> None:
        """Say that this process lives, and hear who else does. Where the store is gone, so is rank 0, who is not heard."""
        with self._lock:
            try:
                self._tell()
                keys = [str(rank) for rank in self._others()]
                found = zip(self._others(), self._store.multi_get(keys), strict=True)
            except RuntimeError:
                return
            for rank, content in found:
                state = State(**json.loads(content))
                if state != self._seen[rank][0]:
                    self._seen[rank] = state, time.monotonic()

    def _tell(self) -> None:
        values: dict[str, Any] = asdict(self._own)
        values |= {"beat": self._own.beat + 1, "exchanges": self.exchanges}
        self._own = State(**values)
        self._store.set(str(self.rank), json.dumps(values))
