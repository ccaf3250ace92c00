"""What does the model say where answers are scored? Hidden states there, and the head only where it is needed.

A network has one or two streams: evaluation and first-order training run theta itself, a probe theta + eps z
beside theta - eps z (lezo/streams.py). Whoever computes a loss need not know which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lezo.model import ModelError
from lezo.pack import Batch

VOCABULARY_CHUNK = 8192  # rows of the head held in fp32 at a time


class Network:
    """A causal language model's body and head. Never writes to theta; gradients flow where they are on.

    Works for any decoder-only model of transformers whose logits are its head's output.
    """

    def __init__(self, model: Any) -> None:
        """Raises ModelError where the model has no linear head."""
        self.model, self.head = model, model.get_output_embeddings()
        if not isinstance(self.head, nn.Linear):
            kind = type(model).__name__
            raise ModelError(
                f"{kind}: its head is {type(self.head).__name__}; expected a causal language model's nn.Linear"
            )

    def hidden(self, batch: Batch) -> Tensor:
        """What the head would read at ``batch.read``: (streams, reads, width) in the model's dtype."""
        states = self._states(batch.input_ids, batch.position_ids, batch.mask)
        return states.reshape(1, batch.tokens, -1)[:, batch.read]

    def token_logits(self, hidden: Tensor, batch: Batch) -> Tensor:
        """The logit of each answer token: (streams, tokens) fp32 (fp64 for a model in fp64)."""
        with self._full_precision():
            weight, bias = self._head_rows(batch.target)
            return (_wide(hidden)[:, batch.token_read] * weight).sum(-1) + bias

    def normalisers(self, hidden: Tensor) -> Tensor:
        """The log of the sum of exponentials over the vocabulary: (streams, reads), dtypes as above.

        The head's rows are taken in chunks; without gradients one chunk is held at a time.
        """
        wide, size = _wide(hidden), self.head.weight.shape[0]
        with self._full_precision():
            parts = [
                self._normaliser(wide, slice(start, start + VOCABULARY_CHUNK))
                for start in range(0, size, VOCABULARY_CHUNK)
            ]
            return torch.stack(parts).logsumexp(0)

    def _normaliser(self, wide: Tensor, rows: slice) -> Tensor:
        """The same over a chunk of the head's rows, which is let go of before the next one is made."""
        weight, bias = self._head_slice(rows)
        return (wide @ weight.mT).add_(bias[:, None]).logsumexp(-1)

    def _states(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """What reaches the head: (rows, length, width)."""
        with captured(self.head) as seen:
            self.model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)
        (states,) = seen
        return states

    def _head_rows(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The head's rows of those ids, (streams, ids, width), and biases, (streams, ids), in fp32."""
        return _wide(self.head.weight[ids])[None], self._bias(ids)

    def _head_slice(self, rows: slice) -> tuple[Tensor, Tensor]:
        """A chunk of the head's rows, (streams, rows, width), and biases, (streams, rows), in fp32."""
        return _wide(self.head.weight[rows])[None], self._bias(rows)

    def _bias(self, where: Tensor | slice) -> Tensor:
        bias, weight = self.head.bias, self.head.weight
        return _wide(weight.new_zeros(weight.shape[0])[where] if bias is None else bias[where])[None]

    def _full_precision(self) -> Any:
        return torch.autocast(self.head.weight.device.type, enabled=False)


def check(network: Network, *, vocabulary: int, longest: int = 0) -> None:
    """Raise ModelError where packing or the separate head would change this model's logits.

    ``longest``: tokens of the longest sequence; a sliding window must hold it, for packed masks know no window.

    Two short sequences are scored packed in one row and alone by the model's own forward. Attention that
    ignores the given mask or positions (ALiBi, say), or logits changed after the head (soft caps), show here.
    """
    model = network.model
    window = getattr(model.config, "sliding_window", None)
    if window is not None and getattr(model.config, "use_sliding_window", True) and window < longest:
        raise ModelError(
            f"{type(model).__name__}: its attention has a sliding window of {window} tokens, and the longest sequence "
            f"has {longest}; expected full attention (choose shorter rows, or a model without a window)"
        )
    try:
        error, limit = _packing_error(network, vocabulary)
    except (RuntimeError, ValueError, TypeError, IndexError) as failed:
        if isinstance(failed, torch.OutOfMemoryError):
            raise
        said = str(failed).partition("\n")[0]
        raise ModelError(
            f"{type(model).__name__}: cannot score packed sequences ({said}); {_EXPECTED}"
        ) from failed
    if not error < limit:
        raise ModelError(
            f"{type(model).__name__}: packed sequences score differently from single ones (by {error:.1g} of the "
            f"logits' spread); {_EXPECTED}, and whose logits are its head's output"
        )


_EXPECTED = "expected a model that follows a 4-D attention mask and position ids"


def _packing_error(network: Network, vocabulary: int) -> tuple[float, float]:
    """How far two packed sequences' logits are from their own, as a part of the logits' spread, and what may be."""
    model, device = network.model, network.head.weight.device
    ids = torch.arange(3, 13, device=device) % vocabulary
    unit = torch.tensor([0] * 4 + [1] * 6, device=device)
    place = torch.arange(10, device=device)
    mask = (unit[:, None] == unit[None]) & (place[:, None] >= place[None])
    positions = torch.cat([place[:4], place[:6]])
    with torch.no_grad():
        hidden = network._states(ids[None], positions[None], mask[None, None])[0, [3, 9]]
        got = _wide(hidden) @ _wide(network.head.weight).T + network._bias(slice(None))
        alone = [model(input_ids=part[None], use_cache=False).logits[0, -1] for part in (ids[:4], ids[4:])]
    expected = torch.stack(alone).to(got.dtype)
    limit = 1e-3 if hidden.dtype in (torch.float32, torch.float64) else 5e-2
    return float((got - expected).abs().max() / expected.std()), limit


@contextmanager
def captured(module: nn.Module) -> Iterator[list[Tensor]]:
    """While it lasts, ``module`` does no work: its inputs are collected, and its output is their first column."""
    seen: list[Tensor] = []

    def instead(states: Tensor) -> Tensor:
        seen.append(states)
        return states[..., :1]

    with replaced(module, instead):
        yield seen


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """While it lasts, calling ``module`` calls ``forward``."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """What scores are computed in: fp32, or fp64 for a model in fp64."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(wide_dtype(tensor))
