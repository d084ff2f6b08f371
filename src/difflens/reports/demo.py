"""The report of `difflens demo`: heads against two baselines, feature maps, samples, memorisation check."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from torch import Tensor

from difflens.errors import counted
from difflens.metrics.classification import Evaluation, paired_difference
from difflens.processes.base import Level, in_words
from difflens.reports import charts, heat_maps, pictures
from difflens.reports.html import (
    UNSELECTED,
    Picture,
    Section,
    Table,
    interval,
    render,
    reports_of,
    runs_beneath,
)
from difflens.results.demo import DemoResult, DemoScore

TITLES = {
    "pixels": "Raw pixels, linear",
    "random_backbone": "Untrained backbone, linear",
    "linear": "Linear probe",
    "mlp": "MLP",
    "cnn": "CNN",
    "attention": "Attention head",
    "difformer": "DifFormer",
    "diffeed": "DifFeed",
}
"""Titles of the results in tables, by their keys in metrics.json."""

EXPLORER = Path("explore", "explore.html")
"""The page of `explore` in the folder of a demo."""

BASELINES = ("pixels", "random_backbone")
"""Results that do not read the backbone's weights."""


def demo_report(
    *,
    backbone: str,
    network: str,
    data: str,
    result: DemoResult,
    evaluations: Mapping[str, Evaluation],
    read_at: str,
    images: Tensor,
    noised: Mapping[Level, Tensor],
    log_snr: Mapping[Level, float],
    maps: Mapping[tuple[int, Level], Tensor],
    blocks: str,
    samples: Image.Image,
    sampled: str,
    stated: str,
    memorisation: Section,
    provenance: Mapping[str, object],
) -> str:
    """Return the report as one self-contained HTML document.

    Args:
        backbone, data: their names.
        network: what the network predicts, in a sentence.
        result: the accuracies of the heads.
        evaluations: predictions on the test split, by the keys of `TITLES`.
        read_at: the noise steps that the heads read, in a sentence.
        images: (N, C, S, S) in [-1, 1], test images.
        noised: (M, C, S, S) by noise step, the first M of them with noise.
        log_snr: by noise step, from the least to the most noise.
        maps: (N, C, H, W) by place, the feature maps of `images` at one noise step.
        blocks: the backbone's blocks, in words.
        samples: a grid of generated images.
        sampled: the number of samples and their sampler, in a sentence.
        stated: the Fréchet distance that the network's model card states, in a sentence; may be empty.
        memorisation: the section that `copying_section` gives.
        provenance: rows of the closing table.
    """
    best = result.best
    count = len(next(iter(noised.values())))
    by_block = {block: values for (block, _), values in maps.items()}
    (noise_step,) = {t for _, t in maps}
    noise = Picture(
        pictures.noised_images(images[:count], noised, log_snr),
        "Test images, clean and noised.",
        "Images at increasing noise steps",
    )
    components = Picture(
        pictures.principal_components(images, by_block),
        f"Feature maps at t = {in_words({noise_step: log_snr[noise_step]})}. {blocks}.",
        "Principal components of feature maps as colour images",
    )
    grid = Picture(samples, sampled, "A grid of generated images", scale=3)
    confusion = Picture(
        heat_maps.confusion_matrix(evaluations[best].confusion, evaluations[best].classes, ""),
        heat_maps.confusion_caption(len(evaluations[best].classes)),
        "Confusion matrix of the best head",
    )
    sections = [
        _results(result, evaluations),
        Section("Noised images", read_at, (noise,)),
        Section(
            "Feature maps (PCA)",
            "Red, green and blue are the first three principal components of each block's feature maps. "
            "Labels were not used.",
            (components,),
            links=(("Similar positions in these images, by block and noise level", EXPLORER.as_posix()),),
        ),
        Section(
            "Generated samples",
            f"{UNSELECTED}{stated}",
            (grid,),
        ),
        memorisation,
        Section("Confusion matrix of the best head", f"The best head is: {TITLES[best]}.", (confusion,)),
        *runs_beneath(
            reports_of(result.out, {TITLES[name]: result.out / "heads" / name for name in result.results})
        ),
    ]
    lead = f"Small heads read the features of one frozen diffusion network ({backbone}) on {data}. {network}"
    return render("Demo: heads on a frozen diffusion network", lead, sections, provenance)


def _results(result: DemoResult, evaluations: Mapping[str, Evaluation]) -> Section:
    results = result.results
    rows: list[tuple[object, ...]] = [
        (
            TITLES[name],
            f"{100 * row.top1:.2f}",
            interval(row.top1_interval_95),
            f"{row.trainable_parameters:,}",
            f"{row.train_seconds:.1f}",
        )
        for name, row in results.items()
    ]
    table = Table(
        ("Features and head", "Top-1, %", "95 % interval", "Trainable parameters", "Training, s"),
        rows,
        f"{counted(result.train_images, 'training image')} and {counted(result.test_images, 'test image')}. "
        "Every test image "
        "is evaluated once. Training times compare within this run only; they exclude feature extraction.",
        list(results).index(result.best),
    )
    bars = charts.accuracy_bars(
        [TITLES[name] for name in results],
        [row.top1 for row in results.values()],
        [row.top1_interval_95 for row in results.values()],
        [TITLES[name] for name in BASELINES],
    )
    picture = Picture(
        bars,
        "Top-1 accuracy with 95 % intervals. Baselines are grey; the dotted line marks the better one.",
        "Top-1 accuracy of every head with its interval",
    )
    return Section("Results", _findings(results, evaluations), (table, picture))


def _findings(results: Mapping[str, DemoScore], evaluations: Mapping[str, Evaluation]) -> str:
    """Return the main comparisons of heads in words, with their uncertainty."""
    sentences = []
    for a, b in (("attention", "linear"), ("difformer", "attention"), ("diffeed", "attention")):
        difference, half = paired_difference(evaluations[a], evaluations[b])
        verdict = "which is significant" if abs(difference) > half else "which is not significant"
        sentences.append(
            f"{TITLES[a]} minus {TITLES[b]}: {100 * difference:+.2f} ± {100 * half:.2f} points on the same "
            f"test images (95 % interval), {verdict}."
        )
    unsure = [
        TITLES[name] for name in results if name not in BASELINES and not _above_pixels(evaluations, name)
    ]
    if unsure:
        sentences.append(f"Not significantly above raw pixels: {', '.join(unsure)}.")
    else:
        sentences.append("Every head on the frozen backbone is significantly above raw pixels.")
    return " ".join(sentences)


def _above_pixels(evaluations: Mapping[str, Evaluation], name: str) -> bool:
    difference, half = paired_difference(evaluations[name], evaluations["pixels"])
    return difference > half
