"""The program `difflens`, also as `python -m difflens`."""

from difflens.run.signals import leave_on_interrupt


def main() -> None:
    """Import and run the command line."""
    leave_on_interrupt()
    from difflens.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
