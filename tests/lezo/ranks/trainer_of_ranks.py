"""A few steps of ZOTrainer, or of LeZO with accelerate, in one process or in one of several."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import OPTForCausalLM, TrainingArguments
from transformers.utils import logging

from lezo import LeZO, ZOTrainer
from lezo.model.hashes import weights_hash
from tests.lezo.small_models import VOCABULARY, opt_config


def trained(batch_size: int) -> dict[str, Any]:
    """What four steps come to, of batches of so many rows a process."""
    logging.set_verbosity_error()
    torch.manual_seed(int(os.environ.get("RANK", "0")))  # as of a head that is new
    model = OPTForCausalLM(opt_config(num_hidden_layers=2, init_std=0.02))
    torch.manual_seed(7)
    ids = torch.randint(8, VOCABULARY, (32, 8))
    folder = Path(tempfile.mkdtemp())
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        learning_rate=1e-2,
        max_steps=4,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        logging_steps=4,
    )
    journal = folder / "journal"
    rows = [{"input_ids": row, "labels": row} for row in ids]
    trainer = ZOTrainer(model=model, args=args, train_dataset=rows, sparsity=0.5, journal=journal)
    trainer.train()
    loss = next(row["loss"] for row in trainer.state.log_history if "loss" in row)
    first = trainer.is_world_process_zero()
    return {"weights": weights_hash(model), "loss": loss, "journal": journal.exists() == first}


def accelerated(batch_size: int) -> dict[str, Any]:
    """What four steps come to of a prepared model, of batches of so many rows a process."""
    torch.manual_seed(0)
    made = OPTForCausalLM(opt_config(num_hidden_layers=2, init_std=0.02)).eval()
    ids = torch.randint(8, VOCABULARY, (32, 8))
    accelerator = Accelerator(cpu=True)
    zo = LeZO(made, 1e-2, sparsity=0.5, across=lambda losses: accelerator.gather(losses[None]).mean(0))
    model, opt, loader = accelerator.prepare(made, zo, DataLoader(ids, batch_size))
    losses = []
    for batch in loader:
        opt.step(lambda: model(input_ids=batch, labels=batch).loss)  # noqa: B023
        losses.append(zo.last.loss if zo.last else None)
    return {"weights": weights_hash(made), "losses": losses, "steps": zo.steps}
