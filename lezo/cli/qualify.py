"""lezo-qualify: what a GPU does with lezo, on one page, in under ten minutes."""

from __future__ import annotations

import shlex

from lezo.cli.run import answer_words

HELP = """lezo-qualify: check a GPU for lezo in ten minutes: does it compute the right bits, how fast is a step, which models fit.

Commands to copy
  lezo-qualify                                           on CUDA opt-1.3b, opt-13b and opt-30b, on a CPU the embedded model
  lezo-qualify data=local data.path=DIR model.tokenizer=DIR   on real rows, as the times in docs/h100 were measured
  lezo-qualify qualify.models=[opt-13b] qualify.minutes=5
  lezo-qualify qualify.sections=[noise,steps]            only whether the bits are right: seconds

Sections
  noise   perturbations and updates on the device are compared with a slow reference on the CPU, bit for bit
  steps   a few LeZO and MeZO steps; their journal is replayed on the device and on the CPU; how often the host waits
  killed  a run is killed with SIGKILL and resumed: it must end as a run that nobody kills
  times   each model that fits, with random weights, on each task: the times of lezo-bench, their ratios and targets, and
          memory planned and used

Options
  qualify.out=DIR                 the folder of the page      [runs/qualify/<time>]
  qualify.models=[NAME]           models to time              [opt-1.3b, opt-13b, opt-30b; on a CPU tiny]
  qualify.tasks=[sst2,rte]        tasks to time them on
  qualify.sections=[NAME]         only these sections         [all]
  qualify.minutes=10              time for everything; what does not fit into it is timed less often, then left out
  qualify.steps=200               steps of the run that is killed, at least 3
  All other options are those of lezo-run and lezo-bench, for every section: data=..., model.tokenizer=...,
  model.device=..., train.batch_size=..., bench.repeats=..., bench.window=...; but not task, model and optim.
  Without data=... rows are synthetic and the tokenizer is the embedded one.

Nothing is downloaded. The folder gets page.md, page.json and page.png, updated after each section; a section that fails is
reported, and the next one starts. Exits with 0 where everything that was tried is right, 1 where a section failed, 2 for
bad options; a time or ratio that misses its target is reported and is no failure.
"""


def main() -> None:
    """The command. Exits with 0, 1 where a section failed, 2 for bad options, 130 interrupted."""
    answer_words("lezo-qualify", HELP, _answer)


def _answer(given: list[str]) -> int:
    """Go through the sections. Returns the exit code."""
    from lezo.config.compose import command_options
    from lezo.config.schema import QualifyConfig

    own = [word for word in given if word.startswith("qualify.")]
    settings = command_options(QualifyConfig, own)

    from lezo.bench.qualify import qualify  # torch and transformers take seconds to import: only now

    others = [word for word in given if word not in own]
    return qualify(settings, others, shlex.join(["lezo-qualify", *given]))


if __name__ == "__main__":
    main()
