"""Configurations from words, from a run's config.yaml, and what a misspelt word may have meant."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from difflens import DiffLensError, ProbeConfig, __version__
from difflens.cli import COMMANDS
from difflens.configs.options import resolve
from difflens.parsing import parse
from tests.helpers.cli import run


def written(folder: Path, **options: object) -> Path:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({"command": "probe", **options}), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prob"], "no command prob; did you mean probe? there are demo,"),
        (["probe", "--haed", "mlp"], "probe has no option --haed; did you mean --head?"),
        (["probe", "--head=mlp", "--zzz"], "probe has no option --zzz; `difflens probe --help` lists them"),
        (["probe", "--no-seed"], "probe has no option --no-seed; did you mean --seed?"),
        (["segment", "--limit", "5"], "segment has no option --limit; `difflens segment --help` lists them"),
        (["probe", "--backbone", "fashon", "--out", "x"], "did you mean fashion?"),
        (["probe", "--preset", "paper-liner", "--out", "x"], "did you mean paper-linear?"),
        (["probe", "--data", "fashin", "--out", "x"], "did you mean fashion?"),
        (["probe", "--data", "torchvison:CIFAR10", "--out", "x"], "did you mean torchvision:CIFAR10?"),
        (["sweep", "--data", "pohtos", "--out", "x"], "did you mean photos?"),
    ],
)
def test_a_misspelt_word(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_every_option_of_every_command_is_known() -> None:
    """The check before the parser refuses none of its flags, in either spelling."""
    parse(["generate", "-n", "4", "--steps=3", "--out", "x"], COMMANDS)
    given = parse(["fidelity", "--samples", "x", "--ruler"], COMMANDS)
    assert given.reference_distances  # type: ignore[attr-defined]
    given = parse(["probe", "--no_fresh_noise", "--noise_steps", "5", "20", "--out", "x"], COMMANDS)
    assert given == ProbeConfig(out=Path("x"), fresh_noise=False, noise_steps=(5, 20))


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"difflens {__version__}\n"


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = written(
        tmp_path, head="mlp", blocks=[3, 4], grid=True, learning_rate=0.5, workers=2, data_fingerprint="f"
    )
    words = ["probe", "--blocks", "5", "--no-grid", "--config", str(file), "--out", "y"]
    assert parse(words, COMMANDS) == ProbeConfig(
        out=Path("y"), head="mlp", extractor="frozen", blocks=(5,), grid=False, learning_rate=0.5, workers=2
    )


def test_what_has_no_effect_beside_a_flag_is_dropped(tmp_path: Path) -> None:
    file = written(tmp_path, head="mix", mix="image", depth=2, learning_rate=0.5)
    config = parse(["probe", "--config", str(file), "--head", "knn", "--out", "y"], COMMANDS)
    assert config == ProbeConfig(out=Path("y"), head="knn", extractor="frozen", normalise="none")
    file = written(tmp_path, head="mlp", extractor="frozen", learning_rate=0.5, epochs=3)
    config = parse(["probe", "--config", str(file), "--preset", "diffeed", "--out", "y"], COMMANDS)
    assert config == ProbeConfig(out=Path("y"), preset="diffeed", learning_rate=0.5, epochs=3)
    with pytest.raises(DiffLensError, match="leave out --learning-rate"):  # given by hand
        resolve(
            parse(
                ["probe", "--config", str(file), "--head", "knn", "--learning-rate", "1", "--out", "y"],
                COMMANDS,
            )
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"command": "sweep"}, "it is the configuration of sweep, not of probe"),
        ({"learning_rat": 1}, "no option learning_rat; did you mean learning_rate?"),
        ({"blocks": ["three"]}, "blocks"),
        ({"head": "conv"}, "head"),
        ({"blocks": [0]}, "blocks"),
    ],
)
def test_a_wrong_file(options: dict[str, object], message: str, tmp_path: Path) -> None:
    file = written(tmp_path, **options)
    with pytest.raises(DiffLensError, match=re.escape(message)):
        parse(["probe", "--config", str(file), "--out", "y"], COMMANDS)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DiffLensError, match=r"none\.yaml"):
        parse(["probe", "--config", str(tmp_path / "none.yaml"), "--out", "y"], COMMANDS)
    with pytest.raises(DiffLensError, match="takes one file"):
        parse(["probe", "--out", "y", "--config"], COMMANDS)
    with pytest.raises(DiffLensError, match="predict writes no run"):
        parse(["predict", "--config", "x", "m", "a.png"], COMMANDS)


def test_a_run_is_repeated_by_its_configuration(image_tree: Path, tmp_path: Path) -> None:
    """What a run writes, another run reads: the same options, and so the same results."""
    words = ["--backbone", "pixels:3x8", "--data", image_tree, "--device", "cpu"]
    budget = ["--budget", "30", "--classifiers", "ridge", "knn", "--workers", "0"]
    assert run("sweep", *words, *budget, "--out", tmp_path / "a") == 0
    assert run("sweep", "--config", tmp_path / "a", "--device", "cpu", "--out", tmp_path / "b") == 0
    one, two = ((tmp_path / name / "config.yaml").read_text() for name in "ab")
    assert one == two
    assert "- '30'" in one
    assert (tmp_path / "a" / "table.csv").read_text() == (tmp_path / "b" / "table.csv").read_text()


def test_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("presets", "segment") == 0
    out = capsys.readouterr().out
    assert "paper-ade20k-single" in out
    assert "rgb-64" not in out
    assert run("presets") == 0
    assert "rgb-64" in capsys.readouterr().out
    assert {"of"} == {field.name for field in fields(COMMANDS["presets"])}
