"""lezo-dashboard: create a wandb project's workspace, or print what it would be."""

from __future__ import annotations

import os
import sys

from lezo.cli.run import answer_words

HELP = """lezo-dashboard: create a workspace (panels and charts) in the wandb project of runs with log=wandb.

Commands to copy
  lezo-dashboard board.dry_run=true                       print its panels and their keys, without network or account
  lezo-dashboard board.entity=NAME board.project=lezo     create it and print its address

It needs wandb-workspaces (pip install 'lezo[dashboard]'), an account (wandb login) and a project that has a run.
Each call makes a new workspace; the project's others stay as they are.

Options
  board.entity    user or team            [WANDB_ENTITY, else the account's own]
  board.project   log.project of the runs [WANDB_PROJECT, else lezo]
  board.name      the workspace's name    [lezo]
  board.dry_run   print it, create nothing  [false]
"""


def main() -> None:
    """The command. Exits with 0, 1 where no workspace could be made, 2 for bad options, 130 when interrupted."""
    answer_words("lezo-dashboard", HELP, _answer)


def _answer(words: list[str]) -> int:
    from lezo.config.compose import command_options
    from lezo.config.schema import BoardConfig
    from lezo.tracking.workspace import WorkspaceError, describe, save

    board = command_options(BoardConfig, words)
    name, project = board.name, board.project or os.environ.get("WANDB_PROJECT") or "lezo"
    entity = board.entity or os.environ.get("WANDB_ENTITY") or None
    try:
        print(describe(name, project) if board.dry_run else save(name, entity, project))
    except WorkspaceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    main()
