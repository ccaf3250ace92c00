"""What is packed, and that a forward over it is the forward over each sequence alone."""

from dataclasses import fields, is_dataclass

import pytest
import torch

from lezo.config.compose import compose
from lezo.data import pack as packing
from lezo.data.encode import Encoded
from lezo.data.pack import candidate_batch, gold_batch, moved, pack, unit_length
from lezo.data.rows import rows_of_few_shapes
from lezo.model.forward import additive
from lezo.runs.plan import make_plan
from lezo.tasks import TASKS
from tests.lezo.data import token_by_token
from tests.lezo.small_models import CONFIGS, CPU, examples, small_model


def encoded(index, *sequences, lens, gold=(0,)):
    return Encoded(index, tuple(map(tuple, sequences)), lens, gold)


YES_NO = encoded(0, [0, 5, 6, 10], [0, 5, 6, 11], lens=(1, 1), gold=(1,))
LONGER = encoded(1, [0, 9, 12], [0, 9, 13, 14], lens=(1, 2))


def test_one_token_candidates_share_all_that_is_read():
    batch = candidate_batch([YES_NO], pad=1, device=CPU)
    assert batch.input_ids.tolist() == [[0, 5, 6]]
    assert batch.position_ids.tolist() == [[0, 1, 2]]
    assert (batch.read.tolist(), batch.token_read.tolist(), batch.target.tolist()) == ([2], [0, 0], [10, 11])
    assert (batch.columns_only, batch.weight, batch.gold.tolist()) == (True, 1, [1])


def test_longer_candidates_are_branches_after_the_shared_prompt():
    batch = candidate_batch([LONGER], pad=1, device=CPU)
    assert batch.input_ids.tolist() == [[0, 9, 13]]  # nothing is predicted from the last tokens
    assert batch.token_sequence.tolist() == [0, 1, 1]
    assert batch.token_place.tolist() == [0, 0, 1]
    assert [batch.read[i].item() for i in batch.token_read] == [1, 1, 2]
    assert batch.target.tolist() == [12, 13, 14]
    assert not batch.columns_only


def test_branches_do_not_see_each_other_and_take_the_same_positions():
    three = encoded(0, [0, 5, 7, 8, 9], [0, 5, 6, 8, 9], lens=(3, 3))
    batch = candidate_batch([three], pad=1, device=CPU)
    assert batch.input_ids.tolist() == [[0, 5, 7, 8, 6, 8]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 3]]
    sees = ["".join("x" if seen else "." for seen in row) for row in batch.mask[0, 0].tolist()]
    assert sees == ["x.....", "xx....", "xxx...", "xxxx..", "xx..x.", "xx..xx"]


def test_rows_are_balanced_so_that_little_is_padding():
    made = [encoded(i, [0, *range(4, 4 + size)], lens=(1,)) for i, size in enumerate((2, 6, 3, 1))]
    batch = candidate_batch(made, pad=1, device=CPU)
    assert batch.input_ids.tolist() == [[0, 4, 5, 6, 7, 8], [0, 4, 5, 0, 4, 0]]
    assert batch.tokens == 12
    assert [batch.input_ids.flatten()[i].item() for i in batch.read[batch.token_read]] == [4, 8, 5, 0]


def test_padding_is_rare_and_no_row_longer_than_attention_allows():
    made = [encoded(i, [0] * (2 + i * 37 % 200), lens=(1,)) for i in range(64)]
    batch = candidate_batch(made, pad=1, device=CPU)
    real = sum(map(unit_length, made))
    assert batch.tokens < 1.05 * real
    assert batch.input_ids.shape[1] < 1000


def test_words_are_the_ids_that_occur():
    batch = candidate_batch(examples(), pad=1, device=CPU)
    assert torch.equal(batch.words[batch.word_index], batch.input_ids)
    assert len(batch.words) == len(set(batch.input_ids.flatten().tolist()))


def test_the_gold_batch_holds_the_answers_to_train_on_and_weighs_their_tokens():
    batch = gold_batch([YES_NO, LONGER], pad=1, device=CPU)
    assert (batch.kind, batch.weight, batch.columns_only) == ("lm", 2, False)
    assert batch.candidate.tolist() == [1, 0]


def test_any_candidates_can_be_asked_for():
    batch = pack([(LONGER, [1]), (YES_NO, [1, 0])], "candidates", pad=1, device=CPU)
    assert batch.example.tolist() == [0, 1, 1]
    assert batch.candidate.tolist() == [1, 1, 0]
    assert batch.target.tolist() == [13, 14, 11, 10]


def test_unit_lengths_are_what_is_laid_out():
    for example in examples(20):
        assert unit_length(example) == candidate_batch([example], pad=1, device=CPU).tokens
        assert unit_length(example, [0]) == len(example.input_ids[0]) - 1


def assert_same(batch, expected):
    """In every field, to the dtype."""
    for field in fields(expected):
        value, wanted = getattr(batch, field.name), getattr(expected, field.name)
        if isinstance(wanted, torch.Tensor):
            assert value.dtype == wanted.dtype and torch.equal(value, wanted), field.name
        elif is_dataclass(wanted):
            assert_same(value, wanted)
        else:
            assert value == wanted, field.name


def assert_packed_as_token_by_token(made):
    gold, every = [(e, e.gold[:1]) for e in made], [(e, range(len(e.input_ids))) for e in made]
    for requests, kind in ((gold, "lm"), (every, "candidates")):
        for plain in (False, True):
            settings = {"pad": 1, "device": CPU, "plain": plain}
            assert_same(pack(requests, kind, **settings), token_by_token.pack(requests, kind, **settings))


@pytest.mark.parametrize("task", TASKS)
def test_rows_of_all_tasks_are_packed_as_token_by_token(task):
    rows = ["task.num_train=48", "task.num_dev=2", "task.num_test=2"]
    plan = make_plan(compose([f"task={task}", *rows, "model.device=cpu"]).config)
    for size in (1, 3, 16):
        assert_packed_as_token_by_token(plan.train[-size:])


@pytest.mark.parametrize("seed", range(8))
def test_candidates_of_any_length_are_packed_as_token_by_token(seed):
    made = examples(1 + 3 * seed, seed=seed, longest=6)
    assert_packed_as_token_by_token([YES_NO, LONGER, *made])
    assert_packed_as_token_by_token(made)


def test_what_is_moved_together_comes_apart_again():
    arrays = {"a": torch.arange(6).reshape(2, 3).numpy(), "b": torch.arange(40).numpy()}
    tensors = moved(arrays, CPU)
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        name: array.tolist() for name, array in arrays.items()
    }
    assert all(tensor.storage_offset() % 16 == 0 for tensor in tensors.values())  # as kernels like it


@pytest.mark.parametrize("as_on_cuda", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_states_are_those_of_each_sequence_alone(name, as_on_cuda, monkeypatch):
    """Nothing leaks between examples or branches, and positions start again."""
    model, made = small_model(name, torch.float64), examples(6)
    if as_on_cuda:
        monkeypatch.setattr(packing, "cheapest_rows", rows_of_few_shapes)
    batch = candidate_batch(made, pad=1, device=CPU)
    mask = additive(batch.mask, torch.float64) if as_on_cuda else batch.mask
    with torch.no_grad():
        logits = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=mask,
            use_cache=False,
        ).logits.flatten(0, 1)[batch.read[batch.token_read]]
        alone = torch.cat([
            model(input_ids=torch.tensor([ids])).logits[0, -size - 1 : -1]
            for e in made
            for ids, size in zip(e.input_ids, e.answer_lens, strict=True)
        ])  # fmt: skip
    torch.testing.assert_close(logits, alone, atol=1e-10, rtol=0)
