"""The Python of README.md runs as it stands."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from difflens import ExtractConfig, ProbeConfig, extract, probe
from tests.helpers.images import make_image_tree

README = Path(__file__).parents[1] / "README.md"


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_snippet_of_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with a photo, a run and a store of the names that it uses; shapes in comments are true."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (90, 60), "red").save("photo.jpg")
    tree = make_image_tree(tmp_path / "images")
    common: dict = {"backbone": "fashion", "data": tree, "blocks": 18, "noise_steps": 5, "device": "cpu"}
    extract(ExtractConfig(out="store", splits="train", limit=20, **common))
    probe(ProbeConfig(out="runs/mine", head="linear", limit=20, epochs=1, **common))
    (snippet,) = snippets()
    names: dict = {}
    exec(snippet, names)
    commented = re.findall(r"^(\w+) = .*# (?:the same weights draw: )?(\(\d[\d, ]+\))", snippet, re.MULTILINE)
    assert [name for name, _ in commented] == ["batch", "vectors", "drawn"]
    for name, shape in commented:
        assert str(tuple(names[name].shape)) == shape
    assert (
        str({place: tuple(maps.shape) for place, maps in names["maps"].items()})
        == "{(18, 5): (1, 128, 8, 8), (20, 5): (1, 64, 16, 16)}"
    )
    assert names["probabilities"].shape == (1, len(names["model"].classes))
    assert tuple(names["stored"].shape) == (20, 128, 8, 8)
    assert names["head"].weight.grad is not None
    assert torch.equal(names["numbers"], names["store"].index("train"))
