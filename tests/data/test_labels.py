import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from difflens.data.labels import balanced, label_fraction, label_list, limited, say_few
from difflens.data.split import FileSplit, ImageSplit, JoinedSplit, MemorySplit, hold_out
from difflens.errors import DiffLensError
from difflens.run.console import note

NAMES = ("cat", "dog", "emu", "fox", "gnu")


def make(labels: Sequence[int] | None, count: int = 0) -> ImageSplit:
    """Images named train/CLASS/NUMBER.png, in the order of `labels`."""
    if labels is None:
        return FileSplit("train", [f"train/{i}.png" for i in range(count)])
    return FileSplit(
        "train", [f"train/{NAMES[k]}/{i}.png" for i, k in enumerate(labels)], torch.tensor(labels)
    )


def rows(split: ImageSplit) -> list[int]:
    return split.index.tolist()


labels_of_some_images = st.lists(st.integers(0, 4), min_size=1, max_size=80)
seeds = st.integers(0, 2**64 - 1)


# --- a fraction ---


@given(labels_of_some_images, st.floats(0.5, 1), st.floats(0.5, 1), seeds)
def test_fractions_are_stratified_nested_and_in_order(
    labels: list[int], one: float, other: float, seed: int
) -> None:
    split = make(labels)
    small, large = (label_fraction(split, each, seed, NAMES) for each in sorted((one, other)))
    assert set(rows(small)) <= set(rows(large))
    for part, fraction in ((small, min(one, other)), (large, max(one, other))):
        assert part.labels is not None
        for number in set(labels):
            expected = int(fraction * labels.count(number) + 0.5)
            assert int((part.labels == number).sum()) == expected
        assert rows(part) == sorted(rows(part))
        assert part.ids == [split.ids[row] for row in rows(part)]
        assert part.labels.tolist() == [labels[row] for row in rows(part)]


def test_one_percent_of_imagenets_class_is_thirteen() -> None:
    part = label_fraction(make([0] * 1300 + [1] * 732), 0.01, 0, NAMES)
    assert part.labels is not None
    assert part.labels.bincount().tolist() == [13, 7]


def test_the_choice_follows_the_seed_and_nothing_else() -> None:
    split = make([0, 1] * 200)
    chosen = rows(label_fraction(split, 0.1, 3, NAMES))
    state = torch.get_rng_state()
    torch.manual_seed(99)
    assert rows(label_fraction(split, 0.1, 3, NAMES)) == chosen
    torch.set_rng_state(state)
    assert rows(label_fraction(split, 0.1, 4, NAMES)) != chosen
    assert rows(label_fraction(split, 0.1, 3 + (1 << 40), NAMES)) != chosen


def test_the_choice_belongs_to_the_images_not_to_their_order() -> None:
    split = make([i % 3 for i in range(90)])
    shuffled = split.subset(torch.randperm(90, generator=torch.Generator().manual_seed(0)))
    assert sorted(rows(label_fraction(shuffled, 0.2, 0, NAMES))) == rows(label_fraction(split, 0.2, 0, NAMES))


def test_images_in_memory_stay_in_memory() -> None:
    pixels = torch.arange(40, dtype=torch.uint8).reshape(40, 1, 1, 1)
    part = label_fraction(MemorySplit("train", pixels, torch.zeros(40).long()), 0.25, 0, NAMES)
    assert part.pixels is not None
    assert part.pixels.flatten().tolist() == rows(part)
    assert len(part) == 10


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan")])
def test_a_fraction_beyond_its_range(fraction: float) -> None:
    with pytest.raises(DiffLensError, match="must be above 0 and at most 1"):
        label_fraction(make([0, 1]), fraction, 0, NAMES)


@given(st.lists(st.integers(1, 6000), min_size=1, max_size=4), seeds)
def test_the_fraction_that_the_message_names_works(counts: list[int], seed: int) -> None:
    split = MemorySplit(
        "train",
        torch.zeros(sum(counts), 1, 1, 1, dtype=torch.uint8),
        torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
    )
    with pytest.raises(DiffLensError) as caught:
        label_fraction(split, 1e-5, seed, NAMES)
    found = re.search(r"smallest that leaves one of every class is ([0-9.e-]+)$", str(caught.value))
    assert found is not None
    part = label_fraction(split, float(found[1]), seed, NAMES)
    assert part.labels is not None
    assert int(part.labels.bincount(minlength=len(counts)).min()) >= 1


def test_classes_that_would_be_left_out_are_named_but_not_those_without_images() -> None:
    with pytest.raises(DiffLensError) as caught:
        label_fraction(make([0] * 100 + [1] * 4 + [4] * 2), 0.1, 0, NAMES)
    assert "no image of dog, gnu; the smallest that leaves one of every class is 0.25" in str(caught.value)


def test_without_labels_there_is_nothing_to_choose_from(tmp_path: Path) -> None:
    unlabelled = make(None, 4)
    with pytest.raises(DiffLensError, match="the split train has no labels"):
        label_fraction(unlabelled, 0.5, 0, NAMES)
    with pytest.raises(DiffLensError, match="the split train has no labels"):
        label_list(unlabelled, tmp_path / "list.txt", NAMES)


# --- balanced ---


@given(labels_of_some_images, st.integers(1, 100), seeds)
def test_balanced_takes_as_evenly_as_it_can(labels: list[int], count: int, seed: int) -> None:
    split = make(labels)
    chosen = balanced(split, count, seed).tolist()
    assert len(chosen) == min(count, len(labels))
    assert chosen == sorted(set(chosen))
    taken = {number: sum(labels[row] == number for row in chosen) for number in set(labels)}
    most = max(taken.values())
    # a class may have fewer than the others by more than one only where it has no more images
    assert all(taken[number] >= most - 1 or taken[number] == labels.count(number) for number in taken)
    assert set(chosen) <= set(balanced(split, count + 1, seed).tolist())


def test_balanced_without_labels_is_a_random_choice() -> None:
    split = make(None, 1000)
    chosen = balanced(split, 100, 5)
    assert len(chosen) == 100
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert 300 < chosen.float().mean() < 700  # not the first hundred
    assert torch.equal(chosen, balanced(split, 100, 5))
    assert not torch.equal(chosen, balanced(split, 100, 6))


def test_balanced_needs_an_image() -> None:
    with pytest.raises(DiffLensError, match="count is 0; it must be at least 1"):
        balanced(make([0]), 0, 0)


# --- a list ---

IMAGENET = FileSplit(
    "train",
    [f"train/{NAMES[k]}/{NAMES[k]}_{i}.JPEG" for k in range(3) for i in range(4)],
    torch.arange(3).repeat_interleave(4),
)


def write(folder: Path, text: str) -> Path:
    path = folder / "labelled.txt"
    path.write_text(text)
    return path


@pytest.mark.parametrize("form", ["train/{0}/{0}_{1}.JPEG", "{0}/{0}_{1}.JPEG", "{0}_{1}.JPEG"])
def test_a_list_names_images_in_three_ways(tmp_path: Path, form: str) -> None:
    wanted = [("emu", 3), ("cat", 1), ("dog", 0), ("cat", 0)]
    text = "\n\n".join(form.format(*each) for each in wanted)
    part = label_list(IMAGENET, write(tmp_path, f"  {text}\r\n"), NAMES)
    assert rows(part) == [0, 1, 4, 11]  # the split's order
    assert part.ids[3] == "train/emu/emu_3.JPEG"
    assert part.labels is not None
    assert part.labels.tolist() == [0, 0, 1, 2]


def test_the_longest_name_counts(tmp_path: Path) -> None:
    ids = ["a/b/x.png", "b/x.png", "c/b/y.png"]
    split = FileSplit("train", ids, torch.zeros(3).long())
    assert label_list(split, write(tmp_path, "b/x.png"), NAMES).ids == ["b/x.png"]
    assert label_list(split, write(tmp_path, "y.png"), NAMES).ids == ["c/b/y.png"]


GOOD = "cat_0.JPEG\ndog_0.JPEG\nemu_0.JPEG\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["is empty; expected an image name a line"]),
        ("\n \n", ["is empty"]),
        (
            GOOD + "owl_0.JPEG\nowl_1.JPEG\n",
            [
                "2 of the 5 names",
                "not in the split train: owl_0.JPEG, owl_1.JPEG",
                "called train/cat/cat_0.JPEG and 11 more",
            ],
        ),
        (GOOD + "\ndog_0.JPEG\n", ["line 5: dog_0.JPEG is in line 2 already"]),
        (GOOD + "train/dog/dog_0.JPEG\n", ["line 4: train/dog/dog_0.JPEG is in line 2 already"]),
        ("cat_0.JPEG\n", ["names no image of dog, emu; every class needs one"]),
    ],
)
def test_a_wrong_list_is_explained(tmp_path: Path, text: str, expected: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DiffLensError) as caught:
        label_list(IMAGENET, path, NAMES)
    assert all(part in str(caught.value) for part in [*expected, str(path)]), caught.value


def test_a_name_that_could_be_several_images(tmp_path: Path) -> None:
    split = FileSplit("train", ["train/cat/0.png", "train/dog/0.png"], torch.tensor([0, 1]))
    with pytest.raises(
        DiffLensError, match=r"line 1: 0\.png could be any of train/cat/0\.png, train/dog/0\.png"
    ):
        label_list(split, write(tmp_path, "0.png\n"), NAMES)


def test_a_list_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DiffLensError, match=r"there is no .*none\.txt; expected an image name a line"):
        label_list(IMAGENET, tmp_path / "none.txt", NAMES)


# --- joined splits ---


def test_a_joined_split_has_the_images_of_its_parts() -> None:
    pixels = torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1)
    parts = [
        MemorySplit("a", pixels[:2], torch.tensor([0, 1])),
        MemorySplit("empty", pixels[:0], torch.tensor([]).long()),
        MemorySplit("b", pixels[2:], torch.tensor([2, 3, 4, 5])).subset(torch.tensor([3, 0])),
    ]
    joined = JoinedSplit("train", parts)
    assert (len(joined), joined.name, rows(joined)) == (4, "train", [0, 1, 2, 3])
    assert joined.ids == ["a/00000", "a/00001", "b/00003", "b/00000"]
    assert joined.labels is not None
    assert joined.labels.tolist() == [0, 1, 5, 2]
    assert [int(joined.image(i)) for i in range(4)] == [0, 1, 5, 2]
    assert [int(joined.subset(torch.tensor([3, 1])).image(i)) for i in range(2)] == [2, 1]
    assert JoinedSplit("train", [parts[0], MemorySplit("c", pixels)]).labels is None


# --- a limit ---


def test_a_limit_keeps_as_many_of_each_class_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    note.cache_clear()
    split = make([0] * 40 + [1] * 40 + [2] * 2)
    kept = limited(split, 10, 3)
    assert kept.labels is not None
    assert kept.labels.bincount().tolist() == [4, 4, 2]
    assert rows(kept) == sorted(rows(kept))
    assert rows(kept) != rows(limited(split, 10, 4))
    assert capsys.readouterr().err.splitlines() == [
        "train: 10 of 82 images, drawn by the seed, 2 to 4 of each of 3 classes"
    ]
    limited(split, 2, 0)
    assert "1 of each of 2 of 3 classes" in capsys.readouterr().err


def test_a_limit_of_images_without_labels_is_drawn_by_the_seed(capsys: pytest.CaptureFixture[str]) -> None:
    note.cache_clear()
    kept = limited(make(None, 100), 10, 0)
    assert len(kept) == 10
    assert rows(kept) != list(range(10))
    assert capsys.readouterr().err == "train: 10 of 100 images, drawn by the seed\n"


@pytest.mark.parametrize("count", [None, 3, 4])
def test_a_limit_that_leaves_out_nothing_is_silent(
    count: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    split = make([0, 1, 1])
    assert limited(split, count, 0) is split
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"cat_0.JPEG\n\xff\n", "1 of the 2 names"),
        (b"\n\ncat_0.JPEG \xed\xa0\x80\n", "1 of the 1 names"),  # a lone surrogate
        (b"\xef\xbb\xbf\n\n", "is empty"),
        (GOOD.encode() + b"dog\x0b_0.JPEG\n", "1 of the 4 names"),
        (GOOD.encode() + b"99999999999999999999\n", "1 of the 4 names"),
        (GOOD.encode() + b"\x00\n", "is not a text file in UTF-8"),
    ],
)
def test_bytes_that_are_no_list_are_named(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    with pytest.raises(DiffLensError, match=expected):
        label_list(IMAGENET, path, NAMES)


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert rows(label_list(IMAGENET, path, NAMES)) == [0, 4, 8]


def test_a_list_that_is_no_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(DiffLensError, match=f"{path} is not a regular file"):
            label_list(IMAGENET, path, NAMES)


def test_classes_with_too_few_images_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    note.cache_clear()
    say_few(make([0, 0, 1, 3, 3]), NAMES)
    said = capsys.readouterr().err
    assert "train: no training image of emu, gnu" in said
    assert "train: a single training image of dog" in said
    say_few(make([0, 0, 1, 1]), NAMES[:2])
    assert not capsys.readouterr().err


def test_single_images_give_none_to_hold_out(tmp_path: Path) -> None:
    with pytest.raises(DiffLensError, match="none can be held out: no class has two images"):
        hold_out(FileSplit("train", ["a.png", "b.png"], torch.arange(2), tmp_path))
