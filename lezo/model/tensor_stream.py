"""How do weights come from safetensors to where they belong? One tensor at a time, hashed on the way.

Host memory holds a tensor for each of a few threads, whatever the size of the model; the pages of a file that a
tensor was read from are let go of after some tens of megabytes.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Container, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn

from lezo.model.hashes import named_hash, tensor_hash
from lezo.model.home import Home
from lezo.model.weights import WeightFiles, quantised

OPENED = 2**24  # elements of tensors that are read before a file's pages are let go of
THREADS = 4  # each holds a tensor


@dataclass(frozen=True)
class Outline:
    """A model whose weights are still in ``files``: what it has of them has a shape and a dtype, and no memory.

    ``names``: the model's name of each of the files' tensors that it takes. ``info``: what transformers says of
    those left over. ``cast``: whether any is stored in another dtype.
    """

    files: WeightFiles
    model: Any
    info: Mapping[str, Any]
    names: Mapping[str, str]
    cast: bool

    @torch.no_grad()
    def load(self, home: Home) -> dict[Tensor, str]:
        """Give the model its weights where they belong, but not what is in no file: buffers that are computed.

        Returns the hash of each parameter (see `tensor_hash`).
        """
        held, digests = holders(self.model), dict[Tensor, str]()

        def put(name: str, stored: Tensor) -> None:
            places = held[name]
            stand_in = places[0][0][places[0][1]]
            value = stored.to(stand_in.dtype)
            digest, tensor = tensor_hash(value), home.receive(name, stand_in, value)
            if isinstance(stand_in, nn.Parameter):
                tensor = nn.Parameter(tensor, stand_in.requires_grad)
                digests[tensor] = digest
            for table, leaf in places:
                table[leaf] = tensor

        keeps_pages = home.keeps_pages and not self.cast
        read(self.files, self.names, put, opened=math.inf if keeps_pages else OPENED)
        return digests

    @torch.no_grad()
    def load_into(self, theta: Mapping[str, Tensor], home: Home) -> str:
        """Copy the weights into another model's parameters, by their names. Returns the hash of them all."""
        digests = dict[str, str]()

        def copied(name: str, stored: Tensor) -> None:
            if name in theta:
                value = stored.to(theta[name].dtype)
                digests[name] = tensor_hash(value)
                theta[name].copy_(value)
                home.let_go(theta[name])

        read(self.files, self.names, copied)
        return named_hash((name, digests[name]) for name in theta)


def outline(files: WeightFiles, config: Any, dtype: torch.dtype) -> Outline | None:
    """The model of the files in ``dtype``, its weights still to be loaded: transformers is given stand-ins for them.

    None where that is not all there is to loading them: they are no safetensors, or quantised, or a tensor of the
    model is missing, of another shape, or made of the files' by more than a name and a dtype.
    """
    kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if files.kind != "safetensors" or quantised(config) or not hasattr(kind, "from_pretrained"):
        return None
    stand_ins, cast = _stand_ins(files, dtype)
    model, info = kind.from_pretrained(
        None,
        config=copy.deepcopy(config),
        dtype=dtype,
        state_dict=dict(stand_ins),
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    names = _taken(model, stand_ins)
    if names is None or info["missing_keys"] or info["mismatched_keys"]:
        return None
    _named_after(model, files)
    return Outline(files, model, info, names, cast)


def read(
    files: WeightFiles,
    names: Mapping[str, str],
    take: Callable[[str, Tensor], None],
    *,
    opened: float = OPENED,
) -> None:
    """Call ``take`` with the name in ``names`` of each of the files' tensors that is there, and the tensor; in threads.

    The tensor lies in the file's pages; those that are not kept are gone after each ``opened`` elements, or its end.
    """

    def taken(file: Any, name: str) -> None:
        with torch.no_grad():  # which each thread chooses for itself
            take(names[name], file.get_tensor(name))

    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), "read") as threads:
        for path in (files.folder / name for name in files.names):
            for group in _groups(path, names, opened):
                with safe_open(path, framework="pt") as file:
                    list(threads.map(taken, [file] * len(group), group))


def _groups(path: Path, names: Container[str], most: float) -> Iterator[list[str]]:
    """The file's tensors in ``names``, in groups of about so many elements."""
    group, held = list[str](), 0
    for name, shape, _ in _headers(path):
        if name in names:
            group.append(name)
            held += math.prod(shape)
        if held > most:
            yield group
            group, held = [], 0
    yield group


def _headers(path: Path) -> list[tuple[str, list[int], str]]:
    """Name, shape and dtype, as safetensors calls it, of each tensor of a file."""
    with safe_open(path, framework="pt") as file:
        slices = [(name, file.get_slice(name)) for name in file.keys()]  # noqa: SIM118 - not a dict
        return [(name, found.get_shape(), found.get_dtype()) for name, found in slices]


def _stand_ins(files: WeightFiles, dtype: torch.dtype) -> tuple[dict[str, Tensor], bool]:
    """A tensor of one element for each of the files', of its shape; whether any is stored in another dtype.

    They are NaN, so that a head stored beside the embeddings does not pass for the same.
    """
    stand_ins, cast = dict[str, Tensor](), False
    for path in (files.folder / name for name in files.names):
        for name, shape, stored in _headers(path):
            floats = stored.startswith(("F", "BF"))
            value = torch.full((), math.nan, dtype=dtype) if floats else torch.zeros((), dtype=torch.uint8)
            stand_ins[name] = value.expand(shape)
            cast |= floats and stored != _STORED.get(dtype)
    return stand_ins, cast


_STORED = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def _taken(model: nn.Module, stand_ins: Mapping[str, Tensor]) -> dict[str, str] | None:
    """The model's name of each stand-in that became a tensor of it; None where what the model saves is anything else."""
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is None or any(hasattr(conversion, "operations") for conversion in conversions):
        return None
    places = {stand_in.data_ptr(): name for name, stand_in in stand_ins.items()}
    named = dict(chain(model.named_parameters(), model.named_buffers()))
    taken = {
        places[tensor.data_ptr()]: name
        for name, tensor in named.items()
        if tensor.data_ptr() in places and not any(tensor.stride())
    }
    return taken if named.keys() & model.state_dict().keys() <= set(taken.values()) else None


def holders(model: nn.Module) -> dict[str, list[tuple[dict[str, Any], str]]]:
    """Where each parameter and buffer is kept: one place and more where it is tied."""
    found: dict[int, list[tuple[dict[str, Any], str]]] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for leaf, tensor in table.items():
                found.setdefault(id(tensor), []).append((table, leaf))
    named = chain(model.named_parameters(), model.named_buffers())
    return {name: found[id(tensor)] for name, tensor in named}


def _named_after(model: Any, files: WeightFiles) -> None:
    """What transformers takes from the folder besides the weights: its name, and how it generates."""
    model.name_or_path = model.config.name_or_path = files.path
    if not model.can_generate():
        return
    try:
        model.generation_config = transformers.GenerationConfig.from_pretrained(files.path)
    except OSError:
        model.generation_config = transformers.GenerationConfig.from_pretrained(
            files.path, config_file_name="config.json", _from_model_config=True
        )
