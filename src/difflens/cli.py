"""The command line: one command per public function. It parses, calls and prints, nothing else."""

import sys
from collections.abc import Sequence

import tyro
from rich.console import Console

from difflens.errors import DiffLensError
from difflens.tasks.pretraining import PretrainConfig, pretrain

COMMANDS = {"pretrain": PretrainConfig}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `difflens` and `python -m difflens`: exits 0, or 2 after a user's error."""
    config = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="difflens",
        args=arguments,
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    try:
        run(config)
    except DiffLensError as error:
        Console(stderr=True).print(f"difflens: error: {error}", style="bold red", highlight=False, markup=False)
        sys.exit(2)


def run(config: PretrainConfig) -> None:
    if isinstance(config, PretrainConfig):
        print(pretrain(config))
