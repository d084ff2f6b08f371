"""What every head is: feature maps in, logits out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

Place = tuple[int, int]
"""(block, noise step): the name of a feature map."""

MapShape = tuple[int, int, int]
"""(C, H, W) of a feature map."""


class Head(nn.Module, ABC):
    """A trainable read-out of one or several feature maps.

    Attributes:
        pool: maps larger than this side are average-pooled to it before anything else, so a cache of features
            need not hold more; None keeps the full map.
    """

    pool: int | None
    classifier: nn.Module

    @property
    def num_classes(self) -> int:
        """How many logits the head gives."""
        last = self.classifier[-1] if isinstance(self.classifier, nn.Sequential) else self.classifier
        assert isinstance(last, nn.Linear)
        return last.out_features

    @abstractmethod
    def forward(self, features: Mapping[Place, Tensor]) -> Tensor:
        """Logits (B, num_classes) of maps (B, C, H, W), pooled or not, keyed by (block, noise step)."""


def pool_to(features: Tensor, side: int | None) -> Tensor:
    """Adaptive average pooling of (B, C, H, W) to at most `side` x `side`; pooling twice changes nothing."""
    if side is None or max(features.shape[-2:]) <= side:
        return features
    return nn.functional.adaptive_avg_pool2d(features, side)


def pooled_shape(shape: MapShape, side: int | None) -> MapShape:
    """The shape that `pool_to` gives a map of `shape`."""
    channels, height, width = shape
    if side is None or max(height, width) <= side:
        return shape
    return channels, side, side
