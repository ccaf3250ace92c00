"""What a saved model says of itself: the README.md beside its weights, in the form of Hugging Face's model cards."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented there

from lezo.config.methods import METHODS, NO_METHOD, Method, method_name
from lezo.model.compatibility import readers
from lezo.records.format import first_score, score
from lezo.records.schema import Header, Provenance, ReplaySpec
from lezo.tasks import TASKS, Example
from lezo.tasks.row import Row
from lezo.tasks.sample import MAKERS
from lezo.tasks.sample import rows as sample_rows

_TEMPLATE = Path(__file__).with_name("card.md.jinja")
_PLACES = re.compile(
    r"(.*[._])?(path|tokenizer|dir|chat_template)"
)  # keys of a command whose values are places
_FOLDERS = re.compile(r"(?<![\w.~])(~|\.{1,2})?/([^/\s,}']+/)*")  # of a place within a value


@dataclass(frozen=True)
class Card:
    """What is known of saved weights. The same facts make the same bytes: there are no dates and no seconds in it.

    ``step``: whose weights they are; ``weights``: their SHA-256. ``before``: the ids that stand before every text.
    ``kind_of_model``: the base's model_type. ``result``, ``settings``: those of the run, by its files; empty where a journal is all there is.
    """

    header: Header
    step: int
    weights: str | None
    before: tuple[int, ...]
    kind_of_model: str
    result: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """Metadata in YAML, and Markdown."""
        example, adapter = self._example(), self.adapter
        card = ModelCard.from_template(
            self._metadata(),
            template_path=str(_TEMPLATE),
            title=", ".join(filter(None, [self.base, self.method, self._known("title")])),
            what=self._what(),
            synthetic=bool(self.result.get("synthetic")),
            base=self._base(),
            data=self._data(),
            method=self._method(),
            scores=self._scores(),
            adapter=adapter in ("lora", "prefix"),
            dtype=self.origin.dtype,
            quantization=self.recipe.quantization,
            quantised_as=', bnb_4bit_quant_type="nf4"' if self.recipe.quantization == "4bit" else "",
            before=[*self.before],
            asks=self.asks,
            stops=["\n"] if self.task in TASKS else self._own_stops(),
            longest=self.settings.get("eval.max_new_tokens") or 50,
            prompt=repr(self._conversation() if self.asks == "chat" else example.prompt),
            readers=readers(self.kind_of_model),
            filled="  # with a row's columns put in" if self.settings.get("task.template") else "",
            answers=repr([*example.answers]),
            again=self._again(),
            journaled=self.kind.zeroth_order,
        )
        return f"{card}".rstrip() + "\n"

    @property
    def recipe(self) -> ReplaySpec:
        """What makes the weights again."""
        return self.header.recipe

    @property
    def origin(self) -> Provenance:
        """What the run started from."""
        return self.header.origin

    @property
    def task(self) -> str | None:
        """The task's name."""
        name: str | None = self._known("task", "task.name")
        return name

    @property
    def asks(self) -> str:
        """For what the task asks: choice among answers, text, or, in a conversation, chat; text where that is not known."""
        if "task.turns" in self.settings:
            return "chat"
        task = TASKS.get(self.task or "")
        if task is not None:
            return "text" if task.generates else "choice"
        chosen = self.result.get("prompts_at_once") is None and "rows" in self.result
        return "choice" if chosen else "text"

    @property
    def adapter(self) -> str | None:
        """lora, prefix or head; None where the whole model was trained."""
        return None if self.recipe.peft is None else str(self.recipe.peft.get("name"))

    @property
    def kind(self) -> Method:
        """The method as lezo knows it; of a journal alone, a zeroth-order one."""
        name = self._known("optim", "optim.name") or "mezo"
        return METHODS.get(name) or NO_METHOD

    @property
    def method(self) -> str | None:
        """The optimizer and the adapter by name."""
        name = self._known("optim", "optim.name")
        return None if name is None else method_name(name, self.adapter or "none")

    @property
    def base(self) -> str:
        """The base model as one calls it: a hub id, the last part of a local path, or lezo's own name."""
        return self.recipe.model if self.recipe.path is None else shown_place(self.recipe.path)

    @property
    def are_the_results(self) -> bool:
        """Whether the scores of the result are these weights'."""
        return self.weights is not None and self.result.get("weights") == self.weights

    def _known(self, of_result: str, setting: str | None = None) -> Any:
        value = self.result.get(of_result)
        return self.settings.get(setting) if value is None and setting is not None else value

    def _metadata(self) -> ModelCardData:
        path, metric, optim = self.recipe.path, self.result.get("metric"), self._known("optim", "optim.name")
        hub = self._hub()
        tags = ["lezo", *(["zeroth-order"] if self.kind.zeroth_order else []), optim, self.adapter]
        return ModelCardData(
            base_model=path if path is not None and is_hub_id(path) else None,
            datasets=[hub["dataset_type"]] if hub else None,
            eval_results=self._evaluations(hub),
            library_name="peft" if self.adapter in ("lora", "prefix") else "transformers",
            metrics=[metric] if metric and self.are_the_results else None,
            model_name="-".join(filter(None, [PurePath(self.base).name, optim, self.task])),
            pipeline_tag="text-generation",
            tags=[tag for tag in tags if tag],
        )

    def _hub(self) -> dict[str, Any]:
        """The data set on the hub, as `EvalResult` names its parts; nothing of other data."""
        task, settings = TASKS.get(self.task or ""), self.settings
        if self._known("data", "data.name") != "hub":
            return {}
        if task is not None and task.hub is not None:
            hub, named = task.hub, {"dataset_split": "validation"}
            revision = settings.get("data.revision") or hub.revision
            return {
                "dataset_type": hub.id,
                "dataset_config": hub.config,
                "dataset_revision": revision,
                **named,
            }
        parts = {part: settings.get(f"data.{part}") for part in ("path", "config", "revision")}
        names = {"path": "dataset_type", "config": "dataset_config", "revision": "dataset_revision"}
        return {names[part]: value for part, value in parts.items()} if parts["path"] else {}

    def _evaluations(self, hub: Mapping[str, Any]) -> list[EvalResult] | None:
        test, metric = self.result.get("test"), self.result.get("metric")
        if test is None or metric is None or not self.are_the_results:
            return None
        data = {"dataset_type": self.task, **hub, "dataset_name": self.result.get("title") or self.task}
        return [
            EvalResult(
                task_type="text-generation",
                **data,
                metric_type=metric,
                metric_name=f"test {metric}",
                metric_value=test,
            )
        ]

    def _example(self) -> Example:
        """A synthetic question, which is nobody's; of a task of one's own its template, for the columns to be put in."""
        if (name := self.task) in TASKS and name in MAKERS:
            _, (first, *_) = sample_rows(name)
            return next(iter(TASKS[name].examples(Row(first))))
        template = self.settings.get("task.template") or "The prompt, as the task writes it"
        words = [str(word) for key, word in self.settings.items() if key.startswith("task.words.")]
        spaced = [word if template[-1:].isspace() or word[:1].isspace() else f" {word}" for word in words]
        return Example(template, tuple(spaced or (" one answer", " another")), (0,))

    def _conversation(self) -> list[dict[str, str]]:
        """A question to the model, after the system message that conversations had where they had none."""
        system = self.settings.get("task.system")
        first = [] if system is None else [{"role": "system", "content": str(system)}]
        return [*first, {"role": "user", "content": "What can you do?"}]

    def _own_stops(self) -> list[str]:
        stops = self.settings.get("task.stop")
        return [] if stops is None else [stops] if isinstance(stops, str) else [*stops]

    def _what(self) -> str:
        """One sentence."""
        what = {"lora": "A LoRA adapter of", "prefix": "A prefix for", "head": "A new head in"}
        start = f"{what[self.adapter]} {self.base}" if self.adapter in what else self.base
        if self.kind.fits_head:
            made = "its head fitted by logistic regression"
        elif self.step == 0:
            made = "not trained"
        else:
            made = "trained by gradients" if self.kind.first_order else "fine-tuned with forward passes only"
        version = self._code().partition(" ")[0]
        return f"{start}, {made} by lezo {version}. Its licence is not stated: the base model's and the data's hold."

    def _code(self) -> str:
        """lezo's version, and its commit where it was known."""
        return str((self.result.get("origin") or {}).get("code") or self.origin.code)

    def _base(self) -> dict[str, Any]:
        recipe, origin = self.recipe, self.origin
        model = f"`{self.base}`"
        if recipe.path is None:
            model += " of lezo's package" if recipe.model == "tiny" else ""
        elif not is_hub_id(recipe.path):
            model += ", a local folder or file"
        return {
            "Model": model + (f", revision `{recipe.revision}`" if recipe.revision else ""),
            "Weights": "drawn at random, not pretrained" if recipe.random_weights else None,
            "Quantised as they were read": recipe.quantization,
            "Dequantised from": self.result.get("dequantised"),
            "Tokenizer of another place": recipe.tokenizer and f"`{shown_place(recipe.tokenizer)}`",
            "SHA-256 of the weights that training began with": f"`{origin.weights}`, {origin.dtype}",
            "SHA-256 of the tokenizer": f"`{origin.tokenizer}`",
        }

    def _data(self) -> dict[str, Any]:
        hub, place = self._hub(), self.settings.get("data.path")
        origins = {
            "sample": "synthetic, made by lezo",
            "local": place and f"one's own, in `{shown_place(place)}`",
        }
        if hub:
            names = {"": "dataset_type", "configuration ": "dataset_config", "revision ": "dataset_revision"}
            origins["hub"] = ", ".join(f"{word}`{hub[key]}`" for word, key in names.items() if hub[key])
        sizes = self.result.get("examples") or {}
        return {
            "Task": self.task or "not known here, nor are its rows: a journal was all there was",
            **self._words(),
            "Rows": origins.get(self._known("data", "data.name") or ""),
            "Examples": ", ".join(f"{count:,} {split}" for split, count in sizes.items()),
            "Seed that chose them": _number(self._known("data_seed", "task.data_seed")),
            "Demonstrations in each prompt": self.settings.get("task.demos"),
            "SHA-256 of the encoded examples": self.origin.data and f"`{self.origin.data}`",
        }

    def _words(self) -> dict[str, Any]:
        """What the model was asked, and with which ids before it."""
        example, template = self._example(), self.settings.get("task.template")
        shown = self.task in MAKERS or template
        before = f"`{[*self.before]}`" if self.before else "nothing"
        if self.asks == "chat":
            own = self.settings.get("task.chat_template")
            name = "the tokenizer's own" if own is None else f"`{shown_place(own)}`"
            return {"Prompt": f"conversations by a chat template, {name}, which is saved with the tokenizer"}
        of_row = "" if template else " (of a made-up row)"
        return {
            "Prompt": f"`{example.prompt!r}`{of_row}" if shown else None,
            "Answers that it chose among": f"`{[*example.answers]}`"
            if shown and self.asks == "choice"
            else None,
            "Ids before every text (BOS)": before,
        }

    def _method(self) -> dict[str, Any]:
        result, settings, recipe = self.result, self.settings, self.recipe
        parts = sorted((recipe.composition or {}).items())  # older journals name none
        adapter = {
            k: v for k, v in (recipe.peft or {}).items() if k in _OF_ADAPTER.get(self.adapter or "", ())
        }
        steps = result.get("steps", settings.get("train.steps"))
        return {
            "Optimizer": self._known("optim", "optim.name"),
            "Blocks": result.get("blocks"),
            "Made of": ", ".join(f"{kind.replace('_', ' ')} {_part(part)}" for kind, part in parts),
            "Adapter": self.adapter and _part({"name": self.adapter, "settings": adapter}),
            "Learning rate": _number(self._known("lr", "optim.lr")),
            "eps": _number(self._known("eps", "optim.eps")),
            "Weight decay": self._known("weight_decay", "optim.weight_decay"),
            "Schedule": settings.get("optim.schedule"),
            "Objective": result.get("objective") if self.kind.trains else None,
            "Examples a step": settings.get("train.batch_size") if self.kind.trains else None,
            "Step of these weights": f"{self.step:,}{'' if steps is None else f' of {steps:,}'}"
            if self.kind.trains
            else None,
            "Seed": str(recipe.seed),
            "Code": f"lezo {self._code()}",
            "Rounding of updates": recipe.rounding if self.kind.zeroth_order else None,
            "SHA-256 of these weights (lezo.weights_hash)": self.weights and f"`{self.weights}`",
        }

    def _scores(self) -> dict[str, Any]:
        result, metric = self.result, self.result.get("metric") or "score"
        if not self.are_the_results:
            other = result.get("best_step") or result.get("steps")
            why = "those of the run belong to the weights of step" if result.get("test") is not None else ""
            return {"Of these weights": f"not known{f'; {why} {other}' if why else ''}"}
        dev_loss = result.get("dev_loss")
        first = first_score(int(self.settings.get("task.demos") or 0))
        return {
            f"Test {metric}": f"{score(result.get('test'))}, {first} {score(result.get('zero_shot'))}",
            f"Dev {metric}": None if result.get("dev") is None else score(result["dev"]),
            "Dev loss": None if dev_loss is None else f"{dev_loss:.4f}, the lowest of the run",
            "Of": f"one run, with seed {self.recipe.seed}, and rows drawn with seed {_number(self._known('data_seed', 'task.data_seed'))}",
        }

    def _again(self) -> str:
        """The command of the run, and of its replay."""
        commands = [shown_command(self.result["command"])] if self.result.get("command") else []
        if self.kind.zeroth_order:
            commands.append("lezo-replay RUN" + ("" if self.are_the_results else f" replay.step={self.step}"))
        return "\n".join(commands)


_OF_ADAPTER = {"lora": ("rank", "alpha", "targets"), "prefix": ("tokens",)}


def is_hub_id(path: str) -> bool:
    """Whether a path of a model is an id on the hub: has the form of one, and nothing here has that name."""
    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return not Path(path).exists()


def shown_place(path: str) -> str:
    """A hub id as it is; of a local path the last part, for the others are nobody's business."""
    return path if is_hub_id(path) else PurePath(os.path.expanduser(path)).name


def shown_command(command: str) -> str:
    """A command with its local places by their last parts."""
    try:
        words = shlex.split(command)
    except ValueError:  # of a result that was written to
        return command
    shown = []
    # What a run is called, and who is told of it, is nobody else's business either.
    words = [word for word in words if not word.startswith(("log=", "log."))]
    for before, word in zip(["", *words], words, strict=False):
        key, equals, value = word.partition("=")
        if before == "--config-dir":
            word = PurePath(word).name
        elif equals and _PLACES.fullmatch(key):
            word = f"{key}={shown_place(value.strip(chr(39)))}"
        elif key == "data.splits":
            word = _FOLDERS.sub("", word)
        shown.append(word)
    return shlex.join(shown)


def _part(part: Mapping[str, Any]) -> str:
    settings = [f"{key}={value}" for key, value in sorted(part["settings"].items())]
    return " ".join([part["name"], *([f"({', '.join(settings)})"] if settings else [])])


def _number(value: Any) -> str | None:
    return None if value is None else f"{value:g}"
