"""The report of a sweep: the accuracy of every place, and the recommended ones."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from difflens.metrics.recommendation import Recommendation
from difflens.reports.charts import accuracy_curves
from difflens.reports.heat_maps import accuracy_map
from difflens.reports.html import Picture, Section, Table, render
from difflens.results.sweep import describe

_TITLES = {"ridge": "ridge regression", "logistic": "logistic regression", "knn": "nearest neighbours"}


def sweep_report(
    *,
    summary: str,
    accuracy: Mapping[str, Tensor],
    blocks: Sequence[int],
    roles: Sequence[str],
    noise_steps: Sequence[int],
    not_measured: Sequence[int],
    best: Recommendation,
    images: int,
    commands: Sequence[str],
    provenance: Mapping[str, object],
) -> str:
    """One self-contained HTML document.

    Args:
        summary: what was swept on what, in a sentence.
        accuracy: (T, B) in [0, 1] by classifier; the first one decided.
        blocks, roles: of the columns; a role is "encoder", "middle" or "decoder".
        noise_steps: of the rows.
        not_measured: noise steps that a time budget left out.
        best: the recommendation.
        images: how many images validated.
        commands: what to run next.
        provenance: rows of the closing table.
    """
    place = best.block, best.noise_step
    sections = [Section("Recommended block and noise step", describe(best, images), (
        Table(("For", "Blocks", "Noise steps", "Validation accuracy, %", "Chosen on other images, %", "95 % interval"), [
            ("one map", str(best.block), str(best.noise_step), f"{100 * best.top1:.2f}", f"{100 * best.cross_validated:.2f}",
             _interval(best.cross_validated_interval)),
            ("DifFormer", _words(best.fusion_blocks), _words(best.fusion_noise_steps), f"{100 * best.fusion_top1:.2f}",
             f"{100 * best.fusion_cross_validated:.2f}", _interval(best.fusion_cross_validated_interval)),
        ], "DifFormer's figures are of averaged scores of the single places, a stand-in for training it. Chosen on other "
           "images: one half of the images chooses, the other half judges, both ways; the interval is of that."),
    ))]  # fmt: skip
    if not_measured:
        text = f"The time budget ended before noise steps {_words(not_measured)}; --resume goes on with them."
        sections.append(Section("Not measured", text))
    for number, (name, values) in enumerate(accuracy.items()):
        decided = number == 0
        pictures = [Picture(
            accuracy_map(values, blocks, noise_steps, roles, place if decided else None),
            f"Validation accuracy in per cent, {_TITLES[name]}.", f"Heat map of accuracy by block and noise step, {name}",
        )]  # fmt: skip
        if decided:
            curves = accuracy_curves(values, blocks, noise_steps, place)
            pictures.append(
                Picture(curves, "The same figures as curves.", "Accuracy by block, and by noise step")
            )
        title = f"Accuracy of every place: {_TITLES[name]}"
        sections.append(Section(title, "" if decided else "For comparison.", tuple(pictures)))
    decisive = next(iter(accuracy.values()))
    rows: list[tuple[object, ...]] = [
        (str(block), role, *(f"{100 * value:.2f}" for value in column))
        for block, role, column in zip(blocks, roles, decisive.T.tolist(), strict=True)
    ]
    columns = ("Block", "Part", *(f"t = {t}" for t in noise_steps))
    caption = f"{_TITLES[next(iter(accuracy))].capitalize()}, validation accuracy in per cent."
    sections.append(
        Section("Table of accuracies", "", (Table(columns, rows, caption, list(blocks).index(best.block)),))
    )
    sections.append(Section("Next commands", "\n\n".join(commands)))
    return render("Sweep: accuracy by block and noise step", summary, sections, provenance)


def _interval(bounds: tuple[float, float]) -> str:
    return f"{100 * bounds[0]:.2f} to {100 * bounds[1]:.2f}"


def _words(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
