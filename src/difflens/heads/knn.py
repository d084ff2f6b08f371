"""k-nearest-neighbour evaluation (Wu et al., 2018; as in DINO, Caron et al., 2021) as a head."""

from collections.abc import Mapping

import torch
from torch import Tensor

from difflens.backbones.maps import MapShape, Place
from difflens.heads.base import Head
from difflens.heads.linear import flatten, vector_size
from difflens.metrics.classifiers import neighbour_votes


class NeighbourHead(Head):
    """A vote of the nearest training images, by cosine similarity.

    The vectors are the linear head's: maps are pooled to `pool` x `pool`, flattened and concatenated. Nothing
    is trained: `remember` stores the vectors of the training images.

    Args:
        shapes: (C, H, W) of the maps, by place.
        num_classes: number of logits.
        pool: the side that larger maps are pooled to.
        size: number of training images in the bank.
        neighbours: number of training images that vote.
    """

    bank: Tensor
    labels: Tensor

    def __init__(
        self,
        shapes: Mapping[Place, MapShape],
        num_classes: int,
        pool: int | None = 2,
        size: int = 0,
        neighbours: int = 20,
    ):
        super().__init__()
        self.pool, self.neighbours, self.classes = pool, neighbours, num_classes
        self.places = sorted(shapes)
        self.register_buffer("bank", torch.zeros(size, vector_size(shapes, pool), dtype=torch.float16))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.long))

    @property
    def num_classes(self) -> int:
        return self.classes

    def vectors(self, features: Mapping[Place, Tensor]) -> Tensor:
        """Return unit vectors (B, D) of maps (B, C, H, W)."""
        return torch.nn.functional.normalize(
            flatten(self.normalised(features), self.places, self.pool), dim=1
        )

    def remember(self, vectors: Tensor, labels: Tensor) -> None:
        """Store unit vectors (N, D) and their labels (N,) as the bank."""
        self.bank, self.labels = vectors.to(self.bank), labels.to(self.labels)

    def forward(self, features: Mapping[Place, Tensor]) -> Tensor:
        """Return logarithms of the shares of votes (B, num_classes); their softmax gives the shares."""
        (votes,) = neighbour_votes(
            self.bank, self.labels, self.vectors(features), self.num_classes, [self.neighbours]
        )
        return (votes / votes.sum(1, keepdim=True)).clamp(min=1e-12).log()
