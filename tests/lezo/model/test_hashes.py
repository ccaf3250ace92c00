"""Hashes that change with every bit that matters and with nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lezo.data.encode import Encoded
from lezo.model.hashes import examples_hash, tensor_hash, tokenizer_hash, weights_hash
from lezo.model.load import TINY, load_tokenizer
from tests.lezo.small_models import examples, small_model

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


class Model(nn.Module):
    """Parameters by the names and values given."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))


def flipped(tensor: Tensor, place: int) -> Tensor:
    """The tensor with the lowest bit of one byte flipped."""
    data = tensor.clone().contiguous().view(-1).view(torch.uint8)
    data[place] ^= 1
    return data.view(tensor.dtype).view(tensor.shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 4)], ids=str)
def test_every_bit_counts(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = torch.ones(shape).to(dtype)
    first = tensor_hash(tensor)
    assert len(first) == 64 and first == tensor_hash(tensor) == tensor_hash(tensor.clone())
    hashes = {tensor_hash(flipped(tensor, place)) for place in range(tensor.nbytes)}
    assert len(hashes | {first}) == tensor.nbytes + 1


def test_shape_and_dtype_count() -> None:
    same_bytes = [
        torch.zeros(6),
        torch.zeros(2, 3),
        torch.zeros(3, 2),
        torch.zeros(6, 1),
        torch.zeros(12, dtype=torch.float16),
        torch.zeros(12, dtype=torch.bfloat16),
        torch.zeros(6, dtype=torch.int32),
    ]
    assert len({tensor.nbytes for tensor in same_bytes}) == 1
    assert len({tensor_hash(tensor) for tensor in same_bytes}) == len(same_bytes)
    empty = [torch.zeros(0), torch.zeros(0, 3), torch.zeros(0, dtype=torch.float16), torch.zeros(())]
    assert len({tensor_hash(tensor) for tensor in empty}) == len(empty)


def test_signed_zeros_and_nans_of_other_bits_are_other_weights() -> None:
    nans = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    values = [torch.zeros(1), -torch.zeros(1), nans[:1], nans[1:]]
    assert len({tensor_hash(value) for value in values}) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_where_the_values_lie_does_not_count(dtype: torch.dtype) -> None:
    wide = torch.arange(24.0).to(dtype).view(4, 6)
    for view in (wide.T, wide[:, ::2], wide[1:, 1:4], wide[0].expand(3, 6), wide.as_strided((2, 2), (1, 2))):
        assert tensor_hash(view) == tensor_hash(view.contiguous().clone())
    assert tensor_hash(wide.T) != tensor_hash(wide.view(6, 4))


def test_names_count_and_which_tensor_has_which() -> None:
    a, b = torch.zeros(2), torch.ones(2)
    models = [Model(a=a, b=b), Model(a=b, b=a), Model(b=b, a=a), Model(a=a, c=b), Model(a=a), Model(ab=a)]
    hashes = [weights_hash(model) for model in models]
    assert len(set(hashes)) == len(models)
    assert hashes == [weights_hash(model) for model in models]


def test_gradients_and_modes_do_not_count() -> None:
    model = small_model()
    before = weights_hash(model)
    model.train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
        parameter.requires_grad_(False)
    assert weights_hash(model) == before


@pytest.mark.parametrize(("name", "dtype"), [("opt", torch.float32), ("qwen2-tied", torch.bfloat16)], ids=str)
def test_any_weight_of_a_model_counts(name: str, dtype: torch.dtype) -> None:
    model = small_model(name, dtype)
    before = weights_hash(model)
    assert before == weights_hash(small_model(name, dtype)) == weights_hash(model)
    assert before != weights_hash(small_model(name, dtype, seed=1))
    for parameter in list(model.parameters())[-3:]:
        kept = parameter.detach().clone()
        parameter.data.copy_(flipped(kept, 0))
        assert weights_hash(model) != before
        parameter.data.copy_(kept)
    assert weights_hash(model) == before


def test_tied_weights_count_once() -> None:
    tied = nn.Module()
    tied.one = tied.other = nn.Linear(2, 2, bias=False)
    alone = nn.Module()
    alone.one = tied.one
    assert weights_hash(tied) == weights_hash(alone)
    model = small_model("qwen2-tied")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert weights_hash(model) == weights_hash(model)


def test_a_tokenizer_keeps_its_hash_whatever_it_has_encoded() -> None:
    tokenizer = load_tokenizer(str(TINY))
    before = tokenizer_hash(tokenizer)
    assert before == tokenizer_hash(load_tokenizer(str(TINY)))
    tokenizer(["some words", "and more of them"], add_special_tokens=False, verbose=False)
    tokenizer(["a", "longer text than this"], padding=True, truncation=True, max_length=3)
    assert tokenizer_hash(tokenizer) == before
    tokenizer.add_tokens(["<new>"])
    assert tokenizer_hash(tokenizer) != before


def test_a_tokenizer_without_rules_to_show_counts_by_its_vocabulary() -> None:
    class Slow:
        def __init__(self, **vocabulary: int) -> None:
            self.vocabulary = vocabulary

        def get_vocab(self) -> dict[str, int]:
            return self.vocabulary

    assert tokenizer_hash(Slow(a=0, b=1)) == tokenizer_hash(Slow(b=1, a=0))
    assert len({tokenizer_hash(Slow(**v)) for v in ({"a": 0, "b": 1}, {"a": 1, "b": 0}, {"a": 0})}) == 3


Change = Callable[[list[Encoded]], Sequence[Encoded]]


@pytest.mark.parametrize(
    "change",
    [
        lambda given: given[:-1],
        lambda given: given[::-1],
        lambda given: [replace(given[0], input_ids=((0, 5),)), *given[1:]],
        lambda given: [replace(given[0], answer_lens=(9,)), *given[1:]],
        lambda given: [replace(given[0], gold=(7,)), *given[1:]],
        lambda given: [replace(given[0], references=("a",)), *given[1:]],
        lambda given: [replace(given[0], index=99), *given[1:]],
    ],
)
def test_every_part_of_an_example_counts(change: Change) -> None:
    given = examples()
    assert examples_hash([given, []]) == examples_hash([examples(), []])
    assert examples_hash([change(given), []]) != examples_hash([given, []])


def test_which_split_an_example_is_in_counts() -> None:
    given: list[Any] = examples()
    splits = [[given, []], [[], given], [given[:2], given[2:]], [given], [given, [], []]]
    assert len({examples_hash(split) for split in splits}) == len(splits)
