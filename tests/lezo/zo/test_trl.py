"""LeZO in TRL's SFTTrainer, as installed: the same losses as by hand, resumed and made again to the same bits."""

import warnings

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, OPTForCausalLM

import lezo
from lezo.model.load import TINY
from tests.lezo.examples import run_example
from tests.lezo.refusals import refused

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    trl = pytest.importorskip("trl", reason="TRL is not installed (pip install 'lezo[trl]')")

pytestmark = [
    pytest.mark.usefixtures("quiet_transformers"),
    pytest.mark.filterwarnings("default"),  # TRL's and Trainer's own
]


class ZOSFT(lezo.ZOStep, trl.SFTTrainer):
    pass


WORDS = ("delight", "bore", "joy", "waste")


def trainer(folder, kind=ZOSFT, *, args=None, **settings):
    rows = [{"prompt": f"the film was a {word} , and", "completion": " a fine cast ."} for word in WORDS * 4]
    given = {
        "learning_rate": 1e-4,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        **(args or {}),
    }
    return kind(
        model=OPTForCausalLM.from_pretrained(TINY),
        args=trl.SFTConfig(output_dir=str(folder), **given),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(TINY),
        **settings,
    )


def test_a_step_is_that_of_the_optimizer_on_the_same_batch(tmp_path):
    seen = []

    class Watched(ZOSFT):
        def compute_loss(self, model, inputs, **kwargs):
            seen.append({**inputs})
            return super().compute_loss(model, inputs, **kwargs)

    made = trainer(tmp_path, Watched, args={"max_steps": 1}, sparsity=0.5)
    made.train()
    by_hand = OPTForCausalLM.from_pretrained(TINY)
    opt = lezo.LeZO(by_hand, 1e-4, sparsity=0.5, seed=made.args.seed)
    ids, mask, labels = (seen[0][name] for name in ("input_ids", "attention_mask", "labels"))

    def loss():
        logits = by_hand(ids, mask).logits[:, :-1]
        return cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())

    opt.step(loss)
    assert len(seen) == 2 and 0 < (labels == -100).sum() < labels.numel()
    assert made.zo.last.loss == pytest.approx(opt.last.loss, rel=1e-6)
    assert made.zo.last.measures["g"] == pytest.approx(opt.last.measures["g"], rel=1e-2)


def test_a_run_is_resumed_and_made_again_to_the_same_bits(tmp_path):
    journal = tmp_path / "run.journal"
    settings = {"save_strategy": "steps", "save_steps": 2}
    through = trainer(tmp_path / "a", args=settings, sparsity=0.5, journal=journal)
    through.train()
    final, content = lezo.weights_hash(through.model), journal.read_bytes()
    again = trainer(tmp_path / "b", args=settings, sparsity=0.5, journal=journal)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert (again.zo.steps, lezo.weights_hash(again.model)) == (4, final)
    assert journal.read_bytes() == content
    replayed = OPTForCausalLM.from_pretrained(TINY)
    assert lezo.apply_journal(replayed, journal) == 4
    assert lezo.weights_hash(replayed) == final


def test_its_metrics_are_those_of_training_and_dropout_is_off(tmp_path):
    args = {"eval_strategy": "steps", "eval_steps": 2}
    made = trainer(tmp_path, args=args, eval_dataset=trainer(tmp_path).train_dataset)
    for module in made.model.modules():
        if isinstance(module, torch.nn.Dropout) or hasattr(module, "dropout"):
            module.p = module.dropout = 0.5
    made.train()
    train = [row for row in made.state.log_history if "loss" in row]
    evaluated = [row for row in made.state.log_history if "eval_loss" in row]
    assert all(row["update_skipped"] == 0 and row["entropy"] > 0 for row in train)
    assert [row["eval_loss"] == pytest.approx(train[0]["loss"], rel=0.01) for row in evaluated] == [True] * 2
    assert not any("eval_entropy" in row for row in train) and all("eval_entropy" in row for row in evaluated)


def test_an_adapter_is_trained_in_its_place(tmp_path):
    from peft import LoraConfig

    made = trainer(tmp_path, peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), sparsity=0.5)
    made.train()
    assert all("lora_" in name for block in made.zo.layout.blocks for name in block)
    assert made.zo.last.applied and len(made.zo.blocks) == 8


def test_what_cannot_be_a_zeroth_order_trainer_is_refused(tmp_path):
    with refused(TypeError, "class Late(SFTTrainer, ZOStep)", "lezo.ZOStep before the trainer"):
        type("Late", (trl.SFTTrainer, lezo.ZOStep), {})
    with refused(ValueError, "fp16=True", "ZOSFT"):
        trainer(tmp_path, args={"fp16": True})


def test_the_pages_example_does_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_example("trl")
