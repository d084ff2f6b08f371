"""MkDocs' hooks: pages that are made when the site is built, and links between them.

Files outside docs/ become pages as they are. Each command has a page that is made from its configuration.
Notebooks are shown as text and code.
"""

import ast
import inspect
import json
import posixpath
import re
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from difflens.backbones.load import BUNDLED  # noqa: E402
from difflens.cli import COMMANDS  # noqa: E402
from difflens.configs.options import Options, hints_of  # noqa: E402
from difflens.ranges import Range  # noqa: E402

INCLUDED = {
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/RESULTS.md": "results.md",
    **{
        f"src/difflens/assets/{name}/{file}": f"{name}/{page}"
        for name in BUNDLED
        for file, page in (("README.md", "card.md"), ("loss.png", "loss.png"), ("samples.png", "samples.png"))
    },
}
"""Files outside docs/, and the pages that they are."""

_LINK = re.compile(r"(?<=\]\()([^)\s:#]+\.(?:md|ipynb))")


def on_config(config: MkDocsConfig) -> None:
    """List the commands in the navigation."""
    pages = ["reference/index.md", *({name: f"reference/{name}.md"} for name in COMMANDS)]
    nav: list[dict[str, Any]] = config.nav or []
    next(entry for entry in nav if "Command reference" in entry)["Command reference"] = pages


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not files of docs/."""
    for path, page in INCLUDED.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    files.append(File.generated(config, "reference/index.md", content=_index()))
    for name, kind in COMMANDS.items():
        files.append(File.generated(config, f"reference/{name}.md", content=_command(name, kind)))
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        page = f"notebooks/{notebook.stem}.md"
        files.append(File.generated(config, page, content=notebook_text(notebook)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages."""
    here = page.file.src_uri
    origin = {page: path for path, page in INCLUDED.items()}.get(here, f"docs/{here}")

    def linked(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link[1]))
        target = INCLUDED.get(path, "index.md" if path == "README.md" else path.removeprefix("docs/"))
        if not here.startswith("notebooks/"):  # the page of a notebook links to its file
            target = re.sub(r"\.ipynb$", ".md", target)
        return posixpath.relpath(target, posixpath.dirname(here) or ".")

    return _LINK.sub(linked, markdown)


def notebook_text(notebook: Path) -> str:
    """Return the cells of a notebook as Markdown, without outputs."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    texts = (("".join(cell["source"]), cell["cell_type"] == "code") for cell in cells)
    shown = [f"```python\n{text}\n```" if is_code else text for text, is_code in texts]
    return "\n\n".join([*shown, f"[Download this notebook]({notebook.name}){{ download }}"])


def _index() -> str:
    lines = [
        f"[`{name}`]({name}.md)\n:   {_markdown(_summary(inspect.getdoc(kind) or ''))}\n"
        for name, kind in COMMANDS.items()
    ]
    return "\n".join(
        ["# Command reference\n", "Made from the configurations, as `difflens COMMAND --help` is.\n", *lines]
    )


def _command(name: str, kind: type[Options]) -> str:
    """Return the page of a command: what it does, its options by group, and its presets."""
    parts = [f"# difflens {name}", _markdown(inspect.getdoc(kind) or "")]
    for group in kind.__mro__[:-1]:  # the last is object
        names = [name for name in _docstrings(group) if _owner(kind, name) is group]
        title = "Options of its own" if group is kind else _summary(inspect.getdoc(group) or "").rstrip(".")
        if names:
            parts += [f"## {title}", *(_option(kind, name) for name in names)]
    if kind.PRESETS:
        parts += ["## Presets", *(_preset(name, values) for name, values in kind.PRESETS.items())]
    return "\n\n".join(parts)


def _owner(kind: type[Options], name: str) -> type:
    """Return the class whose text about an option counts for a command: the first one that declares it."""
    return next(group for group in kind.__mro__[:-1] if name in _docstrings(group))


def _option(kind: type[Options], name: str) -> str:
    """Return an option as an entry of a definition list."""
    hint = hints_of(kind)[name]
    default = next(field.default for field in fields(kind) if field.name == name)
    flag = f"--{name.replace('_', '-')}"
    if name in kind.POSITIONAL:
        flag = name.upper()
    elif default is True:
        flag = f"{flag}, --no-{flag[2:]}"
    words = "" if isinstance(default, bool) or name in kind.POSITIONAL else f" {_values(hint)}"
    notes = " ".join(f"{note}." for note in (_default(default), _range(hint)) if note)
    text = _markdown(_docstrings(_owner(kind, name))[name])
    return f"`{flag}{words}`\n:   {text} {notes and f'*{notes}*'}"


def _preset(name: str, values: Mapping[str, Any]) -> str:
    shown = (
        f"`--{key.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, tuple) else value}`"
        for key, value in values.items()
    )
    return f"`{name}`\n:   {' '.join(shown)}"


def _default(default: object) -> str:
    """Return the default; empty where the option's text tells what its absence means."""
    if default is MISSING:
        return "Required"
    if default is None or default == () or isinstance(default, bool):
        return ""
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f"Default: `{shown}`"


def _range(hint: Any) -> str:
    """Return the range of the numbers that an option takes; empty for other options."""
    for mark in _marks(hint):
        return f"From {mark.least:,} to {mark.most:,}"
    return ""


def _marks(hint: Any) -> Iterator[Range]:
    if get_origin(hint) is Annotated:
        yield from (mark for mark in hint.__metadata__ if isinstance(mark, Range))
        hint = hint.__origin__
    if get_origin(hint) is not Literal:
        for part in get_args(hint):
            yield from _marks(part)


def _values(hint: Any) -> str:
    """Return what an option takes: `linear|mlp`, `INTEGER`, `PATH PATH`, or `NUMBER ...`."""
    if get_origin(hint) is Annotated:
        return _values(hint.__origin__)
    if get_origin(hint) in (Union, types.UnionType):
        parts = [_values(part) for part in get_args(hint) if part is not types.NoneType]
        return "NUMBER" if {*parts} == {"INTEGER", "NUMBER"} else "|".join(parts)
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        return f"{_values(parts[0])} ..." if parts[-1] is Ellipsis else " ".join(map(_values, parts))
    return {int: "INTEGER", float: "NUMBER", bool: "True|False", Path: "PATH", str: "WORD"}[hint]


@cache
def _docstrings(group: type) -> dict[str, str]:
    """Return the text below each option that a class declares."""
    tree = ast.parse(inspect.getsource(sys.modules[group.__module__]))
    body = [
        line
        for each in tree.body
        if isinstance(each, ast.ClassDef) and each.name == group.__name__
        for line in each.body
    ]
    return {
        option.target.id: inspect.cleandoc(text.value.value)
        for option, text in pairwise(body)
        if isinstance(option, ast.AnnAssign) and isinstance(option.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if "ClassVar" not in ast.unparse(option.annotation)
    }


def _summary(text: str) -> str:
    """Return the first paragraph of a docstring."""
    return " ".join(text.split("\n\n")[0].split())


def _markdown(text: str) -> str:
    """Return plain text as Markdown, with options set as code."""
    parts = text.split("`")
    for number, part in enumerate(parts[::2]):
        plain = re.sub(r"([*_<])", r"\\\1", part)
        parts[2 * number] = re.sub(r"(?<!\w)--[a-z][a-z-]*", r"`\g<0>`", plain)
    return "`".join(parts)
