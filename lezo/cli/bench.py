"""lezo-bench: time a step against the original implementation, and against two bare forwards."""

from __future__ import annotations

import sys
from typing import Any

from lezo.cli.run import command_line, complain
from lezo.config.compose import Composed, command, compose
from lezo.config.schema import ConfigError, Home
from lezo.ranks.launcher import refuse_several
from lezo.runs.terminal import open_streams

HELP = """lezo-bench: time a step against the original implementation, on the real sequence lengths of a task.

Commands to copy
  lezo-bench task=rte                                    the embedded model: a minute, to see what is printed
  lezo-bench model=opt-1.3b task=rte                     on CUDA, data and weights from the Hugging Face hub
  lezo-bench model=opt-30b model.random_weights=true model.tokenizer=DIR task=rte data=local data.path=DIR
  lezo-bench ... optim.sparsity=0.5 train.batch_size=8   another number of blocks skipped, another batch

What is timed, in turns, on one batch of typical length
  floor             two bare forward passes over the packed batch: no step that measures two losses can be faster
  textbook_mezo     the step as the original implementation makes it: four passes over the weights in place, one padded
                    row for each candidate, logits at every position, a key/value cache
  textbook_foreach  the same with torch._foreach_ operations over all tensors: fewer launches, fewer passes over memory
  textbook_lezo     textbook_mezo that moves only the chosen blocks and the tensors outside blocks
  mezo, lezo        the steps of lezo-run; lezo skips optim.sparsity of the blocks (with optim=mezo: 0.75)
  published         the original implementation itself, where bench.mezo_path names its folder
Then consecutive steps of mezo and lezo, each on a batch of its own. With optim.objective=metric the floor is two
evaluations, and no textbook variant is timed.

Options
  bench.repeats           timed steps of each variant, after one to warm up   [20 on CUDA, 5 on a CPU]
  bench.textbook_repeats  the same for textbook variants  [at most 5; 1 where a step takes above 10 s]
  bench.window            consecutive steps               [40 on CUDA, 4 on a CPU; 0: none]
  bench.profile=false     also write trace.json, a torch profiler trace of one lezo step
  bench.mezo_path=DIR     the folder large_models of princeton-nlp/MeZO: the step of its trainer.py is run unchanged. This
                          runs somebody else's code: name only a folder that you trust
  bench.variant           make one step of this variant and print its peak memory; the command measures memory on a CPU so
  Groups and all other options are those of lezo-run (lezo-run --help); optim must be lezo or mezo.

Results are written to runs/bench/<task>/<model>/<time>/ (hydra.run.dir=DIR chooses another folder): bench.json, table.md,
steps.png, metrics.jsonl with a row for each step, config.yaml, environment.json.
On CUDA, peak memory is what torch allocated on the device, and beside it what torch reserved; on a CPU, all that a
process with this one variant held, Python and libraries included. Where NVML or nvidia-smi is there, clocks and power are
recorded.
"""
_FOLDER = "hydra.run.dir=runs/bench/${task.name}/${model.name}/${now:%Y-%m-%d_%H-%M-%S-%f}"


def main() -> None:
    """The command. Exits with 0, 1 for a failure, 2 for a bad configuration, 130 when interrupted."""
    open_streams()
    arguments = command_line()
    if arguments.help:
        print(HELP, end="")
        return
    refuse_several()
    try:
        sys.exit(_benched(arguments))
    except ConfigError as error:
        sys.exit(complain(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _benched(arguments: Any) -> int:
    composed, overrides, config_dir = _composed(arguments), arguments.overrides, arguments.config_dir
    from lezo.bench.timing import benchmark  # torch and transformers take seconds to import: only now
    from lezo.bench.variants import variants_of

    variant, possible = composed.config.bench.variant, variants_of(composed.config)
    if variant is not None and variant not in possible:
        expected = ", ".join(name.value for name in possible)
        raise ConfigError(
            [f"bench.variant={variant.value}: not of this configuration; expected one of {expected}"]
        )
    folder = ["--config-dir", config_dir] if config_dir else []
    child = [sys.executable, "-m", "lezo.cli.bench", *folder, *overrides]
    return benchmark(composed, child, command(overrides, config_dir, "lezo-bench"))


def _composed(arguments: Any) -> Composed:
    """Raises ConfigError for what lezo-run refuses too, and for what has nothing to bench."""
    if arguments.multirun:
        raise ConfigError(["-m: lezo-bench times one configuration; run it once for each"])
    composed = compose([_FOLDER, *arguments.overrides], config_dir=arguments.config_dir)
    composition = composed.config.composition
    if composition is None or not composition.is_lezo:
        reason = "lezo-bench times two-point steps; expected optim=lezo or optim=mezo"
        raise ConfigError([f"optim={composed.config.optim.name}: {reason}"])
    if composed.config.dry_run:
        raise ConfigError(["dry_run=true: lezo-bench times steps; lezo-run dry_run=true prints the plan"])
    if composed.config.model.home is not Home.device:
        reason = "lezo-bench times steps of a model that is all on the device; leave it out"
        raise ConfigError([f"model.home={composed.config.model.home.name}: {reason}"])
    return composed


if __name__ == "__main__":
    main()
