"""`difflens fidelity`: how far generated images are from real ones.

FID, KID, Inception score, precision and recall come from torch-fidelity, which needs the weights of Inception. The
Fréchet distance and KID in the feature space of a backbone or of a trained model need nothing from elsewhere; they are
named by that space and never called FID, because distances in different spaces do not compare.
"""

import pickle
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from difflens.data.folders import list_images
from difflens.data.images import fit, to_float
from difflens.data.loader import OnBadImage
from difflens.data.sources import load_data, load_unlabelled
from difflens.data.split import FileSplit, ImageSplit
from difflens.errors import DiffLensError, require
from difflens.extract import Extractor, FrozenExtractor
from difflens.features import Reading
from difflens.heads import NeighbourHead
from difflens.model import BackboneConfig, Probe, TrainedModel, evaluating
from difflens.noise import ScheduleName, seeded_noise
from difflens.training import accelerator, progress_bar

NOISE_STRENGTHS = (0.01, 0.03, 0.1, 0.3)
"""Standard deviations of the noise on the ruler's images, whose values are in [-1, 1]."""

INCEPTION_URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"


@dataclass(frozen=True, kw_only=True)
class FidelityConfig:
    """Compare generated images with real ones, in a feature space of your choice."""

    samples: Path
    """Folder of generated images, or a run directory of `difflens generate`."""
    data: str = "fashion"
    """The real images: any data that `probe` takes, or a folder of images in any arrangement."""
    split: Literal["train", "test"] = "test"
    """Which of the real images."""
    features: str = "fashion"
    """Any backbone that `probe` takes; a trained model's folder, whose classifier's input is the space; or inception."""
    block: int | None = None
    """Block of the backbone, averaged over places. (default: the backbone's choice)"""
    noise_step: int | None = None
    """Noise step at which it is read. (default: likewise)"""
    ruler: bool = False
    """Also measure the other split's images, and real images with a little noise, to compare with."""
    limit: int | None = None
    """Only the first so many images of each side."""
    seed: int = 0
    """Of the noise and of KID's subsets."""
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    inception_weights: Path | None = None
    """The weights that torch-fidelity would download."""
    num_head_channels: int = 64
    """Of an OpenAI checkpoint, whose weights do not show it."""
    noise_schedule: ScheduleName = "linear"
    """Of an OpenAI checkpoint."""
    image_size: int | None = None
    """Overrides the image side that the backbone was trained on."""
    out: Path | None = None
    """A JSON file for the figures."""
    on_bad_image: OnBadImage = "error"
    """skip leaves images out that cannot be read."""
    workers: int | None = None
    """Processes that decode images; None: as many as help."""
    device: Literal["cpu"] | None = None
    """"cpu" to stay off the GPU."""

    def check(self) -> None:
        """DiffLensError for a number that cannot be right."""
        require(
            limit=(self.limit, 2, None), seed=(self.seed, 0, 2**31), kid_subsets=(self.kid_subsets, 1, None),
            kid_subset_size=(self.kid_subset_size, 2, None), num_head_channels=(self.num_head_channels, 1, None),
            image_size=(self.image_size, 1, None), workers=(self.workers, 0, None),
        )  # fmt: skip
        if self.out is not None and self.out.exists():
            raise DiffLensError(f"{self.out} exists: name another file")


@dataclass(frozen=True)
class Distance:
    """How far some images are from the real ones.

    Attributes:
        images: what they are, for a table.
        count: how many.
        frechet: Fréchet distance between Gaussians fitted to the features.
        kid, kid_std: mean and standard deviation over subsets of the unbiased squared maximum mean discrepancy.
    """

    images: str
    count: int
    frechet: float
    kid: float
    kid_std: float


@dataclass(frozen=True)
class FidelityResult:
    """What `fidelity` returns.

    Attributes:
        space: the feature space, in words.
        dimensions: of it.
        real: how many real images.
        distances: the samples first, then the ruler.
        class_shares: of the samples, as a trained model judges them; None in other spaces.
        inception: torch-fidelity's figures; None in other spaces.
    """

    space: str
    dimensions: int | None
    real: int
    distances: tuple[Distance, ...]
    class_shares: dict[str, float] | None = None
    inception: dict[str, float] | None = None

    def metrics(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def fidelity(config: FidelityConfig, skipped: list[str] | None = None) -> FidelityResult:
    """Run `config`; `skipped` receives images that could not be read.

    Raises:
        DiffLensError: images, features or weights are not there, or too few images.
    """
    config.check()
    folder = config.samples / "images" if (config.samples / "images").is_dir() else config.samples
    paths = list_images([folder])
    samples: ImageSplit = FileSplit("samples", [str(path) for path in paths]).first(config.limit)
    real, other = _real(config)
    if config.features == "inception":
        return _inception(config, samples, real)
    space = _Space(config, [] if skipped is None else skipped)
    target = space.read(real)
    sets = [("samples", space.read(samples))]
    shares = space.class_shares()
    if config.ruler:
        if other is not None:
            sets.append((f"{other.name} images", space.read(other)))
        sets += [(f"{real.name} images + noise {s:g}", space.read(real, s)) for s in NOISE_STRENGTHS]
    distances = tuple(
        Distance(name, len(found), frechet_distance(found, target), *kid(
            found, target, config.kid_subsets, config.kid_subset_size, config.seed
        ))
        for name, found in sets
    )  # fmt: skip
    return FidelityResult(space.name, target.shape[1], len(target), distances, shares)


def _real(config: FidelityConfig) -> tuple[ImageSplit, ImageSplit | None]:
    """The real images to compare with, and those of the other split, if there is one."""
    try:
        data = load_data(config.data, labels=False)
    except DiffLensError:
        return load_unlabelled(config.data).first(config.limit), None
    chosen, other = (data.test, data.train) if config.split == "test" else (data.train, data.test)
    # as many as the chosen ones: the distance depends on the number
    return chosen.first(config.limit), other.first(min(len(chosen), config.limit or len(chosen)))


class _Space:
    """The features in which images are compared."""

    def __init__(self, config: FidelityConfig, skipped: list[str]):
        self.config, self.device = config, accelerator(config.device).device
        self.reading = Reading(config.workers, config.on_bad_image, skipped)
        self.model: TrainedModel | None = None
        if (Path(config.features) / "model.safetensors").is_file() or (
            Path(config.features) / "model" / "model.safetensors"
        ).is_file():
            self.model = TrainedModel.load(Path(config.features), device=self.device)
            self.extractor: Extractor = self.model.probe.extractor
            self.name = f"input of the classifier of {config.features}"
        else:
            backbone = BackboneConfig(
                config.features, config.num_head_channels, config.noise_schedule, config.image_size
            ).load(self.device)
            block = config.block or backbone.defaults.block
            step = backbone.defaults.noise_step if config.noise_step is None else config.noise_step
            self.extractor = FrozenExtractor(backbone, (block,), (step,), config.seed)
            self.name = f"{config.features}, block {block} at noise step {step}, averaged over places"
        self._votes: Tensor | None = None

    def read(self, split: ImageSplit, noise: float = 0.0) -> Tensor:
        """(N, D) float64 features of a split, whose images may first get Gaussian noise of a standard deviation."""
        parts = []
        with progress_bar() as bar, evaluating(self.extractor):
            task = bar.add_task(f"features of {split.name}", total=len(split), note="")
            for batch in self.reading.batches(self.extractor, split, torch.arange(len(split))):
                images = to_float(batch.images)
                if noise:
                    # t = -1: a stream of its own
                    images = images + noise * seeded_noise(
                        tuple(images.shape[1:]), batch.index, -1, self.config.seed
                    )
                    images = images.clamp(-1, 1)
                parts.append(self._vectors(images, batch.index).double().cpu())
                bar.update(task, advance=len(batch))
        if sum(map(len, parts)) < 2:
            raise DiffLensError(f"a distance needs at least two {split.name} images")
        return torch.cat(parts)

    def class_shares(self) -> dict[str, float] | None:
        """Of the images that were read last."""
        if self.model is None or self._votes is None:
            return None
        shares = (self._votes / self._votes.sum()).tolist()
        return dict(zip(self.model.classes, shares, strict=True))

    def _vectors(self, images: Tensor, index: Tensor) -> Tensor:
        if self.model is None:
            (maps,) = self.extractor(images, index).values()
            return maps.mean((2, 3))
        vectors, logits = classifier_input(self.model.probe, images, index)
        votes = torch.bincount(logits.argmax(1).cpu(), minlength=len(self.model.classes))
        self._votes = votes if self._votes is None else self._votes + votes
        return vectors


def classifier_input(probe: Probe, images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """What the last linear layer of a probe's head reads (of k-NN, the unit vectors), (B, D), and its logits (B, K)."""
    head = probe.head
    maps = probe.extractor(images, index)
    if isinstance(head, NeighbourHead):
        return head.vectors(maps), head(maps)
    last = head.classifier[-1] if isinstance(head.classifier, nn.Sequential) else head.classifier
    assert isinstance(last, nn.Module)
    kept: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    try:
        logits = head(maps)
    finally:
        hook.remove()
    return kept[0], logits


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Fréchet distance between Gaussians fitted to features (N, D) and (M, D).

    |mean_a - mean_b|^2 + trace(A + B - 2 (A B)^(1/2)) with covariances A and B (Dowson and Landau, 1982). The trace of
    the root is the sum of the roots of the eigenvalues of A^(1/2) B A^(1/2), which is symmetric.
    """
    a, b = a.double(), b.double()
    mean = (a.mean(0) - b.mean(0)).square().sum()
    first, second = (torch.atleast_2d(torch.cov(each.T)) for each in (a, b))
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    return float(mean + first.trace() + second.trace() - 2 * cross)


def kid(a: Tensor, b: Tensor, subsets: int, size: int, seed: int) -> tuple[float, float]:
    """Kernel inception distance's estimator (Binkowski et al., 2018) on features (N, D) and (M, D).

    The unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, over random subsets.

    Returns:
        Mean and standard deviation over subsets (0 for one).
    """
    a, b = a.double(), b.double()
    size = min(size, len(a), len(b))
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(subsets):
        x = a[torch.randperm(len(a), generator=generator)[:size]]
        y = b[torch.randperm(len(b), generator=generator)[:size]]
        xx, yy, xy = (((p @ q.T) / a.shape[1] + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
        same = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (size * (size - 1))
        found.append(same - 2 * xy.mean())
    values = torch.stack(found)
    return float(values.mean()), float(values.std()) if subsets > 1 else 0.0


def _inception(config: FidelityConfig, samples: ImageSplit, real: ImageSplit) -> FidelityResult:
    try:
        import torch_fidelity
    except ImportError as error:
        raise DiffLensError('features of Inception need `pip install "difflens[fidelity]"`') from error
    weights = _inception_weights(config)
    count = min(len(samples), len(real))
    if count < 2:
        raise DiffLensError("a distance needs at least two images on each side")
    found = torch_fidelity.calculate_metrics(
        input1=_Images(samples), input2=_Images(real), cuda=accelerator(config.device).device.type == "cuda",
        fid=True, kid=True, isc=True, prc=True, feature_extractor_weights_path=str(weights),
        kid_subset_size=min(config.kid_subset_size, count), kid_subsets=config.kid_subsets, cache=False,
        isc_splits=min(10, len(samples)), rng_seed=config.seed, verbose=False,
    )  # fmt: skip
    names = {
        "frechet_inception_distance": "fid", "kernel_inception_distance_mean": "kid",
        "kernel_inception_distance_std": "kid_std", "inception_score_mean": "inception_score",
        "inception_score_std": "inception_score_std", "precision": "precision", "recall": "recall",
    }  # fmt: skip
    figures = {name: float(found[key]) for key, name in names.items() if key in found}
    distance = Distance("samples", len(samples), figures["fid"], figures["kid"], figures["kid_std"])
    return FidelityResult("Inception (FID)", 2048, len(real), (distance,), inception=figures)


def _inception_weights(config: FidelityConfig) -> Path:
    """The weights' file, checked to hold tensors and nothing else before another library opens it."""
    name = INCEPTION_URL.rpartition("/")[2]
    place = Path(torch.hub.get_dir()) / "checkpoints" / name
    path = config.inception_weights or place
    if config.inception_weights is None and not place.is_file():
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(INCEPTION_URL, str(place), hash_prefix="6726825d", progress=False)
        except Exception as error:  # no network, a proxy's answer, a full disk
            raise DiffLensError(
                f"Inception's weights are not on this machine and could not be downloaded ({error}): get {INCEPTION_URL} "
                f"and place it as {place}, or name it with --inception-weights; --features BACKBONE needs no download"
            ) from error
    if not path.is_file():
        raise DiffLensError(f"no such file: {path}; it should be a copy of {INCEPTION_URL}")
    try:
        torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DiffLensError(f"{path} does not hold Inception's weights: {error}") from error
    return path


class _Images(Dataset[Tensor]):
    """A split as torch-fidelity takes it: uint8 (3, H, W), all of the size of the first."""

    def __init__(self, split: ImageSplit):
        self.split = split
        self.side = min(split.image(0).shape[-2:])

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int) -> Tensor:
        return fit(self.split.image(i), 3, self.side)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))
