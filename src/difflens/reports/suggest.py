"""The report of `suggest`: the suggested place, its score, and the statistics behind it."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from difflens.metrics.suggestion import DIRECTIONS, Suggestion
from difflens.processes.base import Level, bracketed
from difflens.reports.heat_maps import place_map
from difflens.reports.html import Picture, Section, Table, render
from difflens.results.suggest import describe

_TITLES = {
    "high_frequency_share": "Share of high frequencies",
    "effective_rank": "Effective rank",
    "draw_agreement": "Agreement of two noise draws",
    "neighbour_alignment": "CKA with neighbouring blocks",
}
_MEANINGS = {
    "high_frequency_share": "The share of a map's spatial energy above half the highest frequency, without "
    "the mean (A-SelecT, Liu et al., 2026).",
    "effective_rank": "The number of directions that the pooled features span, by the entropy of their "
    "singular values (RankMe, Garrido et al., 2023), at most the number of images. Features are standardised "
    "first, as in a sweep, so values are not those of `cka` and `compare`.",
    "draw_agreement": "The share of the features' variance that belongs to the image, not to the noise.",
    "neighbour_alignment": "The mean linear CKA of a block with the blocks before and after it.",
}


def suggest_report(
    *,
    summary: str,
    statistics: Mapping[str, Tensor],
    score: Tensor,
    blocks: Sequence[int],
    roles: Sequence[str],
    log_snr: Mapping[Level, float],
    best: Suggestion,
    commands: Sequence[str],
    provenance: Mapping[str, object],
) -> str:
    """Return the report as one self-contained HTML document.

    Args:
        summary: the backbone and the images, in a sentence.
        statistics: (T, B) by name.
        score: (T, B) in [0, 1].
        blocks: indices of the B columns.
        roles: the part of the network of each column, "encoder", "middle" or "decoder".
        log_snr: log-SNR of the T rows by noise step, from the least to the most noise.
        best: the suggestion.
        commands: the command lines to run next.
        provenance: rows of the closing table.
    """
    place = best.block, best.noise_step
    decisive = " and ".join(
        f"{'high' if sign > 0 else 'low'} values of \u201c{_TITLES[name]}\u201d"
        for name, sign in DIRECTIONS.items()
    )
    figure = place_map(score, blocks, log_snr, roles, place, "score", "{:.2f}", _limits(score))
    rows: list[tuple[object, ...]] = [
        (str(block), bracketed(t, log_snr[t]), str(count)) for block, t, count in best.places
    ]
    caption = f"What each of {best.halves} random halves of the images suggests."
    sections = [
        Section(
            "Suggested block and noise step",
            describe(best, log_snr),
            (Table(("Block", "Noise step (log-SNR)", "Halves"), rows, caption),),
        ),
        Section(
            "Score by block and noise step",
            f"The mean rank of a place among all places, by {decisive}. 1 is first by each of them. The "
            "score is not an accuracy.",
            (Picture(figure, "The score of every place.", "Heat map of the score by block and noise step"),),
        ),
    ]
    for name, values in statistics.items():
        outline = place if name in DIRECTIONS else None
        figure = place_map(values, blocks, log_snr, roles, outline, _TITLES[name], "{:.2f}", _limits(values))
        role = "" if name in DIRECTIONS else "For comparison; the score does not use it."
        picture = Picture(figure, _MEANINGS[name], f"Heat map of {_TITLES[name]} by block and noise step")
        sections.append(Section(_TITLES[name], role, (picture,)))
    sections.append(Section("Next commands", commands=tuple(commands)))
    return render("Suggest: where to read, without labels", summary, sections, provenance)


def _limits(values: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest value, or 0 and 1 where there is none."""
    known = values[~values.isnan()]
    return (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
