"""The contract of a head: feature maps in, logits out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from difflens.backbones.maps import Place


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
