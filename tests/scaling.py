"""Step times of data parallel on paper: what shrinks with the ranks, and what each does whole.

    python -m tests.scaling

prints a row a model and task: milliseconds of a LeZO(0.75) step of 16 examples (of 64 in the second table) on 1 to 64
H100s, and how much of N times one is reached. Of docs/h100/page.json it takes the time of opt-13b's forwards at two sizes of
batch, as a constant (each rank reads all weights) and a time a token, and the noise's a weight; for other models both grow with the
parameters. A rank takes at least one example; the ranks exchange their losses once (20 us and 5 more for each doubling).
opt-66b, 132 GB in fp16, is taken to be spread over two GPUs, one of which waits for the other: 64 GPUs are 32 ranks.
"""

from __future__ import annotations

import json
from math import ceil, log2
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs/h100/page.json"
BASE = "opt-13b"
MODELS = {"opt-13b": (12.85e9, 1), "opt-30b": (29.97e9, 1), "opt-66b": (65.7e9, 2)}
"""Parameters, and GPUs of a rank."""
GPUS = (1, 2, 4, 8, 16, 32, 64)
SPARSITY = 0.75


def measured(page: dict[str, Any]) -> tuple[float, float, float]:
    """Of the base model: seconds of forwards without a token, more of each token, and of noise: all of a LeZO step."""
    times = {
        s["data"]["task"]: s["data"]
        for s in page["sections"]
        if s["name"].startswith(f"{BASE} ") and s["data"]
    }
    (few, fast), (many, slow) = sorted(
        (data["batch"]["tokens"]["ours"], data["variants"]["floor"]["phases"]["forward"])
        for data in times.values()
    )
    a_token = (slow - fast) / (many - few)
    phases = times["rte"]["variants"]["lezo"]["phases"]
    return fast - few * a_token, a_token, phases["perturb"] + phases["update"]


def step_seconds(
    parameters: float, ranks: int, tokens: float, examples: int, found: tuple[float, float, float]
) -> float:
    """A step of so many examples of ``tokens`` each."""
    constant, a_token, noise = found
    grown = parameters / MODELS[BASE][0]
    exchange = 0.0 if ranks == 1 else 20e-6 + 5e-6 * log2(ranks)
    return grown * (constant + a_token * tokens * ceil(examples / ranks) + noise) + exchange


def table(examples: int, page: dict[str, Any]) -> str:
    """Markdown."""
    found, tasks = measured(page), {"sst2": 240 / 16, "rte": 1440 / 16}
    lines = [
        f"| {examples} examples a step | " + " | ".join(map(str, GPUS)) + " |",
        "|:-|" + "-:|" * len(GPUS),
    ]
    for model, (parameters, each) in MODELS.items():
        for task, tokens in tasks.items():
            cells = []
            for gpus in GPUS:
                ranks = gpus // each
                if not ranks:
                    cells.append("-")
                    continue
                one, all_ = (step_seconds(parameters, n, tokens, examples, found) for n in (1, ranks))
                cells.append(f"{1000 * all_:.0f} ms, {one / all_ / ranks:.0%}")
            lines.append(f"| {model} {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print both tables."""
    page = json.loads(PAGE.read_text(encoding="utf-8"))
    print(table(16, page), table(64, page), sep="\n\n")


if __name__ == "__main__":
    main()
