"""The result of `difflens explain`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difflens.results.base import Result, plain, skipped


@dataclass(frozen=True)
class Neighbour:
    """A training image that is similar to an explained image.

    Attributes:
        image: its name.
        label: its class; empty where the data has no labels.
        similarity: cosine similarity of the two images' features.
    """

    image: str
    label: str
    similarity: float

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return {"image": self.image, "class": self.label, "similarity": self.similarity}


@dataclass(frozen=True)
class HeadShares:
    """Shares of places ("block 3, t = 40") or noise steps ("t = 40") in what a trained head computes.

    Attributes:
        test_images: number of test images that were read; 0 for the head mix, whose weights need none.
        logits: shares of the variance of the logits, which sum to 1, by place for a linear head, else by
            noise step; None for the head mix, whose logits are no sum over places.
        attention: shares of the attention of the CLS token, by place; None for a linear head and mix.
        on_cls: share of the attention of the CLS token on itself, by noise step; None for a linear head and
            mix.
        mix: the weights of the head mix, which sum to 1, by place, averaged over positions; None for the
            others.
    """

    test_images: int = 0
    logits: Mapping[str, float] | None = None
    attention: Mapping[str, float] | None = None
    on_cls: Mapping[str, float] | None = None
    mix: Mapping[str, float] | None = None

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        attention = {"attention_shares": plain(self.attention), "attention_on_cls": plain(self.on_cls)}
        return {
            "test_images": self.test_images,
            **({} if self.attention is None else attention),
            **({} if self.logits is None else {"logit_shares": plain(self.logits)}),
            **({} if self.mix is None else {"mix_weights": plain(self.mix)}),
        }


@dataclass(frozen=True, kw_only=True)
class ExplainResult(Result):
    """The result of `explain`.

    Attributes:
        out: the run directory.
        images: names of the explained images.
        head: shares in what the head of a run computes; None without a run.
        neighbours: the most similar training images of each image, the most similar first.
        skipped_images: a line for each image that could not be read.
    """

    out: Path
    images: tuple[str, ...]
    head: HeadShares | None
    neighbours: tuple[tuple[Neighbour, ...], ...]
    skipped_images: tuple[str, ...]

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return {
            "images": list(self.images),
            **({} if self.head is None else self.head.metrics()),
            "neighbours": [[neighbour.metrics() for neighbour in row] for row in self.neighbours],
            "skipped_images": list(self.skipped_images),
        }

    def summary(self) -> str:
        head = self.head
        parts: dict[str, Mapping[str, float] | None] = {}
        if head is not None:
            parts = {
                "Share of CLS's attention": head.attention,
                "Share of the variance of the logits": head.logits,
                "Weight in the mix": head.mix,
            }
        lines = []
        for title, shares in parts.items():
            if shares:
                lines.append(f"{title}:")
                lines += [f"  {name}: {100 * share:.1f} %" for name, share in shares.items()]
        return "\n".join([*lines, f"Report: {self.out / 'report.html'}, pictures beside it"])

    def left_out(self) -> str:
        return skipped(self.skipped_images)
