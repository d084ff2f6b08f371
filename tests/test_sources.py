"""Text files are UTF-8, whatever the locale: no call that reads or writes text leaves the encoding open."""

import ast
from pathlib import Path

import pytest

import difflens

SOURCES = sorted(Path(difflens.__file__).parent.rglob("*.py"))
NOT_FILES = ("Image", "webbrowser", "os", "_Pipeline")


def open_encodings(tree: ast.AST) -> list[int]:
    """The lines of calls that read or write text in the locale's encoding."""
    found = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        owner = getattr(getattr(call.func, "value", None), "id", "")
        texts = [value for value in map(ast.unparse, call.args) if value[0] in "'\""]
        binary = any("b" in value for value in texts) and name == "open"
        named = any(keyword.arg == "encoding" for keyword in call.keywords) or "'utf-8'" in texts
        if name in ("open", "read_text", "write_text") and owner not in NOT_FILES and not (binary or named):
            if name in ("read_text", "write_text") and isinstance(call.func, ast.Name):
                continue  # our own, which are UTF-8
            found.append(call.lineno)
    return found


def test_text_files_are_utf_8() -> None:
    found = {path.name: open_encodings(ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize("call", ["open('a')", "path.open('w')", "path.read_text()", "path.write_text(x)"])
def test_a_missing_encoding_is_found(call: str) -> None:
    assert open_encodings(ast.parse(call)) == [1]
