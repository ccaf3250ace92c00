"""lezo-run from its words to its result on CUDA, where there is none: every family, every kind of answer and method."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch

from lezo.bench.qualify import qualify
from lezo.bench.timing import loaded, timed
from lezo.bench.variants import Setup, make_variant, typical_work, variants_of
from lezo.cli.replay import main as replay
from lezo.config.compose import compose
from lezo.config.schema import BenchVariant, QualifyConfig
from lezo.model.device import named_device
from lezo.model.evaluate import Evaluator
from lezo.runs.plan import make_plan
from tests.lezo.whole_runs import Ran, Runner, typed
from tests.pretend_cuda.conftest import FAMILIES, SHORT, assert_right

pytestmark = pytest.mark.pretend_cuda

OnGpu = Callable[..., tuple[Ran, Any]]
Family = Callable[..., list[str]]


def _all_but(*slow: str) -> list[Any]:
    """Each family; the suite leaves the ``slow`` ones, of which it has another run, to ``pytest -m pretend_cuda``."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in FAMILIES]


@pytest.mark.parametrize("name", _all_but("opt", "opt-350m", "llama", "qwen2"))
def test_lezo_in_fp16_on_answers_of_one_token(on_gpu: OnGpu, family: Family, name: str) -> None:
    ran, gpu = on_gpu(*family(name))
    assert_right(ran, gpu)
    assert not gpu.steps_masks_made


@pytest.mark.parametrize("name", _all_but("opt", "llama", "qwen2", "neox"))
def test_mezo_in_bf16_on_longer_answers_in_micro_batches(on_gpu: OnGpu, family: Family, name: str) -> None:
    words = ["task=copa", "model.dtype=bfloat16", "train.micro_batch_size=2"]
    ran, gpu = on_gpu(*family(name, "mezo"), *words, "optim.rounding=stochastic")
    assert_right(ran, gpu)
    assert not gpu.steps_masks_made


def test_answers_that_are_generated(on_gpu: OnGpu, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each for several tokens, so that the key/value cache is read.

    `_continued` is private: what is generated for scoring goes through it alone, and nothing else of a run reads bools.
    """
    monkeypatch.setattr(Evaluator, "_continued", _for_three_tokens(Evaluator._continued))
    assert_right(*on_gpu(*family("qwen2"), "task=squad"))


def test_conversations(on_gpu: OnGpu, family: Family) -> None:
    assert_right(*on_gpu(*family("llama", "mezo"), "task=chat", "task.chat_template=plain"))


def _for_three_tokens(continued: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """Generation ends where a bool is read that says so: the third."""

    def run(self: Evaluator, prompts: Any) -> list[str]:
        from tests.pretend_cuda.gpu import PretendGpu

        gpu = PretendGpu.present
        gpu.truths = cycle([False, False, True])
        try:
            return continued(self, prompts)
        finally:
            gpu.truths = None

    return run


@pytest.mark.parametrize(
    ("name", "adapter", "optim"),
    [("llama", "lora", "lezo"), ("opt", "prefix", "lezo"), ("qwen2", "head", "mezo")],
)
def test_adapters(on_gpu: OnGpu, family: Family, name: str, adapter: str, optim: str) -> None:
    assert_right(*on_gpu(*family(name, optim), f"peft={adapter}", "task=copa"))


@pytest.mark.parametrize(
    ("optim", "words"),
    [
        ("fzoo", ["optim.probes=4", "optim.sparsity=0.5", "train.micro_batch_size=2"]),
        ("exzo", ["optim.top=0.5", "train.micro_batch_size=2"]),
        ("adalezo", []),
        ("zo-adam", ["optim.sparsity=0.5"]),
        ("lozo", ["optim.period=2", "optim.rounding=stochastic"]),
        ("mezo", ["optim.probes=2", "optim.clip=1.0", "optim.schedule=cosine", "optim.warmup=1"]),
    ],
)
def test_methods_of_other_parts(on_gpu: OnGpu, family: Family, optim: str, words: list[str]) -> None:
    ran, gpu = on_gpu(*family("opt", optim), *words)
    assert_right(ran, gpu)
    assert not gpu.steps_masks_made


def test_the_metric_as_objective_and_calibrated_scores(on_gpu: OnGpu, family: Family) -> None:
    """Every evaluation of the metric waits for its scores, so nothing is said of waits."""
    words = ["optim.objective=metric", "eval.calibration=sfc", "task=sst2"]
    ran, gpu = on_gpu(*family("opt", "mezo"), *words)
    assert ran.code == 0, ran.err
    assert len(gpu.steps) == 2 and gpu.launches


def test_a_run_as_it_is_started_and_gone_on_with_and_replayed(
    on_gpu: OnGpu,
    family: Family,
    pretended: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Weights from a file; back to the best step, of which the losses, all alike, make the first."""
    words = family("saved opt")
    ran, gpu = on_gpu(*words, "train.steps=3")
    assert_right(ran, gpu, steps=3)
    assert ran.result["best_step"] == 2 and "weights of step 2" in ran.out
    assert {row["skipped"] for row in ran.training()} == {False}
    assert "float16 on cuda:0" in ran.out
    assert_right(*on_gpu(*words, "train.steps=4", "resume=auto"), steps=1)
    with pretended():
        call = typed("lezo-replay", replay, monkeypatch, capsys)
        code, out, err = call("out", "replay.verify=true", "replay.device=auto")
    assert code == 0 and "everything is right" in out, (out, err)


def test_a_run_begun_on_a_gpu_goes_on_on_a_cpu_in_the_dtype_it_has(
    on_gpu: OnGpu, lezo_run: Runner, family: Family
) -> None:
    """auto is float16 on CUDA and float32 on a CPU: gone on with, the run keeps what it has, said or not."""
    words = family("saved opt")
    begun, _ = on_gpu(*words, "train.steps=3")
    for steps, dtype in ((4, "auto"), (5, "float16")):
        more = lezo_run(*words, *SHORT, f"train.steps={steps}", f"model.dtype={dtype}", "resume=auto")
        assert more.code == 0, more.err
        assert f"resuming this run after step {steps - 1} of {steps}" in more.out
        assert "float16 on cpu" in more.out
        assert more.result["origin"]["config"] == begun.result["origin"]["config"]
    assert "nothing is left to do" in lezo_run(*words, *SHORT, "train.steps=5", "resume=auto").out
    other = lezo_run(*words, *SHORT, "train.steps=6", "model.dtype=float32", "resume=auto")
    assert other.code == 1 and "dtype of the weights: float16 in the run and float32 here" in other.err


LM_ONLY = (BenchVariant.textbook_mezo,)  # the one that sees another batch there


@pytest.mark.parametrize(("task", "variants", "steps"), [("rte", (), 2), ("squad", LM_ONLY, 0)])
def test_what_lezo_bench_times(
    pretended: Callable[..., Any], family: Family, task: str, variants: Any, steps: int
) -> None:
    words = [*family("opt"), *SHORT, f"task={task}", "model.device=auto"]
    config = compose(words).config
    with pretended() as gpu:
        plan = make_plan(config)
        network, work = loaded(config, plan), typical_work(config, plan)
        for name in variants or variants_of(config):
            timed(make_variant(Setup(config, plan, work, network), name), 0, plan.device)
    assert [len(waits) for waits in gpu.steps] == [1] * steps  # of mezo and lezo


@pytest.mark.slow  # a minute of what lezo-bench times above, but for the profile and the memory
def test_what_lezo_qualify_times(
    pretended: Callable[..., Any], family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its timings on CUDA, the memory and the profile of a step included; of the bits there is nothing to compare."""
    monkeypatch.chdir(tmp_path)
    words = [word for word in family("opt") if not word.startswith(("model=", "optim=", "data="))]
    small = [*SHORT[:4], "bench.repeats=1", "bench.window=1", "model.device=auto"]
    settings = QualifyConfig(out="out", models=["hf"], tasks=["rte"], sections=["times"])
    monkeypatch.setattr("lezo.bench.variants.RECORDED", 1)
    with pretended():
        assert qualify(settings, [*words, *small], "lezo-qualify") == 0
    page = json.loads(Path("out/page.json").read_text())
    loaded, timed = page["sections"]
    assert (loaded["verdict"], timed["verdict"], page["over"]) == ("right", "right", True)
    assert {name: found["waits"] for name, found in timed["data"]["profiles"].items()} == {
        "mezo": 0,
        "lezo": 0,
    }
    assert timed["data"]["memory"]["used"] > 0 and page["device"]["capability"] == "sm_90, 132 SMs"
    names = {name.value for name in variants_of(compose(small).config)}
    assert {n for n, one in timed["data"]["variants"].items() if one["step_seconds"]} == names


def test_a_second_device(on_gpu: OnGpu, family: Family) -> None:
    """The model, its batches and all that is computed are there, and nothing is on the first one."""
    ran, gpu = on_gpu(*family("opt"), "model.device=cuda:1", visible=2)
    assert_right(ran, gpu)
    assert "float16 on cuda:1" in ran.out and gpu.used == {1}


@pytest.mark.parametrize(("said", "index"), [("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)])
def test_a_cuda_device_has_an_index_and_is_the_current_one(
    pretended: Callable[..., Any], said: str, index: int
) -> None:
    with pretended(2) as gpu:
        assert named_device(said, "model.device") == torch.device("cuda", index)
        assert gpu.current == index


@pytest.mark.parametrize(
    ("said", "visible", "named"), [("cuda:1", 1, ["model.device=cuda:0"]), ("cuda", 0, ["model.device=cpu"])]
)
def test_a_device_that_is_not_there_is_named(
    on_gpu: OnGpu, said: str, visible: int, named: list[str]
) -> None:
    on_gpu(f"model.device={said}", visible=visible)[0].refused(f"model.device={said}: {visible} CUDA", *named)


def test_without_a_device_auto_is_the_cpu(pretended: Callable[..., Any]) -> None:
    with pretended(0):
        assert named_device("auto", "model.device") == torch.device("cpu")


def test_what_torch_leaves_open_is_chosen_on_cuda(pretended: Callable[..., Any]) -> None:
    matmul, attention = torch.backends.cuda.matmul, torch.backends.cuda
    before = matmul.allow_fp16_reduced_precision_reduction, attention.cudnn_sdp_enabled()
    with pretended():
        named_device("cuda", "replay.device")
        assert not matmul.allow_fp16_reduced_precision_reduction
        assert not matmul.allow_bf16_reduced_precision_reduction
        assert not attention.cudnn_sdp_enabled() and attention.flash_sdp_enabled()
    assert before == (matmul.allow_fp16_reduced_precision_reduction, attention.cudnn_sdp_enabled())


@pytest.mark.parametrize(("words", "replayed"), [([], True), (["model.cuda_graphs=false"], False)])
def test_blocks_are_replayed_as_cuda_graphs(
    on_gpu: OnGpu, family: Family, words: list[str], replayed: bool
) -> None:
    ran, gpu = on_gpu(*family("opt"), "train.steps=4", "task.num_train=6", *words)
    assert_right(ran, gpu, steps=4)
    assert bool(gpu.replays) == replayed
