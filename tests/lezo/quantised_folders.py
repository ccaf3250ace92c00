"""Checkpoints that bitsandbytes made, as transformers writes them."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from lezo.model.load import TINY


def needs_bitsandbytes() -> None:
    """Skip the test where it is not installed."""
    reason = "bitsandbytes is not installed (pip install 'lezo[bitsandbytes]')"
    pytest.importorskip("bitsandbytes", reason=reason)


def saved(kind: str, folder: Path) -> Path:
    """The embedded model in 8bit, or 4bit with scales that are quantised again."""
    settings = BitsAndBytesConfig(**{f"load_in_{kind}": True, "bnb_4bit_use_double_quant": True})
    made = AutoModelForCausalLM.from_pretrained(
        TINY, quantization_config=settings, dtype=torch.float32, device_map={"": "cpu"}
    )
    made.save_pretrained(folder)
    for file in TINY.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder
