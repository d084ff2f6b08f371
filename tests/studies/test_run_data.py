"""The data of an earlier run, whose relative path may name other images, or none, in another directory."""

from pathlib import Path

import pytest

from difflens import (
    DiffLensError,
    ExplainConfig,
    PretrainConfig,
    ProbeConfig,
    ReportConfig,
    explain,
    pretrain,
    probe,
    report,
)
from difflens.run.reading import read_yaml
from difflens.studies.run_data import RunData
from tests.helpers.images import make_image_tree

HERE = {"device": "cpu", "workers": 0}


@pytest.fixture
def runs(backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A probe and a pretrain run on the folder `images` of the working directory."""
    home = tmp_path / "home"
    make_image_tree(home / "images")
    monkeypatch.chdir(home)
    paths = {name: home / name for name in ("probe", "pretrain")}
    probe(
        ProbeConfig(
            out=paths["probe"],
            backbone=str(backbone_folder),
            data="images",
            head="linear",
            blocks=(6,),
            noise_steps=(5,),
            epochs=1,
            **HERE,
        )
    )
    pretrain(
        PretrainConfig(
            out=paths["pretrain"], data="images", preset="tiny", epochs=1, batch_size=8, limit=9, **HERE
        )
    )
    return paths


def read_again(runs: dict[str, Path], name: str, out: Path) -> None:
    if name == "probe":
        explain(ExplainConfig(run=runs["probe"], out=out, count=1, blocks=(1,), noise_steps=(3,), **HERE))
    report(ReportConfig(runs=(str(runs[name]),), out=out.with_suffix(".html"), samples=2, **HERE))


@pytest.mark.parametrize("name", ["probe", "pretrain"])
def test_a_run_finds_its_images_or_says_so(
    runs: dict[str, Path], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_again(runs, name, tmp_path / "same")

    other = tmp_path / "other"
    make_image_tree(other / "images", per_class=5)
    monkeypatch.chdir(other)
    with pytest.raises(DiffLensError, match=f"{name} read other images than --data images names here"):
        read_again(runs, name, tmp_path / "other-images")

    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    with pytest.raises(DiffLensError, match=f"{name} read --data images, which cannot be loaded from here: "):
        read_again(runs, name, tmp_path / "no-images")

    record = read_yaml(runs[name] / "config.yaml", RunData)
    assert record.command == name
    assert record.data_fingerprint is not None


def test_named_data_are_read_whatever_the_run_read(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_image_tree(tmp_path / "other" / "images", per_class=5)
    monkeypatch.chdir(tmp_path)
    data, options = "other/images", {"count": 1, "blocks": (1,), "noise_steps": (3,)}
    explain(ExplainConfig(run=runs["probe"], data=data, out=tmp_path / "run", **options, **HERE))
    report(ReportConfig(runs=(str(runs["probe"]),), data=data, out=tmp_path / "a.html", samples=2, **HERE))
