"""lezo-inspect: examples as the model will see them, without loading a weight."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from hydra._internal.utils import get_args_parser

from lezo.compose import compose
from lezo.config import ConfigError, RunConfig
from lezo.run import complain

if TYPE_CHECKING:
    from lezo.encode import Encoded
    from lezo.prepare import Prepared

HELP = """lezo-inspect: show a task's examples as the model will see them; needs a tokenizer and no weights.

Commands to copy
  lezo-inspect task=rte                          three examples of each split, the scored tokens marked
  lezo-inspect task=squad task.demos=2           with in-context demonstrations
  lezo-inspect task=copa inspect.n=6 inspect.json=true
  lezo-inspect task=sst2 model=hf model.path=DIR data=local data.path=DIR

Options
  inspect.n=3         examples of each split, in the order in which they were sampled
  inspect.json=false  one JSON object a line: split, index, demos, input_ids, option_lens, gold
  Groups and all other options are those of lezo-run (lezo-run --help).
"""


def main() -> None:
    """The command. Exits with 0, 1 where data or tokenizer cannot be read, 2 for a bad configuration."""
    arguments = get_args_parser().parse_intermixed_args()
    if arguments.help:
        print(HELP, end="")
        return
    try:
        config = compose(arguments.overrides, config_dir=arguments.config_dir, weights=False).config
        sys.exit(inspect(config))
    except ConfigError as error:
        sys.exit(complain(error))
    except (KeyboardInterrupt, BrokenPipeError):  # as when piped into head
        sys.exit(130)


def inspect(config: RunConfig) -> int:
    """Print the examples. Returns the exit code."""
    from lezo.encode import EncodeError
    from lezo.model import ModelError
    from lezo.prepare import prepare
    from tasks.source import DataError

    try:
        parts = prepare(config, training=False)
        for split, example in shown_examples(parts, config.inspect.n):
            if config.inspect.json:
                print(json.dumps(as_record(split, example, len(parts.splits.demos))))
            else:
                print(as_text(split, example, parts.tokenizer))
    except (DataError, ModelError, EncodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def shown_examples(parts: Prepared, count: int) -> Iterator[tuple[str, Encoded]]:
    """The first ``count`` examples of each split: every candidate, or for generated answers the gold one.

    A generation task's test examples are their prompts.
    """
    splits, demos = parts.splits, parts.splits.demos
    for name, examples in (("train", splits.train), ("dev", splits.dev), ("test", splits.test)):
        prompts = parts.task.generates and name == "test"
        encode = parts.encoder.prompts if prompts else parts.encoder.candidates
        for example in encode(list(islice(examples, count)), demos):
            yield name, example


def as_record(split: str, example: Encoded, demos: int) -> dict[str, Any]:
    """The example as one JSON object."""
    from lezo.evaluate import gold

    return {
        "split": split,
        "index": example.index,
        "demos": demos,
        "input_ids": [list(ids) for ids in example.input_ids],
        "option_lens": list(example.answer_lens),
        "gold": gold(example),
    }


def as_text(split: str, example: Encoded, tokenizer: Any) -> str:
    """The example in words: the prompt, and each candidate's scored tokens between guillemets."""
    from lezo.evaluate import gold

    lines = [
        f"--- {split} {example.index}: gold {gold(example)!r}"
        + (" (cut from the left)" if example.truncated else "")
    ]
    for k, (ids, size) in enumerate(zip(example.input_ids, example.answer_lens, strict=True)):
        prompt, answer = ids[: len(ids) - size], ids[len(ids) - size :]
        marked = "".join(f"«{tokenizer.decode([token])}»" for token in answer)
        shown = tokenizer.decode(prompt) if k == 0 else f"  candidate {k}: ..."
        lines.append(f"{shown}{marked}  [{len(ids)} tokens, {size} scored]")
    return "\n".join(lines) + "\n"
