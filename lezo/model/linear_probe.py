"""What can be read off the hidden states alone? Linear probing: the answers' rows of the head, fitted in closed form.

No step is taken: a logistic regression without intercept from the states that predict an answer to that answer's
token, its strength chosen by cross-validation; its coefficients become the head's rows of those tokens (MeZO's LP).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from lezo.data.encode import Encoded, EncodeError
from lezo.data.pack import pack
from lezo.model.adapter import untie_head
from lezo.model.evaluate import score_chunks
from lezo.model.forward import Network
from lezo.model.load import ModelError

_FOLDS = 5


def refuse_long_answers(examples: Sequence[Encoded]) -> None:
    """Raise EncodeError where an answer is more than one token, for which the head has no row."""
    for example in examples:
        if set(example.answer_lens) != {1} or len({ids[:-1] for ids in example.input_ids}) > 1:
            raise EncodeError(
                f"example {example.index}: answers of {', '.join(map(str, example.answer_lens))} tokens; rows "
                "of the head are fitted to answers of one token (peft=head trains the head for longer ones)"
            )


@torch.no_grad()
def fit_head(network: Network, examples: Sequence[Encoded], *, batch_size: int, pad: int) -> None:
    """Untie the head and give its rows of the examples' answers fitted coefficients. ``batch_size``: sequences a forward.

    Raises EncodeError for long answers, ModelError where the rows are too few to fit.
    """
    refuse_long_answers(examples)
    labels = [example.input_ids[example.gold[0]][-1] for example in examples]
    rows = _fitted(np.stack(list(_states(network, examples, batch_size, pad))), labels)
    untie_head(network.model)
    weight = network.head.weight
    for token, row in rows.items():
        weight[token] = torch.from_numpy(row).to(weight)
    if network.head.bias is not None:
        network.head.bias[list(rows)] = 0  # the fit has no intercept


def _states(network: Network, examples: Sequence[Encoded], batch_size: int, pad: int) -> Iterator[np.ndarray]:
    """What the head reads before each example's answer, (width,) fp64, in the examples' order."""
    by_example: dict[int, np.ndarray] = {}
    for chunk in score_chunks(examples, batch_size):
        firsts = [i for i, chosen in chunk if 0 in chosen]  # every candidate follows the same state
        requests, device = [(examples[i], [0]) for i in firsts], network.head.weight.device
        batch = pack(requests, "candidates", pad=pad, device=device, plain=network.plain)
        states = network.hidden(batch)[0, batch.token_read].double().cpu().numpy()
        by_example.update(zip(firsts, states, strict=True))
    return (by_example[i] for i in range(len(examples)))


def _fitted(states: np.ndarray, labels: Sequence[int]) -> dict[int, np.ndarray]:
    """A row, (width,), of each label; of two, one is the other's negative."""
    counts = Counter(labels)
    if len(counts) < 2 or min(counts.values()) < 2:
        shown = ", ".join(map(str, sorted(counts.values())))
        raise ModelError(
            f"optim=lp: the train rows have {len(counts)} different answers, {shown} times; expected at least two answers, "
            "each twice (task.num_train)"
        )
    try:
        from sklearn.linear_model import LogisticRegressionCV
    except ImportError:
        raise ModelError("optim=lp: needs scikit-learn; pip install 'lezo[lp]' brings it") from None
    folds = min(_FOLDS, *counts.values())
    settings = {"l1_ratios": (0.0,), "scoring": "accuracy", "use_legacy_attributes": False}
    model = LogisticRegressionCV(cv=folds, fit_intercept=False, max_iter=5000, **settings).fit(states, labels)
    rows = model.coef_ if len(counts) > 2 else np.concatenate([-model.coef_, model.coef_]) / 2
    return {int(token): row for token, row in zip(model.classes_, rows, strict=True)}
