"""Whole runs that meet a fault: one message with the way out, exit code 1, no traceback, nothing lost."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

from lezo.data.encode import EncodeError
from lezo.data.source import DataError
from lezo.model.load import TINY, ModelError
from lezo.runs.plan import make_plan
from lezo.zo.zeroth_order import ZerothOrder
from tests.lezo.refusals import refused
from tests.lezo.whole_runs import SMALL, Ran, Runner, config_of, little_model

GIVEN = ["optim.lr=1e-3", "data=sample", "train.steps=4", "train.eval_every=3"]


def said(ran: Ran) -> str:
    """The one message of a run that failed as it should."""
    result = ran.result
    assert (ran.code, result["status"], result["test"]) == (1, "failed", None)
    assert ran.err == f"error: {result['error']}\n" and ran.err.count("\n") == 1
    assert not (ran.folder / "traceback.txt").exists()
    assert not (ran.folder / "predictions.jsonl").exists()
    return str(result["error"])


# -- memory -----------------------------------------------------------------------------------

CUDA = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.12 GiB is "
    "free. Including non-PyTorch memory, this process has 77.97 GiB memory in use. Of the allocated memory"
)
HOST = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"
)


def test_memory_that_runs_out_in_a_step_names_the_sizes_and_loses_nothing(
    lezo_run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["train.steps=4", "train.checkpoint_every=2"]
    real = ZerothOrder.step

    def step(self: Any, number: int, batch: Any) -> Any:
        if number >= 3:
            raise CUDA
        return real(self, number, batch)

    with monkeypatch.context() as patch:
        patch.setattr(ZerothOrder, "step", step)
        first = lezo_run(*given, "train.micro_batch_size=8")
    words = said(first)
    for part in (
        "out of memory (CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of",
        "is free) with steps of 16 examples in forwards of 8, evaluations of 32 sequences a forward, 31 tokens at the",
        "median and 33 at most; lower train.micro_batch_size (now 8) or eval.batch_size (now 32), or choose a",
        "narrower model.dtype or a smaller model",
        "nothing is lost: the same command with the smaller size and resume=auto hydra.run.dir=out goes on where",
    ):
        assert part in words
    assert first.result["steps"] == 3
    again = lezo_run(*given, "train.micro_batch_size=4", "eval.batch_size=16", "resume=auto")
    assert (again.code, again.result["status"], again.result["steps"]) == (0, "finished", 4)
    assert "resuming this run after step 3 of 4" in again.out
    assert [row["step"] for row in again.training()] == [1, 2, 3, 4]


def test_memory_that_runs_out_in_an_evaluation_names_what_it_can_lower(
    lezo_run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise HOST

    monkeypatch.setattr("lezo.model.evaluate.Evaluator.__call__", full)
    words = said(lezo_run("optim=none"))
    assert "with evaluations of 32 sequences a forward, 31 tokens" in words and "micro_batch" not in words
    assert "lower eval.batch_size (now 32), or choose" in words and "nothing is lost" in words


def test_memory_that_runs_out_at_the_smallest_sizes_leaves_shorter_rows(
    lezo_run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise CUDA

    monkeypatch.setattr("lezo.runs.build.load_hashed", full)
    words = said(lezo_run("train.micro_batch_size=1", "eval.batch_size=1"))
    assert "in forwards of 1, evaluations of 1 sequences" in words
    assert "; take shorter rows, or choose a narrower model.dtype or a smaller model" in words


# -- numbers that are none --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message", "losses"),
    [
        (
            ["optim=lezo", "optim.eps=1e30"],
            "step 4: 4 non-finite losses in a row (loss nan, g nan, ",
            [None] * 4,
        ),
        (
            ["optim=fo-sgd", "optim.lr=1e30"],
            "step 4: no dev loss since step 0 is finite",
            [0.71, *[None] * 3],
        ),
        (
            ["optim=fo-sgd", "optim.lr=1e30", "train.max_bad_steps=2"],
            "step 3: 2 non-finite losses in a row (loss nan, lr 1e+30, gradient_norm nan)",
            [0.71, None, None],
        ),
    ],
)
def test_a_run_without_a_finite_loss_fails_and_its_files_are_sound(
    given: list[str], message: str, losses: list[float | None], lezo_run: Runner
) -> None:
    ran = lezo_run(*given, "save_model=true")
    words = said(ran)
    eps = " or optim.eps" if "optim=fo-sgd" not in given else ""
    assert words.startswith(message) and words.endswith(f"weights in float32: try a smaller optim.lr{eps}")
    assert ran.result["diverged"] is True
    assert [row["loss"] and round(row["loss"], 2) for row in ran.training()] == losses
    assert [row["skipped"] for row in ran.training()] == [loss is None for loss in losses]
    assert ran.result["skipped_steps"] == losses.count(None)
    assert ran.evaluations()[0]["dev_loss"] > 0
    assert not any(token in (ran.folder / "metrics.jsonl").read_text() for token in ("NaN", "Infinity"))
    assert not (ran.folder / "model").exists()


def test_weights_that_say_the_same_of_all_examples_are_never_the_best(lezo_run: Runner) -> None:
    """Overflown in a norm they answer with a loss that is finite, and may be lower than an honest one's."""
    ran = lezo_run("optim=mezo", "optim.lr=0.3", "train.steps=12", "train.eval_every=6", "task.num_dev=32")
    assert all(row["loss"] is not None for row in ran.training())
    assert [row["dev_loss"] is None for row in ran.evaluations()] == [False, False, True]
    assert ran.out.count("warning: not finite, or the same for all examples") == 1
    assert (ran.result["status"], ran.result["best_step"]) == ("finished", 6)


# -- wandb and the hub ------------------------------------------------------------------------


@pytest.mark.slow
def test_a_wandb_out_of_reach_leaves_an_offline_run_in_bounded_time(tmp_path: Path) -> None:
    """In a process of its own: wandb leaves its service's address in the environment."""
    given = [*SMALL, "log=wandb", "log.mode=online", "hydra.run.dir=out"]
    with socket.socket() as silent:  # takes connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-m", "lezo.cli.run", *given],
            env={**os.environ, "WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40},
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=200,
        )
    ran = Ran(done.returncode, done.stdout, done.stderr, tmp_path / "out")
    assert (ran.code, ran.result["status"], len(ran.rows("predictions.jsonl"))) == (0, "finished", 8)
    assert len(ran.training()) == 4 and ran.result["seconds"]["total"] < 50
    (warning,) = [line for line in ran.out.splitlines() if line.startswith("warning: ")]
    (kept,) = (tmp_path / "out" / "wandb").glob("offline-run-*")
    assert list(kept.glob("*.wandb"))
    expected = (
        f"no answer within 3 s; this run is kept offline: wandb sync {kept.relative_to(tmp_path)} uploads it"
    )
    assert warning == f"warning: wandb: {address[7:]}: {expected}"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["model=hf", "model.path=no-owner/no-model", *GIVEN], "cannot read the configuration of no-owner/no-model ("),
        (["model.tokenizer=no-owner/no-model"], "cannot read a tokenizer of no-owner/no-model ("),
        (["data=hub"], "cannot read aps/super_glue (rte) from the Hugging Face hub (ConnectionError: "),
    ],
)  # fmt: skip
def test_a_hub_out_of_reach_says_how_else_to_get_it(
    given: list[str], message: str, lezo_run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    words = said(lezo_run(*given))
    assert words.startswith(message)
    assert "connect" in words and (
        "download it where there is a connection" in words or "data=local" in words
    )


# -- models of others -------------------------------------------------------------------------


def rewritten(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change a JSON file of a model's folder."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return apply


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def poisoned(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.decoder.layers.3.fc1.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def an_encoder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=1024, **shape)).save_pretrained(folder)


def without(characters: str) -> Callable[[dict[str, Any]], None]:
    """Take every token with one of the characters out of a tokenizer."""

    def change(tokenizer: dict[str, Any]) -> None:
        model = tokenizer["model"]
        model["vocab"] = {token: i for token, i in model["vocab"].items() if not set(token) & set(characters)}
        model["merges"] = [pair for pair in model["merges"] if not set("".join(pair)) & set(characters)]

    return change


NEWLINE = "\u010a"  # as byte-level tokenizers write it

MODELS: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "weights cut short": (cut, [], "expected whole safetensors files; copy or download them again"),
    "weights with a NaN": (poisoned, [], "layers.3.fc1.weight holds NaN or infinity in float32; expected finite"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), [], "none of model.safetensors"),
    "an encoder": (an_encoder, [], "model_type bert is not that of a decoder-only causal language model"),
    "configuration of nothing": (rewritten("config.json", dict.clear), [], "Should have a `model_type` key"),
    "configuration without blocks": (
        rewritten("config.json", lambda c: c.update(num_hidden_layers=0)),
        [],
        "OPTForCausalLM: no list of 0 decoder blocks found",
    ),
    "configuration of a smaller vocabulary": (
        rewritten("config.json", lambda c: c.update(vocab_size=10)),
        [],
        "and the model has 10 embeddings; expected the model's own tokenizer (model.tokenizer)",
    ),
    "too few positions": (
        rewritten("config.json", lambda c: c.update(max_position_embeddings=51)),
        ["task=squad"],
        "the model has 51 positions, of which a generated answer takes 50 (eval.max_new_tokens); expected room for a prompt and an answer",
    ),
    "tokenizer without letters": (
        rewritten("tokenizer.json", without("YN")),
        [],
        "the tokenizer reads 'No', an answer of the task, as 'o'; expected one with tokens for it (model.tokenizer=",
    ),
    "tokenizer without a newline": (
        rewritten("tokenizer.json", without(NEWLINE)),
        ["task=squad"],
        r"the tokenizer reads '\n', which ends a generated answer, as ''; expected one with tokens for it",
    ),
    "tokenizer without vocabulary": (
        rewritten("tokenizer.json", lambda t: t.update(added_tokens=[], model={**t["model"], "vocab": {}, "merges": []})),
        [],
        "(no vocabulary)",
    ),
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the embedded model."""
    return Path(
        shutil.copytree(TINY, tmp_path / "model", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    )


IN_WEIGHTS = ("weights cut short", "weights with a NaN", "no weights", "an encoder")


@pytest.mark.parametrize("fault", IN_WEIGHTS)
def test_a_model_that_cannot_be_used_says_why(fault: str, model: Path, lezo_run: Runner) -> None:
    change, given, message = MODELS[fault]
    change(model)
    assert message in said(lezo_run("model=hf", f"model.path={model}", *GIVEN, *given))


@pytest.mark.parametrize("fault", [fault for fault in MODELS if fault not in IN_WEIGHTS])
def test_a_model_that_cannot_be_used_is_refused_before_it_is_loaded(fault: str, model: Path) -> None:
    change, given, message = MODELS[fault]
    change(model)
    config = config_of(*SMALL, "model=hf", "model.path=.", *GIVEN, *given)
    config.model.path = str(model)
    with refused(ModelError, message):
        make_plan(config)


def test_a_model_in_somebodys_home_is_found(
    model: Path, lezo_run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(model.parent))
    ran = lezo_run(
        "model=hf", "model.path='~/model'", "model.tokenizer='~/model'", "optim=none", "data=sample"
    )
    assert (ran.code, ran.result["status"]) == (0, "finished")


def test_a_tokenizer_without_special_tokens_changes_nothing(lezo_run: Runner) -> None:
    little_model("model")
    given = ["model=hf", "model.path=model", "data=sample", "task=squad", "optim=none"]
    whole = lezo_run(*given, folder="whole")
    for lacking in (["pad_token"], ["bos_token", "unk_token", "eos_token"]):
        rewritten("tokenizer_config.json", lambda c, gone=lacking: [c.pop(name) for name in gone])(
            Path("model")
        )
        ran = lezo_run(*given, folder=lacking[0])
        assert ran.code == 0, ran.err
        assert ran.result["dev_loss"] == whole.result["dev_loss"]
        if lacking == ["pad_token"]:
            assert ran.rows("predictions.jsonl") == whole.rows("predictions.jsonl")


# -- data -------------------------------------------------------------------------------------


def rows(folder: Path, task: str, train: list[Any], val: list[Any]) -> list[str]:
    """Write a task's files; the settings that read them."""
    (folder / task).mkdir()
    for part, found in (("train", train), ("val", val)):
        (folder / task / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return [f"task={task}", "data=local", f"data.path={folder}"]


def sst2(count: int) -> list[Any]:
    return [{"sentence": f"film number {i}", "label": i % 2} for i in range(count)]


def copa(choice: str) -> list[Any]:
    row = {
        "premise": "It rained.",
        "question": "effect",
        "choice1": choice,
        "choice2": "He left.",
        "label": 0,
    }
    return [row] * 12


def squad(answer: str) -> list[Any]:
    return [{"title": "T", "context": "C", "question": "Q", "answers": {"text": [answer]}}] * 12


DATA: dict[str, tuple[str, list[Any], list[Any], str]] = {
    "an answer longer than the model": (
        *("copa", copa("word " * 600), copa("He ran.")),
        "tokens, and with at least one before it the model holds 512; expected a shorter answer or a model with more",
    ),
    "a generated answer longer than the model": (
        *("squad", squad("word " * 600), squad("word")),
        "tokens, and with at least one before it the model holds 462; expected a shorter answer",
    ),
    "an answer of nothing": (
        *("copa", copa(" "), copa("He ran.")),
        "the answer '  ' adds no token to its prompt with this tokenizer; expected at least one (a row with an answer",
    ),
    "as many rows as dev takes": (
        *("sst2", sst2(8), sst2(8)),
        "8 train rows, of which task.num_dev=8 and task.demos=0 leave none to train on; expected at least one (lower",
    ),
    "no rows to test": ("sst2", sst2(40), [], "val.jsonl: no rows, expected one JSON object a line"),
    "no rows to train": ("sst2", [], sst2(40), "train.jsonl: no rows, expected one JSON object a line"),
    "a label of GLUE's hidden test": (
        *("sst2", [*sst2(40), {"sentence": "x", "label": -1}], sst2(8)),
        "train.jsonl, line 41: column 'label' is -1, expected one of 0 (negative), 1 (positive)",
    ),
    "half a character": (
        *("sst2", [*sst2(40), {"sentence": "x\ud800", "label": 1}], sst2(8)),
        r"line 41: column 'sentence' is 'x\ud800', expected text of whole characters",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", DATA)
def test_data_that_cannot_be_used_say_why(fault: str, tmp_path: Path) -> None:
    task, train, val, message = DATA[fault]
    rows(tmp_path, task, train, val)
    config = config_of(*SMALL, f"task={task}", "data=local", "data.path=.")
    config.data.path = str(tmp_path)
    with refused((DataError, EncodeError), message):
        make_plan(config)


def test_one_example_is_enough_to_train_on(tmp_path: Path, lezo_run: Runner) -> None:
    ran = lezo_run(*rows(tmp_path, "sst2", sst2(2), sst2(1)), "task.num_dev=1")
    assert (ran.code, ran.result["status"], len(ran.training())) == (0, "finished", 4)
    assert "1 train, 1 dev, 1 test" in ran.out
    assert "4 steps of 1 examples (all there are; train.batch_size=16); dev" in ran.out


def test_a_batch_of_more_than_there_is_takes_all_there_is(lezo_run: Runner) -> None:
    few = ["task.num_train=5", "train.steps=2"]
    many = lezo_run(*few, "train.micro_batch_size=12", folder="many")
    five = lezo_run(*few, "train.batch_size=5", folder="five")
    assert "2 steps of 5 examples (all there are; train.batch_size=16); dev" in many.out
    assert [row["loss"] for row in many.training()] == [row["loss"] for row in five.training()]
    assert "2 steps of 5 examples; dev" in five.out


def test_more_test_rows_than_there_are_is_all_of_them(tmp_path: Path, lezo_run: Runner) -> None:
    ran = lezo_run(*rows(tmp_path, "sst2", sst2(40), sst2(3)), "task.num_test=100", "dry_run=true")
    assert ran.code == 0 and "32 train, 8 dev, 3 test" in ran.out


def test_scoring_needs_no_dev_set(lezo_run: Runner) -> None:
    ran = lezo_run("optim=none", "task.num_dev=0", "task.num_train=0")
    assert (ran.code, ran.result["dev"], ran.evaluations()) == (0, None, [])
    assert ran.result["test"] == ran.result["zero_shot"]
