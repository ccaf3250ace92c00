"""Writes a run's rows for TensorBoard: event files in its folder, under the names that wandb shows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lezo.records.rows import DevRow, Row, TestRow, TrainRow
from lezo.tracking import keys
from lezo.tracking.start import in_a_line

EVENTS = "tensorboard"  # the folder in a run's


class EventFiles:
    """Rows as TensorBoard's scalars, each at its step; ``warn`` gets the one line that says why writing stopped.

    ``before``: the rows of the run that it goes on from. They are written anew in place of what earlier sessions wrote, so that no
    step is there twice, also none that was made but lost when the run was killed. ``score`` as in `WandbMirror`.
    """

    def __init__(
        self, folder: Path, before: Iterable[Row], warn: Callable[[str], None], *, score: str = "score"
    ) -> None:
        self._folder, self._warn, self._score = folder / EVENTS, warn, score
        self._writer: Any = None
        self._failed = False
        self._try(self._open)
        for row in before:
            match row:
                case TrainRow():
                    self.trained(row)
                case DevRow():
                    self.evaluated(row)
                case TestRow():
                    self.tested(row)

    def trained(self, row: TrainRow) -> None:
        """Write a train row."""
        self._add(keys.train_keys(row.values()))

    def evaluated(self, row: DevRow) -> None:
        """Write a dev row, and have all rows on the disk."""
        self._add(keys.dev_keys(row.values(), None, self._score))
        self._try(lambda: self._writer.flush())

    def tested(self, row: TestRow) -> None:
        """Write a test row."""
        self._add(keys.test_keys(row.step, row.loss, row.score, self._score))

    def close(self) -> None:
        """Have all on the disk."""
        self._try(lambda: self._writer.close())

    def _open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        goes_on = self._folder.exists()
        shutil.rmtree(self._folder, ignore_errors=True)
        # A TensorBoard that is looking on forgets all steps from the first on.
        self._writer = SummaryWriter(str(self._folder), purge_step=0 if goes_on else None)

    def _add(self, row: Mapping[str, Any]) -> None:
        """One event for all values of a row, at its step; at the time at which it is written."""
        values = {key: value for key, value in row.items() if key not in keys.AXES}
        self._try(lambda: self._writer.file_writer.add_summary(_summary(values), row["step"]))

    def _try(self, write: Callable[[], object]) -> None:
        """Write, until that fails: the run's own files have everything."""
        if self._failed:
            return
        try:
            write()
        except Exception as error:  # a full disk, and what tensorboard's thread makes of it
            self._failed = True
            self._warn(f"TensorBoard's files end here ({in_a_line(error)}); the run folder has everything")


def _summary(values: Mapping[str, float]) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=key, simple_value=value) for key, value in values.items()])
