"""lezo-eval: models scored again, on a run's own rows or others: runs, journals, saved models and adapters, base models."""

from __future__ import annotations

import re

from lezo.cli.run import answer_words

HELP = """lezo-eval: score models again: runs, saved models, adapters, base models; on their own task or on another.

Commands to copy
  lezo-eval RUN                                  the test score of a run, the same number as in its result.json
  lezo-eval RUN split=dev                        on its dev rows, or split=train
  lezo-eval RUN task=copa data=hub               on another task
  lezo-eval RUN/model eval.calibration=sfc       the model that save_model=true or lezo-replay wrote, calibrated
  lezo-eval opt-1.3b facebook/opt-125m RUN task=sst2 data=hub    several, one table
  lezo-eval MODEL task=prompt task.template='{{ Text }} It was' task.label_column=Class \\
      'task.words={pos: great, neg: terrible}' data=local data.path=reviews.csv   on rows of your own

RUN or MODEL, one or more
  a run's folder      its best step's model; where it was not saved, made in memory from base weights and journal
                      (or checkpoint), as lezo-replay does; of a run that goes on, the best step so far
  journal.bin         a journal alone, which knows no task: add task=... and data=...
  a model's folder    of save_model=true or lezo-replay (its lezo.json tells the task and the prompt), or anybody's
  an adapter's folder a LoRA or a prefix, as lezo and peft save them; model.path=DIR where its base lies elsewhere
  a model             lezo's name for it (opt-1.3b), an id on the Hugging Face hub, or a .gguf file

Options
  split=test          or dev, train: which rows              [test]
  task=...  task.*    another task, or another prompt, number of rows, seed (task.data_seed), demonstrations (task.demos)
  data=...  data.*    other rows
  eval.calibration    none, sfc, icl_sfc                     [as the run had it]
  eval.batch_size     sequences a forward                    [as the run had it; else 32]
  eval.max_new_tokens tokens of a generated answer at most
  eval.json=true      print JSON in place of the table, with device, dtype and SHA-256 of the weights
  eval.out=FILE       write that JSON to a file
  eval.predictions=DIR  write each model's predictions there, a file a model, as lezo-run writes predictions.jsonl
  model.device  model.devices  model.dtype  model.home    where the model runs, and how    [device: CUDA where there is one]
  model.path=DIR      the base model of a run or an adapter, where it lies elsewhere
  model.tokenizer  model.bos  model.max_length  model.quantization    as in lezo-run --help

Without words a run is scored on its own test rows with its own prompts, sizes and seeds: the same numbers, bit for bit on
the same kind of device. Another task has lezo-run's sizes and seeds; the run's own, named again, keeps the run's. Nothing is trained, nothing is written into a run's
folder, and no code that comes with a model runs.
"""
_OWN = re.compile(r"(eval\.)?split=|eval\.(json|out|predictions)=")


def main() -> None:
    """The command. Exits with 0, 1 where a model could not be scored, 2 for bad words, 130 when interrupted."""
    answer_words("lezo-eval", HELP, _answer)


def _answer(given: list[str]) -> int:
    """Score what is named. Returns the exit code."""
    from lezo.config.compose import command_options
    from lezo.config.schema import ConfigError, EvaluateConfig
    from lezo.config.written import own_words, refuse_other_words

    if not given:
        print(HELP, end="")
        return 2
    own = [word for word in given if _OWN.match(word)]
    full = [word if word.startswith("eval.") else f"eval.{word}" for word in own]
    options = command_options(EvaluateConfig, full, "eval")
    words, names = own_words([word for word in given if word not in own])
    if not names:
        raise ConfigError(
            ["no RUN or MODEL; expected a run's folder, a saved model or a model's name (--help)"]
        )
    refuse_other_words(words)

    from lezo.runs.scoring import score_all  # torch and transformers take seconds to import: only now

    return score_all(names, words, options)


if __name__ == "__main__":
    main()
