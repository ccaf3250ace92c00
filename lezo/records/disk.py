"""When is what was written on the disk?"""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """See a file, or the names in a folder just made or renamed, onto the disk. Raises OSError."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
