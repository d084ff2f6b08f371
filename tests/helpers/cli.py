"""The command line, run in this process."""

from difflens import cli


def run(*arguments: object) -> int:
    """The exit code of `difflens` with these arguments."""
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
