from contextlib import closing

import torch

from lezo.data.batches import Batches, batch_indices
from tests.lezo.small_models import CPU, examples


def test_every_epoch_sees_every_example_once_and_keeps_the_short_last_batch():
    steps = [batch_indices(0, step, examples=10, batch_size=4) for step in range(6)]
    assert [len(s) for s in steps] == [4, 4, 2, 4, 4, 2]
    assert sorted(sum(steps[:3], [])) == sorted(sum(steps[3:], [])) == list(range(10))
    assert steps[:3] != steps[3:]
    assert batch_indices(1, 0, examples=10, batch_size=4) != steps[0]


def test_a_batch_larger_than_the_set_is_the_whole_set():
    assert sorted(batch_indices(0, 3, examples=5, batch_size=16)) == list(range(5))


def batches(**changes):
    settings = {"loss": "candidates", "seed": 0, "batch_size": 4, "micro_batch_size": None, **changes}
    return closing(Batches(examples(10), **settings, pad=1, device=CPU))


def test_batches_depend_on_the_step_alone_in_whatever_order_they_are_asked_for():
    with batches() as one, batches() as other:
        ahead = [one(step)[0].input_ids for step in range(6)]
        for step in (5, 2, 2, 3, 0):
            assert torch.equal(other(step)[0].input_ids, ahead[step])


def test_micro_batches_are_the_batch_in_parts():
    with batches() as whole, batches(micro_batch_size=3) as parts:
        for step in range(3):
            golds = torch.cat([part.gold for part in parts(step)])
            assert torch.equal(golds, whole(step)[0].gold)
        assert [len(part.gold) for part in parts(0)] == [3, 1]


def test_the_lm_loss_sees_only_the_answers_to_train_on():
    with batches(loss="lm") as found:
        (batch,) = found(0)
        drawn = found.examples_of(0)
    assert batch.weight == sum(e.answer_lens[e.gold[0]] for e in drawn)
    assert batch.candidate.tolist() == [e.gold[0] for e in drawn]


def test_what_is_judged_is_the_examples_themselves():
    for loss, split in (("metric of choices", "scored"), ("metric of texts", "prompts")):
        with batches(loss=loss, micro_batch_size=3) as found:
            parts = found(0)
            assert [len(part) for part in parts] == [3, 1]
            assert [e for part in parts for e in getattr(part, split)] == found.examples_of(0)
