"""Feature maps: their keys, shapes and pooling."""

from torch import Tensor, nn

from difflens.errors import counted

Place = tuple[int, int | float]
"""(block, noise level): the key of a feature map."""

MapShape = tuple[int, int, int]
"""(C, H, W) of a feature map."""

ImageSize = int | tuple[int, int]
"""(height, width) of images in pixels, or the side of square ones."""


def sides_of(size: ImageSize) -> tuple[int, int]:
    """Return the height and the width of images."""
    return (size, size) if isinstance(size, int) else size


def size_in_words(size: ImageSize) -> str:
    """Return, for example, "images of 64 pixels", or of width x height if they are not square."""
    height, width = sides_of(size)
    return (
        f"images of {counted(width, 'pixel')}" if height == width else f"images of {width} x {height} pixels"
    )


def module_name(place: Place) -> str:
    """Return the name of a place's module or buffer, which must hold no dot."""
    return f"block{place[0]}-t{place[1]}".replace(".", "_")


def pool_to(features: Tensor, side: int | None) -> Tensor:
    """Return maps (B, C, H, W) average-pooled to at most `side` x `side`; None: unchanged."""
    if side is None or max(features.shape[-2:]) <= side:
        return features
    return nn.functional.adaptive_avg_pool2d(features, side)


def pooled_shape(shape: MapShape, side: int | None) -> MapShape:
    """Return the shape of a map of `shape` after `pool_to`."""
    channels, height, width = shape
    if side is None or max(height, width) <= side:
        return shape
    return channels, side, side
