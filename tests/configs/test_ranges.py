"""Every number of an option has a smallest and a largest value; anything else is refused by name."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from difflens import DiffLensError, SweepConfig, cli
from difflens.configs.options import Range, _element, _metadata, _parts, hints_of, resolve

NEEDED: dict[str, list[str]] = {
    "info": ["fashion"],
    "predict": ["model", "image.png"],
    "report": ["fashion"],
    "compare": ["--backbones", "fashion"],
    "fidelity": ["--samples", "samples"],
    "generate": ["--n", "4"],
    "pretrain": ["--data", "fashion"],
    "segment": ["--data", "scenes"],
    "detect": ["--data", "scenes"],
    "explore": ["--images", "photos"],
    "match": ["a.png", "b.png"],
    "propagate": ["--frames", "frames", "--masks", "masks"],
}
WRONG = ("nan", "inf", "-1", "1000000000000", "9" * 400, "x")


def numbers(hint: Any) -> Iterator[Any]:
    """The type hints of the numbers in an option: itself, or those of its tuple."""
    for part in _parts(hint):
        if get_origin(part) is tuple:
            count = len([each for each in get_args(part) if each is not Ellipsis])
            yield from (number for k in range(count) for number in numbers(_element(hint, k)))
    if {int, float} & {*_parts(hint)}:
        yield hint


OPTIONS = [
    (command, name, len(list(numbers(hint))))
    for command, kind in cli.COMMANDS.items()
    for name, hint in hints_of(kind).items()  # type: ignore[arg-type]
    if list(numbers(hint))
]


def test_every_number_has_a_range() -> None:
    assert len(OPTIONS) > 100
    for command, name, _ in OPTIONS:
        for number in numbers(hints_of(cli.COMMANDS[command])[name]):  # type: ignore[arg-type]
            (range_,) = (mark for mark in _metadata(number) if isinstance(mark, Range))
            assert 0 <= range_.least < range_.most <= 2**31, (command, name)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_number_out_of_its_range_is_refused_by_name(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line exits with 2 before it reads or writes anything."""
    monkeypatch.chdir(tmp_path)
    base = [command, *NEEDED.get(command, [])]
    if any(field.name == "out" for field in dataclasses.fields(cli.COMMANDS[command])):  # type: ignore[arg-type]
        base += ["--out", "out"]
    for name, count in ((name, count) for each, name, count in OPTIONS if each == command):
        flag = f"--{name}".replace("_", "-")
        for value in WRONG:
            with pytest.raises(SystemExit) as left:
                cli.main([*base, flag, *[value] * count])
            error = capsys.readouterr().err
            assert left.value.code == 2, (flag, value)
            assert flag in error, (flag, value, error)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("word", [*WRONG, "nans", "infm", "-1h", "1e400s"])
def test_a_budget_out_of_its_range_is_refused_by_name(word: str) -> None:
    with pytest.raises(DiffLensError, match="--budget takes"):
        resolve(SweepConfig(out=Path("x"), budget=(word,)))
