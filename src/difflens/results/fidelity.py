"""The result of `difflens fidelity`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from rich.table import Column, Table

from difflens.errors import listing
from difflens.results.base import Result, known, plain, skipped
from difflens.run.console import table_text


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
class SampleSource:
    """Where samples come from, if `difflens generate` made them."""

    backbone: str
    backbone_fingerprint: str
    sampler: str
    steps: int


@dataclass(frozen=True)
class InceptionFigures:
    """torch-fidelity's figures in the features of Inception."""

    fid: float
    kid: float
    kid_std: float
    inception_score: float
    inception_score_std: float
    precision: float
    recall: float


@dataclass(frozen=True, kw_only=True)
class FidelityResult(Result):
    """What `fidelity` returns.

    Attributes:
        space: the feature space, in words.
        dimensions: of the feature space.
        real: what the images are compared with, in words.
        real_images: how many.
        distances: that of the samples first, then the reference distances.
        source: where the samples come from; None if nobody knows.
        class_shares: share of each class among the samples, as a trained model judges them; None in other spaces.
        inception: torch-fidelity's figures; None in other spaces.
        skipped_images: a line for each image that could not be read; not in metrics.json.
    """

    space: str
    dimensions: int
    real: str
    real_images: int
    distances: tuple[Distance, ...]
    source: SampleSource | None = None
    class_shares: Mapping[str, float] | None = None
    inception: InceptionFigures | None = None
    skipped_images: tuple[str, ...] = ()

    @property
    def sample_distance(self) -> Distance:
        """How far the samples are from the real images."""
        return self.distances[0]

    @property
    def reference_distances(self) -> tuple[Distance, ...]:
        """How far other real images are, clean and with noise; empty if they were not asked for."""
        return self.distances[1:]

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return {key: plain(value) for key, value in vars(self).items() if key != "skipped_images"}

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any]) -> Self:
        """What `metrics` wrote."""
        source, inception = metrics["source"], metrics["inception"]
        nested = {
            "distances": tuple(Distance(**each) for each in metrics["distances"]),
            "source": source and SampleSource(**source),
            "inception": inception and InceptionFigures(**inception),
        }
        return cls(**{**known(cls, metrics), **nested})

    def summary(self) -> str:
        name = "FID" if self.inception is not None else "Fréchet distance"
        table = Table("images", Column("number", justify="right"), name, "KID x 1,000")
        for row in self.distances:
            kid = f"{1000 * row.kid:.3f} ± {1000 * row.kid_std:.3f}"
            table.add_row(row.images, f"{row.count:,}", f"{row.frechet:.4g}", kid)
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
    """What to know before believing a Fréchet distance of so many images; empty if nothing."""
    if samples > dimensions:
        return ""
    return f"{samples:,} samples in {dimensions:,} dimensions: the Fréchet distance says little of so few."
