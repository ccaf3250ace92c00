"""Which files hold a model's weights, and what is in them? A folder's, the hub's or its cache's, or one GGUF file.

Safetensors where there are any, else PyTorch's pickles. Nothing of a pickle is made but tensors.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open
from torch import nn

# In the order in which they are looked for; an index names the files that hold the tensors.
_NAMES = ("model.safetensors", "pytorch_model.bin")
_INDEX = ".index.json"
_PACKED = {  # what the tensors of other quantised weights end with, where no configuration says so
    "qweight": "gptq or awq",
    "SCB": "bitsandbytes",
    "absmax": "bitsandbytes",
    "weight_packed": "compressed-tensors",
}


class ModelError(ValueError):
    """A model or tokenizer that cannot be used; the message says which, why, and the way out."""


@dataclass(frozen=True)
class WeightFiles:
    """All the files that a model's weights are read from: ``names`` beside each other in ``folder``, of one kind."""

    folder: Path
    names: tuple[str, ...]

    @property
    def kind(self) -> str:
        """safetensors, bin or gguf."""
        return Path(self.names[0]).suffix.lower().removeprefix(".")

    @property
    def path(self) -> str:
        """What transformers reads: the folder, or the GGUF file itself."""
        return str(self.folder / self.names[0] if self.kind == "gguf" else self.folder)


def find_weights(path: str, revision: str | None, named: str | None = None) -> WeightFiles:
    """The weights of a folder, a GGUF file or a hub id; a hub's are fetched, all of one commit, or found in its cache.

    ``named``: the file of weights, or its index, that a configuration names in place of the usual ones. Raises ModelError for an index that is none, and FileNotFoundError where there are no weights; else what the hub raises.
    """
    if is_gguf(path):
        return WeightFiles(Path(path).parent, (Path(path).name,))
    place = _Files(path, revision)
    if named is not None:
        _refuse_detours(f"{path}: the configuration", [named])
    looked_for = [named] if named else [name for kind in _NAMES for name in (kind, kind + _INDEX)]
    for name in looked_for:
        if (file := place.file(name)) is not None:
            names = _listed(file) if name.endswith(_INDEX) else (name,)
            for missing in (other for other in names if place.file(other) is None):
                raise FileNotFoundError(f"{file} names {missing}, which is not beside it")
            place.file("generation_config.json")  # which belongs to the weights, where there is one
            return WeightFiles(file.parent, names)
    raise FileNotFoundError(f"none of {', '.join(looked_for)} is there") from place.error


def is_gguf(path: str) -> bool:
    """Whether the path is that of a GGUF file."""
    return path.lower().endswith(".gguf") and Path(path).is_file()


@contextmanager
def place_of(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What `from_pretrained` is told of a folder or hub id, and of a GGUF file: a folder with a link to it alone.

    So no file beside it, which may be another model's, has a say. Raises ModelError where an extra is needed.
    """
    if not is_gguf(path):
        yield path, {}
        return
    if find_spec("gguf") is None or find_spec("accelerate") is None:
        raise ModelError(f"{path}: reading GGUF files takes an extra; pip install 'lezo[gguf]'")
    bars = io.StringIO()  # which its reader draws, and which would not fit what a run says
    with tempfile.TemporaryDirectory(prefix="lezo-") as folder, redirect_stderr(bars):
        link = Path(folder) / Path(path).name
        link.symlink_to(Path(path).resolve())
        yield folder, {"gguf_file": link.name}


def read_weights(
    files: WeightFiles, config: Any, dtype: torch.dtype, quantising: Mapping[str, Any] | None = None
) -> tuple[Any, Mapping[str, Any]]:
    """The model of the files, and what transformers says of tensors missing, left over or of another shape.

    ``quantising``: what else it is told, where the weights stay quantised (`lezo.model.quantised`).

    Raises ModelError for a pickle that is damaged or holds more than tensors, else what transformers raises.
    """
    options: dict[str, Any] = {"use_safetensors": files.kind == "safetensors", "weights_only": True}
    if quantising is not None:
        options |= quantising
    elif quantised(config):
        options["quantization_config"] = transformers.FineGrainedFP8Config(dequantize=True)
    elif files.kind == "gguf" and hasattr(transformers, "GgufConfig"):  # else they may stay in blocks
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        with place_of(files.path) as (place, named):
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                place,
                config=config,
                dtype=dtype,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the caller refuses them by name
                **options,
                **named,
            )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception:
        _refuse_damaged(files)
        raise
    if info["missing_keys"]:
        _refuse_damaged(files)
    if files.kind != "safetensors" and quantising is None:
        _own_memory(model)
    return model, info


def shapes(files: WeightFiles) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors of safetensors or pickles, by their names there; of a GGUF file none."""
    by_name: dict[str, tuple[int, ...]] = {}
    for file in (files.folder / name for name in files.names):
        if files.kind == "safetensors":
            with safe_open(file, framework="pt") as tensors:
                by_name |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        elif files.kind == "bin":
            content = torch.load(file, map_location="meta", weights_only=True)
            by_name |= {name: tuple(tensor.shape) for name, tensor in content.items()}
    return by_name


class _Files:
    """The files of a folder; or of a hub id those of the revision asked for and no other, whatever else the hub offers."""

    def __init__(self, path: str, revision: str | None) -> None:
        self._path, self._revision = path, revision
        self.error: Exception | None = None

    def file(self, name: str) -> Path | None:
        """The file of that name, if the folder has it, or the hub or, out of reach, its cache."""
        if Path(self._path).is_dir():
            return file if (file := Path(self._path) / name).is_file() else None
        try:
            file = Path(hf_hub_download(self._path, name, revision=self._revision))
        except EntryNotFoundError as error:
            self.error = error
            return None
        self._revision = file.parent.name  # the commit: a branch may move before the next file
        return file


def _listed(index: Path) -> tuple[str, ...]:
    """The files that an index names; they are beside it, and nowhere else."""
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        if not names:
            raise ValueError("no tensors")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        expected = 'expected {"weight_map": {tensor: file}}; copy or download it again'
        raise ModelError(f"{index}: not an index of weights ({reason(error)}); {expected}") from error
    _refuse_detours(f"{index}:", names)
    return tuple(sorted(names))


def _refuse_detours(who: str, names: Iterable[Any]) -> None:
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
            raise ModelError(
                f"{who} names {name!r}; expected names of files beside it (symbolic links are followed)"
            )


def _refuse_damaged(files: WeightFiles) -> None:
    """Raise ModelError, with its name, for a pickle that is not whole or holds anything but named tensors."""
    for file in (files.folder / name for name in files.names if files.kind == "bin"):
        try:
            content = torch.load(file, map_location="meta", weights_only=True)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            if code := re.search(r"GLOBAL (\S+)", str(error)):
                holds = f"holds more than weights (it asks for {code[1]}), and lezo runs no code of a file"
                raise ModelError(f"{file}: {holds}; expected tensors alone, or safetensors") from error
            why = f"cannot be read as weights ({type(error).__name__}); expected a whole file of torch.save"
            raise ModelError(f"{file}: {why}; copy or download it again") from error
        if not isinstance(content, Mapping) or not all(isinstance(t, torch.Tensor) for t in content.values()):
            raise ModelError(
                f"{file}: holds no model's weights by their names alone; expected a saved state_dict of tensors"
            )


@torch.no_grad()
def _own_memory(model: nn.Module) -> None:
    """Lay out every parameter in memory of its own: a pickle may hold several in one, or in another order than theirs."""
    seen: set[int] = set()
    for theta in model.parameters():
        place = theta.untyped_storage().data_ptr()
        if place in seen or not theta.is_contiguous():
            theta.data = theta.data.clone(memory_format=torch.contiguous_format)
        seen.add(place)


def quantised(config: Any) -> str | None:
    """How the weights of a transformers configuration are quantised, by the method's name; None: not at all."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        settings = getattr(config.get_text_config(), "quantization_config", None)
    if settings is None:
        return None
    settings = settings if isinstance(settings, Mapping) else settings.to_dict()
    bits = settings.get("load_in_4bit") or settings.get("load_in_8bit")
    return str(settings.get("quant_method") or ("bitsandbytes" if bits else "an unnamed method"))


def refuse_quantised(path: str, config: Any) -> None:
    """Raise ModelError, with the method's name, for weights that are quantised and stay so, or need an extra to be read."""
    method = quantised(config)
    if method not in (None, "bitsandbytes", "fp8"):  # the last of which becomes plain weights on every device
        raise ModelError(f"{path}: the weights are quantised ({method}); {_PLAIN}")
    if method == "fp8" and find_spec("accelerate") is None:
        raise ModelError(
            f"{path}: the weights are quantised ({method}); pip install 'lezo[fp8]' to read them"
        )


def refuse_packed(path: str, unexpected: Iterable[str]) -> None:
    """Raise ModelError where the tensors' names show quantised weights."""
    for name in unexpected:
        if (method := _PACKED.get(name.rpartition(".")[2])) is not None:
            raise ModelError(f"{path}: the weights are quantised ({method}: {name}); {_PLAIN}")


_PLAIN = (
    "expected the plain weights that they were made of (model.quantization=4bit peft=lora takes few bits of them), or those of "
    "bitsandbytes, a .gguf file or fp8"
)


def stored_as(path: str) -> str:
    """The types of a GGUF file's tensors, that of most elements first: "Q4_K, Q6_K"; vectors and biases do not count."""
    from gguf import GGUFReader

    elements: dict[str, int] = {}
    for tensor in GGUFReader(path).tensors:
        if len(tensor.shape) > 1:
            name = tensor.tensor_type.name
            elements[name] = elements.get(name, 0) + int(tensor.n_elements)
    return ", ".join(sorted(elements, key=lambda name: -elements[name]))


@contextmanager
def reading(what: str, path: str, more: str = "") -> Iterator[None]:
    """Whatever files of others make transformers stumble over becomes a ModelError; lack of memory stays that."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, ModelError):
        raise
    except Exception as error:
        raise ModelError(
            f"cannot read {what} {path} ({reason(error)}); {_way_out(error, path)}{more}"
        ) from error


def _way_out(error: Exception, path: str) -> str:
    if "trust_remote_code" in str(error):
        return f"expected an architecture that transformers {transformers.__version__} has itself"
    lone = not Path(path).is_dir() or (Path(path) / "tokenizer.model").exists()
    extra = find_spec("sentencepiece") and find_spec("tiktoken")
    if lone and not extra and re.search("sentencepiece|tiktoken", str(error)):
        return "a tokenizer.model without a tokenizer.json takes an extra; pip install 'lezo[sentencepiece]'"
    where = (
        "a folder in the Hugging Face form (config.json, model.safetensors or pytorch_model.bin, tokenizer)"
    )
    if isinstance(error, SafetensorError):
        return "expected whole safetensors files; copy or download them again"
    if is_gguf(path):
        return "expected a whole GGUF file of a language model that transformers reads; copy or download it again"
    if Path(path).is_dir():
        return f"expected {where}"
    answer = _answer_of_the_hub(error)
    if isinstance(answer, GatedRepoError):
        licence = f"the hub asks for its licence: accept it on https://huggingface.co/{path}"
        return f"{licence}, then set HF_TOKEN=... or run `hf auth login`"
    if answer is not None:
        return f"the hub has no such id or revision; expected one that it has, or {where}"
    return f"connect to the Hugging Face hub, or download it where there is a connection; expected a hub id or {where}"


def _answer_of_the_hub(error: BaseException | None) -> BaseException | None:
    """What the hub answered where it has no such id or revision, or not for everybody; transformers says it again in words of its own."""
    while error is not None and not isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
        error = error.__cause__ or error.__context__
    return error


def reason(error: Exception) -> str:
    """An error's first line, and the next where the first only announces it."""
    if "trust_remote_code" in str(error):
        return "it asks for code of its own, and lezo runs no code of a model's files"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1])[:300]
    plain = isinstance(error, OSError | ValueError | RuntimeError | SafetensorError) and text
    return text if plain else f"{type(error).__name__}: {text}"
