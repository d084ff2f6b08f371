"""The result of `difflens fidelity`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from rich.table import Column, Table

from difflens.errors import counted, listing
from difflens.ranges import Natural, NonNegative, Share
from difflens.results.base import Result, plain, skipped
from difflens.run.console import table_text
from difflens.run.reading import FieldError, checked


@dataclass(frozen=True)
class Distance:
    """The distance of a set of images from the real images.

    Attributes:
        images: name of the set, for a table.
        count: number of images.
        frechet: Fréchet distance between Gaussians fitted to the features (Heusel et al., 2017).
        kid, kid_std: mean and standard deviation over subsets of the unbiased squared maximum mean
            discrepancy (Bińkowski et al., 2018). No deviation is known where there is one subset.
    """

    images: str
    count: Natural
    frechet: float
    kid: float
    kid_std: NonNegative | None

    @property
    def kid_text(self) -> str:
        """The kernel distance x 1,000, with its standard deviation."""
        deviation = "" if self.kid_std is None else f" ± {1000 * self.kid_std:.3f}"
        return f"{1000 * self.kid:.3f}{deviation}"


@dataclass(frozen=True)
class SampleSource:
    """The backbone and sampler of samples that `difflens generate` made, and the number of its steps."""

    backbone: str
    backbone_fingerprint: str
    sampler: str
    steps: Natural


@dataclass(frozen=True)
class InceptionFigures:
    """The metrics of torch-fidelity in the features of Inception, of the samples and the real images.

    Attributes:
        fid: Fréchet distance (Heusel et al., 2017), at least 0; smaller is better.
        kid, kid_std: kernel distance (Binkowski et al., 2018), not times 1,000, and its standard deviation
            over subsets; None where there is one subset.
        inception_score, inception_score_std: of the samples (Salimans et al., 2016), at least 1, and its
            standard deviation over parts of them.
        precision, recall: of Kynkaanniemi et al. (2019), in [0, 1].
    """

    fid: float
    kid: float
    kid_std: float | None
    inception_score: float
    inception_score_std: float
    precision: float
    recall: float


@dataclass(frozen=True, kw_only=True)
class FidelityResult(Result):
    """The result of `fidelity`.

    Attributes:
        space: the feature space, in words.
        dimensions: dimensions of the feature space.
        real: the real images, in words.
        real_images: number of real images.
        distances: the distance of the samples first, then the reference distances.
        source: backbone and sampler of the samples; None where they are unknown.
        class_shares: share of each class among the samples, as a trained model predicts it; None in other
            spaces.
        inception: the metrics of torch-fidelity; None in other spaces.
        skipped_images: a line for each image that could not be read; not in metrics.json.
    """

    space: str
    dimensions: Natural
    real: str
    real_images: Natural
    distances: tuple[Distance, ...]
    source: SampleSource | None = None
    class_shares: Mapping[str, Share] | None = None
    inception: InceptionFigures | None = None
    skipped_images: tuple[str, ...] = ()

    @property
    def sample_distance(self) -> Distance:
        """The distance of the samples from the real images."""
        return self.distances[0]

    @property
    def reference_distances(self) -> tuple[Distance, ...]:
        """The distances of other real images, clean and with noise; empty where they were not measured."""
        return self.distances[1:]

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return {key: plain(value) for key, value in vars(self).items() if key != "skipped_images"}

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any]) -> Self:
        """Read what `metrics` wrote."""
        result = checked(cls, metrics)
        if not result.distances:
            raise FieldError("distances is empty: it must begin with the distance of the samples")
        return result

    def summary(self) -> str:
        name = "FID" if self.inception is not None else "Fréchet distance"
        table = Table("images", Column("number", justify="right"), name, "KID x 1,000")
        for row in self.distances:
            table.add_row(row.images, f"{row.count:,}", f"{row.frechet:.4g}", row.kid_text)
        lines = [
            f"Features: {self.space}",
            f"Compared with: {self.real}, {self.real_images:,}",
            table_text(table),
        ]
        few = caution(self.sample_distance.count, self.dimensions)
        if few:
            lines.append(few)
        if self.inception is not None:
            figures = ("inception_score", "precision", "recall")
            lines += [f"{key.replace('_', ' ')}: {getattr(self.inception, key):.4g}" for key in figures]
        if self.class_shares is not None:
            shares = sorted(self.class_shares.items(), key=lambda item: -item[1])
            named = listing([f"{name} {100 * share:.1f} %" for name, share in shares], 20)
            lines.append(f"Classes of the samples: {named}")
        return "\n".join(lines)

    def left_out(self) -> str:
        return skipped(self.skipped_images)


def caution(samples: int, dimensions: int) -> str:
    """Return a warning for fewer samples than a Fréchet distance needs; empty for enough samples.

    The covariance of the features is singular where there are at most as many samples as `dimensions`.
    """
    if samples > dimensions:
        return ""
    sizes = f"{counted(samples, 'sample')} in {counted(dimensions, 'dimension')}"
    return f"{sizes}: the Fréchet distance says little of so few."
