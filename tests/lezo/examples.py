"""The examples of docs/library.md that take an extra: tests/test_docs.py runs all others."""

import re
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lezo
from lezo.model.load import TINY

PAGE = Path(__file__).resolve().parents[2] / "docs" / "library.md"


def run_example(library: str) -> None:
    """Run the block of the page that imports ``library``, after what the page has made before it."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    batch = tokenizer(["the film was a delight .", "the film was a bore ."], return_tensors="pt")
    batch["labels"] = batch["input_ids"].clone()
    names = {
        "lezo": lezo,
        "torch": torch,
        "AutoModelForCausalLM": AutoModelForCausalLM,
        "folder": TINY,
        "tokenizer": tokenizer,
        "batch": batch,
    }
    blocks = re.findall(r"^```py\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (code,) = (block for block in blocks if f"import {library}\n" in block)
    assert "assert " in code
    exec(compile(code, str(PAGE), "exec"), {"__name__": "__main__", **names})
