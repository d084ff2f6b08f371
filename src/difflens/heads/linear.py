"""Heads that read a map as one vector: linear and MLP (arXiv 2307.08702, section 3)."""

import itertools
from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

from difflens.backbones.maps import MapShape, Place, pool_to, pooled_shape
from difflens.heads.base import Head


class LinearHead(Head):
    """Average pooling to `pool` x `pool`, flattening, and one linear layer. Several maps are concatenated.

    With pool 2, 1024 channels and 1000 classes it has 4,097,000 parameters (the paper's linear probe).

    Args:
        shapes: (C, H, W) of the maps, by place.
        num_classes: number of logits.
        pool: the side that larger maps are pooled to.
    """

    def __init__(self, shapes: Mapping[Place, MapShape], num_classes: int, pool: int | None = 2):
        super().__init__()
        self.pool = pool
        self.places = sorted(shapes)
        self.sizes = [prod(pooled_shape(shapes[place], pool)) for place in self.places]
        self.inputs = sum(self.sizes)
        self.classifier = nn.Linear(self.inputs, num_classes)

    def vectors(self, features: Mapping[Place, Tensor]) -> Tensor:
        """Return the input of the linear layer, (B, D)."""
        return flatten(self.normalised(features), self.places, self.pool)

    @torch.no_grad()
    def fold(self) -> None:
        """Take the normalisation into weights and bias, so that the head reads maps as they are."""
        if self.normalisation is None:
            return
        weight, bias = self.classifier.get_parameter("weight"), self.classifier.get_parameter("bias")
        parts = []
        for place, part in zip(self.places, weight.double().split(self.sizes, dim=1), strict=True):
            matrix, shift = (each.double() for each in self.normalisation.affine(place))
            by_channel = part.unflatten(1, (len(shift), -1))  # (K, C, positions)
            bias.add_(by_channel.sum(2) @ shift)
            matrix = matrix.diag() if matrix.ndim == 1 else matrix
            parts.append(torch.einsum("kcp,cd->kdp", by_channel, matrix).flatten(1))
        weight.copy_(torch.cat(parts, dim=1))
        self.normalisation = None

    def logits_by_place(self, features: Mapping[Place, Tensor]) -> Tensor:
        """Return the summand of each place in `places`, (P, B, num_classes).

        The logits are the sum of the summands and the classifier's bias.
        """
        vectors = self.vectors(features).split(self.sizes, dim=1)
        weights = self.classifier.get_parameter("weight").split(self.sizes, dim=1)
        return torch.stack([x @ weight.T for x, weight in zip(vectors, weights, strict=True)])

    def forward(self, features: Mapping[Place, Tensor]) -> Tensor:
        return self.classifier(self.vectors(features))


class MLPHead(Head):
    """Hidden layers with ReLU on the linear head's vector.

    Args:
        shapes: (C, H, W) of the maps, by place.
        num_classes: number of logits.
        pool: the side that larger maps are pooled to.
        hidden: widths of the hidden layers.
        dropout: probability in [0, 1), after each hidden layer.
    """

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
    """Return the length of the vector that `flatten` makes of maps of these shapes."""
    return sum(prod(pooled_shape(shape, pool)) for shape in shapes.values())


def flatten(features: Mapping[Place, Tensor], places: list[Place], pool: int | None) -> Tensor:
    """Return the pooled maps of `places`, flattened and concatenated, (B, vector_size) float32."""
    return torch.cat([pool_to(features[place].float(), pool).flatten(1) for place in places], dim=1)
