"""The fast probe against the plain one, and the plain one against models moved by hand."""

import weakref
from functools import partial

import pytest
import torch

from lezo.data.pack import candidate_batch, gold_batch
from lezo.model.forward import Network
from lezo.model.layout import layout
from lezo.model.loss import loss
from lezo.noise import directions
from lezo.zo.probe import PlainProbe, StreamProbe
from lezo.zo.step import Stopwatch
from lezo.zo.streams import Streams
from tests.lezo.small_models import CPU, examples, small_model, weights

EPS = 1e-3
COLLATE = {"candidates": candidate_batch, "lm": gold_batch}
IN_16_BITS = [("opt", torch.float16), ("opt-350m-style", torch.bfloat16), ("llama", torch.bfloat16)]


def fast(model):
    return StreamProbe(Streams(model, layout(model), Stopwatch(CPU)))


def plain_losses(model, active, batch):
    """The losses of models moved by hand, one sign after the other, unperturbed networks both."""
    losses = []
    for sign in (1, -1):
        moved = small_model(model.test_name, next(model.parameters()).dtype)
        with torch.no_grad():
            for name in active:
                theta = moved.get_parameter(name)
                plus, minus = directions.perturb(theta.detach(), 5, name, EPS)
                theta.copy_(plus if sign == 1 else minus)
            losses.append(loss(Network(moved), batch).item())
    return losses


def named(name, dtype=torch.float64):
    model = small_model(name, dtype)
    model.test_name = name
    return model


@pytest.mark.parametrize(
    ("name", "blocks", "kind", "longest"),
    [
        ("opt", (), "lm", 4),
        ("opt", (1,), "candidates", 1),
        ("opt", (0, 1, 2), "candidates", 4),
        ("opt-350m-style", (0, 2), "candidates", 4),
        ("llama", (0, 1, 2), "lm", 1),
        ("llama", (0, 2), "candidates", 1),
        ("qwen2-tied", (), "candidates", 1),
        ("qwen2-tied", (0, 1, 2), "lm", 4),
        ("neox", (0, 2), "candidates", 4),
    ],
)
def test_losses_are_those_of_models_moved_by_hand(name, blocks, kind, longest):
    """Tied heads move with their embedding; skipped blocks stay."""
    model = named(name)
    batch = COLLATE[kind](examples(longest=longest), pad=1, device=CPU)
    active = layout(model).active(blocks)
    expected = plain_losses(model, active, batch)
    assert fast(model)([batch], active, seed=5, eps=EPS).tolist() == pytest.approx(expected, abs=1e-12)
    assert expected[0] != expected[1]


@pytest.mark.parametrize("name", ["opt", "qwen2-tied"])
def test_the_plain_probe_runs_any_module_and_loss(name):
    model = named(name)
    ids = torch.arange(5, 15)[None]
    active = layout(model).active([1])
    batch = gold_batch(examples(1), pad=1, device=CPU)
    whole = PlainProbe(model, lambda forward, ids: forward(input_ids=ids).logits.square().mean())
    assert len(set(whole(ids, active, seed=5, eps=EPS).tolist())) == 2
    expected = plain_losses(model, active, batch)
    scored = PlainProbe(model, lambda forward, batch: _loss_of(model, forward, batch))
    assert scored(batch, active, seed=5, eps=EPS).tolist() == pytest.approx(expected, abs=1e-12)


class Mirrored:
    """-z in z's place."""

    def perturb(self, *args, out=None, **how):
        swapped = None if out is None else out[::-1]
        return directions.perturb(*args, out=swapped, **how)[::-1]


@pytest.mark.parametrize("probe", [StreamProbe, PlainProbe])
def test_all_that_moves_moves_along_the_given_direction(probe):
    """Blocks, rows of embeddings and of the head: along -z plus and minus change places, to the bit."""
    model = named("opt")
    found, batch = layout(model), candidate_batch(examples(), pad=1, device=CPU)

    def made(**how):
        if probe is StreamProbe:
            return StreamProbe(Streams(model, found, Stopwatch(CPU), **how))
        return PlainProbe(model, lambda module, batch: loss(Network(module), batch[0]), **how)

    there, mirrored = (
        probe([batch], found.active([0, 2]), seed=5, eps=EPS)
        for probe in (made(), made(direction=Mirrored()))
    )
    assert there[0] != there[1]
    assert torch.equal(there, mirrored.flip(0))


def _loss_of(model, forward, batch):
    logits = forward(
        input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=batch.mask
    ).logits
    at = logits.flatten(0, 1)[batch.read[batch.token_read]].log_softmax(-1)
    return -at.gather(1, batch.target[:, None]).sum() / batch.weight


@pytest.mark.parametrize(("name", "dtype"), IN_16_BITS)
def test_theta_is_bit_identical_after_a_probe(name, dtype):
    model = small_model(name, dtype)
    before = weights(model)
    batch = candidate_batch(examples(), pad=1, device=CPU)
    losses = fast(model)([batch], layout(model).active(range(3)), seed=5, eps=EPS)
    assert losses.dtype == torch.float32
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert [name for name, _ in model.named_parameters()] == list(before)


def test_theta_and_forward_are_as_before_when_the_forward_fails():
    model = small_model()
    before, batch = weights(model), candidate_batch(examples(), pad=1, device=CPU)
    expected = loss(Network(model), batch)
    with pytest.raises(IndexError):
        broken = candidate_batch(examples(), pad=1, device=CPU)
        broken.position_ids.fill_(1000)
        fast(model)([broken], layout(model).active([0]), seed=5, eps=EPS)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert torch.equal(loss(Network(model), batch), expected)


@pytest.mark.parametrize("name", ["opt", "opt-350m-style", "neox"])
def test_frozen_embeddings_run_once_before_the_first_perturbed_block(name):
    model = named(name)
    for tensor in layout(model).non_block:
        model.get_parameter(tensor).requires_grad_(False)
    found = layout(model)
    assert not found.non_block
    batch, active = candidate_batch(examples(), pad=1, device=CPU), found.active([1])
    rows = []
    blocks = [model.get_submodule(name) for name in found.modules]
    hooks = [b.register_forward_pre_hook(lambda m, a: rows.append(len(a[0]))) for b in blocks]
    losses = fast(model)([batch], active, seed=5, eps=EPS)
    for hook in hooks:
        hook.remove()
    once = len(batch.input_ids)
    assert rows[:3] == [once, once, 2 * once]
    assert losses.tolist() == pytest.approx(plain_losses(model, active, batch), abs=1e-12)


def test_the_mask_is_doubled_once_for_all_blocks_behind_the_parting():
    model = named("opt")
    for tensor in layout(model).non_block:
        model.get_parameter(tensor).requires_grad_(False)
    found, masks = layout(model), []
    for block in found.modules[1:]:
        attention = model.get_submodule(block).self_attn
        attention.register_forward_pre_hook(lambda m, a, named: masks.append(named["attention_mask"]), with_kwargs=True)  # fmt: skip
    batch = candidate_batch(examples(), pad=1, device=CPU)
    for _ in range(2):
        masks.clear()
        fast(model)([batch], found.active([0]), seed=5, eps=EPS)
        assert len(masks) == 3 and all(mask is masks[0] for mask in masks)
        assert torch.equal(masks[0], torch.cat([batch.mask, batch.mask]))


def test_a_trainable_final_norm_and_head_part_the_streams_at_the_end_only():
    model = named("llama")
    late = [name for name in layout(model).non_block if "embed" not in name]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in late)
    batch, rows = candidate_batch(examples(), pad=1, device=CPU), []
    model.get_submodule(layout(model).modules[2]).register_forward_pre_hook(
        lambda m, a: rows.append(len(a[0]))
    )
    losses = fast(model)([batch], late, seed=5, eps=EPS)
    assert (rows, len(late)) == ([len(batch.input_ids)], 2)
    assert losses.tolist() == pytest.approx(plain_losses(model, late, batch), abs=1e-12)


@pytest.mark.parametrize(("name", "dtype"), IN_16_BITS)
def test_gains_of_norms_are_perturbed_in_fp32(name, dtype):
    """In bf16 a gain near 1 realises only part of eps z; hidden states stay in 16 bits all the same."""
    model = small_model(name, dtype)
    inside = [name for block in layout(model).blocks[:3] for name in block]
    gains = [name for name in inside if "norm" in name and name.endswith("weight")]
    seen, states = {gain: [] for gain in gains}, []
    for gain in gains:
        norm = model.get_submodule(gain.removesuffix(".weight"))
        norm.register_forward_pre_hook(lambda m, _, gain=gain: seen[gain].append(m.weight.clone()))
        norm.register_forward_hook(lambda _m, _, out: states.append(out))
    fast(model)(
        [candidate_batch(examples(), pad=1, device=CPU)], layout(model).active(range(3)), seed=5, eps=EPS
    )
    for gain in gains:
        theta = model.get_parameter(gain).detach()
        for found, wanted in zip(
            seen[gain], directions.perturb(theta, 5, gain, EPS, dtype=torch.float32), strict=True
        ):
            assert torch.equal(found, wanted)
            assert not torch.equal(wanted, wanted.to(dtype).float())
    assert {state.dtype for state in states} == {dtype}


def test_micro_batches_make_the_same_losses():
    model, made = named("opt"), examples(6)
    active = layout(model).active([0, 2])
    whole = [candidate_batch(made, pad=1, device=CPU)]
    parts = [candidate_batch(part, pad=1, device=CPU) for part in (made[:4], made[4:])]
    probe = fast(model)
    one, two = (probe(batch, active, seed=5, eps=EPS).tolist() for batch in (whole, parts))
    assert one == pytest.approx(two, abs=1e-12)


def test_compiled_blocks_make_the_same_losses_from_two_graphs(monkeypatch):
    """One for parameters, one for copies; the backend is eager here, for the compiler itself takes a minute."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    model = named("opt")
    found = layout(model)
    compiled = StreamProbe(Streams(model, found, Stopwatch(CPU), compiled=True))
    for step, blocks in enumerate(([1], [0, 3], [0, 1, 2, 3])):
        batch = [candidate_batch(examples(seed=step), pad=1, device=CPU)]
        active = found.active(blocks)
        expected = fast(model)(batch, active, seed=step, eps=EPS).tolist()
        assert compiled(batch, active, seed=step, eps=EPS).tolist() == pytest.approx(expected, abs=1e-12)
    assert 2 <= len(graphs) <= 4


def plain(module, objective):
    return PlainProbe(module, lambda module, batch: objective())


def test_the_plain_probe_gives_a_module_in_two_places_its_parameters_back():
    layer = torch.nn.Linear(3, 3)
    model = torch.nn.Sequential(layer, torch.nn.Tanh(), layer)
    parameter, before, x = layer.weight, layer.weight.detach().clone(), torch.ones(3)
    plus, minus = plain(model, lambda: model(x).sum())(None, ["0.weight"], seed=5, eps=EPS).tolist()
    assert layer.weight is parameter and torch.equal(parameter, before)
    for found, moved in zip((plus, minus), directions.perturb(before, 5, "0.weight", EPS), strict=True):
        by_hand = (model[1](x @ moved.T + layer.bias) @ moved.T + layer.bias).sum()
        assert found == pytest.approx(by_hand.item(), abs=1e-6)


def test_the_plain_probe_holds_the_copies_of_one_sign_at_a_time():
    layer, copies = torch.nn.Linear(3, 3), []

    def objective():
        copies.append(weakref.ref(layer.weight))
        return sum(copy() is not None for copy in copies)

    assert plain(layer, objective)(None, ["weight"], seed=5, eps=EPS).tolist() == [1, 1]
    assert copies[0] is not copies[1]


def test_statistics_begin_alike_for_both_signs():
    model = torch.nn.BatchNorm1d(3, affine=False)
    model.weight = torch.nn.Parameter(torch.ones(3))
    began = []

    def objective():
        began.append(model.running_mean.clone())
        return (model(torch.randn(8, 3) + 1) * model.weight).sum()

    plain(model, objective)(None, ["weight"], seed=5, eps=EPS)
    assert torch.equal(*began)
    assert not torch.equal(model.running_mean, began[0])
