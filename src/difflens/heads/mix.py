"""The mix: maps of several blocks and noise steps, added with learned weights, and a head that reads them.

The weighted sum of projected maps is that of Diffusion Hyperfeatures (Luo et al., 2023).
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difflens.backbones.maps import MapShape, Place, pool_to, pooled_shape
from difflens.heads.base import Head
from difflens.heads.difformer import TransformerBlock, before_last


class Mixture(nn.Module):
    """Projects maps by block, and adds them with softmax weights over places.

    The 1x1 projection of a block is shared between noise steps. The weights begin equal.

    Args:
        channels: channels of the maps, by place.
        width: channels of the sum.
        size: (H, W) of the sum, for a set of weights at each position; None: one set for the image.

    Attributes:
        places: the P places, in the order of the weights.
    """

    def __init__(self, channels: Mapping[Place, int], width: int, size: tuple[int, int] | None = None):
        super().__init__()
        self.places = sorted(channels)
        by_block = {block: channels[block, t] for block, t in self.places}
        self.project = nn.ModuleDict(
            {str(block): nn.Conv2d(count, width, 1) for block, count in by_block.items()}
        )
        self.logits = nn.Parameter(torch.zeros(len(self.places), *(size or (1, 1))))

    @property
    def weights(self) -> Tensor:
        """The weights, (P, 1, 1) or (P, H, W); at each position they sum to 1."""
        return self.logits.softmax(0)

    def forward(self, maps: Mapping[Place, Tensor]) -> Tensor:
        """Return the weighted sum, (B, width, H, W), of maps (B, C, h, w) by place.

        H and W are those of the largest map; smaller maps are upsampled bilinearly.
        """
        size = max(tuple(maps[place].shape[-2:]) for place in self.places)
        total = torch.zeros(())
        for (block, t), weight in zip(self.places, self.weights, strict=True):
            projected = self.project[str(block)](maps[block, t])
            if tuple(projected.shape[-2:]) != size:
                projected = F.interpolate(projected, size, mode="bilinear", align_corners=False)
            total = weight * projected if total.ndim == 0 else total + weight * projected
        return total


class MixHead(Head):
    """One mixture of all maps, which CLS reads through transformer blocks: attention pooling.

    1. Each map: pool to at most `pool` x `pool`, LayerNorm over (C, H, W) without parameters.
    2. Mixture: a 1x1 projection for each block, weights for each place.
    3. Add an embedding of each position; then as in the attention head, with one CLS token.

    With one place this is the attention head whose LayerNorm has scale 1. Its shift, which the projection
    takes to each position's embedding, begins at 0 in both heads: both begin as the same function. For 1000
    classes and the paper's nine places on ADM-256 it has 345,073 parameters, DifFormer 31,802,344.

    Args:
        shapes: (C, H, W) of the maps, by place.
        num_classes: number of logits.
        width: width of the tokens.
        heads: attention heads of a transformer block.
        depth: number of transformer blocks.
        spatial: a set of weights at each position, not one for the image.
        pool: the side that larger maps are pooled to.
        dropout: probability in [0, 1), on the output of each residual branch.

    Raises:
        DiffLensError: `heads` does not divide `width`.
    """

    def __init__(
        self,
        shapes: Mapping[Place, MapShape],
        num_classes: int,
        width: int = 64,
        heads: int = 4,
        depth: int = 2,
        spatial: bool = False,
        pool: int | None = 16,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.pool = pool
        pooled = {place: pooled_shape(shape, pool) for place, shape in shapes.items()}
        _, height, across = max(pooled.values(), key=lambda shape: shape[1:])
        size = (height, across)
        channels = {place: shape[0] for place, shape in pooled.items()}
        self.mixture = Mixture(channels, width, size if spatial else None)
        self.position = nn.Parameter(torch.zeros(1, width, *size))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.cls_token, std=0.02)
        self.transformer = nn.ModuleList(
            TransformerBlock(width, heads, dropout=dropout) for _ in range(depth)
        )
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, features: Mapping[Place, Tensor]) -> Tensor:
        # only the CLS token is classified, so the last block computes no other
        return self.classifier(self.transformer[-1](self._before_last(features), outputs=1)[:, 0])

    def attention(self, features: Mapping[Place, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the attention weights of CLS in the last transformer block, averaged over attention heads.

        Returns:
            The weight on CLS itself, (B,), and those on the positions, (B, H, W). They sum to 1.
        """
        weights = self.transformer[-1].weights(self._before_last(features))[:, :, 0].mean(1)  # type: ignore[operator]
        return weights[:, 0], weights[:, 1:].unflatten(1, tuple(self.position.shape[-2:]))

    def _before_last(self, features: Mapping[Place, Tensor]) -> Tensor:
        """Return the input of the last transformer block: CLS and the tokens, (B, 1 + H W, width)."""
        read = self.normalised(features)
        maps = {place: pool_to(read[place].float(), self.pool) for place in self.mixture.places}
        normed = {place: F.layer_norm(each, each.shape[1:]) for place, each in maps.items()}
        tokens = (self.mixture(normed) + self.position).flatten(2).transpose(1, 2)
        return before_last(self.transformer, self.cls_token, tokens)
