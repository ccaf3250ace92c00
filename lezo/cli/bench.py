"""lezo-bench: how long a step takes, beside the published code's and beside two bare forwards."""

from __future__ import annotations

import sys
from typing import Any

from lezo.cli.run import command_line, complain
from lezo.config.compose import Composed, command, compose
from lezo.config.schema import ConfigError, Home
from lezo.ranks.launcher import refuse_several
from lezo.runs.terminal import open_streams

HELP = """lezo-bench: time zeroth-order steps on a task's real lengths, beside the published code's form of them.

Commands to copy
  lezo-bench task=rte                                    the embedded model: a minute, to see what comes out
  lezo-bench model=opt-1.3b task=rte                     on CUDA, data and weights from the Hugging Face hub
  lezo-bench model=opt-30b model.random_weights=true model.tokenizer=DIR task=rte data=local data.path=DIR
  lezo-bench ... optim.sparsity=0.5 train.batch_size=8   another number of blocks skipped, another batch

What is timed, in turns on one batch of typical length
  floor             two bare forwards over the batch as our engine packs it, ready before: what no two-point step can beat
  textbook_mezo     the published step: four passes over the weights in place, a padded row a candidate, logits at
                    every position, a key/value cache
  textbook_foreach  the same with torch._foreach_ operations over all tensors: few launches, fewer passes over memory
  textbook_lezo     textbook_mezo moving the chosen blocks only, and the tensors outside blocks
  mezo, lezo        what lezo-run trains with; lezo skips optim.sparsity of the blocks (with optim=mezo: 0.75)
  published         the step of MeZO's own code, where bench.mezo_path names its folder
and then consecutive steps of a run by mezo and lezo, each on its own batch. With optim.objective=metric the floor are
two evaluations, and there is no textbook.

Options
  bench.repeats           timed steps of each variant, after one to warm up   [20 on CUDA, 5 on a CPU]
  bench.textbook_repeats  the same for the textbook's     [at most 5; 1 where a step takes above 10 s]
  bench.window            consecutive steps of a run      [40 on CUDA, 4 on a CPU; 0: none]
  bench.profile=false     also write trace.json, a torch profiler trace of one lezo step
  bench.mezo_path=DIR     the folder of princeton-nlp/MeZO's large_models: of its trainer.py the methods of a step are
                          run as they stand. It is code of others: name only a folder that you trust
  bench.variant           step once as this variant and print its peak memory; how the command measures memory on a CPU
  Groups and all other options are those of lezo-run (lezo-run --help); optim must be lezo or mezo.

Results appear in runs/bench/<task>/<model>/<time>/ (hydra.run.dir=DIR chooses another folder): bench.json, table.md,
steps.png, metrics.jsonl with a row a step, config.yaml, environment.json.
Peak memory is what is allocated on the device on CUDA, with what torch reserved for it beside; else all that a process
of its own held, Python and libraries included. Clocks and power are read meanwhile where NVML or nvidia-smi is.
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
