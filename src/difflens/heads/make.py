"""`make_head`: a classification head from its configuration."""

from collections.abc import Mapping
from functools import partial

from difflens.backbones.maps import MapShape, Place
from difflens.configs.options import check_values
from difflens.errors import DiffLensError, require
from difflens.heads.base import Head
from difflens.heads.cnn import CNNHead
from difflens.heads.config import HeadConfig, options_without_effect
from difflens.heads.difformer import DifFormerHead
from difflens.heads.knn import NeighbourHead
from difflens.heads.linear import LinearHead, MLPHead
from difflens.heads.mix import MixHead
from difflens.heads.normalise import Normalisation
from difflens.run.memory import built


def make_head(config: HeadConfig, shapes: Mapping[Place, MapShape], num_classes: int) -> Head:
    """Return an untrained head for maps of `shapes`, (C, H, W) by place.

    Args:
        num_classes: K, the number of scores of an image, at least 1.

    Raises:
        DiffLensError: the configuration has a wrong value, or a normalisation that the head does not read;
            the attention head, which reads one map, is given several, or any head none; or it does not fit
            into memory.
    """
    check_values(config)
    require(num_classes=(num_classes, 1, None))
    if not shapes:
        raise DiffLensError("a head reads at least one map, and there is none")
    idle = {name for _, names in options_without_effect(config.name) for name in names}
    if config.normalise != "none" and "normalise" in idle:
        raise DiffLensError(f"the {config.name} head does not normalise: leave out normalise")
    make = partial(_normalising, config, shapes, num_classes)
    # counting parameters takes seconds for a transformer, and one of this size takes less than about 1 GB
    transformer = config.name in ("attention", "difformer", "mix")
    if transformer and (config.width or 1024) ** 2 * (config.depth or 2) < 2**24:
        return make()
    return built(make, f"the {config.name} head", "lower --width or --depth")


def _normalising(config: HeadConfig, shapes: Mapping[Place, MapShape], num_classes: int) -> Head:
    head = _make(config, shapes, num_classes)
    if config.normalise != "none":
        channels = {place: shape[0] for place, shape in shapes.items()}
        head.normalisation = Normalisation(channels, config.normalise)
    return head


def _make(config: HeadConfig, shapes: Mapping[Place, MapShape], num_classes: int) -> Head:
    side = config.side
    channels = max(channels for channels, _, _ in shapes.values())
    large = channels >= 512
    width = config.width or (1024 if large else max(64, channels // 2))
    if config.name == "linear":
        return LinearHead(shapes, num_classes, side)
    if config.name == "knn":
        return NeighbourHead(shapes, num_classes, side, config.bank, config.neighbours)
    if config.name == "mlp":
        hidden = (config.width or (2048 if large else 512),) * (config.depth or 1)
        return MLPHead(shapes, num_classes, side, hidden, config.dropout)
    if config.name == "cnn":
        first = config.width or (512 if large else 128)
        widths = tuple(first * 2**i for i in range(config.depth or 2))
        return CNNHead(shapes, num_classes, side, widths)
    if config.name == "attention" and len(shapes) > 1:
        raise DiffLensError(
            f"the attention head reads one map, not {len(shapes)}: --head difformer reads several blocks and "
            "noise steps, and so does mix"
        )
    if config.name == "mix":
        width = config.width or 64
    # the paper's 8, or fewer: each has at least 16 channels, and all have as many
    heads = max(each for each in range(1, max(1, min(8, width // 16)) + 1) if width % each == 0)
    if config.name == "mix":
        return MixHead(
            shapes,
            num_classes,
            width,
            heads,
            config.depth or 2,
            config.mix == "spatial",
            pool=side,
            dropout=config.dropout,
        )
    return DifFormerHead(
        shapes, num_classes, width, heads, config.depth or 2, pool=side, dropout=config.dropout
    )
