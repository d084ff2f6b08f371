"""Feature maps: their keys, shapes and pooling."""

from torch import Tensor, nn

Place = tuple[int, int]
"""(block, noise step): the name of a feature map."""


MapShape = tuple[int, int, int]
"""(C, H, W) of a feature map."""


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
