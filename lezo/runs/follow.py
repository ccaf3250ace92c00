"""One of several ranks of a run. Rank 0 is the run; another reads and loads what rank 0 does, and does what it says."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch

from lezo.config.compose import Composed
from lezo.model.device import named_devices
from lezo.model.load import ModelError
from lezo.ranks.launcher import Place, rendezvous
from lezo.ranks.ranks import Joined, RankError, Ranks
from lezo.runs import session
from lezo.runs.build import load_model, make_header
from lezo.runs.outcome import failed, message_of
from lezo.runs.plan import make_plan
from lezo.runs.together import END, Start, Together, refuse_other_starts, share_start


def started_by(place: Place) -> str:
    """The words that start such processes; of several machines, on each."""
    if place.launcher == "srun":
        return f"srun -n {place.size}"
    machines = place.size // place.local_size
    several = f"--nnodes={machines} --rdzv_backend=c10d --rdzv_endpoint=HOST:29400 "
    return f"torchrun {several if machines > 1 else ''}--nproc_per_node={place.local_size} --no-python"


def run_as_rank(composed: Composed, command: str, place: Place) -> int:
    """Run, or take part in rank 0's run. Returns the exit code, which is rank 0's where this one does not fail."""
    try:
        composed = on_own_device(composed, place)
        ranks = Joined(place, rendezvous(place, os.environ), composed.config.train.rank_timeout)
    except (ModelError, RankError, ValueError, RuntimeError) as error:
        return failed(error if isinstance(error, ModelError) else RankError(str(error).splitlines()[0]))
    code = 1
    try:
        words = f"{started_by(place)} {command}"
        code = session.run(composed, words, ranks) if place.rank == 0 else follow(composed, ranks)
        if place.rank == 0 and code == 0:
            ranks.tell([END, 0])
        return code
    finally:
        ranks.leave(code)


def on_own_device(composed: Composed, place: Place) -> Composed:
    """The configuration on the GPU of the rank's number on its machine, or on its share of model.devices.

    Raises ModelError where it names another, or not a share for each.
    """
    given, several = composed.config.model.device, composed.config.model.devices
    if several is not None:
        return _with(composed, devices=_share(several, place))
    if given == "cpu" or (given == "auto" and not torch.cuda.is_available()):
        return composed
    if given not in ("auto", "cuda"):
        raise ModelError(
            f"model.device={given}: each of {place.size} ranks takes the GPU of its number; leave it out"
        )
    own = (
        torch.cuda.device_count() == 1 and place.launcher == "srun"
    )  # which can show each rank its own GPU alone
    return _with(composed, device=f"cuda:{0 if own else place.local_rank}")


def _share(devices: Any, place: Place) -> list[str]:
    """The devices of a rank, of those that its machine's ranks share; the CPU named several times is each one's."""
    names = [str(device) for device in named_devices(devices, "model.devices")]
    if names[0] == "cpu":
        return names
    each = len(names) // place.local_size
    if not each:
        raise ModelError(
            f"model.devices={devices}: {len(names)} GPUs, and {place.local_size} ranks on this machine; expected a GPU or more "
            "for each"
        )
    return names[place.local_rank * each : (place.local_rank + 1) * each]


def _with(composed: Composed, **changes: Any) -> Composed:
    """The configuration with other settings of the model. What it says of itself stays."""
    config = deepcopy(composed.config)
    config.model = replace(config.model, **changes)
    return replace(composed, config=config)


def follow(composed: Composed, ranks: Joined) -> int:
    """Do what rank 0 says until it ends. Returns the exit code; only what this rank itself fails by is printed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # sent to all; rank 0 ends the run when its step is kept
    try:
        return followed(composed, ranks)
    except RankError as error:
        if (code := ranks.code_of_first()) is not None:
            return code
        ranks.failed(str(error))
        if ranks.rank == 1 and str(error).startswith(ranks.name(0)):  # which cannot say so itself
            failed(error)
        return 1
    except Exception as error:
        message = message_of(error) or traceback.format_exc()
        ranks.failed(message.strip().splitlines()[-1])
        print(f"error: {ranks.name(ranks.rank)}: {message}", file=sys.stderr)
        return 1


def followed(composed: Composed, ranks: Ranks) -> int:
    """What rank 0 says, done until it ends. Returns its exit code."""
    first, *rest = ranks.hear()
    if first == END:
        return int(rest[0])
    start = Start(**rest[0])
    composed = start.applied_to(composed)
    plan = make_plan(composed.config)
    loaded = load_model(composed.config, plan, lambda text: None, None, start.folder_here())
    share_start(ranks, loaded)
    refuse_other_starts(ranks, make_header(composed.yaml, composed.config, loaded).origin)
    return Together(ranks, composed.config, loaded).follow()
