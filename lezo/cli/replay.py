"""lezo-replay: rebuild a run's fine-tuned model from its base weights and its journal."""

from __future__ import annotations

from pathlib import Path

from lezo.cli.run import answer_words

HELP = """lezo-replay: rebuild a run's fine-tuned model from its base weights and its journal.

Commands to copy
  lezo-replay RUN                               write the best step's model, for from_pretrained, to RUN/model
  lezo-replay RUN replay.step=500               the model of step 500, also of an unfinished run, to RUN/model-step-500
  lezo-replay RUN replay.verify=true            check the run: records, base weights, metrics, final weights
  lezo-replay journal.bin replay.out=DIR        from a journal that somebody shared: a few hundred kilobytes
  lezo-replay journal.bin replay.base=DIR       with the base model in a folder of this machine
  lezo-replay --best FOLDER                     of a folder of runs, such as a sweep's, the one of the lowest dev loss

RUN is the folder of a zeroth-order run, or its journal.bin alone. No forward pass is made and nothing is trained:
the journal's updates are added to the base weights, with the same bits on any device. lezo-eval RUN scores the model.

Options
  replay.step    which step's model                  [the step of the lowest dev loss, else the last]
  replay.out     a new folder to write it to         [RUN/model for the result's step, else RUN/model-step-N]
  replay.best    --best as a setting: the word is a folder of finished runs of one task, model and method
  replay.verify  check the run, and write a model only where replay.out is given
  replay.base    folder or hub id of the base model  [where the run found it]
  replay.device  auto, cpu, cuda or cuda:N           [auto: CUDA where there is one]
  replay.devices auto or [cuda:0,cuda:1]: spread the blocks over several devices
  replay.home    where blocks live: device, host or disk   [as the run's configuration says]
  replay.home_dir  folder for the file of disk       [the run's own, else RUN]
"""


def main() -> None:
    """The command. Exits with 0, 1 for no model or a failed check, 2 for bad options, 130 interrupted."""
    answer_words("lezo-replay", HELP, _answer, flags={"--best": "replay.best=true"})


def _answer(given: list[str]) -> int:
    """Replay, check or write. Returns the exit code."""
    from lezo.config.compose import command_options
    from lezo.config.schema import ConfigError, ReplayConfig

    if not given:
        print(HELP, end="")
        return 2
    options = [word for word in given if word.startswith("replay.")]
    runs = [word for word in given if word not in options]
    if len(runs) != 1:
        raise ConfigError([f"{' '.join(runs) or 'no RUN'}: expected one run folder or journal, and replay.*"])
    settings, run = command_options(ReplayConfig, options), Path(runs[0])
    if settings.best:
        from lezo.sweeps.best import best_below

        run = best_below(run)

    from lezo.runs.replay import replayed  # torch and transformers take seconds to import: only now

    return replayed(run, settings)


if __name__ == "__main__":
    main()
