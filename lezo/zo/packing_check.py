"""May this model's rows be packed, and both signs travel together? Found out on the model itself, before it is used.

Packing needs a model that follows a 4-D mask and position ids and whose logits are its head's output; both signs
in one forward need blocks that hand on all they compute by their outputs. Whatever fails here runs in plain rows,
where a number is transformers' own: one sequence a row, one sign after the other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from lezo.data.encode import Encoded
from lezo.data.pack import Request, gold_batch, pack
from lezo.model.forward import Network, PlainRows, tolerance
from lezo.model.layout import Layout
from lezo.model.load import ModelError
from lezo.model.loss import answer_scores, total
from lezo.model.placement import placement_of
from lezo.ranks.ranks import ALONE, Ranks
from lezo.zo.direction import GAUSSIAN, Direction
from lezo.zo.graphs import Recorder
from lezo.zo.probe import PlainProbe, StreamProbe, TwoSided
from lezo.zo.step import Stopwatch
from lezo.zo.streams import Streams, is_16_bit_norm

_PROBE_SEEDS = (0x5EED, 0x5EEE)  # seeds; the second in case rounding chose another expert along the first
_WINDOW = re.compile(r"window(_size|_length)?$|^attention_chunk_size$")


def network_for(model: Any, layout: Layout, *, longest: int = 0, probes: bool = True) -> Network:
    """A `Network` where packed rows, and with ``probes`` both signs together, score as the model itself does; else `PlainRows`.

    ``longest``: tokens of the longest sequence that will be scored; one is tried, and windows must hold it.
    Raises ModelError where what follows a text changes its scores, so that not even plain rows can be filled up.
    """
    plain, requests = PlainRows(model), _requests(model.config.get_text_config().vocab_size, longest)
    _refuse_standing_still(model, plain, requests)
    alone = torch.cat([_scores(plain, [(example, (k,))], 0) for example, chosen in requests for k in chosen])
    word = requests[0][0].input_ids[0][0]  # rows are filled up with a word that counts, if it is looked at
    error = _relative_error(_scores(plain, requests, word), alone, alone)
    if not error < tolerance(model):
        raise ModelError(
            f"{type(model).__name__}: what follows a text changes its scores (by {error:.1g} of their spread); expected "
            "a causal language model, whose tokens see only those before them"
        )
    reason = _why_not_packed(model, layout, requests, alone, longest)
    if reason is None and probes:
        reason = _why_not_together(model, layout, [example for example, _ in requests[:2]])
    return Network(model) if reason is None else PlainRows(model, reason)


def _refuse_standing_still(model: Any, plain: Network, requests: Sequence[Request]) -> None:
    """Raise ModelError where the model's blocks are over several devices, and its forward does not get from one to the next."""
    if len(placement_of(model).devices) == 1:
        return
    try:
        _scores(plain, requests[:1], 0)
    except (RuntimeError, ValueError) as failed:
        raise ModelError(
            f"{type(model).__name__}: its forward mixes tensors of several devices ({_first_line(failed)}); expected a model "
            "whose blocks hand on all they compute; leave out model.devices to run it on one"
        ) from failed


def probe_for(
    network: Network,
    layout: Layout,
    watch: Stopwatch,
    *,
    direction: Direction = GAUSSIAN,
    compiled: bool = False,
    recordings: Recorder | None = None,
    ranks: Ranks = ALONE,
) -> TwoSided:
    """The probe of the model's batches, both signs at once where its rows are packed; ``ranks`` share micro-batches."""
    if not network.plain:
        options: dict[str, Any] = {"direction": direction, "compiled": compiled, "recordings": recordings}
        return StreamProbe(Streams(network.model, layout, watch, **options), ranks)
    return PlainProbe(network.model, lambda _, parts: total(network, parts, ranks), direction)


def _requests(vocabulary: int, longest: int) -> list[Request]:
    """Examples of two candidates, of two tokens and of one, after prompts of several lengths; of the longest only the first."""
    examples: list[Encoded] = []
    longest = longest or 11
    for index, size in enumerate((4, 9) if longest <= 11 else (4, 9, longest - 2)):
        size = max(1, min(size, longest - 2))
        ids = [_word(7 * index + 11 * place + place * place, vocabulary) for place in range(size + 2)]
        other = (*ids[:size], _word(ids[size], vocabulary))
        examples.append(Encoded(index, (tuple(ids), other), (2, 1), (0,)))
    return [(example, (0, 1) if example.index < 2 else (0,)) for example in examples]


def _word(number: int, vocabulary: int) -> int:
    """An id that is none of the first four, which often are special."""
    return 4 + number % (vocabulary - 4) if vocabulary > 8 else number % vocabulary


@torch.no_grad()
def _scores(network: Network, requests: Sequence[Request], pad: int) -> Tensor:
    batch = pack(requests, "lm", pad=pad, device=network.model.device, plain=network.plain)
    return answer_scores(network, batch)[0]


def _relative_error(scores: Tensor, expected: Tensor, alone: Tensor) -> float:
    """How far scores are from others, as a part of the spread of those of sequences ``alone``."""
    return float((scores - expected).abs().max() / alone.std().clamp_min(1e-4))


def _why_not_packed(
    model: Any, layout: Layout, requests: Sequence[Request], alone: Tensor, longest: int
) -> str | None:
    if windows := [window for window in _windows(model, layout) if window < longest]:
        return f"its attention has a window of {min(windows)} tokens, and the longest sequence has {longest}"
    if any(isinstance(module, nn.Conv1d) for module in _inside(model, layout)):
        return "its blocks hold convolutions, which know no mask"
    try:
        network = Network(model)
        if not _gives_its_heads_logits(model):
            return "its logits are not its head's output (they are scaled, capped or otherwise changed)"
        packed = _scores(network, requests, 0)
        # Other words in the first sequence must not move the scores of those beside it, whatever rounding hides.
        moved = _scores(network, [_with_words_of(requests[1][0], requests[0]), *requests[1:]], 0)
    except Exception as failed:
        return f"it does not take packed rows, a 4-D mask and position ids ({_first_line(failed)})"
    error, leak = _relative_error(packed, alone, alone), _relative_error(packed[2:], moved[2:], alone)
    if not error < tolerance(model):
        return f"it does not follow mask and positions of packed rows (scores off by {error:.1g} of their spread)"
    if not leak < tolerance(model) / 20:
        return f"packed sequences see each other (scores off by {leak:.1g} of their spread)"
    return None


def _with_words_of(other: Encoded, request: Request) -> Request:
    """The request with as many words of another example."""
    example, chosen = request
    words = tuple(other.input_ids[0][: len(ids)] for ids in example.input_ids)
    return replace(example, input_ids=words), chosen


@torch.no_grad()
def _gives_its_heads_logits(model: Any) -> bool:
    """Bit for bit, whatever the dtype: rounding cannot hide what is done to logits behind the head."""
    seen: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda *called: seen.append(called[-1]))
    try:
        logits = PlainRows(model).logits(torch.arange(3, 7, device=model.device)[None])
    finally:
        hook.remove()
    return len(seen) == 1 and torch.equal(seen[0].to(logits.dtype), logits)


def _windows(model: Any, layout: Layout) -> Iterator[int]:
    """Of how many tokens windows are, where the configuration or a module of the blocks says so: packed masks know none."""
    config = model.config.get_text_config()
    if not getattr(config, "use_sliding_window", True):
        return
    for owner in (config, *_inside(model, layout)):
        for name, value in vars(owner).items():
            if _WINDOW.search(name) and isinstance(value, int) and value > 0:
                yield value


def _inside(model: Any, layout: Layout) -> Iterator[nn.Module]:
    """All modules of the blocks."""
    return (part for name in layout.modules for part in model.get_submodule(name).modules())


def _why_not_together(model: Any, layout: Layout, examples: Sequence[Encoded]) -> str | None:
    """Compare a probe of all blocks, and one of every second block, with the plain one."""
    device = model.device
    packed, rows = ([gold_batch(examples, pad=0, device=device, plain=plain)] for plain in (False, True))
    plain = probe_for(PlainRows(model), layout, Stopwatch(device))
    sample = _sample(model, layout)
    for skipped in ((), range(0, len(layout.blocks), 2)):
        left_out = {name for block in skipped for name in layout.blocks[block]}
        active = [name for name in sample if name not in left_out]
        try:
            fast = probe_for(Network(model), layout, Stopwatch(device))
            compare = partial(_probes_apart, fast, packed, plain, rows, active, enough=4 * tolerance(model))
            errors = list(
                takewhile(lambda error: not error < 2 * tolerance(model), map(compare, _PROBE_SEEDS))
            )
        except Exception as failed:
            return f"both signs cannot travel in one forward ({_first_line(failed)})"
        if len(errors) == len(_PROBE_SEEDS):
            by = f"by {min(errors):.1g} of what parts them"
            return f"both signs in one forward score differently from one after the other ({by})"
    return None


def _probes_apart(
    fast: TwoSided, packed: Any, plain: TwoSided, rows: Any, active: Sequence[str], seed: int, enough: float
) -> float:
    """How far the fast probe's losses are from the plain one's, as a part of what parts the two signs.

    eps is 0.01, or 0.1 where that parts them by less than ``enough`` nats to tell a wrong probe from rounding.
    """
    error = math.nan
    for eps in (1e-2, 1e-1):
        expected = plain(rows, active, seed=seed, eps=eps)
        if not expected.isfinite().all():
            break
        apart = float(expected.diff().abs())
        error = float((fast(packed, active, seed=seed, eps=eps) - expected).abs().max()) / max(apart, 1e-6)
        if apart > enough:
            break
    return error


def _sample(model: nn.Module, layout: Layout) -> list[str]:
    """Tensors to perturb, about a block's worth: of each kind of matrix one, each in another block, and all vectors.

    But no gains of 16-bit norms, of which the plain probe rounds eps z away; a block of no other vectors gives its
    smallest matrix.
    """
    sizes = {name: model.get_parameter(name).numel() for names in layout.blocks for name in names}
    rounded = {name for name in sizes if is_16_bit_norm(model.get_submodule(name.rpartition(".")[0]))}
    chosen, kinds = dict.fromkeys(layout.non_block), dict[str, list[str]]()
    for module, block in zip(layout.modules, layout.blocks, strict=True):
        matrices = [name for name in block if model.get_parameter(name).ndim > 1]
        vectors = [name for name in block if name not in rounded and name not in matrices]
        chosen |= dict.fromkeys(vectors or sorted(matrices, key=sizes.__getitem__)[:1])
        for name in matrices:
            kinds.setdefault(name.removeprefix(f"{module}."), []).append(name)
    return [
        *chosen,
        *(n for i, names in enumerate(kinds.values()) if (n := names[i % len(names)]) not in chosen),
    ]


def _first_line(error: Exception) -> str:
    """Raises a lack of memory again, which says nothing of the model."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        raise error
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
