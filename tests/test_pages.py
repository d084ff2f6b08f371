"""What the pages say is so: commands parse; options, files and public names exist."""

import ast
import re
from contextlib import suppress
from pathlib import Path
from typing import get_args

import pytest

import difflens
from difflens.choices import HeadChoice
from difflens.cli import COMMANDS
from difflens.configs.options import hints_of, resolve
from difflens.parsing import parse
from tests.helpers.pages import PAGES, ROOT, blocks, commands, lines, named, options

SHOWN = [(page, words) for page in PAGES for words in commands(page)]
PYTHON = [page for page in PAGES if blocks(page, "python")]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with one run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "linear").mkdir(parents=True)
    (tmp_path / "runs" / "linear" / "config.yaml").write_text("command: probe\nhead: linear\n")
    return tmp_path


def test_pages_show_every_command() -> None:
    assert {words[0] for _, words in SHOWN} >= {*COMMANDS}
    assert len(SHOWN) > 70


@pytest.mark.parametrize("words", [words for _, words in SHOWN], ids=" ".join)
def test_a_command_parses(words: list[str], directory: Path) -> None:
    """Its options exist, are in their ranges, and have an effect together."""
    if words[0].startswith("--tyro"):
        file = directory / "completions"
        with suppress(SystemExit):
            parse([*words[:-1], str(file)], COMMANDS)
        assert file.stat().st_size
        return
    resolve(parse(words, COMMANDS))


def test_other_lines_name_what_there_is() -> None:
    targets = {*re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)}
    for page in PAGES:
        for program, *words in lines(page):
            if program == "make":
                assert words[0] in targets
            elif program == "python":
                assert (ROOT / words[0]).is_file()
            else:
                assert program in ("difflens", "git")


@pytest.mark.parametrize("page", PAGES, ids=named(PAGES))
def test_options_in_the_text_exist(page: Path) -> None:
    known = {"help", "version", "config", "nproc-per-node", "tyro-write-completion"}
    if page.name == "scale.md":
        known |= {"nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "requeue"}  # of Slurm
        known |= {"nnodes", "rdzv-backend", "rdzv-endpoint"}  # of torchrun
    if page.name == "CONTRIBUTING.md":
        known |= {"images", "licence", "hardware", "fidelity"}  # of tools/bundle.py
    for kind in COMMANDS.values():
        names = {name.replace("_", "-") for name in hints_of(kind)}
        known |= names | {f"no-{name}" for name in names}
    assert options(page) <= known


@pytest.mark.parametrize("page", PAGES, ids=named(PAGES))
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target and target != "reference/index.md":
            assert (page.parent / target).is_file(), target


@pytest.mark.parametrize("page", PYTHON, ids=named(PYTHON))
def test_python_takes_names_that_exist(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "difflens":
                assert {each.name for each in node.names} <= {*difflens.__all__}
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "difflens":
                assert node.attr in difflens.__all__


def test_the_page_of_heads_names_every_head() -> None:
    text = (ROOT / "docs" / "heads.md").read_text()
    assert {head for head in get_args(HeadChoice) if f"`{head}`" not in text} == set()


def test_the_page_of_python_names_every_function() -> None:
    text = (ROOT / "docs" / "python.md").read_text()
    for name, kind in COMMANDS.items():
        function = "list_presets" if name == "presets" else name
        assert callable(getattr(difflens, function))
        assert f"`{function}`" in text
        assert f"`{kind.__name__}`" in text


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
