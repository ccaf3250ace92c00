"""lezo-inspect: examples as the model will see them, without loading a weight."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

from lezo.cli.run import command_line, complain
from lezo.runs.terminal import open_streams

if TYPE_CHECKING:
    from lezo.config.schema import RunConfig
    from lezo.data.encode import Encoded, Encoder
    from lezo.runs.prepare import Prepared
    from lezo.tasks import Example

HELP = """lezo-inspect: show a task's examples as the model will see them; needs a tokenizer and no weights.

Commands to copy
  lezo-inspect task=rte                          three examples of each split, the scored tokens marked
  lezo-inspect task=squad task.demos=2           with in-context demonstrations
  lezo-inspect task=copa inspect.n=6 inspect.json=true
  lezo-inspect task=sst2 model=hf model.path=DIR data=local data.path=DIR
  lezo-inspect task=sst2 data=local data.path=reviews.csv 'data.columns={sentence: Text, label: Class}'

Options
  inspect.n=3         examples of each split, in the order in which they were sampled
  inspect.json=false  one JSON object a line: split, index, demos, input_ids, option_lens, gold; after, where
                      the tokenizer puts tokens after a text: the last of input_ids, not scored; of a conversation
                      spans, the scored places, and dropped, how many of its oldest turns were left out
  inspect.summary     what all examples of a split are like: where rows come from, tokens, scored tokens, how many are
                      cut, right answers, test prompts that are in train or dev; tokens of the first 2000 examples [true; as
                      JSON false: else an object of each split first, with "summary": true]
  Groups and all other options are those of lezo-run (lezo-run --help).
"""


def main() -> None:
    """The command. Exits with 0, 1 where data or tokenizer cannot be read, 2 for a bad configuration."""
    open_streams()
    try:
        sys.exit(_answer())
    except KeyboardInterrupt:
        sys.exit(130)


def _answer() -> int:
    """Do what the command line says. Returns the exit code."""
    from lezo.config.compose import compose
    from lezo.config.schema import ConfigError

    given = command_line()
    if given.help:
        print(HELP, end="")
        return 0
    try:
        _refuse_flags(given)
        return inspect(compose(given.overrides, config_dir=given.config_dir, weights=False).config)
    except ConfigError as error:
        return complain(error)


def _refuse_flags(given: argparse.Namespace) -> None:
    """Raise ConfigError for the flags of `lezo-run` that mean nothing here."""
    from lezo.config.schema import ConfigError

    known = ("overrides", "config_dir", "help")
    flags = [
        f"--{name.replace('_', '-')}" for name, value in vars(given).items() if value and name not in known
    ]
    if flags:
        expected = (
            "lezo-inspect shows one configuration; expected key=value, group=option, --config-dir or --help"
        )
        raise ConfigError([f"{', '.join(flags)}: {expected}"])


def inspect(config: RunConfig) -> int:
    """Print the examples. Returns the exit code."""
    from lezo.data.encode import EncodeError
    from lezo.data.source import DataError
    from lezo.model.load import ModelError
    from lezo.runs.prepare import prepare

    try:
        parts = prepare(config, training=False)
        if config.inspect.summary or not (config.inspect.json or config.inspect.summary is False):
            show_summaries(parts, as_json=config.inspect.json)
        for split, example in shown_examples(parts, config.inspect.n):
            if config.inspect.json:
                print(json.dumps(as_record(split, example, parts.demos)))
            else:
                print(as_text(split, example, parts.tokenizer))
    except (DataError, ModelError, EncodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def show_summaries(parts: Prepared, *, as_json: bool) -> None:
    """Print where rows come from, and what each split's are like."""
    from lezo.data.summary import summarised
    from lezo.records.format import table

    splits = parts.splits
    if not as_json:
        print(f"rows: {parts.rows}")
    for name, examples in (("train", splits.train), ("dev", splits.dev), ("test", splits.test)):
        kind = "prompts" if parts.task.generates and name == "test" else "candidates"
        seen = (*splits.train, *splits.dev) if name == "test" else None
        encode = partial(_encoded, parts, kind)
        summary = summarised(name, examples, encode, parts.encoder, seen)
        if summary is not None:
            print(
                json.dumps({**summary.record(), "from": parts.rows})
                if as_json
                else table(summary.lines(), name)
            )
    if not as_json:
        print()


def _encoded(parts: Prepared, kind: str, encoder: Encoder, examples: Sequence[Example]) -> list[Encoded]:
    return parts.each(getattr(encoder, kind), examples)


def shown_examples(parts: Prepared, count: int) -> Iterator[tuple[str, Encoded]]:
    """The first ``count`` examples of each split: every candidate, or for generated answers the gold one.

    A generation task's test examples are their prompts.
    """
    splits = parts.splits
    for name, examples in (("train", splits.train), ("dev", splits.dev), ("test", splits.test)):
        prompts = parts.task.generates and name == "test"
        encode = parts.encoder.prompts if prompts else parts.encoder.candidates
        for example in parts.each(encode, list(islice(examples, count))):
            yield name, example


def as_record(split: str, example: Encoded, demos: int) -> dict[str, Any]:
    """The example as one JSON object."""
    from lezo.model.evaluate import gold

    return {
        "split": split,
        "index": example.index,
        "demos": demos,
        "input_ids": [[*ids, *example.after] for ids in example.input_ids],
        "option_lens": list(example.answer_lens),
        "gold": gold(example),
        **({"spans": list(map(list, example.spans))} if example.spans else {}),
        **({"dropped": example.dropped} if example.dropped else {}),
        **({"after": list(example.after)} if example.after else {}),
    }


def as_text(split: str, example: Encoded, tokenizer: Any) -> str:
    """The example in words: the prompt, and each candidate's scored tokens between guillemets."""
    from lezo.model.evaluate import gold

    cut = f" (its {example.dropped} oldest turns left out)" if example.dropped else ""
    cut += " (cut from the left)" if example.truncated else ""
    right = "" if example.spans else f": gold {gold(example)!r}"
    lines = [f"--- {split} {example.index}{right}{cut}"]
    for k, (ids, size) in enumerate(zip(example.input_ids, example.answer_lens, strict=True)):
        scored = example.scored(k)
        first = scored[0] if scored else len(ids)
        shown = tokenizer.decode(ids[:first]) if k == 0 else f"  candidate {k}: ..."
        behind = tokenizer.decode(example.after)
        lines.append(
            f"{shown}{_marked(ids, first, scored, tokenizer)}{behind}  [{len(ids)} tokens, {size} scored{_right(example, k)}]"
        )
    return "\n".join(lines) + "\n"


def _right(example: Encoded, candidate: int) -> str:
    """What is said of a right candidate among several."""
    return ", right" if len(example.input_ids) > 1 and candidate in example.gold else ""


def _marked(ids: Sequence[int], first: int, scored: Sequence[int], tokenizer: Any) -> str:
    """The tokens from the first scored one on: each scored one between guillemets, what is between them in one piece."""
    runs = groupby(range(first, len(ids)), {*scored}.__contains__)
    return "".join(
        "".join(f"«{tokenizer.decode([ids[place]])}»" for place in run)
        if is_scored
        else tokenizer.decode([ids[place] for place in run])
        for is_scored, run in runs
    )


if __name__ == "__main__":
    main()
