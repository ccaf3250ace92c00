"""LeZO in Hugging Face's Trainer, as installed: it learns, goes on from a checkpoint, and keeps Trainer's promises."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, LlamaConfig, OPTForCausalLM, Trainer, TrainingArguments

import lezo
from lezo.zo.optimizers import LeZO
from lezo.zo.trainer import ZOStep, ZOTrainer
from tests.lezo.refusals import refused
from tests.lezo.small_models import VOCABULARY, llama_like, opt_config

pytestmark = pytest.mark.usefixtures("quiet_transformers")


def model(**changes):
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "init_std": 0.02, **changes}
    return OPTForCausalLM(opt_config(**shape))


def rows(count=32):
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY - 8, VOCABULARY, (count, 8), generator=draw)
    ids[:, :1] = 2
    return [{"input_ids": row, "labels": row} for row in ids]


def arguments(folder, **changes):
    settings = {
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "max_steps": 12,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_steps": 4,
        **changes,
    }
    return TrainingArguments(output_dir=str(folder), **settings)


def trainer(folder, made=None, data=None, *, args=None, **settings):
    data = rows() if data is None else data
    return ZOTrainer(
        model=made or model(),
        args=arguments(folder, **(args or {})),
        train_dataset=data,
        eval_dataset=data[:8],
        **{"sparsity": 0.5, **settings},
    )


def weights(made):
    return [p.detach().clone() for p in made.parameters()]


def same(one, other):
    return all(map(torch.equal, weights(one), weights(other)))


def test_it_learns_and_logs_and_evaluates(tmp_path):
    made = trainer(tmp_path, args={"max_steps": 40, "eval_strategy": "steps", "eval_steps": 20})
    before = made.evaluate()["eval_loss"]
    made.train()
    history = made.state.log_history
    train = [row for row in history if "loss" in row]
    assert train[-1]["loss"] < train[0]["loss"] - 0.2
    assert [row["eval_loss"] < before for row in history if "eval_loss" in row and row["step"]] == [
        True,
        True,
    ]
    assert all(row["projected_gradient"] != 0 and row["update_skipped"] == 0 for row in train)
    assert not any("grad_norm" in row for row in history)
    assert (made.zo.steps, made.zo.blocks[0]) == (40, "model.decoder.layers.0")


def test_a_run_that_is_resumed_makes_the_same_bits(tmp_path):
    journal = tmp_path / "run.journal"
    settings = {"max_steps": 12, "save_strategy": "steps", "save_steps": 6, "per_device_train_batch_size": 8}
    through = trainer(tmp_path / "a", args=settings, journal=journal)
    through.train()
    first, content = through.model, journal.read_bytes()
    again = trainer(tmp_path / "b", args=settings, journal=journal)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-6"))
    assert same(first, again.model)
    assert again.zo.steps == 12
    assert journal.read_bytes() == content
    replayed = model()
    assert lezo.apply_journal(replayed, journal) == 12
    assert same(first, replayed)


def test_the_schedulers_learning_rate_is_that_of_the_steps(tmp_path):
    seen = []

    class Watched(ZOTrainer):
        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            seen.append(self.zo.param_groups[0]["lr"])
            return loss

    args = arguments(tmp_path, warmup_steps=2, max_steps=6)
    made = Watched(model=model(), args=args, train_dataset=rows(), sparsity=0.5)
    made.train()
    assert seen == pytest.approx([0, 5e-3, 1e-2, 7.5e-3, 5e-3, 2.5e-3])
    assert made.zo.last.measures["lr"] == seen[-1]


def test_accumulated_batches_make_one_update_that_of_the_whole(tmp_path):
    """Lengths differ, so that a mean of means would be another loss."""
    data = rows(8)
    for i, row in enumerate(data):
        row["labels"] = torch.where(torch.arange(8) < 8 - i % 5, row["labels"], -100)
    whole = trainer(tmp_path, data=data, args={"max_steps": 1})
    parts = trainer(
        tmp_path,
        data=data,
        args={"max_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    )
    for made in (whole, parts):
        made.train()
    assert (whole.zo.steps, parts.zo.steps) == (1, 1)
    assert parts.zo.last.loss == pytest.approx(whole.zo.last.loss, abs=1e-5)
    assert parts.zo.last.measures["g"] == pytest.approx(whole.zo.last.measures["g"], abs=2e-3)
    assert parts.state.global_step == 1


def test_no_update_before_all_batches_are_accumulated(tmp_path):
    moved = []

    class Watched(ZOTrainer):
        def training_step(self, *args, **kwargs):
            before = weights(self.model)
            loss = super().training_step(*args, **kwargs)
            moved.append(not all(map(torch.equal, before, weights(self.model))))
            return loss

    args = arguments(tmp_path, max_steps=2, gradient_accumulation_steps=2, per_device_train_batch_size=4)
    made = Watched(model=model(), args=args, train_dataset=rows(), sparsity=0.5)
    made.train()
    assert moved == [False] * 4
    assert made.zo.steps == 2
    assert not same(made.model, model())


def test_losses_of_ones_own_and_smoothed_ones_see_the_labels_both_times(tmp_path):
    def loss(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(outputs["logits"].flatten(0, 1), labels.flatten())

    for made in (
        trainer(tmp_path, compute_loss_func=loss, args={"max_steps": 2}),
        trainer(tmp_path, args={"max_steps": 2, "label_smoothing_factor": 0.1}),
    ):
        made.train()
        assert made.zo.last.applied and made.zo.last.measures["g"] != 0


def test_dropout_is_off_and_bf16_and_clipping_do_no_harm(tmp_path):
    without = trainer(tmp_path, model(dropout=0.0), args={"max_steps": 2})
    dropping = trainer(tmp_path, model(dropout=0.5), args={"max_steps": 2, "max_grad_norm": 1e-9})
    mixed = trainer(tmp_path, args={"max_steps": 2, "bf16": True})
    for made in (without, dropping, mixed):
        made.train()
    assert same(without.model, dropping.model)
    assert mixed.zo.last.loss == pytest.approx(without.zo.last.loss, abs=0.05)
    assert all(p.dtype == torch.float32 for p in mixed.model.parameters())
    assert not same(mixed.model, model())


def test_a_loss_that_is_not_finite_is_in_the_logs(tmp_path):
    def loss(outputs, labels, num_items_in_batch=None):
        return outputs["logits"].sum() * float("nan")

    made = trainer(tmp_path, compute_loss_func=loss, args={"max_steps": 2, "logging_steps": 1})
    made.train()
    assert [row["update_skipped"] for row in made.state.log_history if "loss" in row] == [1, 1]
    assert same(made.model, model())


def test_an_optimizer_of_ones_own_is_used_and_training_twice_goes_on(tmp_path):
    made = model()
    optimizer = LeZO(made, 1e-2, sparsity=0.25, seed=9)
    run = trainer(tmp_path, made, args={"max_steps": 1}, optimizers=(optimizer, None))
    run.train()
    run.train()
    assert run.zo is optimizer and optimizer.steps == 2


@pytest.mark.parametrize(
    ("args", "settings", "named"),
    [
        ({"fp16": True}, {}, ["fp16=True", "bf16=True"]),
        ({}, {"optimizer_cls_and_kwargs": (torch.optim.SGD, {})}, ["optimizer_cls_and_kwargs"]),
        ({"weight_decay": 0.1}, {"journal": "j"}, ["weight_decay=0.1", "lr_scheduler_type='constant'"]),
        (
            {},
            {"journal": "j", "method": "zo-adam"},
            ["lr_scheduler_type=", "one learning rate for all steps"],
        ),
        ({}, {"optimizers": "sgd"}, ["optimizers=(SGD, ...)", "lezo.LeZO"]),
    ],
)
def test_what_needs_gradients_is_refused(tmp_path, args, settings, named):
    if settings.get("optimizers") == "sgd":
        settings = {"optimizers": (torch.optim.SGD(model().parameters(), 0.1), None)}
    with refused(ValueError, *named):
        trainer(tmp_path, args=args, **settings)


def test_several_gpus_of_one_process_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    with refused(ValueError, "2 GPUs in one process", "torchrun"):
        trainer(tmp_path)


def test_an_optimizer_of_one_process_is_refused_where_there_are_several(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: 2))
    made = model()
    with refused(ValueError, "2 processes", "across"):
        trainer(tmp_path, made, optimizers=(LeZO(made, lr=1e-3), None))


def test_a_trainer_that_generates_as_it_trains_is_refused(tmp_path):
    class Generating(ZOTrainer):
        def __init__(self, *args, **kwargs):
            self._buffered_inputs = None  # as TRL's have it
            super().__init__(*args, **kwargs)

    with refused(ValueError, "Generating", "generates as it trains", "SFTTrainer"):
        Generating(model=model(), args=arguments(tmp_path), train_dataset=rows())


def test_the_mixin_stands_before_the_trainer():
    with refused(TypeError, "class Late(Trainer, ZOStep)", "lezo.ZOStep before the trainer"):
        type("Late", (Trainer, ZOStep), {})


def test_an_heirs_heir_may_have_a_step_of_its_own():
    class Watched(ZOTrainer):
        def training_step(self, *args, **kwargs):
            return super().training_step(*args, **kwargs)

    assert issubclass(type("More", (Watched,), {}), ZOStep)


def test_between_forwards_the_model_says_that_it_trains(tmp_path):
    """As other trainers ask it; in a forward it does not, and after an evaluation it does not either."""
    seen = []

    class Watched(ZOTrainer):
        def compute_loss(self, model, *args, **kwargs):
            loss = super().compute_loss(model, *args, **kwargs)
            seen.append(model.training)
            return loss

    made = Watched(
        model=model(), args=arguments(tmp_path, max_steps=1), train_dataset=rows(), eval_dataset=rows(8)
    )
    inside = []
    made.model.register_forward_pre_hook(lambda *_: inside.append(made.model.training))
    made.train()
    made.evaluate()
    assert (seen, inside[:2]) == ([True, True, False], [False, False])


def test_what_it_saves_is_read_by_both_versions_and_has_a_card(tmp_path):
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(llama_like(LlamaConfig, rope_theta=777.0))
    journal = tmp_path / "run.journal"
    told = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trained = trainer(tmp_path / "out", made, args=told, journal=journal)
    trained.train()
    trained.save_model(str(tmp_path / "saved"))
    for folder in (tmp_path / "saved", tmp_path / "out" / "checkpoint-2"):
        assert json.loads((folder / "config.json").read_text())["rope_theta"] == 777.0
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "fine-tuned with forward passes only by lezo" in card and "- Sparsity: 0.5\n- Rounding" in card
    assert "- Steps: 2\n- Read by: transformers 4.57 and newer\n" in card
    assert 'lezo.apply_journal(model, "run.journal", step=2)' in card and str(tmp_path) not in card
    assert ModelCard(card).data.tags == ["lezo", "zeroth-order"]
    assert not (tmp_path / "out" / "checkpoint-2" / "README.md").exists()
    (tmp_path / "saved" / "README.md").write_text("mine")
    trained.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "README.md").read_text() == "mine"


def test_a_warm_up_of_adam_is_saved_at_its_first_step_and_goes_on_to_the_same_bits(tmp_path):
    args = {"warmup_steps": 3, "max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    settings = {"sparsity": None, "method": "zo-adam", "args": args}
    whole, again = trainer(tmp_path / "whole", **settings), trainer(tmp_path / "again", **settings)
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert same(whole.model, again.model)
