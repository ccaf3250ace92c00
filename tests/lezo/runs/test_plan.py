"""What a plan counts and expects, on the embedded model."""

from functools import cache
from types import SimpleNamespace
from weakref import WeakValueDictionary

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from lezo.config.compose import compose
from lezo.data.encode import EncodeError
from lezo.data.pack import gold_batch
from lezo.data.prompting import gold_text
from lezo.data.source import DataError
from lezo.model.forward import VOCABULARY_CHUNK
from lezo.model.layout import layout
from lezo.model.load import ModelError
from lezo.runs.plan import ForwardSize, Plan, make_plan
from lezo.zo.step import Stopwatch
from lezo.zo.streams import Streams
from tests.lezo.refusals import refused
from tests.lezo.small_models import CONFIGS, CPU, examples, opt_config

SMALL = ["task.num_train=32", "task.num_dev=8", "task.num_test=8", "model.device=cpu"]


@cache
def plan(*overrides: str) -> Plan:
    return make_plan(compose([*SMALL, *overrides]).config)


def test_forwards_are_counted() -> None:
    """100 steps, an evaluation before, every 30 and after; two candidates an example, 32 rows a forward."""
    two_sided = ["train.steps=100", "train.eval_every=30", "train.micro_batch_size=4", "optim=mezo"]
    assert plan(*two_sided).forwards == {"training": 100 * 2 * 4, "dev": 5, "test": 2}
    assert plan(*two_sided[:-1], "optim=fo-sgd").forwards["training"] == 100 * 4
    assert plan("optim=none").forwards == {"training": 0, "dev": 1, "test": 1}


def test_a_generated_tasks_dev_examples_count_once_when_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lezo.runs.prepare.MAX_LENGTH", 62)  # 12 tokens are left beside the generation's 50
    assert plan.__wrapped__("task=squad").truncated == 32 + 8 + 8


def test_memory_counts_weights_and_what_the_optimizer_adds() -> None:
    mezo, lezo, adamw = (plan(f"optim={name}") for name in ("mezo", "lezo", "fo-adamw"))
    weights = 4 * mezo.parameters
    assert [p.memory.weights for p in (mezo, lezo, adamw)] == [weights] * 3
    assert mezo.memory.update == lezo.memory.update
    assert weights / 8 < mezo.memory.update < weights / 4  # two of one of 8 blocks
    assert adamw.memory.update == 3 * weights
    assert adamw.memory.activations > mezo.memory.activations
    assert mezo.dtype == torch.float32


def text(made: Plan, ids: tuple[int, ...]) -> str:
    return str(made.parts.tokenizer.decode(ids, skip_special_tokens=True))


def test_in_context_learning_shows_each_test_example_its_own() -> None:
    made = plan("optim=icl", "task.demos=2", "task=sst2")
    assert (len(made.train), len(made.dev), len(made.test)) == (0, 0, 8)
    for i, (encoded, own) in enumerate(zip(made.test.scored, made.parts.splits.own_demos, strict=True)):
        prompt = text(made, encoded.input_ids[0])
        assert encoded.index == i and prompt.startswith(gold_text(own[0]).strip()[:20])
        assert prompt.count(" It was") == 3
    assert len(set(made.parts.splits.own_demos)) == 8
    generated = plan("optim=icl", "task.demos=2", "task=squad").test
    assert len(generated.prompts) == 8 and not generated.scored
    with refused(DataError, "task.demos=99999"):
        plan("optim=icl", "task.demos=99999")


@pytest.mark.parametrize(("calibration", "shown"), [("sfc", 1), ("icl_sfc", 3)])
def test_calibration_keeps_the_demonstrations_or_not(calibration: str, shown: int) -> None:
    for optim in ("none", "icl"):
        made = plan(f"optim={optim}", "task=sst2", "task.demos=2", f"eval.calibration={calibration}")
        for encoded, blank in zip(made.test.scored, made.test.blanks, strict=True):
            words = text(made, blank.input_ids[1])
            assert words.count("It was") == shown and words.endswith("It was great")
            assert blank.answer_lens == encoded.answer_lens
    assert not plan("optim=none", "task=sst2").test.blanks


def test_a_metric_is_judged_on_all_candidates_or_on_texts() -> None:
    copa = plan("task=copa", "optim=mezo", "optim.objective=metric")
    assert {len(e.input_ids) for e in copa.train} == {2} and plan("task=copa", "optim=mezo").train[
        0
    ].gold == (0,)
    squad = plan("task=squad", "optim=mezo", "optim.objective=metric")
    assert all(e.answer_lens == (0,) and e.references for e in squad.train)
    mezo = plan("optim=mezo", "optim.objective=metric")
    assert mezo.memory.update == pytest.approx(4 * mezo.parameters, rel=0.01)


def test_linear_probing_needs_answers_of_one_token() -> None:
    assert len(plan("optim=lp").train) == 32
    with refused(EncodeError, "peft=head"):
        plan("optim=lp", "task=copa")


@pytest.mark.parametrize(("peft", "tensors"), [("lora", 2 * 2 * 8 * 64), ("prefix", 5 * 2 * 64)])
def test_an_adapter_trains_little_and_a_prefix_takes_positions(peft: str, tensors: int) -> None:
    whole, made = plan("optim=fo-adamw"), plan("optim=fo-adamw", f"peft={peft}")
    assert (made.parameters, made.trained) == (whole.parameters, 8 * tensors)
    assert made.memory.update == 3 * 4 * made.trained
    taken = 5 if peft == "prefix" else 0
    assert made.parts.encoder.max_length == whole.parts.encoder.max_length - taken


@pytest.mark.parametrize("peft", ["lora", "prefix"])
def test_an_adapter_with_every_block_skipped_trains_nothing_and_is_refused(peft: str) -> None:
    with refused(ModelError, "all 8 blocks", f"peft={peft}"):
        plan(f"peft={peft}", "optim.sparsity=1")
    assert plan("optim.sparsity=1").blocks.keep == 0


def test_memory_counts_the_keys_and_values_of_a_generation() -> None:
    small, large = (plan("optim=none", "task=squad", f"eval.batch_size={size}") for size in (1, 8))
    longest = max(len(p.input_ids[0]) for p in small.test.prompts)
    cached = (longest + 50) * 2 * 64 * 8 * 4  # of a row: keys and values of 64 in each of 8 blocks, in fp32
    assert large.memory.activations - small.memory.activations > 7 * cached
    assert small.memory.activations > cached


def test_a_prefix_too_long_for_the_model_is_named() -> None:
    with refused(ModelError, "512", "peft.tokens", "600"):
        plan("peft=prefix", "peft.tokens=600")


class Held(TorchDispatchMode):
    """The most bytes that tensors made inside held at once."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.most, self.live = 0, WeakValueDictionary[int, torch.UntypedStorage]()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        made = operator(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.weights:
                self.live[storage.data_ptr()] = storage
        self.most = max(self.most, sum(storage.nbytes() for storage in self.live.values()))
        return made


def test_memory_counts_what_the_normalisers_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a head that moves: both its copies of one chunk, never of two. Noise holds nothing on CUDA, unlike on a CPU."""
    width = {"hidden_size": 128, "word_embed_proj_dim": 128}
    config = opt_config(**width, vocab_size=3 * VOCABULARY_CHUNK, num_hidden_layers=1)
    model = AutoModelForCausalLM.from_config(config).half().eval()
    found = layout(model)
    streams, batch = Streams(model, found, Stopwatch(CPU)), gold_batch(examples(), pad=1, device=CPU)
    with torch.no_grad(), streams.perturbed(found.non_block, seed=0, eps=1e-3):
        hidden = streams.hidden(batch)
        monkeypatch.setattr("lezo.noise.directions.perturb", lambda *args, **named: None)
        with Held(model) as held:
            streams.normalisers(hidden)
    counted = ForwardSize(config, torch.float16, 1).head(2, len(batch.read))
    assert 0.8 * counted < held.most < 1.1 * counted


def test_widths_of_each_block_are_counted_by_the_largest() -> None:
    """As OpenELM, Gemma 3n and others have them."""
    shape = {"hidden_size": 16, "vocab_size": 61}
    listed, single = (
        ForwardSize(SimpleNamespace(**shape, intermediate_size=width), torch.float16, 3).block(10, 5)
        for width in ([32, 64, 48], 64)
    )
    assert listed == single > ForwardSize(CONFIGS["opt"], torch.float16, 3).block(10, 5)
