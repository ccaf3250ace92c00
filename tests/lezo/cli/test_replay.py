"""lezo-replay as its user types it: a model from base weights and journal, or a check of the run."""

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lezo.cli import replay
from lezo.config.compose import command, compose
from lezo.model import adapter
from lezo.model.hashes import weights_hash
from lezo.model.load import TINY
from lezo.records.journal import Journal, read_journal
from lezo.runs.session import run as replayed
from tests.lezo.refusals import names
from tests.lezo.whole_runs import SMALL, Ran, Runner, typed

SETTINGS = ["model.dtype=bfloat16", "optim.lr=1e-3", "optim.weight_decay=0.1", "seed=4"]
Replay = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lezo_replay(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Replay:
    call = typed("lezo-replay", replay.main, monkeypatch, capsys)
    return lambda *words: call(*words, *(["replay.device=cpu"] if words else []))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose best step is 3 of 4, in bfloat16, with its model saved."""
    folder = tmp_path_factory.mktemp("original") / "out"
    composed = compose([*SMALL, *SETTINGS, "save_model=true", f"hydra.run.dir={folder}"])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    assert replayed(composed, command([*SMALL, *SETTINGS, "save_model=true"])) == 0
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return folder


@pytest.fixture
def ran(original: Path, lezo_run: Runner) -> Ran:
    """A copy of it in this test's working folder."""
    made = Ran(0, "", "", Path(shutil.copytree(original, "out")))
    assert made.result["best_step"] == 3
    return made


def test_the_journal_alone_makes_the_saved_model_again(ran: Ran, lezo_replay: Replay, tmp_path: Path) -> None:
    saved = load_file(ran.folder / "model" / "model.safetensors")
    shutil.move(ran.folder / "journal.bin", "shared.bin")
    code, out, err = lezo_replay("shared.bin", "replay.step=3", "replay.out=made")
    assert (code, err) == (0, "")
    assert "step     3 of 4" in out and f"sha256 {ran.result['weights']}" in out
    made = load_file("made/model.safetensors")
    assert made.keys() == saved.keys() and all(torch.equal(made[name], saved[name]) for name in saved)
    model = AutoModelForCausalLM.from_pretrained("made", dtype="auto")
    assert weights_hash(model) == ran.result["weights"]
    assert AutoTokenizer.from_pretrained("made")("yes")["input_ids"]
    assert str(tmp_path).encode() not in Path("shared.bin").read_bytes()


def test_any_step_can_be_had(ran: Ran, lezo_run: Runner, lezo_replay: Replay) -> None:
    shorter = lezo_run(*SETTINGS, "train.steps=1", folder="shorter")
    assert lezo_replay("out", "replay.step=1", "replay.out=one")[0] == 0
    model = AutoModelForCausalLM.from_pretrained("one", dtype="auto")
    assert weights_hash(model) == shorter.result["weights"]


def test_the_best_step_is_in_the_journal(lezo_run: Runner, lezo_replay: Replay) -> None:
    ran = lezo_run.once()
    code, out, _ = lezo_replay("out")
    assert code == 0 and f"step     {ran.result['best_step']} of 4" in out
    assert f"sha256 {ran.result['weights']}" in out and (ran.folder / "model" / "config.json").exists()


@pytest.mark.filterwarnings(
    "ignore:`(is_gradient_checkpointing|past_key_values)` is deprecated:FutureWarning"
)
@pytest.mark.parametrize("peft_name", ["lora", "prefix", "head"])
def test_an_adapter_is_replayed_and_saved_as_peft_does(
    peft_name: str, lezo_run: Runner, lezo_replay: Replay
) -> None:
    ran = lezo_run.once("optim=mezo", f"peft={peft_name}", "save_model=true")
    assert ran.code == 0 and ran.result["peft"] == peft_name and "parameters" in ran.out.split("trained")[1]
    code, out, err = lezo_replay("out", "replay.verify=true", "replay.out=made")
    assert (code, err) == (0, "") and "everything is right" in out
    (name,) = (file.name for file in Path("made").glob("*model.safetensors"))
    assert (Path("made") / name).stat().st_mode & 0o777 == 0o644
    saved, made = load_file(ran.folder / "model" / name), load_file(Path("made") / name)
    assert saved.keys() == made.keys() and all(torch.equal(made[key], saved[key]) for key in made)
    if peft_name != "head":
        base = AutoModelForCausalLM.from_pretrained(TINY)
        peft.PeftModel.from_pretrained(base, "made")
        given = lezo_run("model=hf", "model.path=made", "optim.lr=1", "data=sample", folder="other")
        given.refused("made: ", "(adapter_config.json)")


def test_a_prefix_whose_first_values_are_gone_is_made_again_or_refused(
    lezo_run: Runner, lezo_replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = lezo_run.once("optim=mezo", "peft=prefix", "save_model=true")
    (ran.folder / "prefix.safetensors").unlink()
    assert lezo_replay("out", "replay.out=made")[0] == 0
    real = adapter.activations
    monkeypatch.setattr(
        adapter, "activations", lambda *given: {n: v * (1 + 1e-6) for n, v in real(*given).items()}
    )
    code, _, err = lezo_replay("out", "replay.out=other")
    assert code == 1 and "prefix.safetensors" in err and "not the base weights" in err


def test_an_adapter_that_there_is_not_is_refused(lezo_run: Runner, lezo_replay: Replay) -> None:
    header = read_journal(lezo_run.once("optim=mezo").folder / "journal.bin").header
    unknown = replace(header, recipe=replace(header.recipe, peft={"name": "other", "targets": []}))
    Journal(Path("other.bin"), unknown).close()
    code, _, err = lezo_replay("other.bin", "replay.out=made")
    assert code == 1
    names(err, "error: other.bin: ", "other")


def test_a_right_run_is_said_to_be_right(ran: Ran, lezo_replay: Replay) -> None:
    before = sorted(ran.folder.rglob("*"))
    code, out, err = lezo_replay("out", "replay.verify=true")
    assert (code, err) == (0, "") and "everything is right (scores and predictions are not" in out
    assert ran.result["weights"] in out and "checksums and order right" in out
    assert sorted(ran.folder.rglob("*")) == before


def rewrite(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_what_does_not_fit_is_named(ran: Ran, lezo_replay: Replay) -> None:
    changes = [
        ("metrics.jsonl", '"skipped": false', '"skipped": true', "tells of another run than the journal"),
        ("metrics.jsonl", '"lr": 0.001', '"lr": 0.002', "metrics.jsonl: step 1 has lr * g = "),
        ("result.json", '"weights": "', '"weights": "0', "weights of step 3: the result has sha256 0"),
        ("result.json", '"best_step": 3', '"best_step": 2', "best step 2 of 4, and the journal 3 of 4"),
        ("result.json", '"dev_loss": 0', '"dev_loss": 1', "result.json: has a dev loss of 1"),
        ("config.yaml", "seed: 4", "seed: 5", "config.yaml: not the configuration of the journal's run"),
    ]
    for name, old, new, _ in changes:
        rewrite(ran.folder / name, old, new)
    code, out, _ = lezo_replay("out", "replay.verify=true")
    problems = [line for line in out.splitlines() if line.startswith("NOT RIGHT: ")]
    assert code == 1 and len(problems) == len(changes)
    assert all(problem in out for *_, problem in changes)


def test_a_cut_journal_is_named_by_verify(ran: Ran, lezo_replay: Replay) -> None:
    file = ran.folder / "journal.bin"
    file.write_bytes(file.read_bytes()[:-25])
    code, out, _ = lezo_replay("out", "replay.verify=true")
    assert code == 1 and "its last 15 bytes are a record cut short" in out


def test_damage_is_named_with_its_offset(ran: Ran, lezo_replay: Replay) -> None:
    file = ran.folder / "journal.bin"
    content = bytearray(file.read_bytes())
    content[-50] ^= 8
    file.write_bytes(content)
    code, _, err = lezo_replay("out")
    assert code == 1 and err.startswith(f"error: out/journal.bin: damaged at byte {len(content) - 60}: ")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["out", "replay.step=5"], 1, "replay.step=5: out/journal.bin has the steps 0 to 4"),
        (["out"], 1, "out/model: is there already; remove it, or choose another folder with replay.out=DIR"),
        (["nowhere"], 1, "nowhere: no run with a journal"),
        (["out", "replay.base=other", "replay.out=x"], 1, "other: not the base weights of this run (sha256 "),
        (
            ["out", "replay.stpe=5"],
            2,
            "replay.stpe=5: unknown option; expected one value for one of replay.step,",
        ),
        (["out", "replay.step=five"], 2, "replay.step=five: expected a whole number or null"),
        (["out", "out"], 2, "out out: expected one run folder or journal, and replay.*"),
    ],
)
def test_bad_input_is_answered_with_a_way_out(
    arguments: list[str], code: int, message: str, ran: Ran, lezo_replay: Replay
) -> None:
    shutil.copytree(ran.folder / "model", "other")
    ended, _, err = lezo_replay(*arguments)
    assert ended == code and err.startswith(f"error: {message}")


def test_a_first_order_run_says_that_it_has_no_journal(lezo_run: Runner, lezo_replay: Replay) -> None:
    lezo_run.once("optim=fo-sgd")
    code, _, err = lezo_replay("out")
    assert code == 1 and "a first-order run has no journal; its own command with save_model=true" in err


@pytest.mark.parametrize("given", [("--best", "."), ("--best=.",), (".", "replay.best=true")])
def test_the_best_run_of_a_folder_is_replayed(given: tuple[str, ...], ran: Ran, lezo_replay: Replay) -> None:
    code, out, err = lezo_replay(*given, "replay.out=made")
    assert (code, err) == (0, "")
    assert "best by dev loss: rte (sample), tiny, lezo: lr 0.001, seed 4 (of 1 run)\n" in out
    assert "  folder  out\n" in out
    assert (Path("made") / "model.safetensors").exists()


def test_a_folder_without_a_best_run_is_refused(lezo_replay: Replay) -> None:
    code, _, err = lezo_replay("--best", "nowhere")
    assert code == 2
    names(err, "error: nowhere: no such folder")


def test_help_and_nothing(lezo_replay: Replay) -> None:
    assert lezo_replay("--help")[:2] == (0, replay.HELP)
    assert lezo_replay()[:2] == (2, replay.HELP)


def test_verify_of_an_unfinished_run_says_what_it_cannot_compare(ran: Ran, lezo_replay: Replay) -> None:
    result = json.loads((ran.folder / "result.json").read_text()) | {"status": "interrupted"}
    (ran.folder / "result.json").write_text(json.dumps(result))
    code, out, _ = lezo_replay("out", "replay.verify=true")
    assert code == 0 and "its final weights cannot be compared" in out


def test_a_runs_model_is_the_one_that_its_result_is_about(lezo_run: Runner, lezo_replay: Replay) -> None:
    ran = lezo_run.once()
    assert lezo_replay("out", "replay.step=2")[0] == lezo_replay("out")[0] == 0
    assert (ran.folder / "model-step-2").is_dir() and (ran.folder / "model").is_dir()
    best = ran.result["best_step"]
    (ran.folder / "result.json").unlink()  # as of a run that goes on
    assert lezo_replay("out")[0] == 0 and (ran.folder / f"model-step-{best}").is_dir()
