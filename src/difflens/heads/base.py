"""The contract of a head: feature maps in, logits out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from difflens.backbones.maps import Place
from difflens.heads.normalise import Normalisation


class Head(nn.Module, ABC):
    """A trainable classifier of one or several feature maps.

    Attributes:
        pool: the side that larger maps are average-pooled to first; None: no pooling. A cache of features
            stores the pooled maps.
        classifier: the last layers, which end with a linear layer; the k-NN head has none.
        normalisation: the affine map of the channels before the head; None: the maps as they are.
    """

    pool: int | None
    classifier: nn.Module
    normalisation: Normalisation | None

    def __init__(self) -> None:
        super().__init__()
        self.normalisation = None

    @property
    def num_classes(self) -> int:
        """The number of logits of an image."""
        last = self.classifier[-1] if isinstance(self.classifier, nn.Sequential) else self.classifier
        assert isinstance(last, nn.Linear)
        return last.out_features

    def normalised(self, features: Mapping[Place, Tensor]) -> Mapping[Place, Tensor]:
        """Return maps (B, C, H, W) by place after the normalisation, if there is one."""
        return features if self.normalisation is None else self.normalisation(features)

    @abstractmethod
    def forward(self, features: Mapping[Place, Tensor]) -> Tensor:
        """Return logits (B, num_classes) of maps (B, C, H, W), pooled or not, by (block, noise step)."""
