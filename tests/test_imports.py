"""Help is quick: it imports no torch, diffusers or matplotlib, and neither does the package itself."""

import subprocess
import sys

import difflens
from difflens.cli import COMMANDS

HEAVY = ("torch", "torchvision", "diffusers", "accelerate", "matplotlib", "numpy", "PIL")

PROGRAM = """
import sys
for action in {actions}:
    try:
        exec(action)
    except SystemExit:
        pass
    print("imported:", *sorted({{name.partition(".")[0] for name in sys.modules}} & {{*{heavy}}}))
"""


def imported(*actions: str) -> list[str]:
    """The ends of a program's lines on which of `HEAVY` it has imported, after each of `actions`."""
    program = PROGRAM.format(actions=actions, heavy=HEAVY)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return [line.removeprefix("imported:") for line in result.stdout.splitlines() if line[:9] == "imported:"]


def test_the_package() -> None:
    before, after = imported(
        "import difflens; difflens.ProbeConfig, difflens.__version__",
        "import difflens; difflens.load_backbone",
    )
    assert before == ""
    assert " torch" in after


def test_help() -> None:
    words = [["--help"], *([name, "--help"] for name in COMMANDS)]
    found = imported(*(f"from difflens.cli import main; main({each})" for each in words))
    assert dict(zip(map(" ".join, words), found, strict=True)) == {" ".join(each): "" for each in words}


def test_every_public_name_exists() -> None:
    for name in difflens.__all__:
        assert getattr(difflens, name) is not None
