"""CSV files of images, and folders of classes without a split."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from difflens.data.load import load_data, load_unlabelled
from difflens.data.split import held_out
from difflens.errors import DiffLensError
from tests.helpers.cli import run

Tree = Callable[..., Path]
FLAT = {"cat": 10, "dog": 5, "fox": 1}


def table(root: Path, *lines: str) -> str:
    file = root / "images.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(file)


def test_a_fraction_of_each_class_is_held_out(tree: Tree) -> None:
    root = tree(FLAT)
    data = load_data(str(root), val_fraction=0.2)
    assert (data.classes, data.train.name, data.test.name) == (("cat", "dog", "fox"), "train", "val")
    assert data.train.labels is not None
    assert data.test.labels is not None
    assert data.test.labels.bincount(minlength=3).tolist() == [2, 1, 0]
    assert data.train.labels.bincount().tolist() == [8, 4, 1]
    assert sorted([*data.train.ids, *data.test.ids]) == sorted(
        path.relative_to(root).as_posix() for path in root.rglob("*.png")
    )
    # each image keeps its noise, whichever side it is on
    assert sorted([*data.train.index.tolist(), *data.test.index.tolist()]) == list(range(16))


def test_all_commands_share_the_split(tree: Tree) -> None:
    """What is held out is neither pre-trained on nor in the training images of any reader."""
    root = str(tree(FLAT))
    data = load_data(root, val_fraction=0.2)
    assert load_data(root, labels=False, val_fraction=0.2).test.ids == data.test.ids
    assert load_unlabelled(root, val_fraction=0.2).ids == data.train.ids
    assert len(load_unlabelled(root)) == 16
    assert load_data(root, val_fraction=0.2).fingerprint() == data.fingerprint()
    assert load_data(root, val_fraction=0.4).fingerprint() != data.fingerprint()


def test_a_larger_fraction_contains_each_smaller_one() -> None:
    labels = torch.arange(60) % 3
    fifth, half = held_out(labels, 60, 0.2), held_out(labels, 60, 0.5)
    assert (fifth.sum(), half.sum()) == (12, 30)
    assert not (fifth & ~half).any()
    assert held_out(labels, 60, 0.999).sum() == 57  # one of each class stays to train on


@pytest.mark.parametrize(
    ("counts", "fraction", "problem"),
    [
        (FLAT, None, "has no train/ folder; expected .*; --val-fraction 0.2 holds out a fifth"),
        ({"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1}, 0.2, "a split of its own, val/: leave out"),
        ({"a": 1, "b": 1}, 0.2, "leaves one side empty"),
        (FLAT, 1.5, "must be between 0 and 1"),
        (
            {"Train/a": 2, "Val/a": 2},
            0.2,
            "a split of its own, Train/, Val/: name its folders train/ and val/",
        ),
        ({"Train/a": 2, "Train/b": 2, "Val/a": 1, "Val/b": 1}, None, "Train/, Val/: name its folders train/"),
        ({"test/a": 2, "val/a": 2}, None, r"has no train/ folder; expected .* with --val-fraction$"),
        ({"train/a": 2, "train/b": 2, "Validation/a": 2}, 0.2, "a split of its own, Validation/: name"),
    ],
)
def test_what_cannot_be_split_is_refused(
    tree: Tree, counts: dict[str, int], fraction: float | None, problem: str
) -> None:
    with pytest.raises(DiffLensError, match=problem):
        load_data(str(tree(counts)), val_fraction=fraction)


@pytest.mark.parametrize("counts", [{"test/a": 2, "val/a": 2}, {"Training/a": 2, "Validation/a": 1}])
def test_validation_images_are_not_read_as_images_without_labels(tree: Tree, counts: dict[str, int]) -> None:
    with pytest.raises(DiffLensError, match="seems to have a split of its own"):
        load_unlabelled(str(tree(counts)))


def test_data_with_a_split_takes_no_fraction() -> None:
    with pytest.raises(DiffLensError, match="fashion has a split of its own: leave out --val-fraction"):
        load_data("fashion", val_fraction=0.2)


def test_train_alone_is_split(tree: Tree) -> None:
    data = load_data(str(tree({"train/cat": 4, "train/dog": 4})), val_fraction=0.25)
    assert len(data.train) == 6
    assert all(name.startswith("train/") for name in data.test.ids)


def test_a_table_names_images_labels_and_splits(tree: Tree) -> None:
    root = tree({"some": 4, "others": 2})
    file = table(
        root,
        "\ufeffpath,label,split,author",
        'some/0.png,"cat, tabby",train,x',
        "some/1.png,dog,train,x",
        "",
        f"{root}/some/2.png,dog,val,x",
        'others/0.png,"cat, tabby",val,x',
    )
    data = load_data(file)
    assert (data.name, data.classes) == ("images", ("cat, tabby", "dog"))
    assert data.train.ids == ["some/0.png", "some/1.png"]
    assert data.test.labels is not None
    assert data.test.labels.tolist() == [1, 0]
    assert data.test.image(0).shape == data.test.image(1).shape
    assert load_unlabelled(f"csv:{file}").ids == data.train.ids


def test_a_quoted_cell_may_hold_a_line_end(tree: Tree) -> None:
    root = tree({"some": 2})
    data = load_data(table(root, "path,label,split", 'some/0.png,"a\nb",train', 'some/1.png,"a\nb",test'))
    assert data.classes == ("a\nb",)


def test_labels_of_rows_that_are_left_out_are_no_classes(tree: Tree) -> None:
    root = tree({"some": 5})
    rows = ("some/0.png,a,train", "some/1.png,b,train", "some/2.png,a,test", "some/3.png,b,test")
    data = load_data(table(root, "path,label,split", *rows, "some/4.png,c,val"))
    assert data.classes == ("a", "b")
    several = [row.replace(",a,", ",a|b,") for row in rows]
    data = load_data(table(root, "path,labels,split", *several, "some/4.png,c,val"))
    assert data.classes == ("a", "b")


def test_a_table_without_a_split_takes_the_fraction(tree: Tree) -> None:
    root = tree({"a": 5, "b": 5})
    names = [f"{kind}/{k}.png" for kind in "ab" for k in range(5)]
    file = table(root, "path,label", *(f"{name},{name[0]}" for name in names))
    data = load_data(file, val_fraction=0.2)
    assert (len(data.train), len(data.test)) == (8, 2)
    assert load_data(str(root), val_fraction=0.2).test.ids == data.test.ids
    with pytest.raises(DiffLensError, match=r"no column split; --val-fraction 0.2 holds out"):
        load_data(file)
    assert len(load_unlabelled(file)) == 10


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ((), "no column path"),
        (("path,class", "a/0.png,x"), "no column label: its first line names path, class"),
        (("path,label", "a/0.png,x", "a/9.png,y"), "line 3: there is no image .*a/9.png"),
        (("path,label", "a/0.png,x", "a/../a/0.png,y"), "line 3: .* is named in line 2 already"),
        (("path,label,split,split", "a/0.png,x,train,test"), "more than one column split"),
        (("path,label", "a/0.png,"), "line 2: a/0.png has no label"),
        (("path,label,split", "a/0.png,x,dev"), "line 2: no split 'dev'; there are train, val, test"),
        (("path,label,split", "a/0.png,x,train", "a/1.png,x,"), "line 3: a/1.png has no split"),
        (("path,label,split", "a/0.png,x,train", "a/1.png,y,val"), "only in train: x; only in val: y"),
        (("path,label,split", "a/0.png,x,train"), "no rows of val or test"),
        (("path,label", "a/0.png,x,y"), "line 2: 3 fields, and the first line names 2"),
        (("path,label", '"a/0.png,x'), "line 2: unexpected end of data|unexpected end"),
        (("path,label",), "names no image"),
    ],
)
def test_a_wrong_line_is_named(tree: Tree, lines: tuple[str, ...], problem: str) -> None:
    file = table(tree({"a": 2}), *lines)
    with pytest.raises(DiffLensError, match=problem):
        load_data(file)


def test_a_path_is_one_however_it_is_written(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree({"a": 2})
    monkeypatch.chdir(root)
    table(root, "path,label", "a/0.png,x", f"{root}/a/0.png,y")
    with pytest.raises(DiffLensError, match="is named in line 2 already"):
        load_data("images.csv")


def test_labels_that_are_not_utf_8_are_plain_words(tree: Tree) -> None:
    root = tree({"a": 4})
    rows = [
        f"a/{k}.png,{name},{split}"
        for name, split, k in zip("éàéà", ("train", "train", "val", "val"), range(4), strict=True)
    ]
    (root / "images.csv").write_bytes("\n".join(["path,label,split", *rows]).encode("latin-1"))
    data = load_data(str(root / "images.csv"))
    assert len({*data.classes}) == 2
    assert all(name.encode() for name in data.classes)


def test_a_fraction_beside_a_column_split_is_refused(tree: Tree) -> None:
    file = table(tree({"a": 2}), "path,label,split", "a/0.png,x,train", "a/1.png,x,val")
    with pytest.raises(DiffLensError, match="has a column split: leave out --val-fraction"):
        load_data(file, val_fraction=0.2)


def test_probe_reads_flat_folders(tree: Tree, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["probe", "--backbone", "pixels:3x8", "--data", tree({"a": 5, "b": 5}), "--head", "linear"]
    line += ["--epochs", 1, "--device", "cpu", "--workers", 0, "--out", tmp_path / "run"]
    assert run(*line) == 2
    assert "--val-fraction 0.2" in capsys.readouterr().err
    assert run(*line, "--val-fraction", 0.2) == 0
    assert "val_fraction: 0.2" in (tmp_path / "run" / "config.yaml").read_text()
    assert run(*line, "--val-fraction", 0.4, "--resume") == 2
    assert "val_fraction was 0.2, now 0.4" in capsys.readouterr().err
