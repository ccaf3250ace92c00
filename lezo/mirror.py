"""How does Weights & Biases see a run? A copy of the files' rows that can neither stall nor kill it.

Their names there, units and axes are those of ``mirror_keys.KEYS``.

Every wandb call happens on a thread of its own, fed by a queue; what fails there is said once and dropped.
The run folder's files are the truth.
"""

from __future__ import annotations

import netrc
import os
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lezo import mirror_keys as keys
from lezo.evaluate import Evaluation
from lezo.optim import StepReport
from lezo.record import dev_row, train_row

_QUEUE_ROWS = 10_000
_INIT_SECONDS = 20  # wandb may take to reach its server


class WandbMirror:
    """Mirrors metrics and result; ``warn`` receives the one line that says why mirroring stopped.

    ``patience``: the seconds that ``close`` waits for wandb to finish.
    """

    def __init__(
        self,
        folder: Path,
        *,
        config: Mapping[str, Any],
        project: str,
        group: str | None,
        tags: list[str],
        mode: str,
        run_id: str,
        warn: Callable[[str], None],
        patience: float = 30.0,
    ) -> None:
        self._queue: queue.SimpleQueue[Callable[[Any], None] | None] = queue.SimpleQueue()
        self._warn, self._patience, self._dropped, self._stopped = warn, patience, 0, False
        settings = {
            **{"project": project, "group": group, "job_type": keys.job_type(config), "tags": tags},
            **{"mode": mode, "config": dict(config), "id": run_id},
        }
        self._thread = threading.Thread(target=self._work, args=(folder, settings), daemon=True, name="wandb")
        self._thread.start()

    def trained(self, step: int, seconds: float, report: StepReport) -> None:
        """Mirror a train row."""
        self._log(keys.train_keys(train_row(step, seconds, report)))

    def evaluated(self, step: int, seconds: float, dev: Evaluation) -> None:
        """Mirror a dev row."""
        self._log(keys.dev_keys(dev_row(step, seconds, dev)))

    def tested(self, step: int, test: Evaluation, *, last: bool) -> None:
        """Mirror a score on the test set by the weights of ``step``; of the ``last`` one the predictions too."""
        self._log(keys.test_keys(step, test.loss, test.score))
        if last:
            self._put(lambda run: run.log({keys.PREDICTIONS: _table(test)}))

    def close(self, result: Mapping[str, Any]) -> None:
        """Set the result as the summary and finish, within the patience."""
        self._queue.put(lambda run: run.summary.update(keys.result_keys(result)))
        self._queue.put(None)
        self._thread.join(self._patience)
        if self._thread.is_alive():
            self._warn(f"wandb did not finish within {self._patience:g} s; the run folder has everything")
        if self._dropped and not self._stopped:
            self._warn(f"wandb fell behind: {self._dropped} rows not mirrored; the run folder has them")

    def _log(self, row: Mapping[str, Any]) -> None:
        self._put(lambda run: run.log(dict(row)))

    def _put(self, call: Callable[[Any], None]) -> None:
        if self._queue.qsize() < _QUEUE_ROWS:
            self._queue.put(call)
        else:
            self._dropped += 1

    def _work(self, folder: Path, settings: dict[str, Any]) -> None:
        """The thread: start wandb, then do as told until told to finish; on any failure say so and end."""
        try:
            run = _start(folder, settings)
            while (call := self._queue.get()) is not None:
                call(run)
            run.finish()
        except Exception as error:  # whatever goes wrong inside wandb must not reach the run
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self._stopped = True
            self._warn(f"wandb stopped mirroring ({reason}); the run folder has everything")


def _start(folder: Path, settings: dict[str, Any]) -> Any:
    import wandb

    mode = settings.pop("mode")
    if mode == "auto":
        mode = "online" if _has_account() else "offline"
    options = wandb.Settings(init_timeout=_INIT_SECONDS, silent=True, x_transaction_log_flush_interval=1.0)
    run = wandb.init(
        dir=str(folder),
        name=folder.name,
        mode=mode,
        reinit="create_new",
        resume="allow",  # the sessions of one run are one there too
        settings=options,
        **settings,
    )
    for axis in keys.AXES:
        run.define_metric(axis)
    for namespace, axis in keys.NAMESPACES.items():
        run.define_metric(f"{namespace}/*", step_metric=axis)
    for key in keys.KEYS:
        if key.best:
            run.define_metric(key.name, step_metric=key.axis, summary=f"{key.best},last")
    return run


def _table(test: Evaluation) -> Any:
    import wandb

    columns, rows = keys.prediction_table(test.predictions)
    return wandb.Table(columns=columns, data=rows)


def _has_account() -> bool:
    """Whether a key lies where wandb looks for one: the environment, or the netrc file."""
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        known = netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        known = False
    return bool(os.environ.get("WANDB_API_KEY")) or known
