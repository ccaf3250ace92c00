"""Shows a run on Weights & Biases: a copy of its rows and result that can neither stall nor end it.

Every wandb call happens on a thread of its own, fed by a queue. A failure there is told once, and ends the mirror only:
the run folder has everything.
"""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lezo.records.rows import DevRow, TestRow, TrainRow
from lezo.tracking import keys
from lezo.tracking.start import FINISH_SECONDS, ONLINE, in_a_line, no_answer, start_run

QUEUE_ROWS = 10_000
UPLOAD_SECONDS = 3600.0


class WandbMirror:
    """Mirrors metrics and result; ``warn`` gets the one line that says why mirroring stopped.

    ``settings`` and ``mode`` as in `start_run`. ``patience``: the seconds that ``close`` waits for wandb to finish;
    it waits less where no server answers. ``cost``: forwards of a step, None of what takes none.
    ``score``: what scores are called, "perplexity" where they are that. ``texts``: whether the table of predictions has the words
    of the rows.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        mode: str,
        warn: Callable[[str], None],
        *,
        patience: float = 30.0,
        cost: int | None = None,
        score: str = "score",
        texts: bool = False,
    ) -> None:
        self._queue: queue.SimpleQueue[Callable[[Any], None] | None] = queue.SimpleQueue()
        self._warn, self._patience, self._cost = warn, patience, cost
        self._score, self._dropped, self._failed = score, 0, False
        self._texts = texts
        self._abandoned = False  # nobody waits for the thread any more
        self._run: Any = None
        work = partial(self._work, folder, settings, mode)
        self._thread = threading.Thread(target=work, daemon=True, name="wandb")
        self._thread.start()

    def trained(self, row: TrainRow) -> None:
        """Mirror a train row."""
        self._log(keys.train_keys(row.values(), self._cost))

    def evaluated(self, row: DevRow) -> None:
        """Mirror a dev row."""
        self._log(keys.dev_keys(row.values(), self._cost, self._score))

    def tested(self, row: TestRow) -> None:
        """Mirror a test row; of the run's last one the predictions too."""
        self._log(keys.test_keys(row.step, row.loss, row.score, self._score))
        if row.last:
            self._put(lambda run: run.log({keys.PREDICTIONS: _table(row, self._texts)}))

    def close(self, result: Mapping[str, Any], model: Path | None = None) -> None:
        """Set the result as the summary and finish, within the patience.

        ``model``: a folder to send too, as an artifact; while it travels the patience is an hour.
        """
        self._queue.put(lambda run: run.summary.update(keys.result_keys(result)))
        if model is not None:
            self._patience = max(self._patience, UPLOAD_SECONDS)
            self._queue.put(lambda run: _send(run, model, result))
        self._queue.put(None)
        start = time.monotonic()
        self._wait(start + self._patience)
        if self._thread.is_alive():
            self._abandoned = True
            self._warn(f"wandb did not finish within {time.monotonic() - start:.1f} s; {self._way_out()}")
        if self._dropped and not self._failed:
            self._warn(f"wandb fell behind: {self._dropped} rows not mirrored; the run folder has them")

    def _wait(self, deadline: float) -> None:
        """Wait for the thread to end, as long as the server answers."""
        while self._thread.is_alive() and (left := deadline - time.monotonic()) > 0:
            self._thread.join(min(FINISH_SECONDS, left))
            if self._thread.is_alive() and self._online() and no_answer(self._run.settings):
                return

    def _online(self) -> bool:
        return self._run is not None and self._run.settings.mode in ONLINE

    def _way_out(self) -> str:
        rest = f", and wandb sync {self._run.settings.sync_dir} uploads the rest" if self._online() else ""
        return f"the run folder has everything{rest}"

    def _log(self, row: Mapping[str, Any]) -> None:
        self._put(lambda run: run.log(dict(row)))

    def _put(self, call: Callable[[Any], None]) -> None:
        if self._queue.qsize() < QUEUE_ROWS:
            self._queue.put(call)
        else:
            self._dropped += 1

    def _work(self, folder: Path, settings: Mapping[str, Any], mode: str) -> None:
        """The thread: start wandb and make the calls of the queue until it ends; a failure is told and ends it too."""
        try:
            self._run = start_run(folder, settings, mode, self._warn)
            _define_metrics(self._run, self._score)
            while (call := self._queue.get()) is not None:
                call(self._run)
            self._run.finish()
        except Exception as error:  # whatever goes wrong inside wandb must not reach the run
            if not self._abandoned:
                self._warn(f"wandb stopped mirroring ({in_a_line(error)}); {self._way_out()}")
            self._failed = True


def _define_metrics(run: Any, score: str) -> None:
    for axis in keys.AXES:
        run.define_metric(axis)
    for namespace, axis in keys.NAMESPACES.items():
        run.define_metric(f"{namespace}/*", step_metric=axis)
    for key in keys.KEYS:
        if key.best and (key.of != "perplexity" or score == "perplexity"):
            run.define_metric(key.name, step_metric=key.axis, summary=f"{key.best},last")


def _send(run: Any, model: Path, result: Mapping[str, Any]) -> None:
    """Send a model's folder, named like the run, from where it lies: no copy of it is made."""
    import wandb

    name = re.sub(r"[^A-Za-z0-9._-]", "_", str(result.get("name") or "model"))[:128]
    about = {key: result.get(key) for key in _ABOUT}
    artifact = wandb.Artifact(name, type="model", metadata=about)
    artifact.add_dir(str(model.resolve()), policy="immutable", skip_cache=True)
    run.log_artifact(artifact)
    if run.settings.mode in ONLINE:
        artifact.wait(timeout=int(UPLOAD_SECONDS))


_ABOUT = ("task", "model", "optim", "peft", "seed", "metric", "test", "dev", "best_step", "weights")


def _table(test: TestRow, texts: bool) -> Any:
    import wandb

    columns, rows = keys.prediction_table(test.predictions, texts=texts)
    return wandb.Table(columns=columns, data=rows)
