"""Text files are UTF-8, whatever the locale; libraries are those that pyproject.toml names."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

import difflens

SOURCES = sorted(Path(difflens.__file__).parent.rglob("*.py"))
NOT_FILES = ("Image", "webbrowser", "os", "tarfile", "_Pipeline")


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


PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULES = {
    "faster-coco-eval": "faster_coco_eval",
    "lazy-loader": "lazy_loader",
    "pillow": "PIL",
    "pydantic": "pydantic pydantic_core",
    "pyyaml": "yaml",
    "segmentation-models-pytorch": "segmentation_models_pytorch",
    "torch-fidelity": "torch_fidelity",
}
"""The modules of libraries whose names differ."""
INDIRECT = {
    "onnx": "onnxscript",
    "pyarrow": "datasets",
    "sentencepiece": "transformers",
    "protobuf": "transformers",
    "tensorboard": "accelerate.tracking",
}
"""Libraries that come with, or are imported by, another one."""


def modules(requirements: list[str]) -> set[str]:
    names = [re.split(r"[<>=\[]", requirement)[0] for requirement in requirements]
    return {module for name in names for module in MODULES.get(name, name).split()}


def imports(tree: ast.AST) -> set[str]:
    """The libraries that a module imports when it is imported itself, without those in `try`."""
    found = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
        elif isinstance(node, ast.ClassDef):
            found |= imports(node)
    return found - {*sys.stdlib_module_names, "difflens"}


def test_what_is_installed_alone_is_enough() -> None:
    """Libraries of extras are imported in functions or in `try`, so the rest works without them."""
    needed = set().union(*(imports(ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES))
    assert needed == modules(PROJECT["dependencies"])


def test_every_extra_is_imported() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    of_tests = ("dev", "slow")
    extras = {name: needs for name, needs in PROJECT["optional-dependencies"].items() if name not in of_tests}
    for module in modules([need for needs in extras.values() for need in needs]):
        pattern = rf"^ *(import|from) {re.escape(INDIRECT.get(module, module))}\b"
        assert re.search(pattern, text, re.MULTILINE), module
