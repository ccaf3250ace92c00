"""z of low rank: its entries, its rank, unbiased, one row alone, and the same bits however it is asked for."""

import math

import pytest
import torch

from lezo.noise import directions, philox
from lezo.noise import low_rank as module
from lezo.noise.low_rank import LowRank
from lezo.noise.seeds import derive
from lezo.zo.blocks import Periodic
from lezo.zo.parts import DIRECTIONS

SEED, KEPT = 5, 77


def made(rank: int = 2) -> LowRank:
    direction = LowRank(rank)
    direction.begin(KEPT)
    return direction


def written_out(rows: int, columns: int, rank: int, seed: int = SEED, kept: int = KEPT) -> torch.Tensor:
    """z of a matrix named w, element by element."""
    u, v = (
        philox.normals(derive(of, f"w/{name}"), torch.arange(size * rank).view(size, rank))
        for of, name, size in ((seed, "U", rows), (kept, "V", columns))
    )
    z = torch.zeros(rows, columns)
    for i in range(rows):
        for j in range(columns):
            total = u[i, 0] * v[j, 0]
            for k in range(1, rank):
                total = total + u[i, k] * v[j, k]
            z[i, j] = total
    return z * torch.tensor(1 / math.sqrt(rank))


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_it_is_the_definition_to_the_bit(rank: int) -> None:
    theta = torch.randn(7, 9)
    z = written_out(7, 9, rank)
    plus, minus = made(rank).perturb(theta, SEED, "w", 1e-2)
    assert torch.equal(plus, theta + z * 1e-2) and torch.equal(minus, theta - z * 1e-2)
    moved = theta.clone()
    made(rank).update_(moved, SEED, "w", torch.tensor(0.3), 0.1)
    assert torch.equal(moved, theta - (z * 0.3 + theta * 0.1))


def test_it_has_its_rank_and_along_lozos_own_perturbation_with_eps_times_its_root() -> None:
    z = made(3).perturb(torch.zeros(40, 30, dtype=torch.float64), SEED, "w", 1.0)[0]
    assert torch.linalg.matrix_rank(z) == 3
    u, v = (
        philox.normals(derive(of, f"w/{name}"), torch.arange(size * 3).view(size, 3)).double()
        for of, name, size in ((SEED, "U", 40), (KEPT, "V", 30))
    )
    torch.testing.assert_close(math.sqrt(3) * 1e-3 * z, 1e-3 * u @ v.T)


def test_the_estimate_of_a_gradient_along_it_is_unbiased() -> None:
    """E[<G, z> z] = G over steps and periods."""
    gradient, direction, samples = (
        torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),
        LowRank(2),
        [],
    )
    for step in range(4000):
        direction.begin(step)
        z = direction.perturb(torch.zeros(4, 3), step, "w", 1.0)[0]
        samples.append((gradient * z).sum() * z)
    stacked = torch.stack(samples)
    assert ((stacked.mean(0) - gradient).abs() < 5 * stacked.std(0) / math.sqrt(len(samples))).all()


def test_entries_have_variance_one_and_v_stays_while_its_period_lasts() -> None:
    direction = made()
    first, second = (direction.perturb(torch.zeros(300, 40), seed, "w", 1.0)[0] for seed in (1, 2))
    assert abs(first.var() - 1) < 0.2 and not torch.equal(first, second)
    assert torch.linalg.matrix_rank(torch.cat([first, second])) == 2  # in the same two rows' space
    direction.begin(KEPT + 1)
    third = direction.perturb(torch.zeros(300, 40), 1, "w", 1.0)[0]
    assert torch.linalg.matrix_rank(torch.cat([first, third])) == 4
    assert isinstance(direction, Periodic) and direction.period == 50


def test_a_vector_has_normals() -> None:
    theta, moved = torch.randn(50), []
    for direction in (made(), directions):
        moved.append(theta.clone())
        direction.update_(moved[-1], SEED, "b", torch.tensor(0.3), 0.0)
    assert torch.equal(*moved)
    assert torch.equal(made().perturb(theta, SEED, "b", 0.1)[0], directions.perturb(theta, SEED, "b", 0.1)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rows_and_slices_have_the_bits_of_the_whole(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    theta, rows = torch.randn(9, 4, 5).to(dtype), torch.tensor([8, 0, 3, 3])
    whole = made().perturb(theta, SEED, "w", 1e-2)
    updated = []
    for size in (module._SLICE, 45):  # private: so small a tensor has one slice
        monkeypatch.setattr(module, "_SLICE", size)
        monkeypatch.setattr(philox, "SLICE", 45 if size == 45 else philox.SLICE)
        for rounding in ("nearest", "stochastic"):
            updated.append(theta.clone())
            made().update_(
                updated[-1], SEED, "w", torch.tensor(0.3, dtype=torch.float32), 0.1, rounding=rounding
            )
        again = made().perturb(theta, SEED, "w", 1e-2)
        assert all(map(torch.equal, whole, again))
    assert torch.equal(updated[0], updated[2]) and torch.equal(updated[1], updated[3])
    assert torch.equal(updated[0], updated[1]) == (dtype.itemsize > 2)
    matrix = theta.view(9, 20)
    whole, wide = made().perturb(matrix, SEED, "w", 1e-2), torch.promote_types(dtype, torch.float32)
    for found, right in zip(made().perturb(matrix, SEED, "w", 1e-2, rows=rows), whole, strict=True):
        assert torch.equal(found, right[rows])
    out = torch.empty(9, 20, dtype=wide), torch.empty(9, 20, dtype=wide)
    for found, right in zip(made().perturb(matrix, SEED, "w", 1e-2, dtype=wide, out=out), whole, strict=True):
        assert torch.equal(found.to(dtype), right) and found.dtype == wide


@pytest.mark.parametrize(("c", "decay"), [(0.0, 0.0), (math.nan, 0.1), (math.inf, 0.0)])
def test_a_step_that_is_none_leaves_the_bits(c: float, decay: float) -> None:
    theta = torch.tensor([[0.0, -0.0], [math.inf, 1e-40]])
    moved = theta.clone()
    made().update_(moved, SEED, "w", torch.tensor(c), decay)
    assert torch.equal(moved.view(torch.int32), theta.view(torch.int32))


def test_a_view_that_is_not_contiguous_is_updated_where_it_is() -> None:
    theta = torch.randn(6, 4)
    moved, expected = theta.clone(), theta.T.contiguous()
    made().update_(moved.T, SEED, "w", torch.tensor(0.3), 0.0)
    made().update_(expected, SEED, "w", torch.tensor(0.3), 0.0)
    assert torch.equal(moved.T, expected)
    for found, right in zip(
        made().perturb(theta.T, SEED, "w", 0.1),
        made().perturb(theta.T.contiguous(), SEED, "w", 0.1),
        strict=True,
    ):
        assert torch.equal(found, right)


def test_settings_that_make_none_are_refused() -> None:
    for settings in ({"rank": 0}, {"period": 0}):
        with pytest.raises(ValueError, match="from 1"):
            DIRECTIONS["low-rank"](**settings)
