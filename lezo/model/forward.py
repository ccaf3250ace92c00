"""What does the model say where answers are scored? Hidden states there, and the head only where it is needed.

A network has one or two streams: evaluation and first-order training run theta itself, a probe theta + eps z
beside theta - eps z (lezo/zo/streams.py). Whoever computes a loss need not know which, nor whether the rows are
packed or plain.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lezo.data.pack import Batch
from lezo.model.load import ModelError

VOCABULARY_CHUNK = 8192  # rows of the head held in fp32 at a time


class Network:
    """A causal language model's body and head, over packed rows. Never writes to theta; gradients flow where they are on.

    Works for any decoder-only model of transformers that follows a 4-D mask and position ids and whose logits are
    its head's output. ``plain``: whether each sequence has a row of its own. ``rows``: how rows are run, as results say it. ``streams``: how many
    it has.
    """

    plain, rows, streams = False, "packed", 1

    def __init__(self, model: Any) -> None:
        """Raises ModelError where the model has no linear head."""
        self.model, self.head = model, model.get_output_embeddings()
        if not isinstance(self.head, nn.Linear):
            raise ModelError(f"{type(model).__name__}: {no_linear_head(self.head)}")

    def hidden(self, batch: Batch) -> Tensor:
        """What the head would read at ``batch.read``: (streams, reads, width) in the model's dtype."""
        states = self._states(batch.input_ids, batch.position_ids, self.mask(batch))
        return states.reshape(1, batch.tokens, -1)[:, batch.read]

    def mask(self, batch: Batch) -> Tensor | None:
        """``batch.mask`` as attention takes it: on CUDA in the dtype of its operands (`additive`), else as it is.

        From a boolean mask torch makes that very one, again in each attention call.
        """
        if batch.mask is None or batch.mask.device.type != "cuda":
            return batch.mask
        autocast = torch.is_autocast_enabled("cuda")
        return additive(batch.mask, torch.get_autocast_dtype("cuda") if autocast else self.model.dtype)

    def token_scores(self, batch: Batch, *, normalised: bool = True) -> Tensor:
        """The log-probability of each answer token: (streams, tokens) fp32 (fp64 for a model in fp64).

        Not ``normalised``: its logit.
        """
        hidden = self.hidden(batch)
        logits = self.token_logits(hidden, batch)
        return logits - self.normalisers(hidden)[:, batch.token_read] if normalised else logits

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
        weight, bias = self._head_rows(rows)
        return (wide @ weight.mT).add_(bias[:, None]).logsumexp(-1)

    def _states(self, ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """What reaches the head: (rows, length, width)."""
        with captured(self.head) as seen:
            self.model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)
        (states,) = seen
        return states

    def _head_rows(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """The head's rows of ids or a chunk of them, (streams, rows, width), and biases, (streams, rows), in fp32."""
        return _wide(self.head.weight[rows])[None], self._bias(rows)

    def _bias(self, rows: Tensor | slice) -> Tensor:
        bias, weight = self.head.bias, self.head.weight
        return _wide(weight.new_zeros(weight.shape[0])[rows] if bias is None else bias[rows])[None]

    def _full_precision(self) -> Any:
        return torch.autocast(self.head.weight.device.type, enabled=False)


class PlainRows(Network):
    """Any causal language model, one sequence a row: its own forward, without mask and positions, and its own logits.

    Rows are filled up behind their ends, where a causal model does not look. ``reason``: why it is run so.
    """

    plain = True

    def __init__(self, model: Any, reason: str = "not packed") -> None:
        self.model, self.head, self.rows = model, model.get_output_embeddings(), f"plain: {reason}"
        named = inspect.signature(model.forward).parameters
        self._options = {"use_cache": False} if "use_cache" in named else {}
        self._keeps = "logits_to_keep" in named

    def hidden(self, batch: Batch) -> Tensor:
        """As of a `Network`. Raises ModelError where the model has no linear head."""
        if not isinstance(self.head, nn.Linear):
            raise ModelError(f"{type(self.model).__name__}: {no_linear_head(self.head)}")
        return super().hidden(batch)

    def token_scores(self, batch: Batch, *, normalised: bool = True) -> Tensor:
        """As of a `Network`, always ``normalised``: (1, tokens)."""
        assert batch.places is not None
        columns, row, column = batch.places.columns, batch.places.row, batch.places.column
        scores = _wide(self.logits(batch.input_ids, columns)[row, column]).log_softmax(-1)
        return scores[batch.token_read].gather(1, batch.target[:, None]).T

    def logits(self, ids: Tensor, columns: Tensor | None = None) -> Tensor:
        """The model's own logits of rows of ids, (rows, length or columns, vocabulary).

        A model that can leaves out the other columns: a vocabulary's logits take more memory than all the rest.
        """
        if columns is None or not self._keeps:
            logits: Tensor = self.model(input_ids=ids, **self._options).logits
            return logits if columns is None else logits[:, columns]
        kept: Tensor = self.model(input_ids=ids, **self._options, logits_to_keep=columns).logits
        return kept

    def _states(self, ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        with captured(self.head) as seen:
            self.model(input_ids=ids, **self._options)
        (states,) = seen
        return states


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What attention adds to its scores instead of a boolean ``mask``: 0 where it may look, -inf elsewhere; contiguous."""
    return torch.full(mask.shape, -torch.inf, dtype=dtype, device=mask.device).masked_fill_(mask, 0)


def no_linear_head(head: object) -> str:
    """What to say of a head whose rows are no weights of tokens."""
    return f"its head is {type(head).__name__}; expected a causal language model's nn.Linear"


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


def tolerance(model: Any) -> float:
    """How far apart scores may be by rounding alone, as a part of their spread."""
    return 1e-3 if model.dtype.itemsize > 2 else 5e-2


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(wide_dtype(tensor))
