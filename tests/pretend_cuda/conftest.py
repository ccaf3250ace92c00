"""Runs on pretended CUDA devices, from the command's words on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from lezo.model.forward import Network
from lezo.model.load import TINY, load_tokenizer
from lezo.runs import build  # noqa: F401 - asks for what is patched here
from lezo.zo import packing_check
from lezo.zo.zeroth_order import ZerothOrder
from tests.lezo.stand_ins import users_of
from tests.lezo.whole_runs import Ran, Runner

FAMILIES = ["opt", "opt-350m", "llama", "qwen2", "neox"]
SHORT = ["task.num_train=8", "task.num_dev=2", "task.num_test=2", "train.batch_size=3"]
SHORT += ["train.steps=2", "train.eval_every=2"]


@pytest.fixture(scope="session")
def _nothing_real() -> None:
    pytest.importorskip("triton", reason="Triton is not installed (it comes with lezo[test], on Linux)")
    if torch.cuda.is_available():
        pytest.skip("a real GPU is here, and these tests pretend one")


@pytest.fixture
def pretended(_nothing_real: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """number of visible devices -> a context with them; what each step waits for is in its ``steps``."""
    from tests.pretend_cuda.gpu import PretendGpu

    def made(visible: int = 1) -> Any:
        gpu = PretendGpu(visible)
        monkeypatch.setattr(ZerothOrder, "step", _watched(ZerothOrder.__dict__["step"], gpu))
        return gpu

    return made


def _watched(step: Callable[..., Any], gpu: Any) -> Callable[..., Any]:
    def watched(optimizer: ZerothOrder, number: int, batch: Any) -> Any:
        before, masks = len(gpu.waits), len(gpu.masks_made)
        report = step(optimizer, number, batch)
        here = threading.current_thread().name
        gpu.steps_masks_made += gpu.masks_made[masks:]
        gpu.steps.append([wait for wait in gpu.waits[before:] if wait.thread == here])
        return report

    return watched


@pytest.fixture(scope="session")
def tried_out() -> set[str]:
    """Families that lezo has tried out on a pretended device, and at first those that are tried out as others are."""
    return {"opt-350m", "llama", "qwen2"}  # as opt and neox


@pytest.fixture(autouse=True)
def _tried_out_once(
    tried_out: set[str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether rows may be packed is found out by forwards that take longer than the run, and here by no numbers.

    It is found out in the first run of a family that is to be right, and of the others not asked.
    """
    real, faulty = packing_check.network_for, request.node.path.name == "test_guards.py"

    def network_for(model: Any, *given: Any, **options: Any) -> Network:
        family = Path(model.config.name_or_path).name.removeprefix("saved ")
        if faulty or family in tried_out:
            return Network(model)
        found = real(model, *given, **options)
        tried_out.add(family)
        return found

    for module in users_of("lezo", "network_for", real):
        monkeypatch.setattr(module, "network_for", network_for)


@pytest.fixture
def on_gpu(pretended: Callable[..., Any], lezo_run: Runner) -> Callable[..., tuple[Ran, Any]]:
    """overrides -> a short run of lezo-run on one pretended device, or on ``visible``, and the devices."""

    def run(*overrides: str, visible: int = 1, folder: str = "out") -> tuple[Ran, Any]:
        with pretended(visible) as gpu:
            return lezo_run("model.device=auto", *SHORT, *overrides, folder=folder), gpu

    return run


def assert_right(ran: Ran, gpu: Any, *, steps: int = 2) -> None:
    """The run ended well; no step waited for the device but once, at its end, and no batch did in being made."""
    assert ran.code == 0, ran.err
    assert [len(waits) for waits in gpu.steps] == [1] * steps, gpu.steps
    assert not [wait for wait in gpu.waits if wait.thread.startswith("batches")]
    assert gpu.operators and gpu.launches


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """The name of a family -> overrides that train a small model of it, of random weights, one of two blocks a step.

    "saved opt" has its weights in a file.
    """
    folder = tmp_path_factory.mktemp("families")
    vocabulary = len(load_tokenizer(str(TINY)))
    for name, config in _configs(vocabulary).items():
        config.save_pretrained(folder / name)
    AutoModelForCausalLM.from_config(_configs(vocabulary)["opt"]).save_pretrained(folder / "saved opt")

    def words(name: str, optim: str = "lezo") -> list[str]:
        where = [f"model.path='{folder / name}'", f"model.tokenizer={TINY}"]
        where += ["model.random_weights=true"] if name in FAMILIES else []
        rate = ["optim.lr=1e-4", *(["optim.sparsity=0.5"] if optim == "lezo" else [])]
        return ["model=hf", *where, f"optim={optim}", *rate, "data=sample"]

    return words


def _configs(vocabulary: int) -> dict[str, PreTrainedConfig]:
    shape: dict[str, Any] = {"vocab_size": vocabulary, "hidden_size": 64, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "max_position_embeddings": 512}
    llama = {**shape, "intermediate_size": 128, "num_key_value_heads": 2}
    return {
        "opt": OPTConfig(**shape, ffn_dim=128, word_embed_proj_dim=64),
        "opt-350m": OPTConfig(**shape, ffn_dim=128, word_embed_proj_dim=32, do_layer_norm_before=False),
        "llama": LlamaConfig(**llama),
        "qwen2": Qwen2Config(**llama, tie_word_embeddings=True),
        "neox": GPTNeoXConfig(**shape, intermediate_size=128),
    }
