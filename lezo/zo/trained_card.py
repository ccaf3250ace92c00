"""What a model that a trainer of one's own saved says of itself: the README.md beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import ModelCardData

from lezo import __version__
from lezo.model.compatibility import readers
from lezo.model.load import CARD

_TAG = "zeroth-order"


def write_card(folder: Path, model: Any, settings: Mapping[str, Any], steps: int) -> None:
    """Write the card, in place of an earlier one of ours; one that somebody else wrote stays."""
    file = folder / CARD
    if not file.exists() or f"- {_TAG}\n" in file.read_text(encoding="utf-8"):
        file.write_text(card_of(model, settings, steps), encoding="utf-8")


def card_of(model: Any, settings: Mapping[str, Any], steps: int) -> str:
    """Base, method with its ``settings``, steps, how to load it and how to make it again."""
    path = str(getattr(model.config, "_name_or_path", "") or "")
    local = not path or Path(path).expanduser().exists()
    base = PurePath(path).name or "a model made in the program"
    data = ModelCardData(base_model=None if local else path, library_name="transformers", tags=["lezo", _TAG])
    facts = {key: value for key, value in settings.items() if value is not None and key != "journal"}
    return "\n".join(
        [
            "---",
            data.to_yaml(),
            "---",
            "",
            f"# {base}, fine-tuned with forward passes only by lezo {__version__}",
            "",
            f"- Base: `{base if local else path}`. Its licence is not stated here: the base model's and the data's hold.",
            *(f"- {key.replace('_', ' ').capitalize()}: {value}" for key, value in facts.items()),
            f"- Steps: {steps:,}",
            f"- Read by: transformers {readers(model.config.model_type)}",
            "- Data, prompts and scores: not known to the trainer that wrote this; add them.",
            "",
            "```python",
            "from transformers import AutoModelForCausalLM",
            "",
            'model = AutoModelForCausalLM.from_pretrained(".")  # where this file lies',
            "```",
            *(_again(PurePath(settings["journal"]).name, steps) if settings.get("journal") else []),
        ]
    )


def _again(journal: str, steps: int) -> list[str]:
    """The journal makes the weights again."""
    call = f'lezo.apply_journal(model, "{journal}", step={steps})'
    return ["", f"Made again, to the bit, from the base and its journal: `{call}`.", ""]
