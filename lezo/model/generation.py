"""How does a model go on after a prompt? Greedily, whatever the settings that lie beside its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from lezo.data.encode import MAX_NEW_TOKENS
from lezo.data.encode import padded as filled_up
from lezo.model.forward import tolerance


@dataclass(frozen=True)
class GenerationMode:
    """What generation may do without changing what the model says.

    ``padded``: prompts of different lengths stand in one batch, filled up on the left; ``together``: prompts of one
    length do. ``cached``: keys and values, or a recurrent state, are kept from one id to the next.
    """

    padded: bool = True
    together: bool = True
    cached: bool = True


def continued(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    pad: int,
    ends: Callable[[Sequence[int]], bool],
    cached: bool = True,
    most: int = MAX_NEW_TOKENS,
) -> list[list[int]]:
    """Each prompt's likeliest next id, and so on: ``most`` of them, or up to the first with which they ``ends``.

    Shorter prompts are filled up with ``pad`` on the left, masked.
    """
    start = max(map(len, prompts))
    output = _generated(model, prompts, pad, _Ends(ends, start), max_new_tokens=most, use_cache=cached)
    rows = output.sequences[:, start:].tolist()
    return [row[: next((i for i in range(1, len(row)) if ends(row[:i])), None)] for row in rows]


@torch.no_grad()
def widest_mode(model: Any, *, pad: int, padded: bool = True) -> GenerationMode:
    """The widest mode, at most ``padded``, that says what plain forwards say: tried on short prompts, two ids each.

    Some models place a token by its column, padding counted; some mix up the states of several rows.
    """
    vocabulary = model.config.get_text_config().vocab_size
    short, same, long = ([i % vocabulary for i in range(*ids)] for ids in ((3, 7), (9, 13), (7, 13)))
    wide, narrow = GenerationMode(padded=True), GenerationMode(padded=False)
    tried = {wide: [short, long], narrow: [short, same], replace(narrow, together=False): [short]}
    right = (m for m, prompts in tried.items() if (padded or not m.padded) and _is_right(model, prompts, pad))
    return next(right, GenerationMode(False, False, False))


def _is_right(model: Any, prompts: Sequence[Sequence[int]], pad: int) -> bool:
    """Whether the first of the prompts gets the logits that it gets in a forward alone."""
    try:
        output = _generated(model, prompts, pad, max_new_tokens=2, output_logits=True)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception:  # whatever a model's own code stumbles over
        return False
    alone = torch.tensor([[*prompts[0], int(output.sequences[0, -2])]], device=model.device)
    expected = model(input_ids=alone, use_cache=False).logits[0, -2:].float()
    error = (torch.stack([step[0] for step in output.logits]).float() - expected).abs().max()
    return bool(error < expected.std() * tolerance(model))


def _generated(
    model: Any, prompts: Sequence[Sequence[int]], pad: int, *criteria: StoppingCriteria, **settings: Any
) -> Any:
    """What transformers' `generate` returns under these settings and no others."""
    ids, mask = filled_up(prompts, pad)
    given = {"input_ids": ids.to(model.device)}
    if not mask.all():  # not every model takes one
        given["attention_mask"] = mask.to(model.device)
    config = GenerationConfig(do_sample=False, return_dict_in_generate=True, **settings)
    with _without_settings(model):
        return model.generate(
            **given, generation_config=config, stopping_criteria=StoppingCriteriaList(criteria)
        )


@contextmanager
def _without_settings(model: Any) -> Iterator[None]:
    """While it lasts, the model has no settings of its own, with which `generate` would fill up those it is given."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


class _Ends(StoppingCriteria):  # type: ignore[misc]
    """A row is done when its ids from ``start`` on end it; those of rows that go on beside it are nobody's."""

    def __init__(self, ends: Callable[[Sequence[int]], bool], start: int) -> None:
        self._ends, self._start = ends, start

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Which rows are done: (rows,) bool."""
        done = [self._ends(row) for row in input_ids[:, self._start :].tolist()]
        return torch.tensor(done, device=input_ids.device)
