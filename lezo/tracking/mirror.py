"""How does Weights & Biases see a run? A copy of the files' rows that can neither stall nor kill it.

Their names there, units and axes are those of ``mirror_keys.KEYS``.

Every wandb call happens on a thread of its own, fed by a queue; what fails there is said once and dropped.
The run folder's files are the truth.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lezo.model.evaluate import Evaluation
from lezo.records.folder import dev_row, train_row
from lezo.tracking import keys
from lezo.tracking.start import FINISH_SECONDS, ONLINE, in_a_line, no_answer, started
from lezo.zo.step import StepReport

_QUEUE_ROWS = 10_000


class WandbMirror:
    """Mirrors metrics and result; ``warn`` receives the one line that says why mirroring stopped.

    ``patience``: the seconds that ``close`` waits for wandb to finish; it waits less where no server answers.
    """

    def __init__(
        self,
        folder: Path,
        *,
        config: Mapping[str, Any],
        project: str | None,
        group: str | None,
        tags: list[str],
        mode: str,
        run_id: str,
        warn: Callable[[str], None],
        patience: float = 30.0,
    ) -> None:
        self._queue: queue.SimpleQueue[Callable[[Any], None] | None] = queue.SimpleQueue()
        self._warn, self._patience, self._dropped, self._stopped = warn, patience, 0, False
        self._run: Any = None
        self._left = False  # nobody waits for the thread any more
        settings = {
            **{"project": project, "group": group, "job_type": keys.job_type(config), "tags": tags},
            **{"config": dict(config), "id": run_id},
        }
        work = partial(self._work, folder, settings, mode)
        self._thread = threading.Thread(target=work, daemon=True, name="wandb")
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
        start = time.monotonic()
        self._thread.join(min(FINISH_SECONDS, self._patience))
        if self._thread.is_alive() and not (self._online() and no_answer(self._run.settings)):
            self._thread.join(max(start + self._patience - time.monotonic(), 0))
        if self._thread.is_alive():
            self._left = True
            self._warn(f"wandb did not finish within {time.monotonic() - start:.1f} s; {self._way_out()}")
        if self._dropped and not self._stopped:
            self._warn(f"wandb fell behind: {self._dropped} rows not mirrored; the run folder has them")

    def _online(self) -> bool:
        return self._run is not None and self._run.settings.mode in ONLINE

    def _way_out(self) -> str:
        rest = f", and wandb sync {self._run.settings.sync_dir} uploads the rest" if self._online() else ""
        return f"the run folder has everything{rest}"

    def _log(self, row: Mapping[str, Any]) -> None:
        self._put(lambda run: run.log(dict(row)))

    def _put(self, call: Callable[[Any], None]) -> None:
        if self._queue.qsize() < _QUEUE_ROWS:
            self._queue.put(call)
        else:
            self._dropped += 1

    def _work(self, folder: Path, settings: Mapping[str, Any], mode: str) -> None:
        """The thread: start wandb, then do as told until told to finish; on any failure say so and end."""
        try:
            self._run = _begun(folder, settings, mode, self._warn)
            while (call := self._queue.get()) is not None:
                call(self._run)
            self._run.finish()
        except Exception as error:  # whatever goes wrong inside wandb must not reach the run
            if not self._left:
                self._warn(f"wandb stopped mirroring ({in_a_line(error)}); {self._way_out()}")
            self._stopped = True


def _begun(folder: Path, settings: Mapping[str, Any], mode: str, warn: Callable[[str], None]) -> Any:
    run = started(folder, settings, mode, warn)
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
