"""Names of what `predict` writes."""

from pathlib import Path

from difflens.tasks.predict import _names


def test_equal_stems_are_numbered() -> None:
    paths = [*map(Path, ("a/x.png", "x-2.png", "b/x.jpg", "c/x.png", "y.png"))]
    assert _names(paths) == ["x", "x-2", "x-3", "x-4", "y"]


def test_many_equal_stems_are_numbered_in_passing() -> None:
    """Their time is linear: it grew with the cube of their number."""
    names = _names([Path(f"{number}/image.jpg") for number in range(20_000)])
    assert (names[0], names[-1], len({*names})) == ("image", "image-20000", 20_000)


def test_long_names_are_cut_between_characters_and_stay_apart() -> None:
    names = _names([Path(f"{'é' * 120}{k}.jpg") for k in range(2)] + [Path(f"{'a' * 251}.jpg")])
    assert names == ["é" * 100, f"{'é' * 100}-2", "a" * 200]
