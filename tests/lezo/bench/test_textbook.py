"""The published step: its loss against one written out by hand, its moves against the formula."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from lezo.bench.textbook import ForeachTextbook, Textbook, candidate_rows, textbook_loss
from lezo.data.encode import Encoded
from lezo.model.layout import layout
from lezo.noise import seeds
from lezo.zo.blocks import UniformBlocks
from lezo.zo.step import Stopwatch
from tests.lezo.model.test_loss import CPU, examples, plain_candidate_loss, plain_lm_loss
from tests.lezo.small_models import CONFIGS, small_model, weights

PAD = 1
SEED = 3


def textbook(model: nn.Module, sparsity: float = 0.0, **changes: object) -> Textbook:
    found = layout(model)
    settings = {"lm": False, "pad": PAD, "lr": 1e-3, "eps": 1e-3, "seed": SEED, **changes}
    return Textbook(model, found, UniformBlocks(len(found.blocks), sparsity), Stopwatch(CPU), **settings)


def chosen_blocks(sparsity: float, step: int = 0) -> tuple[int, ...]:
    return UniformBlocks(4, sparsity)(step, seeds.step_seed(SEED, step))


def drawn(model: nn.Module, names: tuple[str, ...], step: int = 0) -> dict[str, torch.Tensor]:
    """The step's noise: one stream over the active tensors."""
    stream = torch.Generator().manual_seed(seeds.step_seed(SEED, step))
    like = {name: model.get_parameter(name) for name in names}
    return {n: torch.normal(0.0, 1.0, p.shape, generator=stream, dtype=p.dtype) for n, p in like.items()}


def test_every_candidate_is_a_row_padded_on_the_left_to_a_multiple_of_eight() -> None:
    made = [
        Encoded(0, ((0, 5, 6), (0, 5, 7, 8)), (1, 2), (1,)),
        Encoded(1, (tuple(range(2, 11)),), (3,), (0,)),
    ]
    rows = candidate_rows(made, lm=False, pad=PAD, device=CPU)
    assert rows.input_ids.tolist() == [
        [*[PAD] * 13, 0, 5, 6],
        [*[PAD] * 12, 0, 5, 7, 8],
        [*[PAD] * 7, *range(2, 11)],
    ]
    assert rows.attention_mask.tolist() == [[0] * 13 + [1] * 3, [0] * 12 + [1] * 4, [0] * 7 + [1] * 9]
    assert rows.scored.tolist() == [[False] * (15 - n) + [True] * n for n in (1, 2, 3)]
    assert (rows.candidates, rows.gold.tolist()) == ((2, 1), [1, 0])


def test_the_lm_form_has_the_gold_row_only() -> None:
    made = [Encoded(0, ((0, 5, 6), (0, 5, 7, 8)), (1, 2), (1,))]
    rows = candidate_rows(made, lm=True, pad=PAD, device=CPU)
    assert rows.input_ids.tolist() == [[*[PAD] * 4, 0, 5, 7, 8]]
    assert (rows.candidates, rows.gold) == ((1,), None)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_losses_equal_the_form_written_out(name: str) -> None:
    model, made = small_model(name, torch.float64), examples()
    assert len({len(example.input_ids) for example in made}) > 1  # the case of example by example
    rows = [candidate_rows(made, lm=lm, pad=PAD, device=CPU) for lm in (False, True)]
    with torch.no_grad():
        found = [textbook_loss(model, r).item() for r in rows]
    expected = [plain_candidate_loss(model, made), plain_lm_loss(model, made)]
    shifted = 1e-10 if name.startswith("opt") else 1e-6  # padding moves rotary angles, which are fp32
    assert found == pytest.approx(expected, abs=shifted)


def test_as_many_candidates_everywhere_is_the_same_loss() -> None:
    model = small_model(dtype=torch.float64)
    made = [example for example in examples(30) if len(example.input_ids) == 2]
    with torch.no_grad():
        found = textbook_loss(model, candidate_rows(made, lm=False, pad=PAD, device=CPU)).item()
    assert found == pytest.approx(plain_candidate_loss(model, made), abs=1e-10)


def test_the_forward_keeps_a_cache_and_scores_every_position() -> None:
    model, seen = small_model(), []
    model.register_forward_hook(
        lambda _, args, kwargs, out: seen.append((args, kwargs, out)), with_kwargs=True
    )
    rows = candidate_rows(examples(), lm=False, pad=PAD, device=CPU)
    with torch.no_grad():
        textbook_loss(model, rows)
    ((args, kwargs, out),) = seen
    assert (args, set(kwargs)) == ((), {"input_ids", "attention_mask", "use_cache"})
    assert out.logits.shape == (*rows.input_ids.shape, model.config.vocab_size)
    assert out.past_key_values.get_seq_length() == rows.input_ids.shape[1]


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_without_a_learning_rate_fp32_weights_come_back_up_to_rounding(sparsity: float) -> None:
    model = small_model()
    before = weights(model)
    textbook(model, sparsity, lr=0.0).step(0, examples())
    moved = {name: (theta - before[name]).abs().max().item() for name, theta in weights(model).items()}
    assert max(moved.values()) < 1e-6
    assert any(moved.values())  # the rounding that the read-only probe does away with


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_step_is_the_formula(sparsity: float, decay: float) -> None:
    model, made = small_model(dtype=torch.float64), examples()
    before = weights(model)
    names = layout(model).active(chosen_blocks(sparsity))
    report = textbook(model, sparsity, weight_decay=decay).step(0, made)
    assert report.g == pytest.approx((report.loss_plus - report.loss_minus) / 2e-3)
    for name, z in drawn(model, names).items():
        spared = name.endswith("bias") or "layer_norm" in name
        expected = before[name] - 1e-3 * (report.g * z + (0 if spared else decay) * before[name])
        torch.testing.assert_close(model.get_parameter(name).data, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("group", [1, 2**30])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_fused_form_is_the_same_step(decay: float, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ForeachTextbook, "GROUP", group)
    found = []
    for kind in (Textbook, ForeachTextbook):
        model = small_model(dtype=torch.float64)
        step = textbook(model, weight_decay=decay)
        step.__class__ = kind
        found.append((step.step(0, examples()), weights(model)))
    (one, plain), (other, fused) = found
    assert other.g == pytest.approx(one.g)
    for name, theta in plain.items():
        torch.testing.assert_close(fused[name], theta, atol=1e-12, rtol=0)


def test_the_losses_are_those_of_the_moved_weights() -> None:
    model, made = small_model(dtype=torch.float64), examples()
    report = textbook(model, lr=0.0).step(0, made)
    rows = candidate_rows(made, lm=False, pad=PAD, device=CPU)
    found = []
    for sign in (1, -1):
        other = small_model(dtype=torch.float64)
        with torch.no_grad():
            for name, z in drawn(model, layout(model).active(range(4))).items():
                other.get_parameter(name).add_(sign * 1e-3 * z)
            found.append(textbook_loss(other, rows).item())
    assert [report.loss_plus, report.loss_minus] == pytest.approx(found, abs=1e-10)


def test_blocks_not_chosen_are_untouched() -> None:
    model = small_model()
    before, found = weights(model), layout(model)
    textbook(model, 0.5).step(0, examples())
    changed = {name for name, theta in weights(model).items() if not torch.equal(theta, before[name])}
    chosen = chosen_blocks(0.5)
    assert len(chosen) == 2
    assert changed == set(found.active(chosen))


def test_half_precision_steps_in_its_own_dtype() -> None:
    model = small_model(dtype=torch.float16)
    before = weights(model)
    report = textbook(model, lr=0.0).step(0, examples())
    apart = [(theta != before[name]).float().mean().item() for name, theta in weights(model).items()]
    assert report.loss_plus == float(torch.tensor(report.loss_plus, dtype=torch.float16))
    assert max(apart) > 0.2  # fp16 weights do not come back


def test_the_phases_are_named_and_counted() -> None:
    passes: Counter[str] = Counter()

    class Counting:
        @contextmanager
        def __call__(self, phase: str) -> Iterator[None]:
            passes[phase] += 1
            yield

    step = textbook(small_model())
    step.watch = Counting()  # type: ignore[assignment]
    step.step(0, examples())
    assert passes == {"data": 1, "perturb": 3, "forward": 2, "update": 1}


def test_the_global_generator_is_left_alone() -> None:
    model = small_model()
    before = torch.random.get_rng_state()
    textbook(model).step(0, examples())
    assert torch.equal(torch.random.get_rng_state(), before)
