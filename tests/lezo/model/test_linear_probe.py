"""Linear probing reads what a linear map can, writes only its rows of an untied head, and says what it cannot fit."""

import sys

import numpy as np
import pytest
import torch

from lezo.data.encode import Encoded, EncodeError
from lezo.model.forward import Network
from lezo.model.linear_probe import _fitted, fit_head
from lezo.model.load import ModelError
from tests.lezo.refusals import refused
from tests.lezo.small_models import small_model

YES, NO, MAYBE = 20, 30, 40


def questions(count: int, answers: tuple[int, ...]) -> list[Encoded]:
    """Prompts whose last token decides the answer."""
    made = []
    for i in range(count):
        gold = i % len(answers)
        prompt = (0, 5 + i % 7, 10 + gold)
        made.append(Encoded(i, tuple((*prompt, a) for a in answers), (1,) * len(answers), (gold,)))
    return made


@pytest.mark.parametrize("answers", [(YES, NO), (YES, NO, MAYBE)])
@torch.no_grad()
def test_the_answers_rows_learn_what_the_states_say(answers: tuple[int, ...]) -> None:
    model = small_model()
    embeddings = model.get_input_embeddings().weight.clone()
    head, network, made = model.get_output_embeddings().weight, Network(model), questions(42, answers)
    fit_head(network, made, batch_size=5, pad=1)
    weight = model.get_output_embeddings().weight
    assert weight is not head and torch.equal(model.get_input_embeddings().weight, embeddings)
    changed = (weight != embeddings).any(1).nonzero().flatten().tolist()
    assert changed == sorted(answers)
    for example in made:
        logits = model(input_ids=torch.tensor([example.input_ids[0][:-1]])).logits[0, -1, list(answers)]
        assert logits.argmax() == example.gold[0]


def test_of_two_answers_one_row_is_the_others_negative() -> None:
    states = np.array([[1.0, 0.2], [0.9, -0.1], [-1.0, 0.1], [-1.1, 0.0]])
    rows = _fitted(states, [7, 7, 3, 3])  # private: of states chosen here, not those of a model
    assert set(rows) == {3, 7} and np.array_equal(rows[3], -rows[7]) and rows[7][0] > 0


def test_rows_too_few_to_fit_are_counted() -> None:
    with refused(ModelError, "optim=lp", "task.num_train"):
        fit_head(Network(small_model()), questions(21, (YES,)), batch_size=4, pad=1)
    with refused(ModelError, "optim=lp", "1, 2 times"):
        fit_head(Network(small_model()), questions(3, (YES, NO)), batch_size=4, pad=1)


def test_longer_answers_are_refused() -> None:
    long = Encoded(3, ((0, 5, 6, 7), (0, 5, 8)), (2, 1), (0,))
    with refused(EncodeError, "example 3", "2, 1", "peft=head"):
        fit_head(Network(small_model()), [long], batch_size=4, pad=1)


def test_without_scikit_learn_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with refused(ModelError, "lezo[lp]"):
        fit_head(Network(small_model()), questions(8, (YES, NO)), batch_size=4, pad=1)


@torch.no_grad()
def test_a_heads_bias_has_no_say_in_what_was_fitted() -> None:
    model = small_model()
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.full((head.weight.shape[0],), 3.0))
    head.bias[YES] = 50
    fit_head(Network(model), questions(42, (YES, NO)), batch_size=5, pad=1)
    assert head.bias[[YES, NO]].tolist() == [0, 0] and head.bias[5] == 3
    for example in questions(42, (YES, NO)):
        logits = model(input_ids=torch.tensor([example.input_ids[0][:-1]])).logits[0, -1, [YES, NO]]
        assert logits.argmax() == example.gold[0]
