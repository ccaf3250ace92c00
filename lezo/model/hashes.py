"""Are these the same weights, words and examples? Their SHA-256, as 64 hex digits."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from lezo.data.encode import Encoded
from lezo.model.home import home_of
from lezo.model.quantised import scales

PIECE = 2**24  # bytes of a device's tensor that are in host memory at a time


def weights_hash(model: nn.Module, known: Mapping[Tensor, str] | None = None) -> str:
    """Of every parameter's name, dtype, shape and bits, and of the scales of quantised ones; tied ones count once.

    Some gigabytes a second: parameters are hashed side by side, of a device's some megabytes a thread in host memory.
    ``known``: the `tensor_hash` of parameters that need not be read again.
    """
    named, digests = list(model.named_parameters()), dict[Tensor, str](known or {})
    unknown = [parameter for _, parameter in named if parameter not in digests]
    home = home_of(model)

    def hashed(parameter: Tensor) -> str:
        digest = tensor_hash(parameter)
        home.let_go(parameter)
        return digest

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "hash") as threads:
        digests.update(zip(unknown, threads.map(hashed, unknown), strict=True))
    scaled = [(name, tensor_hash(scale)) for name, scale in scales(model)]
    return named_hash([*((name, digests[parameter]) for name, parameter in named), *scaled])


@torch.no_grad()
def checksum(model: nn.Module) -> list[int]:
    """A sum over the bits of each parameter: found where the weights are, and equal where they are."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = (p.detach().contiguous().view(integers[p.dtype.itemsize]) for p in model.parameters())
    return [int(total) for total in [part.sum(dtype=torch.int64) for part in bits]]


def named_hash(digests: Iterable[tuple[str, str]]) -> str:
    """The hash of weights of these names, in their order, and of these `tensor_hash`es."""
    return _of([[name, digest] for name, digest in digests])


def tensor_hash(tensor: Tensor) -> str:
    """Of a tensor's dtype, shape and bits."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    for part in _in_host_memory(tensor.detach().contiguous().reshape(-1).view(torch.uint8)):
        digest.update(part.numpy().data)
    return digest.hexdigest()


def _in_host_memory(data: Tensor) -> Iterator[Tensor]:
    """Bytes of a device in pieces, which come through one small pinned buffer."""
    if data.device.type == "cpu":
        yield data
        return
    buffer = torch.empty(min(len(data), PIECE), dtype=torch.uint8).pin_memory()
    for piece in torch.split(data, PIECE):
        yield buffer[: len(piece)].copy_(piece)


def tokenizer_hash(tokenizer: Any) -> str:
    """Of a tokenizer's rules and vocabulary, or of the vocabulary where it does not show its rules.

    What it was last asked to cut or to fill up is no rule of it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _of(sorted(tokenizer.get_vocab().items()))
    return _of({**json.loads(backend.to_str()), "truncation": None, "padding": None})


def examples_hash(splits: Iterable[Iterable[Encoded]]) -> str:
    """Of encoded examples: ids, answers, gold and references, in their order; of conversations what is scored too."""
    return _of([[_fields(example) for example in examples] for examples in splits])


def _fields(example: Encoded) -> list[Any]:
    fields = ("index", "input_ids", "answer_lens", "gold", "references")
    values = [getattr(example, field) for field in fields]
    return [*values, example.spans] if example.spans else values  # no hash of before knows of spans


def _of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
