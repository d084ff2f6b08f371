"""`difflens fidelity`: the distance between generated and real images.

FID, KID, Inception score, precision and recall come from torch-fidelity, which needs the weights of
Inception. The Fréchet distance and KID in the feature space of a backbone or of a trained model need no
download. They have the name of that space and are never called FID: distances in different spaces cannot be
compared.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from difflens.backbones.config import BackboneConfig
from difflens.configs.fidelity import FidelityConfig
from difflens.configs.options import given, resolve
from difflens.data.changes import channels_of, say_changes
from difflens.data.files import list_images
from difflens.data.images import fit
from difflens.data.load import load_data, load_unlabelled, without_split
from difflens.data.split import FileSplit, ImageSplit
from difflens.errors import DiffLensError, counted
from difflens.extractors.cache import Reading
from difflens.metrics.distances import frechet_distance, kernel_distance
from difflens.metrics.moments import Moments
from difflens.models.feature_space import FeatureSpace
from difflens.noise import Stream, random_order
from difflens.opening import bundled_backbone, open_run
from difflens.results.fidelity import Distance, FidelityResult, InceptionFigures, SampleSource
from difflens.run.console import note
from difflens.run.directory import CONFIG, FINISHED, read_record
from difflens.run.processes import accelerator
from difflens.run.reading import check_regular, read_yaml, reason, short

NOISE_STRENGTHS = (0.01, 0.03, 0.1, 0.3)
"""Standard deviations of the noise for the reference distances, on images in [-1, 1]."""

KERNEL_IMAGES = 20_000
"""The kernel distance draws its subsets from at most this number of images in a set, chosen at random."""

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)

_PRC_NEIGHBOURS = 3
"""Precision and recall take the distance to this nearest neighbour (Kynkäänniemi et al., 2019)."""


def fidelity(config: FidelityConfig) -> FidelityResult:
    """Measure the distances that `config` describes; with `out`, also write metrics.json.

    Raises:
        DiffLensError: images, features or weights are missing; the samples have several sizes or modes, or
            come from an unfinished run; there are fewer than two images; or `out` is not empty.
    """
    config = resolve(config)
    opened = open_run(config, None, one_process="; `difflens generate` runs in several")
    samples, source = _samples(config)
    real, other = _real(config, len(samples))
    config = replace(config, features=config.features or bundled_backbone(channels_of(real)))
    opened.config = config
    for split in (samples, real):
        if len(split) < 2:
            raise DiffLensError(f"a distance needs at least two images, and there is one of the {split.name}")
    measure = _inception if config.features == "inception" else _in_space
    if config.out is None:
        return measure(config, samples, real, other, source)
    with opened.directory() as run:
        result = measure(config, samples, real, other, source)
        run.write_json(FINISHED, result.metrics())
        return result


def images_folder(samples: Path) -> Path:
    """Return the folder of the images that `fidelity` reads of a folder of samples."""
    return samples / "images" if (samples / CONFIG).exists() else samples


def _samples(config: FidelityConfig) -> tuple[ImageSplit, SampleSource | None]:
    """Return the generated images, and their source if `generate` made them."""
    folder, source = config.samples, None
    if (folder / CONFIG).exists():
        command = read_record(folder)["command"]
        if command != "generate":
            raise DiffLensError(
                f"{folder} is a run directory, but not of `difflens generate`: it is of {short(command)}"
            )
        if not (folder / FINISHED).is_file():
            raise DiffLensError(f"{folder} is not finished: `difflens generate` goes on with --resume")
        source = read_yaml(folder / CONFIG, SampleSource)
    paths = list_images([images_folder(folder)])
    split = at_random(FileSplit("samples", [str(path) for path in paths]), config.limit, config.seed)
    _check_alike(split)
    return split, source


def _check_alike(split: ImageSplit) -> None:
    """Raise a DiffLensError if the image files have several sizes or modes, as from several generators."""
    first: tuple[object, ...] | None = None
    for name in split.ids:
        try:
            with Image.open(name) as image:
                kind = (f"{image.width} x {image.height}", image.mode)
        except OSError:  # the loader reports the damage, or skips the file
            continue
        first = first or (*kind, name)
        if kind != first[:2]:
            raise DiffLensError(
                f"the samples are not alike: {first[2]} is {first[0]} {first[1]}, {name} is {kind[0]} "
                f"{kind[1]}; give the images of one generator"
            )


def _real(config: FidelityConfig, count: int) -> tuple[ImageSplit, ImageSplit | None]:
    """Return the real images, and at most `count` images of the other split, or None if there is none.

    A distance depends on the number of images, so the other split is as large as the samples.
    """
    if config.val_fraction is None and without_split(config.data):
        if config.split != "test":
            raise DiffLensError(
                f"{config.data} has no train/, so all of its images are read: leave out --split"
            )
        return at_random(
            load_unlabelled(config.data, val_fraction=config.val_fraction), config.limit, config.seed
        ), None
    data = load_data(config.data, labels=False, val_fraction=config.val_fraction)
    chosen, other = (data.test, data.train) if config.split == "test" else (data.train, data.test)
    return at_random(chosen, config.limit, config.seed), at_random(other, count, config.seed)


def at_random(split: ImageSplit, count: int | None, seed: int) -> ImageSplit:
    """Return `count` images at random, in their order; the first ones would all be of one class."""
    if count is None or count >= len(split):
        return split
    return split.subset(random_order(Stream.FIDELITY_IMAGES, split.index, seed)[:count].sort().values)


class _Set:
    """The statistics of a set of images that the distances need.

    Attributes:
        moments: mean and covariance of the features of all images.
        vectors: (N, D) float32, features of at most `KERNEL_IMAGES` images.
        votes: (K,) long, number of images by the class that a trained model predicts; None without one.
    """

    def __init__(
        self,
        config: FidelityConfig,
        space: FeatureSpace,
        split: ImageSplit,
        reading: Reading,
        noise: float = 0,
    ):
        chosen = torch.zeros(len(split), dtype=torch.bool)
        chosen[random_order(Stream.KERNEL_IMAGES, split.index, config.seed)[:KERNEL_IMAGES]] = True
        moments, parts = None, []
        self.votes: Tensor | None = None
        for read in space.read(split, reading, noise):
            moments = moments or Moments(read.vectors.shape[1])
            moments.add(read.vectors)
            parts.append(read.vectors.cpu()[chosen[read.batch.rows.cpu()]])
            if read.logits is not None:
                votes = read.logits.argmax(1).cpu().bincount(minlength=read.logits.shape[1])
                self.votes = votes if self.votes is None else self.votes + votes
        if moments is None or moments.count < 2:
            raise DiffLensError(
                f"a distance needs at least two images, and fewer of the {split.name} could be read"
            )
        self.moments, self.vectors = moments, torch.cat(parts)


def _in_space(
    config: FidelityConfig,
    samples: ImageSplit,
    real: ImageSplit,
    other: ImageSplit | None,
    source: SampleSource | None,
) -> FidelityResult:
    backbone = BackboneConfig.of(config, given(config.features))
    device = accelerator(config.device).device
    space = FeatureSpace.load(backbone, config.block, config.noise_step, config.seed, device)
    reading = Reading(config.workers, config.on_bad_image, [])
    network = space.extractor.backbone
    for split in (samples, real):
        say_changes(split, network.spec, network.in_channels, network.image_size)
    target, generated = (_Set(config, space, split, reading) for split in (real, samples))
    sets = [("samples", generated)]
    if config.reference_distances:
        near, name = (real, "the same images") if other is None else (other, f"{other.name} images")
        if other is not None:
            if len(other) < len(samples):
                note(
                    f"reference distances: the {other.name} split has {counted(len(other), 'image')} for "
                    f"{counted(len(samples), 'sample')}, and distances of fewer images are larger"
                )
            sets.append((name, _Set(config, space, near, reading)))
        sets += [(f"{name} + noise {s:g}", _Set(config, space, near, reading, s)) for s in NOISE_STRENGTHS]
    shares, votes = None, generated.votes
    if space.model is not None and votes is not None:
        shares = dict(zip(space.model.classes, (votes / votes.sum()).tolist(), strict=True))
    return FidelityResult(
        space=space.name,
        dimensions=target.vectors.shape[1],
        real=_described(config, real),
        real_images=target.moments.count,
        distances=tuple(_distance(config, name, images, target) for name, images in sets),
        source=source,
        class_shares=shares,
        skipped_images=tuple(reading.skipped),
    )


def _distance(config: FidelityConfig, name: str, images: _Set, target: _Set) -> Distance:
    """Return the distances between a set of images and the real ones."""
    frechet = frechet_distance(images.moments, target.moments)
    kernel = kernel_distance(
        images.vectors, target.vectors, config.kid_subsets, config.kid_subset_size, config.seed
    )
    return Distance(name, images.moments.count, frechet, *kernel)


def _described(config: FidelityConfig, real: ImageSplit) -> str:
    return f"{real.name} images of {config.data}"


def _inception(
    config: FidelityConfig,
    samples: ImageSplit,
    real: ImageSplit,
    other: ImageSplit | None,
    source: SampleSource | None,
) -> FidelityResult:
    weights = check_inception(config, len(samples), len(real))
    import torch_fidelity

    count, side = min(len(samples), len(real)), min(samples.image(0).shape[-2:])
    metrics = torch_fidelity.calculate_metrics(
        input1=_Images(samples, side),
        input2=_Images(real, side),
        fid=True,
        kid=True,
        isc=True,
        prc=True,
        # one network for all figures, also for precision and recall, as in the evaluation of ADM
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        cuda=accelerator(config.device).device.type == "cuda",
        save_cpu_ram=True,  # distances in blocks, and images read here, where their errors keep their names
        prc_neighborhood=_PRC_NEIGHBOURS,
        cache=False,
        kid_subset_size=min(config.kid_subset_size, count),
        kid_subsets=config.kid_subsets,
        isc_splits=min(10, len(samples)),
        rng_seed=config.seed,
        verbose=False,
    )
    # each subset holds all samples and all real images
    alike = config.kid_subset_size >= count == max(len(samples), len(real)) or config.kid_subsets == 1
    figures = InceptionFigures(
        fid=float(metrics["frechet_inception_distance"]),
        kid=float(metrics["kernel_inception_distance_mean"]),
        kid_std=None if alike else float(metrics["kernel_inception_distance_std"]),
        inception_score=float(metrics["inception_score_mean"]),
        inception_score_std=float(metrics["inception_score_std"]),
        precision=float(metrics["precision"]),
        recall=float(metrics["recall"]),
    )
    return FidelityResult(
        space="Inception (FID)",
        dimensions=2048,
        real=_described(config, real),
        real_images=len(real),
        distances=(Distance("samples", len(samples), figures.fid, figures.kid, figures.kid_std),),
        source=source,
        inception=figures,
    )


def check_inception(config: FidelityConfig, samples: int, real: int) -> Path:
    """Return the file of Inception's weights.

    Args:
        samples, real: numbers of generated and of real images.

    Raises:
        DiffLensError: torch-fidelity or the weights are missing, there are too few images, or the options do
            not fit.
    """
    if config.reference_distances:
        raise DiffLensError(
            "reference distances are for feature spaces of your own; "
            "leave out --reference-distances or --features inception"
        )
    try:
        import torch_fidelity  # noqa: F401
    except ImportError as error:
        raise DiffLensError('features of Inception need `pip install "difflens[fidelity]"`') from error
    if min(samples, real) <= _PRC_NEIGHBOURS:
        raise DiffLensError(
            f"{samples:,} samples and {real:,} real images: precision and recall compare an image "
            f"with {_PRC_NEIGHBOURS} others, so they need {_PRC_NEIGHBOURS + 1} of each or more"
        )
    return _inception_weights(config)


def _inception_weights(config: FidelityConfig) -> Path:
    """Return the file of Inception's weights, downloaded if necessary.

    It is checked to hold tensors alone, because torch-fidelity would run any code in it.
    """
    name = INCEPTION_URL.rpartition("/")[2]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    path = config.inception_weights or cached
    if config.inception_weights is None and not cached.is_file():
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(INCEPTION_URL, str(cached), hash_prefix="6726825d", progress=False)
        except Exception as error:  # no network, a proxy's answer, a full disk
            raise DiffLensError(
                f"Inception's weights are not on this machine and could not be downloaded ({error}): get "
                f"{INCEPTION_URL} and place it as {cached}, or name it with --inception-weights; --features "
                "BACKBONE needs no download"
            ) from error
    if not path.is_file():
        raise DiffLensError(f"no such file: {path}; it should be a copy of {INCEPTION_URL}")
    check_regular(path)
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        torch.load(path, weights_only=True, map_location="cpu")
        FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    except Exception as error:  # torch raises many kinds for a damaged file, and for another one
        raise DiffLensError(f"{path} does not hold Inception's weights: {reason(error)}") from error
    return path


class _Images(Dataset[Tensor]):
    """A split as torch-fidelity's input, (3, side, side) uint8; real images get the size of the samples."""

    def __init__(self, split: ImageSplit, side: int):
        self.split, self.side = split, side

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int) -> Tensor:
        return fit(self.split.image(i), 3, self.side)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))
