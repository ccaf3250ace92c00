"""z along which weights are perturbed and updated: any element of any tensor alone, again, in any order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lezo.noise import philox
from lezo.noise.operands import Copies, Step
from lezo.noise.seeds import derive


def normal(seed: int, name: str, like: Tensor) -> Tensor:
    """z(seed, name): standard normal of ``like``'s shape, on its device, in fp32; in fp64 for fp64, the same values.

    The slow twin (``lezo.noise.philox``): the same bits on every device, as in ``perturb`` and ``update_``.
    """
    elements = torch.arange(like.numel(), device=like.device).view(like.shape)
    return philox.normals(derive(seed, name), elements).to(philox.compute_dtype(like))


def uniform(seed: int, name: str, like: Tensor) -> Tensor:
    """Uniform in [0, 1) of ``like``'s shape, on its device, in fp32: multiples of 2^-24, the same on every device."""
    elements = torch.arange(like.numel(), device=like.device).view(like.shape)
    return (philox.random_bits(derive(seed, name), elements) >> 8).to(torch.float32) / 2**24


class Pair(NamedTuple):
    """A tensor and the two that its perturbed copies go to: contiguous, of one dtype, theta's or a wider one."""

    name: str
    theta: Tensor
    plus: Tensor
    minus: Tensor


def perturb(
    theta: Tensor,
    seed: int,
    name: str,
    eps: float,
    *,
    rows: Tensor | None = None,
    dtype: torch.dtype | None = None,
    out: tuple[Tensor, Tensor] | None = None,
    draw: int = philox.NORMALS,
) -> tuple[Tensor, Tensor]:
    """theta + eps z and theta - eps z from one draw of z(seed, name), for SPSA (arXiv 2305.17333, Definition 1); theta is only read.

    eps is rounded to fp32, the sum theta + (eps z) computed in fp32 and rounded once to ``dtype``
    (None: theta's). fp64 theta: all in fp64.

    rows: (k,) int64, on theta's device, rows of a 2-D theta; the results are then (k, columns), each row with
    the bits that it has in the whole. On CUDA rows out of range are not noticed.
    out: two contiguous tensors of the results' shape and dtype to write into and return. ValueError if they are not.
    draw: what z is, here and in the other functions: philox.NORMALS, or philox.SIGNS (`lezo.noise.rademacher`).
    """
    theta = theta.detach().contiguous()
    if rows is not None and (theta.dim() != 2 or rows.dim() != 1 or rows.dtype != torch.int64):
        given = f"rows is {rows.dtype} {tuple(rows.shape)} and {name} has shape {tuple(theta.shape)}"
        raise ValueError(f"{given}; give a list of int64 rows and a matrix, or no rows")
    shape = theta.shape if rows is None else torch.Size((len(rows), theta.shape[1]))
    if out is None:
        plus, minus = (torch.empty(shape, dtype=dtype or theta.dtype, device=theta.device) for _ in range(2))
    else:
        plus, minus = (_checked(buffer, shape, dtype or theta.dtype, name) for buffer in out)
    if plus.numel():
        chosen = None if rows is None else rows.contiguous()
        copies = Copies(theta, _key(seed, name), chosen, plus, minus)
        _backend(theta).perturbations([[copies]], _scalar(eps, theta), draw)[0]()
    return plus, minus


@torch.no_grad()
def perturbations(
    groups: Sequence[Sequence[Pair]], seed: int, eps: float, *, draw: int = philox.NORMALS
) -> list[Callable[[], None]]:
    """For each group of tensors a call that perturbs them all, as `perturb` does each; on CUDA in one launch a dtype.

    What the calls need is sent to the device now, so that they may be made in any order and in any stream.
    """
    calls: list[list[Callable[[], None]]] = [[] for _ in groups]
    kinds: dict[tuple[torch.device, torch.dtype], dict[int, list[Copies]]] = {}
    for number, group in enumerate(groups):
        for name, theta, plus, minus in group:
            if theta.numel():
                by_group = kinds.setdefault((theta.device, theta.dtype), {})
                copies = Copies(_flat(theta), _key(seed, name), None, plus, minus)
                by_group.setdefault(number, []).append(copies)
    for by_group in kinds.values():
        theta = next(iter(by_group.values()))[0].theta
        made = _backend(theta).perturbations(list(by_group.values()), _scalar(eps, theta), draw)
        for number, call in zip(by_group, made, strict=True):
            calls[number].append(call)
    return [partial(_make_all, made) for made in calls]


def update_(
    theta: Tensor,
    seed: int,
    name: str,
    coefficient: Tensor,
    decay: float,
    *,
    rounding: Literal["nearest", "stochastic"] = "nearest",
    draw: int = philox.NORMALS,
) -> None:
    """theta <- theta - (c z + d theta) in place, with z(seed, name): the update of MeZO (arXiv 2305.17333, Algorithm 1).

    coefficient: c, a () fp32 tensor on theta's device, read there: on CUDA the host does not wait. decay: d,
    rounded to fp32. Computed in fp32 and rounded once, to nearest or, in fp16 and bf16, stochastically
    (of the two neighbours one at random, so that the mean is exact). fp64 theta: all in fp64.

    c = d = 0 leaves theta's bits as they are, and so does a c that is not finite: the step of a loss that was not.
    """
    update_all_({name: theta}, seed, coefficient, {name: decay}, rounding=rounding, draw=draw)


@torch.no_grad()
def update_all_(
    thetas: Mapping[str, Tensor],
    seed: int,
    coefficient: Tensor,
    decays: Mapping[str, float],
    *,
    rounding: Literal["nearest", "stochastic"] = "nearest",
    draw: int = philox.NORMALS,
) -> None:
    """`update_` of all ``thetas``, by their names, each with its own decay; on CUDA in one launch a dtype.

    ``coefficient`` may be wider than the weights: it is rounded to the dtype that the step is computed in. The weights may be
    on several devices.
    """
    if rounding not in ("nearest", "stochastic"):
        raise ValueError(f"rounding is {rounding!r}; give nearest or stochastic")
    kinds: dict[tuple[torch.device, torch.dtype], list[Step]] = {}
    elsewhere: list[tuple[Tensor, Tensor]] = []  # contiguous copies of tensors that are not
    for name, theta in thetas.items():
        flat = _flat(theta)
        if flat.numel():
            decay = decays[name] and _scalar(decays[name], flat)
            kinds.setdefault((flat.device, flat.dtype), []).append(Step(flat, _key(seed, name), decay))
        if flat is not theta:
            elsewhere.append((theta, flat))
    for steps in kinds.values():
        theta = steps[0].theta
        _backend(theta).update(steps, _copied(coefficient, theta), rounding == "stochastic", draw)
    for theta, flat in elsewhere:
        theta.copy_(flat)


@torch.no_grad()
def _make_all(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()


def _flat(theta: Tensor) -> Tensor:
    """theta itself, where it is contiguous; else a copy that is."""
    return theta if theta.is_contiguous() else theta.contiguous()


def _copied(coefficient: Tensor, theta: Tensor) -> Tensor:
    """The coefficient where theta is, as steps on it are computed; the host does not wait for it."""
    return coefficient.detach().to(theta.device, philox.compute_dtype(theta), non_blocking=True)


_key = lru_cache(1 << 12)(derive)  # an update draws what was drawn to perturb


def _scalar(value: float, theta: Tensor) -> float:
    """``value`` in the precision in which steps on theta are computed."""
    return value if theta.dtype == torch.float64 else philox.fp32(value)


def _checked(buffer: Tensor, shape: torch.Size, dtype: torch.dtype, name: str) -> Tensor:
    if buffer.shape != shape or buffer.dtype != dtype or not buffer.is_contiguous():
        given = f"{'' if buffer.is_contiguous() else 'non-contiguous '}{buffer.dtype} {tuple(buffer.shape)}"
        raise ValueError(f"out for {name} is {given}; give contiguous {dtype} {tuple(shape)}, or no out")
    return buffer.detach()


class Backend(NamedTuple):
    """Perturbs and updates many tensors of one device and dtype; see `lezo.noise.philox`, whose bits all have."""

    perturbations: Callable[[Sequence[Sequence[Copies]], float, int], list[Callable[[], None]]]
    update: Callable[[Sequence[Step], Tensor, bool, int], None]


def _backend(theta: Tensor) -> Backend:
    """The fastest backend for theta: all give the same bits, and none is imported before it is needed.

    CUDA without Triton (outside Linux), and fp64 there, is left to the twin.
    """
    if theta.is_cpu:
        from lezo.noise.kernels import cpu

        return Backend(cpu.perturbations, cpu.update)
    if theta.is_cuda and theta.dtype != torch.float64 and find_spec("triton"):
        from lezo.noise.kernels import perturb, update

        return Backend(perturb.perturbations, update.update)
    return Backend(philox.perturbations, philox.update)
