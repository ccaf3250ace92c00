"""How many instructions the kernels take an element, counted in the machine code of a GPU that is not there.

    python -m tests.pretend_cuda.instructions [80|90]

prints a row a kernel for tensors that wide accesses may be made to: registers, instructions an element (those of a
program over the elements of a thread; jumps skip few), and of what kind they are.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.pretend_cuda.ahead_of_time import compiled, variants

KINDS = {
    "fp32": ("FMUL", "FADD", "FFMA", "FSEL", "FSETP"),
    "integer": ("IMAD", "LOP3", "IADD3", "SHF", "LEA", "ISETP", "SEL", "PRMT", "IABS"),
    "converted": ("I2FP", "F2FP", "HADD2", "HFMA2"),
    "memory": ("LDG", "STG", "LDS", "STS", "STSM"),
}


def counted(made: Any) -> tuple[int, list[str]]:
    """Registers of a thread, and its instructions, by their names without suffixes."""
    from triton.backends import nvidia

    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        options = ("-res-usage", "-sass")
        usage, sass = (
            subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in options
        )
    registers = re.search(r"REG:(\d+)", usage)
    assert registers, usage[:500]
    line = r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)"
    names = [name for name in re.findall(line, sass, re.MULTILINE) if name != "NOP"]
    return int(registers[1]), names


def main(words: list[str]) -> None:
    """Print the table."""
    from lezo.noise.kernels.normal import GROUPS, LAUNCH

    elements = 4 * GROUPS // (32 * LAUNCH["num_warps"])  # of a thread
    print(f"| kernel | registers | instructions an element | {' | '.join(KINDS)} | other |")
    print("|:-" + "|-:" * (3 + len(KINDS)) + "|")
    for name, kernel, types, fixed in variants():
        if fixed["ALIGNED"]:
            registers, names = counted(compiled(kernel, types, fixed, int(words[0]) if words else 90))
            kinds = [sum(name in kind for name in names) / elements for kind in KINDS.values()]
            cells = [len(names) / elements, *kinds, len(names) / elements - sum(kinds)]
            print(f"| {name} | {registers} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
