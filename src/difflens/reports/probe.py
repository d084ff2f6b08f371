"""The report of a probe: accuracies or average precisions, training, and confused classes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from torch import Tensor

from difflens.errors import listing
from difflens.metrics.classification import MOST_MATRIX_CLASSES, Evaluation
from difflens.metrics.multi_label import MultiLabelEvaluation
from difflens.reports import charts, heat_maps, pictures
from difflens.reports.html import Picture, Section, Table, interval, percent, render, runs_beneath

_EXAMPLES = 6  # the most images of a pair of confused classes
_SURE = "The interval is the uncertainty of one run that comes from its test images. "
_LAST_COLUMNS = ("ECE, %", "NLL, nats", "Training, s")  # of both kinds


@dataclass(frozen=True)
class _Kind:
    """What the report says of a kind of probe.

    Attributes:
        shares: keys of the metrics that have a mean over runs; the first has an interval.
        columns: of the table of figures: the first share, its interval, the other shares, and more figures.
        explained: the caption of the table.
        title: the first share in words.
        sentence: what the mean of several runs means, with a place for it.
        of_class: the figure of a class, in words.
        images: the column of the number of a class' test images.
    """

    shares: tuple[str, ...]
    columns: tuple[str, ...]
    explained: str
    title: str
    sentence: str
    of_class: str
    images: str


_ONE_LABEL = _Kind(
    shares=("top1", "top5", "mean_per_class"),
    columns=("Top-1, %", "95 % interval of top-1", "Top-5, %", "Mean per class, %", *_LAST_COLUMNS),
    explained=f"{_SURE}The mean per class weights all classes equally. ECE is the expected calibration "
    "error: the mean distance of confidence from accuracy in 15 bins of confidence. NLL is the negative "
    "log-likelihood of the true class.",
    title="top-1 accuracy",
    sentence="The probe classifies {} of the test images correctly",
    of_class="accuracy",
    images="Test images",
)
_SEVERAL_LABELS = _Kind(
    shares=("map",),
    columns=("mAP, %", "95 % interval of mAP", *_LAST_COLUMNS),
    explained=f"{_SURE}A bootstrap over them measures it. mAP is the mean of the classes' "
    "average precisions. An average precision is the area under the curve of precision by recall, without "
    "interpolation. ECE is the expected calibration error over all pairs of image and class, in 15 bins of "
    "probability: the mean distance between the probability and the share of images that have the class. NLL "
    "is the mean negative log-likelihood of these pairs.",
    title="mAP",
    sentence="The mean average precision is {}",
    of_class="average precision",
    images="Test images with the class",
)


def probe_report(
    *,
    command: str,
    summary: str,
    evaluations: Sequence[Evaluation] | Sequence[MultiLabelEvaluation],
    metrics: Sequence[Mapping[str, Any]],
    logs: Sequence[Sequence[Mapping[str, Any]]],
    examples: Callable[[Sequence[int]], Tensor],
    provenance: Mapping[str, object],
    beneath: Mapping[str, Path] | None = None,
) -> str:
    """Return the report on a probe of one seed or several, as one self-contained HTML document.

    Args:
        command: the command line that repeats the run.
        summary: the head, the backbone and the data, in a sentence or two.
        evaluations: one a seed, at least one, with the same classes; the pictures show the first.
        metrics: one a seed, the evaluation's `metrics()` with "train_images", "trainable_parameters" and
            "train_seconds". These keys are optional: "seed"; "ece"; "nll"; "grid", records with
            "learning_rate", "weight_decay" and "validation_top1"; "neighbours", records with "k",
            "validation_top1" and "top1". The chosen record has a true "chosen".
        logs: one a seed, records with "epoch" and "loss"; empty where nothing was trained by epochs.
        examples: function from positions in the test split to their images, (N, C, S, S) uint8.
        provenance: further rows of the closing table (backbone, data, places, hardware, versions).
        beneath: reports of the runs of the seeds, relative to this report, by title; None for one seed.
    """
    assert len(evaluations) == len(metrics) == len(logs) > 0, "evaluations, metrics and logs: one a seed"
    evaluation = evaluations[0]
    # the note on every part that describes one of several runs
    which = f" Shown for {_run(metrics, 0)}." if len(metrics) > 1 else ""
    if isinstance(evaluation, MultiLabelEvaluation):
        kind, totals = _SEVERAL_LABELS, evaluation.positives
        mistakes = [_misranked(evaluation, examples, which)]
    else:
        kind = _ONE_LABEL
        totals = dict(zip(evaluation.classes, evaluation.totals, strict=True))
        few = len(evaluation.classes) <= MOST_MATRIX_CLASSES
        mistakes = [
            _confused(evaluation, examples, which),
            *([_confusion(evaluation, which)] if few else []),
        ]
    sections = [
        _result(kind, metrics),
        *_training(metrics, logs, which),
        _per_class(kind, evaluation, totals, which),
        *mistakes,
        *runs_beneath(beneath or {}),
    ]
    title = f"Probe: {_mean_percent(metrics, kind.shares[0])} % {kind.title}"
    return render(title, summary, sections, {"Command": command, **provenance})


def _result(kind: _Kind, metrics: Sequence[Mapping[str, Any]]) -> Section:
    first = metrics[0]
    counts: list[tuple[object, ...]] = [
        ("Training images", first["train_images"]),
        ("Test images", first["test_images"]),
        ("Trainable parameters", first["trainable_parameters"]),
    ]
    if len(metrics) == 1:
        rows: list[tuple[object, ...]] = list(zip(kind.columns, _figures(kind, first), strict=True))
        return Section("Result", parts=(Table(("Figure", "Value"), rows + counts, kind.explained),))
    main, *others = (_deviation(metrics, key, 100, 2) for key in kind.shares)
    rows = [(_run(metrics, k), *_figures(kind, one)) for k, one in enumerate(metrics)]
    calibration = (_deviation(metrics, "ece", 100, 2), _deviation(metrics, "nll", 1, 3))
    rows.append(("Mean ± standard deviation", main, None, *others, *calibration, None))
    text = (
        f"{kind.sentence.format(f'{main} %')} (mean ± standard deviation over {len(metrics)} runs that "
        "differ only in their seed)."
    )
    parts = (
        Table(("Run", *kind.columns), rows, kind.explained, best=len(metrics)),
        Table(("In every run", "Number"), counts),
    )
    return Section("Result", text, parts)


def _figures(kind: _Kind, one: Mapping[str, Any]) -> tuple[object, ...]:
    """Return the cells of the columns of a kind."""
    main, *others = (percent(one[share]) for share in kind.shares)
    nll = None if one.get("nll") is None else f"{one['nll']:.3f}"
    bounds = interval(one[f"{kind.shares[0]}_interval_95"])
    return main, bounds, *others, percent(one.get("ece")), nll, f"{one['train_seconds']:.1f}"


def _training(
    metrics: Sequence[Mapping[str, Any]], logs: Sequence[Sequence[Mapping[str, Any]]], which: str
) -> list[Section]:
    """Return the section on training; no section where there was none."""
    parts: list[Table | Picture] = []
    trained = [log for log in logs if log]
    if trained:
        lines = "" if len(trained) == 1 else f", a line for each of {len(trained)} runs"
        parts.append(
            Picture(charts.loss_curve(trained), f"Mean loss by epoch{lines}.", "Training loss by epoch")
        )
    if metrics[0].get("grid"):
        parts.append(_grid(metrics[0]["grid"], which))
    if metrics[0].get("neighbours"):
        parts.append(_neighbours(metrics[0]["neighbours"], which))
    return [Section("Training", parts=tuple(parts))] if parts else []


def _grid(records: Sequence[Mapping[str, Any]], which: str) -> Table:
    rates = sorted({record["learning_rate"] for record in records})
    decays = sorted({record["weight_decay"] for record in records})
    accuracy = {
        (trial["learning_rate"], trial["weight_decay"]): trial["validation_top1"] for trial in records
    }
    rows: list[tuple[object, ...]] = []
    for rate in rates:
        cells = (percent(accuracy.get((rate, decay))) for decay in decays)
        rows.append((f"learning rate {rate:g}", *cells))
    chosen = next(trial for trial in records if trial.get("chosen"))
    best_rate, best_decay = chosen["learning_rate"], chosen["weight_decay"]
    settings = f"learning rate {best_rate:g}, weight decay {best_decay:g}"
    caption = f"Accuracy on validation images. Chosen: {settings}.{which}"
    columns = ("Validation top-1, %", *(f"weight decay {decay:g}" for decay in decays))
    return Table(columns, rows, caption, best=rates.index(best_rate))


def _neighbours(records: Sequence[Mapping[str, Any]], which: str) -> Table:
    rows: list[tuple[object, ...]] = [
        (f"k = {record['k']}", percent(record["validation_top1"]), percent(record["top1"]))
        for record in records
    ]
    chosen = next(row for row, record in enumerate(records) if record.get("chosen"))
    caption = (
        f"k = {records[chosen]['k']} was chosen by accuracy on validation images. The choice did not use the "
        f"test images; their column is for information.{which}"
    )
    return Table(("Neighbours", "Validation top-1, %", "Test top-1, %"), rows, caption, best=chosen)


def _per_class(
    kind: _Kind, evaluation: Evaluation | MultiLabelEvaluation, totals: Mapping[str, int], which: str
) -> Section:
    accuracies, intervals = evaluation.per_class, evaluation.per_class_intervals
    worst, best = charts.worst_and_best(accuracies)
    rows: list[tuple[object, ...]] = [
        (name, totals[name], percent(accuracies[name]), interval(intervals[name])) for name in (*worst, *best)
    ]
    selection = f"the {len(worst)} worst and the {len(best)} best of {len(intervals)}"
    order = selection if best else "the worst first"
    figure = kind.of_class.capitalize()
    bars = Picture(
        charts.per_class_bars(accuracies, intervals, f"{kind.of_class}, %"),
        f"{figure} by class with 95 % intervals, {order}; the dotted line is the mean over classes.{which}",
        f"{figure} by class with intervals",
    )
    absent = [name for name, value in accuracies.items() if value is None]
    caption = "All classes are in metrics.json." if best else ""
    caption += f" No test image has: {listing(absent)}." if absent and kind is _SEVERAL_LABELS else ""
    table = Table(
        ("Class", kind.images, f"{figure}, %", "95 % interval"),
        rows,
        caption.strip(),
    )
    return Section("Per class", parts=(bars, table))


def _confused(evaluation: Evaluation, examples: Callable[[Sequence[int]], Tensor], which: str) -> Section:
    confused = evaluation.most_confused()
    if not confused:
        return Section("Most confused classes", f"Every test image is classified correctly.{which}")
    names = evaluation.classes
    pairs = [
        (names[true], names[predicted], count, examples(_surest(evaluation, true, predicted)))
        for true, predicted, count in confused
    ]
    picture = Picture(
        pictures.confused_pairs(pairs),
        f"The true class, the predicted class and the number of test images, with at most {_EXAMPLES} images "
        f"of the most confident predictions.{which}",
        "Pairs of confused classes, with examples",
    )
    return Section("Most confused classes", parts=(picture,))


def _confusion(evaluation: Evaluation, which: str) -> Section:
    confusion = Picture(
        heat_maps.confusion_matrix(evaluation.confusion, evaluation.classes, ""),
        f"{heat_maps.confusion_caption(len(evaluation.classes))}{which}",
        "Confusion matrix",
    )
    return Section("Confusion matrix", parts=(confusion,))


def _misranked(
    evaluation: MultiLabelEvaluation, examples: Callable[[Sequence[int]], Tensor], which: str
) -> Section:
    mistakes = evaluation.misranked()
    if not mistakes:
        return Section(
            "Ranked wrongly", f"Every test image with a class is ranked before all without it.{which}"
        )
    rows = [
        (
            name,
            "with it, ranked low" if there else "without it, ranked high",
            len(rows),
            examples(rows[:_EXAMPLES]),
        )
        for name, there, rows in mistakes
    ]
    picture = Picture(
        pictures.confused_pairs(rows),
        "The classes of the least average precision: test images without the class that are ranked above an "
        f"image with it, and the reverse. At most {_EXAMPLES} are shown, the surest mistake first.{which}",
        "Images that are ranked wrongly, by class",
    )
    return Section("Ranked wrongly", parts=(picture,))


def _surest(evaluation: Evaluation, true: int, predicted: int) -> list[int]:
    """Return positions of test images of class `true` predicted as `predicted`, the most confident first."""
    wrong = ((evaluation.labels == true) & (evaluation.ranked[:, 0] == predicted)).nonzero()[:, 0]
    order = evaluation.confidence[wrong].argsort(descending=True, stable=True)[:_EXAMPLES]
    rows: list[int] = evaluation.rows[wrong[order]].tolist()
    return rows


def _run(metrics: Sequence[Mapping[str, Any]], k: int) -> str:
    return f"seed {metrics[k]['seed']}" if "seed" in metrics[k] else f"run {k + 1}"


def _mean_percent(metrics: Sequence[Mapping[str, Any]], key: str) -> str:
    return f"{100 * mean(one[key] for one in metrics):.2f}"


def _deviation(metrics: Sequence[Mapping[str, Any]], key: str, factor: int, digits: int) -> str | None:
    """Return mean ± standard deviation; None if a run of an earlier version has no such figure."""
    values = [factor * one[key] for one in metrics if one.get(key) is not None]
    if len(values) < len(metrics):
        return None
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"
