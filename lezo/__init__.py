"""lezo: fine-tune models with forward passes only.

What is named here is stable (docs/library.md); the modules behind it may change. A name is imported when it is
first used, for torch and transformers take seconds.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lezo.model.hashes import weights_hash as weights_hash
    from lezo.noise.directions import normal as normal
    from lezo.noise.directions import perturb as perturb
    from lezo.noise.directions import update_ as update_
    from lezo.noise.seeds import step_seed as step_seed
    from lezo.records.journal import JournalError as JournalError
    from lezo.records.journal import read_journal as read_journal
    from lezo.zo.journaled import apply_journal as apply_journal
    from lezo.zo.optimizers import LeZO as LeZO
    from lezo.zo.optimizers import MeZO as MeZO
    from lezo.zo.parts import method as method
    from lezo.zo.probe import PlainProbe as PlainProbe
    from lezo.zo.step import StepReport as StepReport
    from lezo.zo.trainer import ZOStep as ZOStep
    from lezo.zo.trainer import ZOTrainer as ZOTrainer

__version__ = "0.1.0"

# OpenMP's threads spin while they wait, which beside anything else on the cores makes a step many times slower: GNU's
# is told to spin a thousand turns instead of 300,000, Intel's and LLVM's a millisecond instead of 200. A runtime reads
# this when torch loads it, hence here; what the user has said stays, and results do not depend on it (docs/library.md).
if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("KMP_BLOCKTIME", "1")

# oneDNN, which multiplies half-precision matrices on a CPU, keeps what it compiled for each of the last 1,024 shapes. Where
# texts have many lengths that is gigabytes, and no step is faster for it; 32 are more than a forward has (docs/runs.md).
if "torch" not in sys.modules:
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")

_HOMES = {
    "JournalError": "lezo.records.journal",
    "LeZO": "lezo.zo.optimizers",
    "MeZO": "lezo.zo.optimizers",
    "PlainProbe": "lezo.zo.probe",
    "StepReport": "lezo.zo.step",
    "ZOStep": "lezo.zo.trainer",
    "ZOTrainer": "lezo.zo.trainer",
    "apply_journal": "lezo.zo.journaled",
    "method": "lezo.zo.parts",
    "normal": "lezo.noise.directions",
    "perturb": "lezo.noise.directions",
    "read_journal": "lezo.records.journal",
    "step_seed": "lezo.noise.seeds",
    "update_": "lezo.noise.directions",
    "weights_hash": "lezo.model.hashes",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lezo' has no attribute {name!r}; it has {', '.join(_HOMES)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
