"""What is trained on and what is evaluated: encoded examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lezo.data.encode import Encoded


@dataclass(frozen=True)
class EvalSet:
    """A split to evaluate. ``scored`` gives loss and chosen candidates; ``prompts`` are to be continued.

    ``blanks``: where scores are calibrated, ``scored`` with prompts without content. ``samples``: prompts of the first of
    ``scored``, continued only to be looked at.
    """

    scored: Sequence[Encoded] = ()
    prompts: Sequence[Encoded] = ()
    blanks: Sequence[Encoded] = ()
    samples: Sequence[Encoded] = ()

    def __len__(self) -> int:
        return len(self.prompts or self.scored)
