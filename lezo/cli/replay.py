"""lezo-replay: the fine-tuned model of a run, made again from its base weights and its journal."""

from __future__ import annotations

from pathlib import Path

from lezo.cli.run import answer_words

HELP = """lezo-replay: make a run's fine-tuned model again, from the base weights and the run's journal.

Commands to copy
  lezo-replay RUN                               the best step's model, for from_pretrained, in RUN/model
  lezo-replay RUN replay.step=500               another step's, finished or not, in RUN/model-step-500
  lezo-replay RUN replay.verify=true            check the run: records, base weights, metrics, final weights
  lezo-replay journal.bin replay.out=DIR        the journal is all there is to share: a few hundred kilobytes
  lezo-replay journal.bin replay.base=DIR       where the base model lies elsewhere on this machine
  lezo-replay --best FOLDER                     of a folder of runs, such as a sweep's, the one of the lowest dev loss

RUN is the folder of a zeroth-order run, or its journal.bin alone. Nothing is forwarded or trained: the
journal's updates are added to the base weights, on any device to the same bits.

Options
  replay.step    the step whose model is wanted      [the one of the lowest dev loss, else the last]
  replay.out     folder to write, not there yet      [RUN/model for the result's step, else RUN/model-step-N]
  replay.best    --best as a setting: the word is a folder of finished runs of one task, model and method
  replay.verify  check everything, and write only to a replay.out that is given
  replay.base    folder or hub id of the base model  [where the run found it]
  replay.device  auto, cpu, cuda or cuda:N           [auto: CUDA where there is one]
  replay.devices auto or [cuda:0,cuda:1]: blocks over several devices, in place of one
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
