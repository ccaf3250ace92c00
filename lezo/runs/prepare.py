"""What a run needs before any weight is loaded: rows, tokenizer, model configuration, encoder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from lezo.config.checks import quantised_problems
from lezo.config.schema import Calibration, DType, LoraConfig, PrefixConfig, RunConfig, auto_dtype
from lezo.config.task import ChatConfig, DemoSets, Turns, task_of
from lezo.data.chat import Chat
from lezo.data.dataset import EvalSet
from lezo.data.encode import MAX_LENGTH, MAX_NEW_TOKENS, Encoded, Encoder
from lezo.data.roles import Own
from lezo.data.sampling import Splits, demo_sets, own_sizes, split
from lezo.data.source import DataError, Pools
from lezo.data.source import load as load_pools
from lezo.model.adapter import Adapter
from lezo.model.chat import chat_of, chosen_template
from lezo.model.device import named_device, named_devices
from lezo.model.load import (
    TINY,
    ModelError,
    Source,
    dequantised,
    load_config,
    load_tokenizer,
    positions,
)
from lezo.model.quantised import kept_bits
from lezo.tasks import Example, Task
from lezo.tasks.metrics import PERPLEXITY


@dataclass(frozen=True)
class Prepared:
    """The run's rows (``rows`` says of which tables, in words) and how they become ids. ``pad``: any id of the model, for places that nothing looks at.

    ``rows``: which of them are what, in words. ``dequantised``: how the weights are stored that become plain ones as they
    are read. ``bits``: of each weight of linear layers that stays quantised (`lezo.model.quantised`). ``max_new_tokens``: of
    a generated answer. ``replies``: test conversations that the model is asked to answer. ``template``: of conversations,
    "plain" or a file, None the tokenizer's own.
    """

    task: Task
    splits: Splits
    rows: str
    source: Source
    model_config: Any
    tokenizer: Any
    encoder: Encoder
    pad: int
    calibration: Calibration
    dequantised: str | None
    max_new_tokens: int = MAX_NEW_TOKENS
    bits: int | None = None
    replies: int = 0
    template: str | None = None

    def train(self, *, for_metric: bool = False) -> list[Encoded]:
        """The training examples; of an LM-style task only the answer that is trained on.

        ``for_metric``: as the test set is, all candidates, or prompts to continue.
        """
        examples, demos = self.splits.train, self.splits.demos
        if for_metric:
            return self._checked(self._for_score(examples, demos))
        if self.task.loss == "lm":
            examples = tuple(replace(e, answers=(e.answers[e.gold[0]],), gold=(0,)) for e in examples)
        return self._checked(self.encoder.candidates(examples, demos))

    def dev(self) -> EvalSet:
        """The dev set, which always has a loss."""
        return self._with_loss(self.splits.dev)

    def scored_train(self) -> EvalSet:
        """The training examples, to be scored as the dev set is."""
        return self._with_loss(self.splits.train)

    def _with_loss(self, examples: Sequence[Example]) -> EvalSet:
        demos = self.splits.demos
        scored = self._checked(self.encoder.candidates(examples, demos))
        prompts = self._checked(self.encoder.prompts(examples, demos)) if self.task.generates else []
        return EvalSet(scored, prompts, self._blanks(examples))

    def test(self) -> EvalSet:
        """The test set: candidates to choose from, or prompts to continue."""
        encoded = self._checked(self.each(self._for_score, self.splits.test))
        if self.task.generates:
            return EvalSet((), encoded)
        return EvalSet(encoded, (), self._blanks(self.splits.test), self._samples())

    @property
    def demos(self) -> int:
        """Demonstrations in a test example's prompt."""
        return len(self.splits.own_demos[0] if self.splits.own_demos else self.splits.demos)

    def each(self, encode: Callable[..., list[Encoded]], examples: Sequence[Example]) -> list[Encoded]:
        """Encoded behind the run's demonstrations; the first test examples, or all, behind their own."""
        if not self.splits.own_demos:
            return encode(examples, self.splits.demos)
        pairs = zip(examples, self.splits.own_demos, strict=False)
        return [replace(encode([e], own)[0], index=i) for i, (e, own) in enumerate(pairs)]

    @property
    def _for_score(self) -> Callable[..., list[Encoded]]:
        """How an example is encoded to be scored by the metric."""
        return self.encoder.prompts if self.task.generates else self.encoder.candidates

    def _blanks(self, examples: Sequence[Example]) -> list[Encoded]:
        """The same candidates after a prompt without content, where scores are calibrated."""
        if self.calibration is Calibration.none:
            return []
        blank = [replace(example, prompt=example.blank or "") for example in examples]
        if self.calibration is Calibration.sfc:
            return self._checked(self.encoder.candidates(blank))
        return self._checked(self.each(self.encoder.candidates, blank))

    def _samples(self) -> list[Encoded]:
        """The first test conversations as questions, with room for an answer."""
        if not self.replies:
            return []
        short = replace(self.encoder, max_length=max(self.encoder.max_length - self.max_new_tokens, 2))
        return self._checked(short.prompts(self.splits.test[: self.replies]))

    def _checked(self, examples: list[Encoded]) -> list[Encoded]:
        """Raises ModelError where the tokenizer makes ids that the model has no embedding for."""
        top = max((max(ids) for example in examples for ids in example.input_ids), default=0)
        if top >= (size := self.model_config.get_text_config().vocab_size):
            raise ModelError(
                f"{self.source.path}: the tokenizer makes id {top}, and the model has {size} "
                "embeddings; expected the model's own tokenizer (model.tokenizer)"
            )
        return examples


def prepare(config: RunConfig, *, training: bool) -> Prepared:
    """Read data, tokenizer and the model's configuration. Raises DataError or ModelError.

    ``training`` asks for at least one training example.
    """
    source, task = model_source(config), task_of(config.task)
    pools = _pools(config, task)
    splits = _splits(config, task, pools, training)
    model_config = load_config(source)
    bits = kept_bits(source.quantization, model_config)
    if bits is not None and (problems := list(quantised_problems(config))):
        raise ModelError(f"{source.path}: a base of {bits}-bit weights: {'; '.join(problems)}")
    text, own = model_config.get_text_config(), config.model.tokenizer
    path = own or source.path
    tokenizer = load_tokenizer(path, None if own else source.revision)
    _check_answers_tokenize(path, tokenizer, task, splits)
    before, after = around(path, config.model.bos, text, tokenizer)
    adapter = adapter_of(config)
    length = _max_length(config, source.path, model_config, task, adapter.positions if adapter else 0)
    chat = _chat(config, path, tokenizer, before)
    end = () if chat else _end(path, task, tokenizer)
    pads = (tokenizer.pad_token_id, getattr(text, "pad_token_id", None), tokenizer.eos_token_id, 0)
    return Prepared(
        task=task,
        splits=splits,
        rows=_rows(config, task, pools, len(splits.dev)),
        source=source,
        model_config=model_config,
        tokenizer=tokenizer,
        encoder=Encoder(partial(_ids, tokenizer), before, length, () if end else after, end, chat),
        pad=next(int(pad) for pad in pads if pad is not None and 0 <= pad < text.vocab_size),
        calibration=config.eval.calibration,
        dequantised=dequantised(source, model_config),
        bits=bits,
        max_new_tokens=config.eval.max_new_tokens,
        replies=config.task.generate if isinstance(config.task, ChatConfig) else 0,
        template=_template(config),
    )


def _chat(config: RunConfig, path: str, tokenizer: Any, before: tuple[int, ...]) -> Chat | None:
    """How conversations become ids."""
    task = config.task
    if not isinstance(task, ChatConfig):
        return None
    given, every = config.model.bos is not None, task.turns is Turns.all
    return chat_of(path, tokenizer, template=_template(config), before=before, given=given, every=every)


def _template(config: RunConfig) -> str | None:
    """What is in place of the tokenizer's own chat template."""
    task = config.task
    return chosen_template(task.chat_template, config.model.name) if isinstance(task, ChatConfig) else None


def model_source(config: RunConfig) -> Source:
    """Where the configured model is; `model=tiny` is part of the package."""
    model = config.model
    path = str(TINY) if model.name == "tiny" else model.path
    assert path is not None  # checked by config.checks
    given = os.path.expanduser(path), model.revision, model.shape, model.random_weights
    return Source(*given, quantization_of(config))


def quantization_of(config: RunConfig) -> str | None:
    """How plain weights are quantised as they are read, if at all."""
    return None if config.model.quantization == "none" else config.model.quantization


def adapter_of(config: RunConfig) -> Adapter | None:
    """What is trained in place of the whole model, if anything."""
    peft = config.peft
    if isinstance(peft, LoraConfig):
        return Adapter("lora", rank=peft.rank, alpha=peft.alpha, targets=tuple(peft.targets))
    if isinstance(peft, PrefixConfig):
        return Adapter("prefix", tokens=peft.tokens)
    return Adapter("head") if peft.name == "head" else None


def _pools(config: RunConfig, task: Task) -> Pools:
    data = config.data
    assert data.name is not None  # checked by config.checks
    columns = {str(name): str(column) for name, column in (data.columns or {}).items()}
    own = Own(columns, data.splits or {}, data.test_share, config.task.data_seed)
    where = {"path": data.path, "config": data.config, "revision": data.revision}
    return load_pools(task, data.name, **where, own=own)


def _rows(config: RunConfig, task: Task, pools: Pools, dev: int) -> str:
    """Where the splits are drawn from, and whether dev has fewer rows than usual because there are few."""
    own = config.data.path is not None and pools.dev is None
    few = f"; few rows: {dev} of them are dev, not {task.num_dev} (task.num_dev=N asks for N)"
    return pools.rows + (few if own and config.task.num_dev is None and 0 < dev < task.num_dev else "")


def _splits(config: RunConfig, task: Task, pools: Pools, training: bool) -> Splits:
    wanted = config.task
    num_train, num_dev = _sizes(config, task, pools)
    own = wanted.demo_sets is DemoSets.each
    splits = split(
        pools.train,
        pools.val,
        num_train=num_train,
        num_dev=num_dev,
        num_test=wanted.num_test,
        data_seed=wanted.data_seed,
        demos=0 if own else wanted.demos,
        dev=pools.dev,
    )
    rows, where = len(pools.train), f"{task.name} ({pools.origin})"
    if own and rows < wanted.demos:
        too_many = f"task.demos={wanted.demos}, but there are only {rows} train rows; lower it"
        raise DataError(f"{pools.origin}: {too_many}")
    if own:  # and, as published, no dev set
        sets = demo_sets(pools.train, len(splits.test), wanted.demos, wanted.data_seed)
        return replace(splits, train=(), dev=(), own_demos=sets)
    if training and not splits.train:
        raise DataError(
            f"{where}: {rows} train rows, of which task.num_dev={num_dev} and task.demos={wanted.demos} "
            "leave none to train on; expected at least one (lower task.num_dev)"
        )
    if len(splits.demos) < wanted.demos:
        raise DataError(
            f"{where}: task.demos={wanted.demos}, but only {len(splits.demos)} train rows are left by "
            f"task.num_dev={num_dev}; lower one of them"
        )
    return splits


def _sizes(config: RunConfig, task: Task, pools: Pools) -> tuple[int, int]:
    """Rows to train on and for dev: as published, but what is left open follows small data of one's own."""
    train, dev, rows = config.task.num_train, config.task.num_dev, len(pools.train)
    if config.data.path is not None and pools.dev is None:
        published = 0 if task.hub is None else task.hub.train_rows
        return own_sizes(rows, published, (task.num_train, task.num_dev), train, dev)
    usual = rows if task.num_train is None else task.num_train
    return usual if train is None else train, task.num_dev if dev is None else dev


def _max_length(config: RunConfig, path: str, model_config: Any, task: Task, taken: int) -> int:
    """How many tokens prompt and answer may have beside ``taken``, a prefix's, and a generated answer's."""
    wanted, has, new = config.model.max_length, positions(model_config), config.eval.max_new_tokens
    if wanted is not None and has is not None and wanted > has:
        raise ModelError(f"model.max_length={wanted}: {path} has {has} positions; expected at most those")
    most = wanted or min(MAX_LENGTH, has or MAX_LENGTH)
    length = most - taken - (new if task.generates else 0)
    if length < 2:
        spent = f", of which a generated answer takes {new} (eval.max_new_tokens)" if task.generates else ""
        spent += f" and the prefix (peft.tokens) {taken}" if taken else ""
        what = f"the model has {most} positions" if wanted is None else f"model.max_length={wanted}"
        raise ModelError(f"{path}: {what}{spent}; expected room for a prompt and an answer")
    return length


def _end(path: str, task: Task, tokenizer: Any) -> tuple[int, ...]:
    """What ends a trained answer where no text does: the tokenizer's end token."""
    if task.stop or not (task.generates or task.metric == PERPLEXITY):
        return ()
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{path}: the tokenizer has no end token, and task.stop no text that ends an answer")
    return (int(tokenizer.eos_token_id),)


def _check_answers_tokenize(path: str, tokenizer: Any, task: Task, splits: Splits) -> None:
    """A tokenizer that loses the task's own words would score others in their place, unseen."""
    role = "which ends a generated answer" if task.generates else "an answer of the task"
    words = {*task.stop} if task.generates else set[str]()
    if task.loss == "candidates":
        words = {word for example in splits.test for word in example.answers}
    for word in sorted(words):
        decoded = tokenizer.decode(tokenizer(word, add_special_tokens=False)["input_ids"])
        if (decoded.strip() or decoded).casefold() != (word.strip() or word).casefold():
            raise ModelError(
                f"{path}: the tokenizer reads {word!r}, {role}, as {decoded!r}; expected one with tokens for "
                "it (model.tokenizer=DIR)"
            )


Around = tuple[tuple[int, ...], tuple[int, ...]]
"""The ids that stand before and after every text."""


def around(path: str, given: int | None, model_config: Any, tokenizer: Any) -> Around:
    """What the tokenizer puts around a text, but before it ``given`` (model.bos) or, for OPT, 0."""
    if given is not None and given >= model_config.vocab_size:
        raise ModelError(
            f"model.bos={given}: expected an id below the vocabulary's {model_config.vocab_size}"
        )
    bos = 0 if given is None and model_config.model_type == "opt" else given
    fitting = set.intersection(*(set(_added(tokenizer, text)) for text in _PROBES))
    if bos is None and not fitting:
        raise ModelError(
            f"{path}: the tokenizer makes other tokens of a text itself when it adds its special ones, so "
            "that these cannot be told apart; expected the same ones around every text (model.bos=ID says "
            "what stands before)"
        )
    before, after = min(fitting, key=lambda around: len(around[1]), default=((), ()))
    return before if bos is None else (bos,), after


_PROBES = ("The film was great.", "a b c\nYes")


def _added(tokenizer: Any, text: str) -> Iterator[Around]:
    """Each way to find the text's own ids among those that the tokenizer makes with its special ones."""
    own, ids = tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer(text)["input_ids"]
    for start in range(len(ids) - len(own) + 1):
        if ids[start : start + len(own)] == own:
            yield tuple(ids[:start]), tuple(ids[start + len(own) :])


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [*tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]] if texts else []


def device_of(config: RunConfig) -> torch.device:
    """The device of the batches, the first of `devices_of`."""
    return devices_of(config)[0]


def devices_of(config: RunConfig) -> tuple[torch.device, ...]:
    """model.devices, or the one of model.device, made ready: see `named_devices`."""
    if config.model.devices is None:
        return (named_device(config.model.device, "model.device"),)
    return named_devices(config.model.devices, "model.devices")


def dtype_of(config: RunConfig, device: torch.device) -> torch.dtype:
    """model.dtype, or what auto means there."""
    dtype = config.model.dtype
    if dtype is DType.auto:
        dtype = auto_dtype(cuda=device.type == "cuda", first_order=config.first_order)
    return getattr(torch, dtype.name)  # type: ignore[no-any-return]
