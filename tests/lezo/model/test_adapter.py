"""LoRA, prefix and head: peft's own numbers, packed, generated and probed; first values, and what they are refused for."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lezo.data.pack import candidate_batch
from lezo.model.adapter import Adapter, Attached, attach
from lezo.model.forward import Network
from lezo.model.hashes import weights_hash
from lezo.model.layout import layout
from lezo.model.load import ModelError, skeleton
from lezo.model.loss import answer_scores, loss
from lezo.noise import directions, seeds
from lezo.zo.blocks import UniformBlocks
from lezo.zo.probe import StreamProbe
from lezo.zo.step import Stopwatch
from lezo.zo.streams import Streams
from lezo.zo.zeroth_order import ZerothOrder
from tests.lezo import zoo
from tests.lezo.refusals import refused
from tests.lezo.small_models import CONFIGS, CPU, VOCABULARY, as_on_cuda, examples, small_model, weights

PEFTS_OWN = pytest.mark.filterwarnings(  # what peft 0.21 calls by its old names
    "ignore:`(is_gradient_checkpointing|past_key_values)` is deprecated:FutureWarning"
)
KINDS = ("lora", "prefix", "head")


def adapter_for(model: str, kind: Any) -> Adapter:
    return Adapter(kind, targets=("query_key_value",) if model == "neox" else ("q_proj", "v_proj"))


def adapted(model: str, kind: str, *, seed: int = 3) -> tuple[Any, Attached]:
    """A model whose adapter has been moved from its first values, as by training."""
    made: Any = small_model(model)
    attached = Attached(made, adapter_for(model, kind), seed=seed)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return made, attached


def reloaded(model: str, attached: Attached, folder: Path) -> Any:
    """The same by peft (a head: by transformers) from what was saved."""
    attached.save(folder, "base")
    if attached.adapter.name == "head":
        return AutoModelForCausalLM.from_pretrained(folder).eval()
    return peft.PeftModel.from_pretrained(small_model(model), folder).eval()  # type: ignore[arg-type]


@torch.no_grad()
def answer_sums(model: Any, ids: tuple[int, ...], size: int) -> float:
    row = torch.tensor([ids])
    scores = model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0].log_softmax(-1)
    return sum(scores[i - 1, ids[i]].item() for i in range(len(ids) - size, len(ids)))


@PEFTS_OWN
@pytest.mark.parametrize(
    ("name", "kind"),
    [*(("opt", kind) for kind in KINDS), ("neox", "lora"), ("llama", "prefix"), ("qwen2-tied", "head")],
)
def test_what_was_saved_is_the_same_model_in_peft(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, attached = adapted(name, kind)
    same = reloaded(name, attached, tmp_path / "saved")
    made = examples(4)
    with torch.no_grad():
        packed = answer_scores(Network(model), candidate_batch(made, pad=1, device=CPU))[0].tolist()
    plain = [
        answer_sums(same, ids, size)
        for example in made
        for ids, size in zip(example.input_ids, example.answer_lens, strict=True)
    ]
    assert packed == pytest.approx(plain, abs=1e-5)
    as_on_cuda(monkeypatch)
    with torch.no_grad():
        again = answer_scores(Network(model), candidate_batch(made, pad=1, device=CPU))[0].tolist()
    assert again == pytest.approx(plain, abs=1e-5)
    assert packed != pytest.approx([answer_sums(small_model(name), i, s) for e in made for i, s in zip(e.input_ids, e.answer_lens, strict=True)], abs=1e-2)  # fmt: skip


@PEFTS_OWN
@pytest.mark.parametrize(("name", "kind"), [("opt", "lora"), ("opt", "prefix"), ("llama", "prefix")])
@torch.no_grad()
def test_a_padded_batch_generates_what_each_prompt_does_alone(name: str, kind: str, tmp_path: Path) -> None:
    model, attached = adapted(name, kind)
    same = reloaded(name, attached, tmp_path / "saved")
    ids = torch.randint(4, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(2))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    found = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=5,
        do_sample=False,
        pad_token_id=1,
        eos_token_id=None,
    )
    for row in range(2):
        alone = ids[row][mask[row] == 1][None]
        for _ in range(5):
            scores = same(input_ids=alone, attention_mask=torch.ones_like(alone)).logits[:, -1]
            alone = torch.cat([alone, scores.argmax(-1, keepdim=True)], 1)
        assert found[row, -5:].tolist() == alone[0, -5:].tolist()


@pytest.mark.parametrize(("name", "kind"), [("opt", "lora"), ("llama", "prefix"), ("opt", "head")])
@torch.no_grad()
def test_the_probe_is_that_of_weights_moved_by_hand(name: str, kind: str) -> None:
    model, _ = adapted(name, kind)
    model.double()
    found, batch = layout(model), candidate_batch(examples(4), pad=1, device=CPU)
    active = found.active([0, 2])
    before = weights(model)
    losses = StreamProbe(Streams(model, found, Stopwatch(CPU)))([batch], active, seed=5, eps=1e-2)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    for sign in (0, 1):
        for tensor in active:
            theta = model.get_parameter(tensor)
            theta.copy_(directions.perturb(before[tensor], 5, tensor, 1e-2)[sign])
        assert losses[sign].item() == pytest.approx(loss(Network(model), batch).item(), abs=1e-12)
        model.load_state_dict(before, strict=False)
    assert losses[0] != losses[1]


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_lezo_moves_the_adapters_of_the_chosen_blocks_and_nothing_else(kind: str) -> None:
    model, _ = adapted("opt", kind)
    found, blocks, before = layout(model), UniformBlocks(4, 0.5), weights(model)
    probe = StreamProbe(Streams(model, found, Stopwatch(CPU)))
    optimizer = ZerothOrder(model, found, blocks, probe, lr=1e-2, eps=1e-2, seed=7)
    report = optimizer.step(0, [candidate_batch(examples(4), pad=1, device=CPU)])
    _, active = optimizer.update.drawn(0)
    assert report.applied and found.non_block == () and len(active) == 2 * len(found.blocks[0])
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(active)


def test_lora_begins_as_the_model_itself_with_published_first_values() -> None:
    model: Any = small_model()
    plain = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    Attached(model, Adapter("lora"), seed=3)
    assert torch.equal(model(input_ids=torch.tensor([[5, 6, 7]])).logits, plain)
    first = {n: p for n, p in model.named_parameters() if p.requires_grad}
    downs = torch.cat([p.detach().flatten() for n, p in first.items() if "lora_A" in n])
    assert {tuple(p.shape) for p in first.values()} == {(8, 16), (16, 8)}
    assert downs.abs().max() <= 0.25 and downs.std().item() == pytest.approx(0.25 / 3**0.5, rel=0.05)
    assert all(p.detach().count_nonzero() == 0 for n, p in first.items() if "lora_B" in n)


@pytest.mark.parametrize("name", ["opt", "llama"])
@torch.no_grad()
def test_a_prefix_begins_as_real_tokens_before_the_text(name: str) -> None:
    model: Any = small_model(name)
    drawn = seeds.permutation(seeds.derive(3, "prefix"), 0, VOCABULARY)[:5]
    text = [0, 9, 8, 7]
    plain = model(input_ids=torch.tensor([drawn + text])).logits[0, 5:]
    Attached(model, Adapter("prefix"), seed=3)
    prefixed = model(
        input_ids=torch.tensor([text]), attention_mask=torch.ones(1, 4, dtype=torch.int64)
    ).logits[0]
    assert torch.allclose(prefixed, plain, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_first_values_follow_from_the_seed_and_can_be_come_back_to(kind: Any) -> None:
    def hashed(seed: int) -> str:
        model = small_model()
        Attached(model, Adapter(kind), seed=seed)
        return weights_hash(model)

    assert hashed(3) == hashed(3)
    assert (hashed(3) == hashed(4)) is (kind == "head")
    model, attached = adapted("opt", kind)
    assert weights_hash(model) != hashed(3)
    attached.rebase(hashed(3))
    assert weights_hash(model) == hashed(3)
    with refused(ModelError, "frozen weights"):
        attached.rebase(hashed(3)[::-1])


def test_a_prefix_takes_its_first_values_from_a_runs_file(tmp_path: Path) -> None:
    file = tmp_path / "prefix.safetensors"
    _, attached = adapted("opt", "prefix")
    file.write_bytes(attached.start() or b"")
    other: Any = small_model()
    Attached(other, Adapter("prefix"), seed=99, start=file)
    assert torch.equal(other.prefixes.joined(), load_first(file, other))
    with refused(ModelError, "prefix.weight"):
        Attached(small_model(), Adapter("prefix", tokens=4), seed=3, start=file)
    file.write_bytes(b"no safetensors")
    with refused(ModelError, str(file)):
        Attached(small_model(), Adapter("prefix"), seed=3, start=file)
    assert adapted("opt", "lora")[1].start() is None


def load_first(file: Path, model: Any) -> torch.Tensor:
    first = load_file(file)
    return torch.cat([first[f"model.decoder.layers.{i}.prefix.weight"] for i in range(4)], 1)


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_adapters_are_fp32_on_sixteen_bit_models(kind: Any) -> None:
    model = small_model(dtype=torch.bfloat16)
    Attached(model, Adapter(kind), seed=3)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    batch = candidate_batch(examples(4), pad=1, device=CPU)
    losses = StreamProbe(Streams(model, layout(model), Stopwatch(CPU)))([batch], layout(model).active([1]), seed=5, eps=1e-1)  # fmt: skip
    assert losses.isfinite().all() and losses[0] != losses[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_skeleton_tells_the_layout(kind: Any) -> None:
    bones: Any = skeleton(CONFIGS["opt"], torch.float32)
    attach(bones, Adapter(kind))
    model: Any = small_model()
    Attached(model, Adapter(kind), seed=0)
    assert layout(bones) == layout(model)
    assert [p.shape for p in bones.parameters()] == [p.shape for p in model.parameters()]


def test_targets_that_are_not_there_are_named_with_those_that_are() -> None:
    for wrong in (("query",), ("q_proj", "query"), ("embed_tokens", "query"), ("lm_head", "query")):
        with refused(ModelError, "peft.targets=", "query", "fc1, fc2, k_proj"):
            attach(small_model(), Adapter("lora", targets=wrong))
    with refused(ModelError, "peft.targets=['embed_tokens']"):
        attach(small_model(), Adapter("lora", targets=("embed_tokens",)))


@pytest.mark.parametrize(
    "changes", [{"name": "other"}, {"rank": 0}, {"tokens": 0}, {"rank": "8"}, {"more": 1}, {"targets": 5}]
)
def test_settings_are_read_back_as_they_were_written_or_refused(changes: dict[str, Any]) -> None:
    made = Adapter("lora", rank=4, targets=("fc1",))
    written = json.loads(json.dumps(made.settings()))
    assert Adapter.of(written) == made
    with pytest.raises((ValueError, TypeError)):
        Adapter.of({**written, **changes})


def test_gradients_reach_a_prefix_through_packed_rows() -> None:
    model, _ = adapted("opt", "prefix")
    loss(Network(model), candidate_batch(examples(4), pad=1, device=CPU)).sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 4 and all(p.grad is not None and p.grad.count_nonzero() for p in trained)


@pytest.mark.parametrize("family", ["jamba", "lfm2"])
def test_a_prefix_where_blocks_keep_no_keys_and_values_is_refused(family: str) -> None:
    with refused(ModelError, "ForCausalLM", "peft=lora"):
        Attached(zoo.small(family), Adapter("prefix", tokens=2), seed=0)
