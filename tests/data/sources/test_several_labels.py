"""CSV files whose images have several labels."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from difflens.data.labels import balanced, label_fraction, label_list, limited, say_few
from difflens.data.load import load_data, load_unlabelled
from difflens.data.split import MemorySplit, held_out, strata
from difflens.errors import DiffLensError
from tests.data.sources.test_table import table
from tests.helpers.multi_label import make_bands

Tree = Callable[..., Path]
ROWS = ("a/0.png,cat | dog,train", "a/1.png,,train", 'a/2.png,"dog, brown",train', "a/3.png,cat,val")


def matrix(rows: list[list[bool]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool)


matrices = (
    st.integers(1, 5)
    .flatmap(lambda count: st.lists(st.lists(st.booleans(), min_size=count, max_size=count), min_size=2))
    .map(matrix)
)


def test_a_cell_holds_any_number_of_labels(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    data = load_data(table(tree({"a": 4}), "path,labels,split", *ROWS))
    assert (data.classes, data.metric, data.multi_label) == (("cat", "dog", "dog, brown"), "map", True)
    assert data.train.labels is not None
    assert data.train.labels.tolist() == [[True, True, False], [False] * 3, [False, False, True]]
    assert data.test.labels is not None
    assert data.test.labels.dtype == torch.bool
    assert data.test[0][1].tolist() == [True, False, False]  # type: ignore[union-attr]
    said = capsys.readouterr().err
    assert "val: no image has any of the labels dog, dog, brown: the mean leaves them out" in said


def test_labels_are_part_of_the_fingerprint(tree: Tree) -> None:
    root = tree({"a": 4})
    data = load_data(table(root, "path,labels,split", *ROWS))
    assert load_data(table(root, "path,labels,split", *ROWS)).fingerprint() == data.fingerprint()
    other = load_data(table(root, "path,labels,split", ROWS[0], "a/1.png,cat,train", *ROWS[2:]))
    assert other.fingerprint() != data.fingerprint()


def test_without_labels_it_is_like_any_other_table(tree: Tree) -> None:
    file = table(tree({"a": 4}), "path,labels,split", *ROWS)
    data = load_data(file, labels=False)
    assert (data.classes, data.train.labels, data.multi_label) == ((), None, False)
    assert load_unlabelled(file).ids == data.train.ids


def test_a_fraction_is_held_out_alike_in_all_commands(tmp_path: Path) -> None:
    file = str(make_bands(tmp_path / "bands", split=False))
    data = load_data(file, val_fraction=0.25)
    assert 8 <= len(data.test) <= 14
    assert load_data(file, labels=False, val_fraction=0.25).test.ids == data.test.ids
    assert load_unlabelled(file, val_fraction=0.25).ids == data.train.ids
    assert load_data(file, val_fraction=0.25).fingerprint() == data.fingerprint()
    assert data.train.labels is not None
    assert data.test.labels is not None
    assert data.train.labels.any(0).all()
    assert data.test.labels.any(0).all()


@given(matrices, st.floats(0.05, 0.95))
def test_every_class_is_trained_on_and_held_out_where_it_can_be(labels: Tensor, fraction: float) -> None:
    assume(labels.any(0).all())
    out = held_out(labels, len(labels), fraction)
    train, test = labels[~out], labels[out]
    assert train.any(0).all()
    for k in (~test.any(0)).nonzero()[:, 0].tolist():
        # each image of the class is the last to train on of some class
        alone = (train.sum(0) == 1) & train[train[:, k]]
        assert alone.any(1).all()


@given(matrices, st.integers(1, 100))
def test_a_limit_takes_rare_classes_first(labels: Tensor, count: int) -> None:
    split = MemorySplit("train", torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), labels)
    rows = balanced(split, count, 3)
    assert len(rows) == min(count, len(labels))
    assert len(limited(split, count, 3)) == len(rows)
    groups = strata(labels)
    for image, group in zip(labels, groups.tolist(), strict=True):
        there = image.nonzero()[:, 0]
        if len(there):
            assert group in there
            assert labels[:, group].sum() == labels[:, there].sum(0).min()
        else:
            assert group == labels.shape[1]
    sizes = groups[rows].bincount(minlength=labels.shape[1] + 1)
    left = groups.bincount(minlength=labels.shape[1] + 1) - sizes
    assert sizes[left > 0].numel() == 0 or sizes.max() - sizes[left > 0].min() <= 1


def test_a_list_of_images(tree: Tree, tmp_path: Path) -> None:
    data = load_data(table(tree({"a": 4}), "path,labels,split", *ROWS))
    names = tmp_path / "list.txt"
    names.write_text("a/2.png\na/0.png\n")
    assert label_list(data.train, names, data.classes).ids == ["a/0.png", "a/2.png"]
    names.write_text("a/0.png\na/1.png\n")
    with pytest.raises(DiffLensError, match="names no image of dog, brown; every class needs one"):
        label_list(data.train, names, data.classes)
    with pytest.raises(DiffLensError, match="these images have several: name the images with --label-list"):
        label_fraction(data.train, 0.5, 0, data.classes)
    with pytest.raises(DiffLensError, match="train: no training image has the label dog, brown"):
        say_few(data.train.subset(torch.arange(2)), data.classes)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (("path,labels", "a/0.png,x|y", "a/1.png,x|y|x"), "line 3: a/1.png has the label 'x' twice"),
        (("path,labels", "a/0.png,x||y"), r"line 2: \| separates labels, and a label of a/0.png is empty"),
        (("path,labels", "a/0.png,x|"), r"line 2: \| separates labels, and a label of a/0.png is empty"),
        (("path,labels", "a/0.png,x;y", "a/1.png,"), r"line 2: 'x;y' may be several labels: \| separates"),
        (("path,labels", "a/0.png,", "a/1.png,x y"), r"line 3: 'x y' may be several labels: \| separates"),
        (("path,labels", "a/0.png,x|y", 'a/1.png,"x, y"'), r"line 3: 'x, y' may be several labels"),
        (("path,labels", "a/0.png,x", "a/1.png,y"), "every image has one label, and the column labels is"),
        (("path,labels", "a/0.png,", "a/1.png,"), "no image has a label"),
        (("path,label", "a/0.png,x", "a/1.png,x|y"), r"line 3: 'x\|y' has .*: name the column labels"),
        (("path,label,labels", "a/0.png,x,x|y"), "has a column label and a column labels: leave one out"),
        (("path,labels,labels", "a/0.png,x,x|y"), "has more than one column labels"),
        (("path,labels,split", "a/0.png,x,train", "a/1.png,x|y,val"), "no training image has the label y"),
        (("path,labels,split", "a/0.png,x|y,train", "a/1.png,,val"), "val: no image has a label"),
    ],
)
def test_what_is_not_sure_is_refused(tree: Tree, lines: tuple[str, ...], problem: str) -> None:
    file = table(tree({"a": 2}), *lines)
    with pytest.raises(DiffLensError, match=problem) as caught:
        load_data(file, val_fraction=None if "split" in lines[0] else 0.5)
    assert "\n" not in str(caught.value)
