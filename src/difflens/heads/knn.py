"""k-nearest-neighbour evaluation (Wu et al., 2018; as in DINO, Caron et al., 2021) in the shape of a head."""

from collections.abc import Mapping

import torch
from torch import Tensor

from difflens.backbones.maps import MapShape, Place
from difflens.heads.base import Head
from difflens.heads.linear import flatten, vector_size
from difflens.metrics.classifiers import neighbour_votes


class NeighbourHead(Head):
    """Remembers the training images' vectors; the nearest by cosine similarity vote.

    The vectors are the linear head's: each map average-pooled to `pool` x `pool`, flattened, all maps concatenated.
    Nothing is trained: `remember` fills the bank.

    Args:
        size: how many training images it remembers.
        neighbours: how many of them vote.
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
        """(B, D) unit vectors of maps (B, C, H, W)."""
        return torch.nn.functional.normalize(flatten(features, self.places, self.pool), dim=1)

    def remember(self, vectors: Tensor, labels: Tensor) -> None:
        """Take unit vectors (N, D) and their labels (N,) as the bank."""
        self.bank, self.labels = vectors.to(self.bank), labels.to(self.labels)

    def forward(self, features: Mapping[Place, Tensor]) -> Tensor:
        """Logarithms of the shares of votes (B, num_classes), so that softmax gives the shares."""
        (votes,) = neighbour_votes(
            self.bank, self.labels, self.vectors(features), self.num_classes, [self.neighbours]
        )
        return (votes / votes.sum(1, keepdim=True)).clamp(min=1e-12).log()
