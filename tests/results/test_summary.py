"""The text that the command line prints for every result."""

import shlex
from dataclasses import MISSING, fields, replace
from html import escape
from pathlib import Path

import pytest

from difflens import MatchedPoint, Prediction, Result, Score
from difflens.cli import COMMANDS
from difflens.parsing import parse
from difflens.results.predict import csv_line, line_of
from tests.helpers import made

ROOT = Path(__file__).parents[2]


def words(result: Result) -> list[str]:
    """Return the cells of the tables of a summary and the lines around them, without frames and padding."""
    lines = result.summary().replace("│", "\n").replace("┃", "\n").splitlines()
    return [line.strip() for line in lines if line.strip()]


def test_every_command_has_a_result_with_a_summary() -> None:
    assert set(made.EVERY) == set(COMMANDS)
    for result in made.EVERY.values():
        assert isinstance(result, Result)
        assert result.summary() == result.summary().rstrip("\n") != ""


@pytest.mark.parametrize(
    ("result", "summary"),
    [
        (
            made.probed(),
            "top-1 75.00 % (95 % interval 25.00 to 90.00), top-5 100.00 %, mean per class 75.00 %, 5,000 "
            "training and 4 test images, 1,234 trainable parameters\n"
            "Report: run/report.html\nModel: run/model\n"
            "Next:\n  difflens predict -- run/model IMAGES",
        ),
        (
            made.probed(made.seed(**made.CALIBRATED)),
            "top-1 75.00 % (95 % interval 25.00 to 90.00), top-5 100.00 %, mean per class 75.00 %, ECE "
            "6.25 %, NLL 0.500, 5,000 training and 4 test images, 1,234 trainable parameters\n"
            "Report: run/report.html\nModel: run/model\n"
            "Next:\n  difflens predict -- run/model IMAGES",
        ),
        (
            made.probed(*(made.seed(k, metric="mean_per_class") for k in (0, 1))),
            "top-1 62.50 ± 17.68 % (mean and standard deviation over 2 seeds), top-5 100.00 ± 0.00 %, mean "
            "per class 62.50 ± 17.68 % (the metric that papers report on this data set), 5,000 training and "
            "4 test images, 1,234 trainable parameters\nReport: run/report.html\nModel: run/model\n"
            "Next:\n  difflens predict -- run/model IMAGES",
        ),
        (
            made.probed(made.multi_label(), made.multi_label(1)),
            "mAP 62.50 ± 17.68 % (mean and standard deviation over 2 seeds), without emu, which no test "
            "image has, 5,000 training and 4 test images, 1,234 trainable parameters\n"
            "Report: run/report.html\nModel: run/model\n"
            "Next:\n  difflens predict -- run/model IMAGES",
        ),
        (
            made.SWEEP,
            "Recommended: Block 6 at noise step 5 (log-SNR 7.0) classifies 87.50 % of 1,000 validation "
            "images correctly (95 % interval 75.00 to 95.00). The place was chosen on these images, which "
            "makes this figure too high. Cross-validated over two halves of the images, it is 85.00 % "
            "(70.00 to 93.00). Block 3 at noise step 20 costs less, and its accuracy on these images does "
            "not differ significantly from the best.\n"
            "For DifFormer: blocks 5, 6 at noise steps 5, 20\nReport: "
            "run/report.html, heat map: run/heatmap.png\nNext:\n  difflens probe --out DIR",
        ),
        (
            made.SUGGEST,
            "Suggested: Block 6 at noise step 5 (log-SNR 7.0). Of 10 random halves of the images, 8 suggest "
            "the same place, 2 suggest block 3 at noise step 20. Without labels, from 125 images.\n"
            "Report: run/report.html, heat map: run/heatmap.png\nNext:\n  difflens probe --out DIR",
        ),
        (
            made.SEGMENT,
            "mIoU 50.00 %, pixel accuracy 75.00 %, 1,200 training and 50 validation images, 4,321 trainable "
            "parameters\nReport: run/report.html\nModel: run/model",
        ),
        (
            made.DETECT,
            "box AP 50.00, AP50 70.00, AP75 60.00; mask AP 25.00, AP50 45.00, AP75 35.00 (%), 1,200 training "
            "and 50 validation images, 4,321 trainable parameters\n"
            "Report: run/report.html\nModel: run/model\nResults: run/results.json",
        ),
        (
            made.EXTRACT,
            "9,840 bytes in 2 shards, 12 images/s, SHA-256 of all 3c021ac17c6eb598…\nStore: run",
        ),
        (
            made.GENERATE,
            "1,000 images (ddim, 50 steps), 3.25 images/s\nImages: run/images, grid: run/grid.png",
        ),
        (
            made.SCENES,
            "train: 1,200 scenes with 3,000 objects of 2 classes, from 16 cut-outs\n"
            "val: 50 scenes with 120 objects of 2 classes, from 4 cut-outs\nData set: run",
        ),
        (
            made.CKA,
            "100 images in 20 minibatches; the widest 95 % interval is ± 0.125\n"
            "t = 5 (log-SNR 7.0): decoder blocks are +0.250 ± 0.125 more like their mirrors than like other "
            "encoder blocks; 3 of 4 are most like their mirror\n"
            "Report: run/report.html, every pair: run/table.csv",
        ),
        (
            made.EXPLAIN,
            "Share of CLS's attention:\n  block 6, t = 5: 50.0 %\n"
            "Share of the variance of the logits:\n  t = 5: 75.0 %\n  t = 40: 25.0 %\n"
            "Report: run/report.html, pictures beside it",
        ),
        (replace(made.EXPLAIN, head=None), "Report: run/report.html, pictures beside it"),
        (
            made.EXPLORED,
            "2 pictures, 2 blocks x 3 noise steps. Similarities agree with exact cosines: rank correlation "
            "0.987 or more at nearly all positions.\nPage (2.1 MB): run/explore.html",
        ),
        (
            made.EVERY["pretrain"],
            "Model: run/model\nNext:\n  difflens probe --backbone run/model --out run-probe",
        ),
        (made.EVERY["report"], "Report: run/backbone.html"),
        (
            replace(made.CLASSES, format="csv"),
            "image,label,probability,cat,dog\n"
            "a.png,cat,0.750000,0.750000,0.250000\nb.png,dog,0.500000,0.500000,0.500000",
        ),
    ],
)
def test_lines(result: Result, summary: str) -> None:
    assert result.summary() == summary


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (
            made.MATCH,
            ["120, 80", "62, 40", "0.875", "yes", "no", "Picture: run/match.png, points: run/metrics.json"],
        ),
        (
            made.KEYPOINTS,
            ["PCK@0.1 in per cent, of the object's box and of the image", "dog", "all", "1,500", "50.0"],
        ),
        (
            made.PROPAGATED,
            ["bear", "82", "50.0", "-", "all objects", "87", "Masks: run/masks, report: run/report.html"],
        ),
        (made.DEMO, ["attention", "75.0 %", "1,234", "2", "Report: run/report.html"]),
        (
            made.COMPARE,
            [
                "accuracy, %",
                "linear",
                "10 % of labels",
                "fashion",
                "75.00",
                "37.50",
                "0.2 M",
                "8.00",
                "12.35",
                "Report: run/report.html, plot: run/compare.png",
            ],
        ),
        (
            replace(made.MATCH, matches=(MatchedPoint((-0.4, 0.4), (-0.5, 3.0), 0.5, (0.0, 0.0), True),)),
            ["0, 0", "0, 3"],
        ),
        (
            made.FIDELITY,
            [
                "Features: fashion, block 18",
                "Compared with: test images of fashion, 10,000",
                "Fréchet distance",
                "samples",
                "12.35",
                "12.500 ± 1.000",
                "train images",
                "60 samples in 128 dimensions: the Fréchet distance says little of so few.",
                "Classes of the samples: shirt 75.0 %, shoe 25.0 %",
            ],
        ),
        (made.INCEPTION, ["FID", "12.35", "inception score: 5.5", "precision: 0.75", "recall: 0.5"]),
        (made.CLASSES, ["a.png", "cat", "75.0 %", "then", "dog 25.0 %"]),
        (
            made.SEVERAL,
            [
                "labels",
                "cat 75.0 %, dog 50.0 %",
                "emu 25.0 %",
                "no class",
                "dog 25.0 %, cat 12.5 %, emu 0.0 %",
            ],
        ),
        (made.MASKS, ["found", "sky 75.0 %, sea 25.0 %", "Overlays and predictions.json: predictions"]),
        (made.OBJECTS, ["bar 0.88, disc 0.50", "nothing"]),
        (replace(made.OBJECTS, top=1), ["bar 0.88 and 1 more"]),
    ],
)
def test_tables(result: Result, shown: list[str]) -> None:
    printed = words(result)
    assert [text for text in shown if text not in printed] == []


def test_without_a_label_all_candidates_are_listed() -> None:
    unsure = replace(made.CLASSES.predictions[0], threshold=0.9)
    assert unsure.in_words(top=2) == ("no class", "", "cat 75.0 %, dog 25.0 %")
    assert line_of(unsure, "table", 2, first=True) == "a.png: no class, then cat 75.0 %, dog 25.0 %"


def test_no_two_columns_of_predictions_have_one_name() -> None:
    line = csv_line(Prediction("a.png", {"label": 0.75, "labels": 0.25}), first=True)
    assert line == "image,label,probability,p(label),labels\na.png,label,0.750000,0.750000,0.250000"


def test_a_comparison_of_many_trials_fits_a_narrow_terminal() -> None:
    titles = {str(number): f"trial {number}" for number in range(8)}
    scores = {key: Score(0.75, (0.5, 0.9)) for key in titles}
    compared = [replace(each, scores=scores, frechet=None) for each in made.COMPARE.backbones]
    printed = words(replace(made.COMPARE, titles=titles, backbones=tuple(compared)))
    assert printed.count("75.00") == 16
    assert "Fréchet" not in printed


@pytest.mark.parametrize(
    ("result", "line"),
    [
        (made.SUGGEST, "skipped 1 unreadable image: a.png: broken"),
        (made.SWEEP, "skipped 1 unreadable image: a.png: broken"),
        (made.CLASSES, "skipped 1 unreadable image: c.png: broken"),
        (made.FIDELITY, "skipped 1 unreadable image: c.png: broken"),
        (made.EXTRACT, "skipped 1 unreadable image: train/a.png: broken"),
        (made.SEGMENT, "left out 1 bad annotation: b.png: no mask"),
        (made.SCENES, "left out 1: bar/opaque.png: no transparency"),
        (
            made.probed(made.seed(skipped_images=("b: x", "a: x")), made.seed(1, skipped_images=("a: x",))),
            "skipped 2 unreadable images: a: x, b: x",
        ),
        (
            replace(made.CLASSES, skipped_images=tuple(f"{k}.png: broken" for k in range(6))),
            "\n  ".join(["skipped 6 unreadable images:", *(f"{k}.png: broken" for k in range(6))]),
        ),
        (made.DETECT, ""),
        (made.COMPARE, ""),
    ],
)
def test_everything_that_was_left_out_is_named(result: Result, line: str) -> None:
    assert result.left_out() == line


def test_a_notebook_shows_the_summary() -> None:
    shown = made.OBJECTS._repr_html_()
    assert shown.startswith("<pre>")
    assert escape(made.OBJECTS.summary()) in shown


@pytest.mark.parametrize("name", made.EVERY)
def test_every_printed_command_parses(name: str) -> None:
    for line in made.EVERY[name].summary().splitlines():
        if line.startswith("  difflens "):
            parse(shlex.split(line)[1:], COMMANDS)


def _fenced(path: str) -> list[str]:
    """Return the command lines of a page, each with an --out where it needs one."""
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.startswith("    difflens ") and "--tyro" not in line]


@pytest.mark.parametrize(
    "line",
    [pytest.param(line, id=line[:70]) for page in ("README.md", "docs/paper.md") for line in _fenced(page)],
)
def test_every_command_of_the_pages_parses(line: str) -> None:
    words = [word for word in shlex.split(line, comments=True)[1:] if word != "..."]
    kind = COMMANDS.get(words[0])
    needed = {field.name: ["x"] for field in fields(kind) if field.default is MISSING} if kind else {}
    for name, values in needed.items():
        if "..." in line and name not in kind.POSITIONAL and f"--{name}" not in words:
            words += [f"--{name}", *values]
    if kind and kind.HAS_DIRECTORY and "out" in needed and "--out" not in words:
        words += ["--out", "x"]
    parse(words, COMMANDS)
