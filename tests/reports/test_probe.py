"""The report of a probe with one seed and with several."""

from statistics import mean, stdev

import pytest
import torch

from tests.helpers.html import Document
from tests.helpers.probes import GRID, NEIGHBOURS, evaluation, report


def test_one_seed() -> None:
    one = evaluation(0)
    html, asked = report([one])
    document = Document(html)
    assert f"Probe: {100 * one.top1:.2f} % top-1 accuracy" in document.text
    for text in (
        "A linear head on block 6.",
        f"{100 * one.top1:.2f}",
        "1,200",
        "4,321",
        "tiny, fingerprint 0123",
        "Numbers of test images; rows are true classes",
    ):
        assert text in document.text
    assert "Shown for" not in document.text
    assert len(document.all("img")) == 4
    assert document.text.index("difflens probe --out DIR") < document.text.index("2 CPU threads")
    # examples are misclassified images of that pair, the surest first
    for rows, (true, predicted, count) in zip(asked, one.most_confused(), strict=True):
        places = [row // 2 for row in rows]
        assert len(rows) == min(6, count)
        assert all(one.labels[place] == true and one.ranked[place, 0] == predicted for place in places)
        confidences = one.confidence[places].tolist()
        assert confidences == sorted(confidences, reverse=True)


def test_several_seeds() -> None:
    evaluations = [evaluation(seed) for seed in range(3)]
    html, _ = report(evaluations)
    document = Document(html)
    top1 = torch.tensor([one.top1 for one in evaluations], dtype=torch.float64)
    assert f"{100 * top1.mean():.2f} ± {100 * top1.std():.2f}" in document.text
    assert f"Probe: {100 * top1.mean():.2f} % top-1 accuracy" in document.text
    for seed in (10, 11, 12):
        assert f"seed {seed}" in document.text
    assert "a line for each of 3 runs" in document.text
    assert document.text.count("Shown for seed 10.") == 3  # bars, pairs and matrix
    for values, digits in (
        ([100 * one.ece for one in evaluations], 2),
        ([one.nll for one in evaluations], 3),
    ):
        assert f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}" in document.text


def test_grid_and_neighbours() -> None:
    document = Document(report([evaluation(0)], grid=GRID, neighbours=NEIGHBOURS)[0])
    assert "Chosen: learning rate 0.5, weight decay 0.25." in document.text
    for text in ("weight decay 0.25", "learning rate 0.25", "75.00", "k = 20 was chosen", "62.50", "51.00"):
        assert text in document.text
    assert [row for row in document.all("tr") if row] == [{"class": "best"}, {"class": "best"}]


def test_a_grid_with_gaps() -> None:
    html, _ = report([evaluation(0)], grid=[GRID[0], GRID[3]])
    assert html.count('<td class="number">\u2013</td>') == 2


def test_nothing_was_trained_by_epochs() -> None:
    document = Document(report([evaluation(0)], epochs=0)[0])
    assert "Training" not in [link.strip() for link in document.text.splitlines()]
    assert len(document.all("img")) == 3


def test_nothing_is_confused() -> None:
    html, asked = report([evaluation(0, skill=99)])
    assert "Every test image is classified correctly." in html
    assert not asked


def test_many_classes() -> None:
    classes = tuple(f"class {k}" for k in range(45))
    document = Document(report([evaluation(0, classes)])[0])
    assert "the 20 worst and the 20 best of 45" in document.text
    assert "All classes are in metrics.json." in document.text
    assert "Numbers of test images;" not in document.text
    assert "Shares of each true class; rows are true classes" in document.text


def test_one_entry_a_seed() -> None:
    with pytest.raises(AssertionError, match="one a seed"):
        report([])
