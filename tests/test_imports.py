"""Help is quick: it imports no torch, diffusers or matplotlib, and neither does the package itself."""

import subprocess
import sys

import pytest

import difflens
from difflens.cli import COMMANDS

HEAVY = ("torch", "torchvision", "diffusers", "accelerate", "matplotlib", "numpy", "PIL")

PROGRAM = """
import sys
try:
    {action}
except SystemExit:
    pass
print("imported:", *sorted({{name.partition(".")[0] for name in sys.modules}} & {{*{heavy}}}))
"""


def imported(action: str) -> list[str]:
    """Which of `HEAVY` a program imports that does `action`."""
    program = PROGRAM.format(action=action, heavy=HEAVY)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[-1].split()[1:]


def test_the_package() -> None:
    assert imported("import difflens; difflens.ProbeConfig, difflens.__version__") == []
    assert "torch" in imported("import difflens; difflens.load_backbone")


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help(words: list[str]) -> None:
    assert imported(f"from difflens.cli import main; main({words})") == []


def test_every_public_name_exists() -> None:
    for name in difflens.__all__:
        assert getattr(difflens, name) is not None
