"""Are these the same weights, words and examples? Their SHA-256, as 64 hex digits."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from lezo.data.encode import Encoded


def weights_hash(model: nn.Module) -> str:
    """Of every parameter's name, dtype, shape and bits; tied ones count once.

    Some gigabytes a second: parameters are hashed side by side, one copy a thread in host memory.
    """
    named = list(model.named_parameters())
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "hash") as threads:
        digests = threads.map(tensor_hash, (parameter.detach() for _, parameter in named))
        return _of([[name, digest] for (name, _), digest in zip(named, digests, strict=True)])


def tensor_hash(tensor: Tensor) -> str:
    """Of a tensor's dtype, shape and bits."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """Of a tokenizer's rules and vocabulary, or of the vocabulary where it does not show its rules.

    What it was last asked to cut or to fill up is no rule of it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _of(sorted(tokenizer.get_vocab().items()))
    return _of({**json.loads(backend.to_str()), "truncation": None, "padding": None})


def examples_hash(splits: Iterable[Iterable[Encoded]]) -> str:
    """Of encoded examples: ids, answers, gold and references, in their order."""
    fields = ("index", "input_ids", "answer_lens", "gold", "references")
    return _of([[[getattr(e, field) for field in fields] for e in examples] for examples in splits])


def _of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
