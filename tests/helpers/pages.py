"""The commands and Python blocks of the documentation's pages."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

_LAUNCHER = re.compile(r"^(torchrun|accelerate launch) .*?-m (?=difflens )")


def named(pages: list[Path]) -> list[str]:
    """The names of pages, for the names of tests."""
    return [str(page.relative_to(ROOT)) for page in pages]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


def lines(page: Path) -> list[list[str]]:
    """The words of each line of shell; of a line that starts several processes, those of one process."""
    text = "\n".join(blocks(page, "sh"))
    if page.name == "CONTRIBUTING.md":
        text = "\n".join(re.findall(r"^    (\S.*)$", page.read_text(encoding="utf-8"), re.M))
    words = (shlex.split(_LAUNCHER.sub("", line), comments=True) for line in text.splitlines())
    return [each for each in words if each]


def commands(page: Path) -> list[list[str]]:
    """The words after `difflens` of each command."""
    return [words[1:] for words in lines(page) if words[0] == "difflens"]


def options(page: Path) -> set[str]:
    """The options that a page names anywhere, without hyphens in front."""
    return {*re.findall(r"(?<![\w-])--([a-z][\w-]*)", page.read_text(encoding="utf-8"))}
