"""How many different shapes the packed rows of a run's first steps have, and what fewer of them cost.

    python -m tests.pretend_cuda.shapes [task ...] [seed=1]

prints a table of the tasks of the papers: of rows as a CPU has them, and of those that CUDA gets. No GPU is needed, but the
original data and the OPT tokenizer in ../shared, beside the repository.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lezo.config.compose import compose
from lezo.data.batches import batch_indices
from lezo.data.pack import unit_length
from lezo.data.rows import Rows, cheapest_rows, rows_of_few_shapes
from lezo.runs.plan import make_plan

SHARED = Path(__file__).resolve().parents[3] / "shared"
TASKS = ("sst2", "rte", "cb", "boolq", "wsc", "wic", "multirc", "copa", "record", "squad", "drop")
STEPS = 200


@dataclass(frozen=True)
class Counted:
    """Of the first steps: different (rows, length) of both kinds, tokens a step, and how many more the second has (mean over steps)."""

    before: int
    after: int
    tokens: float
    wasted: float


def counted(sizes: Sequence[Sequence[int]]) -> Counted:
    """``sizes``: of each step's batch the tokens of its units."""
    before, after = (_shapes(sizes, laid_out) for laid_out in (cheapest_rows, rows_of_few_shapes))
    tokens = [[rows * length for rows, length in shapes] for shapes in (before, after)]
    wasted = sum(new / old - 1 for old, new in zip(*tokens, strict=True)) / len(sizes)
    return Counted(len(set(before)), len(set(after)), sum(tokens[0]) / len(sizes), wasted)


def _shapes(
    sizes: Sequence[Sequence[int]], laid_out: Callable[[Sequence[int]], Rows]
) -> list[tuple[int, int]]:
    made = [laid_out(batch) for batch in sizes]
    return [(len(rows), length) for rows, length in made]


def sizes_of(words: Sequence[str], batch_size: int = 16) -> list[list[int]]:
    """Of a run of lezo-run by these words: the tokens of each example, whole or as the LM loss takes it, of each step's batch."""
    config = compose([*words, f"train.batch_size={batch_size}", "model.device=cpu"]).config
    plan = make_plan(config)
    lm, seed = plan.parts.task.loss == "lm", config.seed
    sizes = [unit_length(example, example.gold[:1] if lm else None) for example in plan.train]
    steps = (batch_indices(seed, step, examples=len(sizes), batch_size=batch_size) for step in range(STEPS))
    return [[sizes[i] for i in chosen] for chosen in steps]


def real(task: str) -> list[str]:
    """The words of a run on original data with the OPT tokenizer."""
    rows = ["task.num_dev=20", "task.num_test=20"]  # enough for none of the tasks to lack train rows
    model = ["model=opt-13b", "model.random_weights=true", f"model.tokenizer={SHARED / 'tokenizers' / 'opt'}"]
    return [f"task={task}", *model, "data=local", f"data.path={SHARED / 'data'}", *rows]


def main(words: Sequence[str]) -> int:
    """Count and print."""
    if not SHARED.is_dir():
        print(f"{SHARED} is absent: expected data/<task>/ and tokenizers/opt in it", file=sys.stderr)
        return 1
    overrides = [word for word in words if "=" in word]
    print(f"first {STEPS} steps | tokens a step | shapes before | after | tokens wasted")
    print("---|---|---|---|---")
    for task in [word for word in words if "=" not in word] or TASKS:
        found = counted(sizes_of([*real(task), *overrides]))
        print(
            f"{task} | {found.tokens:,.0f} | {found.before} | {found.after} | {found.wasted:+.1%}", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
