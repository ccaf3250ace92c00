"""Packing as it was first written, token by token: the reference of what it gives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from lezo.data.encode import Encoded
from lezo.data.pack import Batch, Places, Request


def pack(
    requests: Sequence[Request],
    kind: Literal["candidates", "lm"],
    *,
    pad: int,
    device: torch.device,
    plain: bool = False,
) -> Batch:
    """The requested candidates in rows of equal length; ``plain``: one a row. ``pad`` fills up their ends."""
    apart = [(example, [k]) for example, chosen in requests for k in chosen]
    units = [_Unit(example, chosen) for example, chosen in (apart if plain else requests)]
    sizes = [len(unit.ids) for unit in units]
    rows, length = ([[(u, 0)] for u in range(len(sizes))], max(sizes)) if plain else _laid_out(sizes)
    grid = _Grid(len(rows), length, pad)
    starts = dict(grid.put(units[u], u, r, at) for r, row in enumerate(rows) for u, at in row)
    tokens = _tokens(units, starts)
    reads = sorted({place for place, _, _ in tokens})
    number = {place: i for i, place in enumerate(reads)}
    sequences = [(u, k) for u, (_, chosen) in enumerate(requests) for k in chosen]
    lens = [requests[u][0].answer_lens[k] for u, k in sequences]

    owners = [u for u, _ in sequences] if plain else [*range(len(requests))]
    owner = torch.tensor([0 if unit < 0 else owners[unit] for unit in grid.unit.flatten().tolist()])

    words, word_index = grid.ids.unique(return_inverse=True)  # type: ignore[no-untyped-call]

    ids = partial(_numbers, device=device)
    return Batch(
        kind=kind,
        input_ids=_moved(grid.ids, device),
        position_ids=_moved(grid.positions, device),
        mask=None if plain else _mask(_moved(grid.unit, device), _moved(grid.branch, device)),
        words=_moved(words, device),
        word_index=_moved(word_index, device),
        owner=_moved(owner.view(grid.ids.shape), device),
        read=ids(reads),
        token_read=ids(number[place] for place, _, _ in tokens),
        target=ids(target for _, target, _ in tokens),
        token_sequence=ids(sequence for _, _, sequence in tokens),
        token_place=ids(place for size in lens for place in range(size)),
        answer_lens=ids(lens),
        example=ids(u for u, _ in sequences),
        candidate=ids(k for _, k in sequences),
        gold=ids(example.gold[0] for example, _ in requests),
        longest=max(lens),
        most=max(k for _, k in sequences) + 1,
        weight=sum(lens) if kind == "lm" else len(requests),
        places=_places(reads, length, device) if plain else None,
        columns_only=not plain and kind == "candidates" and all(unit.one_token for unit in units),
    )


def _places(reads: Sequence[int], length: int, device: torch.device) -> Places:
    columns = sorted({place % length for place in reads})
    rows, numbers = ([place // length for place in reads], [columns.index(place % length) for place in reads])
    return Places(*(_numbers(values, device) for values in (columns, rows, numbers)))


def _numbers(values: Iterable[int], device: torch.device) -> Tensor:
    return _moved(torch.tensor(list(values)), device)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class _Unit:
    """One example's tokens: the shared beginning, then each candidate's branch.

    ``answers``: for each requested candidate its (offset in the unit, target id) pairs.
    """

    def __init__(self, example: Encoded, chosen: Sequence[int]) -> None:
        inputs = [example.input_ids[k][:-1] for k in chosen]  # nothing is predicted from a last token
        shared = _common(inputs)
        self.ids, self.positions, self.branch = list(inputs[0][:shared]), list(range(shared)), [0] * shared
        self.answers: list[list[tuple[int, int]]] = []
        for number, (k, tokens) in enumerate(zip(chosen, inputs, strict=True), start=1):
            at, tail = len(self.ids), tokens[shared:]
            self.ids += tail
            self.positions += range(shared, len(tokens))
            self.branch += [number] * len(tail)
            size = example.answer_lens[k]
            places = range(len(tokens) - size, len(tokens))  # of the tokens that predict the answer's
            offsets = [place if place < shared else at + place - shared for place in places]
            self.answers.append(list(zip(offsets, example.input_ids[k][-size:], strict=True)))
        read = {tuple(offset for offset, _ in answer) for answer in self.answers}
        self.one_token = len(read) == 1 and all(len(answer) == 1 for answer in self.answers)


class _Grid:
    """Rows being filled: ids, positions, and which unit and branch each place belongs to (padding: -1)."""

    def __init__(self, rows: int, length: int, pad: int) -> None:
        self.ids = torch.full((rows, length), pad)
        self.positions = torch.zeros((rows, length), dtype=torch.int64)
        self.unit = torch.full((rows, length), -1, dtype=torch.int32)
        self.branch = torch.zeros((rows, length), dtype=torch.int32)

    def put(self, unit: _Unit, number: int, row: int, at: int) -> tuple[int, int]:
        """Write a unit; returns its number and its first place."""
        where = slice(at, at + len(unit.ids))
        self.ids[row, where] = torch.tensor(unit.ids)
        self.positions[row, where] = torch.tensor(unit.positions)
        self.unit[row, where] = number
        self.branch[row, where] = torch.tensor(unit.branch, dtype=torch.int32)
        return number, row * self.ids.shape[1] + at


def _tokens(units: Sequence[_Unit], starts: dict[int, int]) -> list[tuple[int, int, int]]:
    """(place, target, sequence) of every answer token, sequence by sequence."""
    tokens, sequence = [], 0
    for u, unit in enumerate(units):
        for answer in unit.answers:
            tokens += [(starts[u] + offset, target, sequence) for offset, target in answer]
            sequence += 1
    return tokens


def _common(sequences: Sequence[Sequence[int]]) -> int:
    """How long a beginning all sequences share."""
    shortest = min(map(len, sequences))
    first = sequences[0]
    return next((i for i in range(shortest) if any(s[i] != first[i] for s in sequences)), shortest)


_RowsOfUnits = tuple[list[list[tuple[int, int]]], int]
"""Rows, each of (unit, first column), and their length."""


def _laid_out(sizes: Sequence[int]) -> _RowsOfUnits:
    """The cheapest number of rows.

    A place costs one, plus its attention over the row: fewer rows waste fewer places, and attend further.
    """
    return min((_balanced(sizes, rows) for rows in range(1, len(sizes) + 1)), key=_cost)


def _cost(layout: _RowsOfUnits) -> float:
    rows, length = layout
    return len(rows) * length * (1 + length / 600)


def _balanced(sizes: Sequence[int], rows: int) -> _RowsOfUnits:
    """The longest unit first, each into the row that is emptiest."""
    filled: list[list[tuple[int, int]]] = [[] for _ in range(rows)]
    used = [0] * rows
    for unit in sorted(range(len(sizes)), key=lambda u: -sizes[u]):
        row = min(range(rows), key=used.__getitem__)
        filled[row].append((unit, used[row]))
        used[row] += sizes[unit]
    return filled, max(used)


def _mask(unit: Tensor, branch: Tensor) -> Tensor:
    """(rows, 1, length, length) bool: earlier places of the unit, in its shared part or the same branch."""
    place = torch.arange(unit.shape[1], device=unit.device)
    same = unit[:, :, None] == unit[:, None, :]
    seen = (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    return (same & seen & (place[:, None] >= place[None, :]))[:, None]
