"""lezo-qualify: what a GPU does with lezo, on one page, in under ten minutes."""

from __future__ import annotations

import shlex

from lezo.cli.run import answer_words

HELP = """lezo-qualify: try a GPU (or, in small, a CPU) with lezo: are its bits right, how fast is a step, what fits.

Commands to copy
  lezo-qualify                                           on CUDA opt-1.3b, opt-13b and opt-30b, else the embedded model
  lezo-qualify data=local data.path=DIR model.tokenizer=DIR   on real rows, whose lengths the published times have
  lezo-qualify qualify.models=[opt-13b] qualify.minutes=5
  lezo-qualify qualify.sections=[noise,steps]            the bits alone: seconds

Sections
  noise   the device's perturbations and updates against the slow twin on the CPU, bit for bit
  steps   a few LeZO and MeZO steps, their journal replayed on the device and on the CPU; the host's waits a step
  killed  a run killed with SIGKILL in the middle that goes on, beside one that nobody kills: the same end
  times   of each model that fits, with random weights, on each task: what lezo-bench measures, the ratios beside what
          they should be, the memory that was planned beside what was used

Options
  qualify.out=DIR                 the folder of the page      [runs/qualify/<time>]
  qualify.models=[NAME]           models to time              [opt-1.3b, opt-13b, opt-30b; on a CPU tiny]
  qualify.tasks=[sst2,rte]        tasks to time them on
  qualify.sections=[NAME]         these alone                 [all]
  qualify.minutes=10              time for everything; what does not fit in is timed less often, then left out
  qualify.steps=200               steps of the run that is killed, at least 3
  All other options are those of lezo-run and lezo-bench, for all that is run: data=..., model.tokenizer=...,
  model.device=..., train.batch_size=..., bench.repeats=..., bench.window=...; not task, model and optim.
  Without them rows are synthetic and the tokenizer is the embedded one.

Nothing is downloaded. The folder holds page.md, page.json and page.png, written anew after each section: one that fails
says so and the next one begins. Exits with 0 where all that was tried is right, 1 where a section failed, 2 for bad
options; a ratio that is not met is said and fails nothing.
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
