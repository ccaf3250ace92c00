"""A sweep's job of several ranks: torchrun, which ends when its sweep does. ``python -m lezo.sweeps.ranked RANKS WORD...``"""

from __future__ import annotations

import sys

from lezo.sweeps.lifeline import end_with_the_sweep


def main() -> None:
    """Start lezo-run in so many processes of this machine. Exits as torchrun does: with 0, or 1 where one failed."""
    end_with_the_sweep()
    from torch.distributed.run import main as torchrun

    ranks, *words = sys.argv[1:]
    torchrun(["--standalone", f"--nproc_per_node={ranks}", "-m", "lezo.cli.run", *words])


if __name__ == "__main__":
    main()
