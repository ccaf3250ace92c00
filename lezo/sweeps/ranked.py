"""A sweep's job of several ranks: torchrun, which ends when its sweep does. ``python -m lezo.sweeps.ranked RANKS WORD...``"""

from __future__ import annotations

import sys

from lezo.sweeps.lifeline import end_with_the_sweep


def main() -> None:
    """Start lezo-run in so many processes of this machine. Exits with 0, 1 where one failed, 130 where one was interrupted."""
    end_with_the_sweep()
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    ranks, *words = sys.argv[1:]
    try:
        torchrun(["--standalone", f"--nproc_per_node={ranks}", "-m", "lezo.cli.run", *words])
    except ChildFailedError as failed:  # which has said why
        codes = {failure.exitcode for failure in failed.failures.values()}
        sys.exit(130 if 130 in codes else 1)


if __name__ == "__main__":
    main()
