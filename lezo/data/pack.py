"""Which tokens does one forward see? Each token once: shared prompts, no padding between sequences.

The candidates of an example share the longest beginning that their sequences have in common (the prompt, and
where every candidate is one token, everything that is read); what follows it are branches, which see the
shared part and themselves. Several examples stand in one row, and a block-diagonal causal mask keeps them
apart.

For a model that cannot follow such a mask there are plain rows: a sequence a row, filled up behind its end,
where a causal model does not look.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lezo.data.encode import Encoded
from lezo.data.rows import Rows, cheapest_rows, rows_of_few_shapes
from lezo.noise.operands import sent

ALIGNED = 16  # numbers: tensors of a batch begin at multiples of 128 bytes, whatever is before them

Numbers = NDArray[np.int64]

Request = tuple[Encoded, Sequence[int]]
"""An example and those of its candidates that are to be scored."""


@dataclass(frozen=True)
class Places:
    """Where plain rows are read, int64: ``columns`` (distinct,), of each read (reads,) row and column."""

    columns: Tensor
    row: Tensor
    column: Tensor


@dataclass(frozen=True)
class Batch:
    """Examples packed for one forward, and where their answers are scored.

    ``input_ids``, ``position_ids``: (rows, length) int64; ``mask``: (rows, 1, length, length) bool, True
    where attention may look; None where each sequence has a row of its own, and ``places`` say where that is
    read. ``words``: (distinct,) int64, the ids that occur, and ``word_index``: (rows, length) int64, which of
    them is at each place. ``owner``: (rows, length) int64, whose place it is: the example's number (padding: 0).
    ``read``: (reads,) int64, the distinct places row * length + column whose hidden
    states predict answer tokens. For each answer token, (tokens,) int64: ``token_read``, which of the reads
    predicts it; ``target``, its id; ``token_sequence``, ``token_place``, which sequence's answer it is in and
    where. ``answer_lens``, ``example``, ``candidate``: (sequences,) int64. ``gold``: (examples,) int64.
    ``longest``: the longest answer; ``most``: one more than the highest candidate. ``weight``: what the mean
    loss counts, examples or answer tokens. ``columns_only``: the loss needs no normaliser over the
    vocabulary, since every candidate of an example is one token after the same prompt.
    """

    kind: Literal["candidates", "lm"]
    input_ids: Tensor
    position_ids: Tensor
    mask: Tensor | None
    words: Tensor
    word_index: Tensor
    owner: Tensor
    read: Tensor
    token_read: Tensor
    target: Tensor
    token_sequence: Tensor
    token_place: Tensor
    answer_lens: Tensor
    example: Tensor
    candidate: Tensor
    gold: Tensor
    longest: int
    most: int
    weight: int
    columns_only: bool
    places: Places | None = None

    @property
    def tokens(self) -> int:
        """Tokens the forward computes, padding at the ends of rows included."""
        return self.input_ids.numel()


def candidate_batch(
    examples: Sequence[Encoded], *, pad: int, device: torch.device, plain: bool = False
) -> Batch:
    """Every candidate of every example, for the loss over candidates; its weight: the number of examples."""
    requests = [(e, range(len(e.input_ids))) for e in examples]
    return pack(requests, "candidates", pad=pad, device=device, plain=plain)


def gold_batch(examples: Sequence[Encoded], *, pad: int, device: torch.device, plain: bool = False) -> Batch:
    """The answer to train on of every example, for the LM loss; the weight is the number of its tokens."""
    return pack([(e, e.gold[:1]) for e in examples], "lm", pad=pad, device=device, plain=plain)


def pack(
    requests: Sequence[Request],
    kind: Literal["candidates", "lm"],
    *,
    pad: int,
    device: torch.device,
    plain: bool = False,
) -> Batch:
    """The requested candidates in rows of equal length; ``plain``: one a row. ``pad`` fills up their ends.

    On CUDA packed rows have few different shapes (`rows_of_few_shapes`).
    """
    sequences = [(u, k) for u, (_, chosen) in enumerate(requests) for k in chosen]
    apart = [(requests[u][0], [k]) for u, k in sequences]
    units = [_unit(example, chosen) for example, chosen in (apart if plain else requests)]
    owners = [u for u, _ in sequences] if plain else range(len(requests))
    grid = _Grid(units, owners, _rows([len(unit.ids) for unit in units], device, plain), pad)
    answers = _answers(requests, sequences, units, grid.starts)
    own = _places(answers["read"], grid.shape[1]) if plain else {"piece": grid.piece, "root": grid.root}
    tensors = moved({**grid.seen(), **answers, **own}, device)
    own_tensors = {name: tensors.pop(name) for name in own}
    lens = answers["answer_lens"]
    return Batch(
        kind=kind,
        mask=None if plain else _mask(**own_tensors),
        places=Places(**own_tensors) if plain else None,
        longest=int(lens.max()),
        most=int(answers["candidate"].max()) + 1,
        weight=int(lens.sum()) if kind == "lm" else len(requests),
        columns_only=not plain and kind == "candidates" and len(answers["read"]) == len(units),
        **tensors,
    )


def unit_length(example: Encoded, chosen: Sequence[int] | None = None) -> int:
    """Tokens of one example's requested candidates (default: all), the shared beginning counted once."""
    chosen = range(len(example.input_ids)) if chosen is None else chosen
    inputs = [example.input_ids[k][:-1] for k in chosen]
    return sum(map(len, inputs)) - (len(inputs) - 1) * _common(inputs)


def moved(numbers: Mapping[str, Numbers], device: torch.device) -> dict[str, Tensor]:
    """Tensors of the same names on the device: to a GPU in one copy through pinned memory, without waiting."""
    spare = np.zeros(ALIGNED, np.int64)
    parts = [
        part for array in numbers.values() for part in (array.reshape(-1), spare[: -array.size % ALIGNED])
    ]
    tensor = sent(torch.from_numpy(np.concatenate(parts)), device)
    views = tensor.split_with_sizes([part.size for part in parts])[::2]
    return {name: view.view(array.shape) for view, (name, array) in zip(views, numbers.items(), strict=True)}


class _Unit(NamedTuple):
    """One example's tokens: the ``shared`` first ones, then each candidate's branch.

    ``lengths``: of the requested candidates' own sequences, the shared beginning included.
    """

    ids: list[int]
    shared: int
    lengths: list[int]


def _unit(example: Encoded, chosen: Sequence[int]) -> _Unit:
    inputs = [example.input_ids[k][:-1] for k in chosen]  # nothing is predicted from a last token
    shared = _common(inputs)
    branches = chain.from_iterable(tokens[shared:] for tokens in inputs)
    return _Unit([*inputs[0][:shared], *branches], shared, [len(tokens) for tokens in inputs])


class _Grid:
    """Rows filled with units, flat. ``starts``: each unit's first place; ``owners``: the example of each unit.

    Of each place: ``ids``, ``positions``, its ``piece`` (a shared beginning or a branch) and ``root``, the piece
    that is its unit's shared beginning (padding: -1).
    """

    def __init__(self, units: Sequence[_Unit], owners: Sequence[int], rows: Rows, pad: int) -> None:
        self.shape = len(rows[0]), rows[1]
        self.starts = np.empty(len(units), np.int64)
        for row, filled in enumerate(rows[0]):
            for number, column in filled:
                self.starts[number] = row * rows[1] + column
        unit, offset = _counted([len(unit.ids) for unit in units])
        sizes, firsts = np.array([piece for unit in units for piece in _pieces(unit)]).T
        piece, within = _counted(sizes)
        roots = np.cumsum([0, *(1 + len(unit.lengths) for unit in units)])
        where = self.starts[unit] + offset
        self.ids = self._filled(
            pad, where, np.fromiter(chain.from_iterable(unit.ids for unit in units), np.int64)
        )
        self.positions = self._filled(0, where, firsts[piece] + within)
        self.owner = self._filled(0, where, np.asarray(owners)[unit])
        self.piece, self.root = self._filled(-1, where, piece), self._filled(-1, where, roots[unit])

    def seen(self) -> dict[str, Numbers]:
        """The fields of a `Batch` that the forward reads first."""
        words, index = np.unique(self.ids, return_inverse=True)
        fields = {"input_ids": self.ids, "position_ids": self.positions, "words": words}
        return {**fields, "word_index": index.reshape(self.shape), "owner": self.owner}

    def _filled(self, empty: int, where: Numbers, values: Numbers) -> Numbers:
        filled = np.full(self.shape, empty)
        filled.reshape(-1)[where] = values
        return filled


def _pieces(unit: _Unit) -> list[tuple[int, int]]:
    """Size and first position of the shared beginning and of each branch."""
    return [(unit.shared, 0), *((length - unit.shared, unit.shared) for length in unit.lengths)]


def _answers(
    requests: Sequence[Request], sequences: Sequence[tuple[int, int]], units: Sequence[_Unit], starts: Numbers
) -> dict[str, Numbers]:
    """The fields of a `Batch` about answers. ``sequences``: of each its request and candidate."""
    encoded = [(requests[u][0].input_ids[k], requests[u][0].scored(k)) for u, k in sequences]
    lens = np.array([len(scored) for _, scored in encoded])
    token_sequence, token_place = _counted(lens)
    shared, start, branch = np.array(_predicted_from(units, starts))[token_sequence].T
    place = np.fromiter(chain.from_iterable(scored for _, scored in encoded), np.int64) - 1
    read, token_read = np.unique(np.where(place < shared, start, branch) + place, return_inverse=True)
    example, candidate = np.array(sequences).T
    return {
        "read": read,
        "token_read": token_read,
        "target": np.array([ids[place] for ids, scored in encoded for place in scored]),
        "token_sequence": token_sequence,
        "token_place": token_place,
        "answer_lens": lens,
        "example": example,
        "candidate": candidate,
        "gold": np.array([example.gold[0] for example, _ in requests]),
    }


def _predicted_from(units: Sequence[_Unit], starts: Numbers) -> list[tuple[int, int, int]]:
    """Of each sequence how much of it is shared, and where it would begin if it stood whole, once to hold the shared part and
    once to hold its branch.
    """
    found = []
    for start, unit in zip(starts.tolist(), units, strict=True):
        branch = start
        for length in unit.lengths:
            found.append((unit.shared, start, branch))
            branch += length - unit.shared
    return found


def _counted(sizes: Sequence[int] | Numbers) -> tuple[Numbers, Numbers]:
    """(0, 0), (0, 1), ... (1, 0), ...: ``sizes[i]`` times i, and as many numbers from 0 on."""
    counts: Numbers = np.asarray(sizes, np.int64)
    owner: Numbers = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    return owner, np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]


def _places(read: Numbers, length: int) -> dict[str, Numbers]:
    """The fields of `Places`."""
    columns, column = np.unique(read % length, return_inverse=True)
    return {"columns": columns, "row": read // length, "column": column}


def _common(sequences: Sequence[tuple[int, ...]]) -> int:
    """How long a beginning all sequences share: the first and the last of them in order share no more."""
    first, last = min(sequences), max(sequences)
    if first == last:
        return len(first)
    shortest = min(len(first), len(last))
    return bisect_left(range(1, shortest + 1), True, key=lambda size: first[:size] != last[:size])


def _rows(sizes: Sequence[int], device: torch.device, plain: bool) -> Rows:
    if plain:
        return [[(unit, 0)] for unit in range(len(sizes))], max(sizes)
    return rows_of_few_shapes(sizes) if device.type == "cuda" else cheapest_rows(sizes)


def _mask(piece: Tensor, root: Tensor) -> Tensor:
    """(rows, 1, length, length) bool: earlier places of the unit, in its shared part or the same branch.

    Padding sees the padding before it and itself, so that its states are finite.
    """
    seen = piece[:, :, None] == piece[:, None, :]
    seen |= root[:, :, None] == piece[:, None, :]
    return seen.tril_()[:, None]
