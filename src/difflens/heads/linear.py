"""Heads that see a map as one vector: linear and MLP (predecessor of the paper, arXiv 2307.08702, section 3)."""

import itertools
from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

from difflens.backbones.maps import MapShape, Place, pool_to, pooled_shape
from difflens.heads.base import Head


class LinearHead(Head):
    """Average pool to `pool` x `pool`, flatten, one linear layer. Several maps are concatenated.

    With pool 2 on 1024 channels and 1000 classes, 4,097,000 parameters (paper's linear probe).
    """

    def __init__(self, shapes: Mapping[Place, MapShape], num_classes: int, pool: int | None = 2):
        super().__init__()
        self.pool = pool
        self.places = sorted(shapes)
        self.inputs = vector_size(shapes, pool)
        self.classifier = nn.Linear(self.inputs, num_classes)

    def vectors(self, features: Mapping[Place, Tensor]) -> Tensor:
        """What the linear layer reads, (B, D)."""
        return flatten(features, self.places, self.pool)

    def logits_by_place(self, features: Mapping[Place, Tensor]) -> Tensor:
        """What each place of `places` adds to the logits, (P, B, num_classes): with the bias, their sum."""
        vectors = [flatten(features, [place], self.pool) for place in self.places]
        weights = self.classifier.get_parameter("weight").split([each.shape[1] for each in vectors], dim=1)
        return torch.stack([each @ weight.T for each, weight in zip(vectors, weights, strict=True)])

    def forward(self, features: Mapping[Place, Tensor]) -> Tensor:
        return self.classifier(self.vectors(features))


class MLPHead(Head):
    """The linear head's vector through hidden layers with ReLU."""

    def __init__(
        self,
        shapes: Mapping[Place, MapShape],
        num_classes: int,
        pool: int | None = 2,
        hidden: tuple[int, ...] = (2048,),
        dropout: float = 0.0,
    ):
        super().__init__()
        self.pool = pool
        self.places = sorted(shapes)
        widths = [vector_size(shapes, pool), *hidden]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
        self.classifier = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))

    def forward(self, features: Mapping[Place, Tensor]) -> Tensor:
        return self.classifier(flatten(features, self.places, self.pool))


def vector_size(shapes: Mapping[Place, MapShape], pool: int | None) -> int:
    return sum(prod(pooled_shape(shape, pool)) for shape in shapes.values())


def flatten(features: Mapping[Place, Tensor], places: list[Place], pool: int | None) -> Tensor:
    """Pooled maps of all places, flattened and concatenated: (B, vector_size)."""
    return torch.cat([pool_to(features[place].float(), pool).flatten(1) for place in places], dim=1)
