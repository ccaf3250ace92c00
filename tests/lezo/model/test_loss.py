"""The losses against the obvious form: one unpadded row at a time, full logits, plain Python."""

import math

import pytest
import torch

from lezo.data.pack import candidate_batch, gold_batch
from lezo.model.forward import Network
from lezo.model.loss import answer_scores, contributions, loss
from tests.lezo.small_models import CPU, examples, small_model


def plain_log_prob(model, ids, size):
    """Sum of the last ``size`` tokens' log-probabilities, from a batch of one without padding or mask."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    scores = logits.log_softmax(-1)
    return sum(scores[i - 1, ids[i]].item() for i in range(len(ids) - size, len(ids)))


def plain_candidate_loss(model, made):
    total = 0.0
    for e in made:
        means = [plain_log_prob(model, ids, n) / n for ids, n in zip(e.input_ids, e.answer_lens, strict=True)]
        total -= means[e.gold[0]] - math.log(sum(map(math.exp, means)))
    return total / len(made)


def plain_lm_loss(model, made):
    pairs = [(e.input_ids[e.gold[0]], e.answer_lens[e.gold[0]]) for e in made]
    return -sum(plain_log_prob(model, *pair) for pair in pairs) / sum(size for _, size in pairs)


@pytest.mark.parametrize(
    ("name", "longest"), [("opt", 1), ("opt", 4), ("opt-350m-style", 1), ("llama", 4), ("neox", 4)]
)
def test_losses_equal_the_plain_form(name, longest):
    model, made = small_model(name, torch.float64), examples(longest=longest)
    batches = [collate(made, pad=1, device=CPU) for collate in (candidate_batch, gold_batch)]
    assert [batch.columns_only for batch in batches] == [longest == 1, False]
    with torch.no_grad():
        found = [loss(Network(model), batch) for batch in batches]
    assert [f.item() for f in found] == pytest.approx(
        [plain_candidate_loss(model, made), plain_lm_loss(model, made)], abs=1e-10
    )


def test_answer_scores_do_not_depend_on_the_batch():
    network, made = Network(small_model(dtype=torch.float64)), examples()
    with torch.no_grad():
        together = answer_scores(network, candidate_batch(made, pad=1, device=CPU))
        alone = [answer_scores(network, candidate_batch([e], pad=1, device=CPU)) for e in made]
    torch.testing.assert_close(together, torch.cat(alone, 1), atol=1e-10, rtol=0)


@pytest.mark.parametrize("collate", [candidate_batch, gold_batch])
def test_the_loss_and_its_gradient_do_not_depend_on_micro_batches(collate):
    made, results = examples(6), []
    for size in (6, 4, 1):
        model = small_model(dtype=torch.float64)
        batches = [collate(made[at : at + size], pad=1, device=CPU) for at in range(0, 6, size)]
        total = torch.stack(list(contributions(Network(model), batches))).sum()
        total.backward()
        results.append((total.item(), model.get_input_embeddings().weight.grad))
    for value, gradient in results[1:]:
        assert value == pytest.approx(results[0][0], abs=1e-12)
        torch.testing.assert_close(gradient, results[0][1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_is_fp32_whatever_the_weights(dtype):
    with torch.no_grad():
        value = loss(Network(small_model(dtype=dtype)), candidate_batch(examples(), pad=1, device=CPU))
    assert value.dtype == torch.float32
    assert value.item() != value.to(dtype).item()  # finer than the weights' own precision
