"""What may be evaluated: a run, its journal, a saved model or adapter, a base model. Each becomes a configuration and its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from lezo.config.checks import HUB_ID
from lezo.config.compose import compose, parse, quoted
from lezo.config.diagnosis import options_of
from lezo.config.methods import OptimConfig
from lezo.config.schema import ConfigError, DType, LoraConfig, PrefixConfig, RunConfig
from lezo.config.written import changes_rows, read_back, refuse_other_words, without_own_task
from lezo.model.adapter import Adapter
from lezo.model.linear_probe import fit_head
from lezo.model.load import TINY
from lezo.model.saved_adapter import CONFIG as ADAPTER
from lezo.model.saved_adapter import SavedAdapter, read_adapter, take_values
from lezo.records import reader
from lezo.records.checkpoint import find_checkpoints
from lezo.records.files import FolderError, read_file
from lezo.records.folder import CHECKPOINTS, CONFIG, JOURNAL, MODEL, PREFIX_START
from lezo.records.journal import MAGIC, read_journal
from lezo.records.schema import Header, Provenance
from lezo.runs.build import LoadedModel, replay_spec
from lezo.runs.model_settings import ModelSettings, hash_of, read_settings
from lezo.runs.plan import make_plan
from lezo.runs.replay import refuse_foreign
from lezo.runs.restore import bring_back

Bring = Callable[[LoadedModel, Console], None]
_WHOLE = "config.json"
_ADD_TASK = "add task=sst2, or another (lezo-run --help)"
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Subject:
    """``word``: as the command has it. ``kind``: run, journal, model, adapter or base. ``config``: what is to be scored, and where.

    ``bring`` gives a model just loaded the weights, those of ``step`` of its run. ``origin``: what that started from.
    ``first``: whether it is the base model itself that ``origin`` names. ``result``: the run's, whose own rows, prompts
    and scores are asked for again (``as_run``) or not. ``start``: the file of a prefix's first values.
    """

    word: str
    kind: str
    config: RunConfig
    bring: Bring = lambda loaded, out: None
    step: int | None = None
    origin: Mapping[str, Any] | None = None
    first: bool = False
    result: Mapping[str, Any] = field(default_factory=dict)
    as_run: bool = False
    start: Path | None = None


def subject_of(word: str, words: Sequence[str]) -> Subject:
    """What ``word`` names, with the settings that the command's ``words`` change.

    Raises ConfigError, ModelError and FolderError where there is nothing, or not what it looks like.
    """
    refuse_other_words(words)
    path = Path(word).expanduser()
    if (path / CONFIG).is_file() and not (path / _WHOLE).is_file():
        return _run(word, path, words)
    if path.is_file() and not word.lower().endswith(".gguf"):
        _refuse_other_file(word, path)
        return _journal(word, path, words)
    if (path / ADAPTER).is_file():
        return _adapter(word, path, words)
    if (path / _WHOLE).is_file():
        return _model(word, path, words)
    return _base(word, path, words)


def _run(word: str, folder: Path, words: Sequence[str]) -> Subject:
    """The weights of a run's result, or of its best step so far."""
    values = _values(folder / CONFIG)
    words = without_own_task(values, words)
    result, config, as_run = reader.read_result(folder, []), read_back(values, words), not changes_rows(words)
    given = _keys(words)
    finished = result.get("status") == "finished"
    subject = partial(Subject, word, "run", result=result if finished else {}, as_run=as_run)
    saved = folder / MODEL
    if finished and config.trains and saved.is_dir() and "model.path" not in given:
        return _saved_in_run(subject, saved, values, words, result)
    origin = result.get("origin")
    if config.fits_head:
        scored = config if as_run else _only_scored(config)
        return subject(
            scored, bring=partial(_fit, read_back(values, _of_machine(words))), origin=origin, first=True
        )
    if not config.trains:
        return subject(config, origin=origin, first=True)
    header, step = _history(folder, config, result)
    if "model.dtype" not in given:
        config.model.dtype = DType(header.origin.dtype)
    bring = partial(_bring, header, folder, step, not config.first_order)
    return subject(
        config if as_run else _only_scored(config),
        bring=bring,
        step=step,
        origin=vars(header.origin),
        first=True,
        start=folder / PREFIX_START,
    )


def _saved_in_run(
    subject: Callable[..., Subject],
    folder: Path,
    values: dict[str, Any],
    words: Sequence[str],
    result: Mapping[str, Any],
) -> Subject:
    """The model that a finished run saved has the weights of its result, without a replay of its journal."""
    origin = result.get("origin") or {}
    values["model"] = {**values["model"], "dtype": origin.get("dtype", "auto")}
    model = _adapter if (folder / ADAPTER).is_file() else _model
    found = model(str(folder), folder, words, ModelSettings(values, None, None))
    step = result.get("best_step") or result.get("steps")
    return subject(found.config, bring=found.bring, step=step, origin=origin)


def _history(folder: Path, config: RunConfig, result: Mapping[str, Any]) -> tuple[Header, int]:
    """What the run started from, and the step whose weights are its result, or the best one so far."""
    best = result.get("best_step") or result.get("steps") if result.get("status") == "finished" else None
    if not config.first_order:
        journal = read_journal(folder / JOURNAL)
        refuse_foreign(folder / JOURNAL, journal.header)
        return journal.header, int(best or journal.best() or journal.step)
    kept = {checkpoint.step: checkpoint for checkpoint in find_checkpoints(folder / CHECKPOINTS)}
    if best is None:
        devs = [row for row in reader.read_run(folder).devs if row.step in kept and row.loss is not None]
        best = min(devs, key=lambda row: (row.loss or 0.0, row.step)).step if devs else max(kept, default=0)
    if best not in kept:
        way = "the run's own command with resume=auto makes steps again"
        raise FolderError(f"{folder}: has no checkpoint of step {best}, whose weights are wanted; {way}")
    return Header(Provenance(**kept[best].origin), replay_spec(config)), int(best)


def _journal(word: str, file: Path, words: Sequence[str]) -> Subject:
    """A journal alone knows the base model and the updates, and no task; beside its run's configuration it is that run."""
    journal = read_journal(file)
    refuse_foreign(file, journal.header)
    header, recipe = journal.header, journal.header.recipe
    beside = (read_file(file.parent / CONFIG) or b"").decode(errors="replace")
    if file.name == JOURNAL and hash_of(beside) == header.origin.config:
        return _run(word, file.parent, words)
    where = (
        ["model=tiny"] if recipe.model == "tiny" else ["model=hf", f"model.path={quoted(str(recipe.path))}"]
    )
    known = {"revision": recipe.revision, "tokenizer": recipe.tokenizer, "quantization": recipe.quantization}
    where += [f"model.{key}={quoted(value)}" for key, value in known.items() if value is not None]
    config = _composed(word, where, words)
    config.seed, config.model.shape, config.model.random_weights = (
        recipe.seed,
        recipe.shape,
        recipe.random_weights,
    )
    config.model.dtype = DType(header.origin.dtype)
    if recipe.peft is not None:
        _give_adapter(config, Adapter.of(recipe.peft))
    step = journal.best() or journal.step
    bring = partial(_bring, header, file, step, True)
    start = file.parent / PREFIX_START
    return Subject(word, "journal", config, bring, step, vars(header.origin), first=True, start=start)


def _refuse_other_file(word: str, file: Path) -> None:
    """Raise FolderError for what does not begin as a journal does; one cut short is damaged, and none of these."""
    with file.open("rb") as content:
        start = content.read(len(MAGIC))
    if not MAGIC.startswith(start):
        known = f"expected a run's {JOURNAL}, a .gguf file, or a folder of a run or a model"
        raise FolderError(f"{word}: neither a journal nor a .gguf file; {known}")


def _model(word: str, folder: Path, words: Sequence[str], told: ModelSettings | None = None) -> Subject:
    """A whole model, with what it tells of its task; else the words alone say what is asked."""
    told = told or read_settings(folder)
    if told is None:
        return _base(word, folder, words)
    _refuse_path(word, words)
    kept = {key: told.values["model"].get(key) for key in ("bos", "max_length", "dtype")}
    values = _scored_values(told, {"name": "hf", "path": str(folder), **kept}, {"name": "none"})
    return Subject(word, "model", read_back(values, words), step=told.step)


def _adapter(word: str, folder: Path, words: Sequence[str], told: ModelSettings | None = None) -> Subject:
    """An adapter on its base: where the folder says, or model.path=DIR."""
    saved, told = read_adapter(folder), told or read_settings(folder)
    own = any((folder / name).is_file() for name in _TOKENIZERS)
    of_model = {} if told is None else dict(told.values["model"])
    moved = any(override.key_or_group == "model.path" for override in parse(words))
    tiny = not moved and (of_model.get("name") == "tiny" or Path(saved.base) == TINY)
    place = (
        {"path": None, "name": "tiny"}
        if tiny
        else {"name": "hf", "path": saved.base, "revision": saved.revision}
    )
    kept = {key: of_model[key] for key in ("bos", "max_length", "dtype", "quantization") if key in of_model}
    place |= {"tokenizer": str(folder) if own else None}
    if told is None:
        where = ["model=tiny"] if tiny else ["model=hf"]
        where += [f"model.{key}={quoted(value)}" for key, value in place.items() if key != "name" and value]
        config = _composed(word, where, words)
    else:
        config = read_back(_scored_values(told, {**place, **kept}, {"name": "none"}), words)
    _give_adapter(config, saved.adapter)
    step = None if told is None else told.step
    return Subject(word, "adapter", config, partial(_fill, saved), step)


def _base(word: str, path: Path, words: Sequence[str]) -> Subject:
    """A model by lezo's name for it, its folder, GGUF file or hub id."""
    if word in options_of("model", None) and word != "hf" and not path.exists():
        return Subject(word, "base", _composed(word, [f"model={word}"], words))
    if path.is_dir() and not (path / _WHOLE).is_file() and not any(path.glob("*.gguf")):
        below = next(reader.run_folders(path), None)
        way = f"; a run is {below}" if below is not None else ""
        raise FolderError(
            f"{word}: neither a run nor a model (no {CONFIG} of a run, no {_WHOLE} of a model, no {ADAPTER}){way}"
        )
    if not path.exists() and not HUB_ID.fullmatch(word):
        names = ", ".join(name for name in options_of("model", None) if name != "hf")
        raise FolderError(
            f"{word}: no such folder or file; expected a run's folder or journal, a saved model or adapter, an id on the hub, "
            f"or one of {names}"
        )
    _refuse_path(word, words)
    here = path.exists()
    if not here and not _names_task(words):
        first = "expected a run's folder or journal, a saved model or adapter, or a model's name"
        raise ConfigError(
            [f"{word}: no such folder or file here; {first}; if it is a model's id on the hub, {_ADD_TASK}"]
        )
    config = _composed(word, ["model=hf", f"model.path={quoted(str(path) if here else word)}"], words)
    return Subject(word, "base", config)


def _composed(word: str, where: Sequence[str], words: Sequence[str]) -> RunConfig:
    """A configuration of lezo-run's defaults, for what tells nothing of a task."""
    if not _names_task(words):
        raise ConfigError([f"{word}: tells of no task that it was made for; {_ADD_TASK}"])
    return compose([*where, "optim=none", *words], weights=False).config


def _names_task(words: Sequence[str]) -> bool:
    return "task" in _keys(words)


def _keys(words: Sequence[str]) -> set[str]:
    return {override.key_or_group for override in parse(words)}


def _refuse_path(word: str, words: Sequence[str]) -> None:
    if "model.path" in _keys(words):
        raise ConfigError([f"model.path: {word} is a whole model and needs no other; leave it out"])


def _scored_values(told: ModelSettings, model: Mapping[str, Any], peft: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's configuration what an evaluation of its saved model needs."""
    task, kept = (
        dict(told.values["task"]),
        {key: told.values[key] for key in ("data", "eval") if key in told.values},
    )
    model = dict(model)
    if "turns" in task:  # the tokenizer is saved with the template, which begins with what stood before
        task["chat_template"] = None
        model["bos"] = None
    return {**kept, "task": task, "model": model, "peft": peft}


def _give_adapter(config: RunConfig, adapter: Adapter) -> None:
    """The configuration of the same model with an adapter on it."""
    if adapter.name == "lora":
        config.peft = LoraConfig("lora", rank=adapter.rank, alpha=adapter.alpha, targets=[*adapter.targets])
    elif adapter.name == "prefix":
        config.peft = PrefixConfig("prefix", tokens=adapter.tokens)
    else:
        config.peft.name = "head"


def _only_scored(config: RunConfig) -> RunConfig:
    """The same without training: other rows are scored by weights that are there already."""
    scored = deepcopy(config)
    if scored.needs_examples:
        scored.optim = OptimConfig("none")
    return scored


def _of_machine(words: Sequence[str]) -> list[str]:
    """The words about where a model is and runs: none about rows."""
    return [word for word in words if word.startswith("model.") and not changes_rows([word])]


def _bring(header: Header, path: Path, step: int, journaled: bool, loaded: LoadedModel, out: Console) -> None:
    bring_back(loaded, header, path, step, out, journaled=journaled)


def _fit(own: RunConfig, loaded: LoadedModel, out: Console) -> None:
    """Linear probing fits its head to the run's own training rows, whatever it is scored on."""
    plan = make_plan(own)
    out.print(f"fitting the head to {len(plan.train)} rows, as the run did")
    fit_head(loaded.network, plan.train, batch_size=own.eval.batch_size, pad=plan.parts.pad)


def _fill(saved: SavedAdapter, loaded: LoadedModel, out: Console) -> None:
    take_values(loaded.model, saved)


def _values(file: Path) -> dict[str, Any]:
    """A run's configuration, nested. Raises FolderError for what is none."""
    try:
        values: Any = OmegaConf.to_container(OmegaConf.create((read_file(file) or b"").decode()))
        return {**values, "task": dict(values["task"]), "model": dict(values["model"])}
    except Exception as error:  # yaml and omegaconf have many ways to say that a file is not theirs
        first = str(error).partition("\n")[0] or type(error).__name__
        raise FolderError(
            f"{file}: not the configuration of a run ({first}); expected a run's folder"
        ) from None
