"""predictions.csv is read as it was written, or the line that is wrong is named."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from difflens import DiffLensError
from difflens.metrics.classification import Evaluation
from difflens.tasks.classification.predictions import predictions_csv, read_predictions

IDS = ("train/a, b.png", 'c"d.png', "e\nf.png", "é.png")
CLASSES = ("one", "two, 2")
HEAD = "image,class,predicted,probability\n"
LINE = "é.png,one,one,0.5\n"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    rows = torch.tensor([0, 1, 2, 3])
    labels, ranked = torch.tensor([0, 1, 0, 1]), torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]])
    written = Evaluation(rows, labels, ranked, torch.tensor([0.25, 1.0, 0.5, 0.75]), CLASSES)
    path = tmp_path / "predictions.csv"
    for mark in ("", "\ufeff"):
        path.write_text(mark + predictions_csv(written, IDS), encoding="utf-8", newline="")
        read = read_predictions(path, IDS, CLASSES)
        assert torch.equal(read.rows, rows)
        assert torch.equal(read.labels, labels)
        assert torch.equal(read.ranked[:, 0], ranked[:, 0])
        assert torch.equal(read.confidence, written.confidence)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the column image is missing"),
        (HEAD, "holds no predictions"),
        (HEAD + "\n\n", "holds no predictions"),
        ("image,class\n" + LINE, "the column predicted is missing"),
        (HEAD + LINE + LINE, "line 3: 'é.png' is there twice"),
        (HEAD + "\n" + "g.png,one,one,0.5\n", "line 3: image is 'g.png', not of this run"),
        (HEAD + "é.png,three,one,0.5\n", "line 2: class is 'three', not of this run"),
        (HEAD + "é.png,one\n", "line 2: there are not 4 cells"),
        (HEAD + "é.png,one,one,0.5,0.5\n", "line 2: there are not 4 cells"),
        (HEAD + "é.png,one,one,nan\n", "line 2: probability is 'nan', not of this run"),
        (HEAD + "é.png,one,one,inf\n", "line 2: probability is 'inf', not of this run"),
        (HEAD + "é.png,one,one,-0.1\n", "line 2: probability is '-0.1', not of this run"),
        (HEAD + "é.png,one,one,much\n", "line 2: probability is 'much', not of this run"),
        (HEAD + "x" * 200_000, "field larger than field limit"),
    ],
)
def test_a_damaged_line_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DiffLensError, match=message) as caught:
        read_predictions(path, IDS, CLASSES)
    assert str(path) in str(caught.value)


@given(
    st.binary(max_size=60) | st.text(max_size=60).map(lambda text: (HEAD + text).encode("utf-8", "replace"))
)
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("run") / "predictions.csv"
    path.write_bytes(content)
    with pytest.raises(DiffLensError):
        read_predictions(path, IDS, CLASSES)
