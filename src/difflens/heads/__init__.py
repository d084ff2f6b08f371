"""Heads: maps in, logits out. One table says which there are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from difflens.errors import DiffLensError
from difflens.heads.base import Head, MapShape, Place
from difflens.heads.cnn import CNNHead
from difflens.heads.difformer import DifFormerHead
from difflens.heads.vector import LinearHead, MLPHead

HeadName = Literal["linear", "mlp", "cnn", "attention", "difformer"]

__all__ = ["CNNHead", "DifFormerHead", "Head", "HeadConfig", "HeadName", "LinearHead", "MLPHead", "MapShape",
           "Place", "make_head"]  # fmt: skip


@dataclass(frozen=True)
class HeadConfig:
    """Everything needed to build a head but the shapes of its maps.

    Attributes:
        name: which head.
        pool: side that larger maps are average-pooled to; None: 2 (linear, MLP) or 16; 0: no pooling.
        width: of tokens (attention, DifFormer), hidden layer (MLP) or first convolution (CNN). None: the paper's
            1024 for maps of 512 channels and more, else twice the channels.
        depth: transformer blocks, hidden layers or convolutions; None: 2, but 1 for the MLP.
        dropout: in all heads but linear and CNN.
    """

    name: HeadName = "attention"
    pool: int | None = None
    width: int | None = None
    depth: int | None = None
    dropout: float = 0.0


def make_head(config: HeadConfig, shapes: Mapping[Place, MapShape], num_classes: int) -> Head:
    """Build a head for maps of `shapes`.

    Raises:
        DiffLensError: several blocks or noise steps for the attention head, which reads one map.
    """
    pool = config.pool if config.pool is not None else 2 if config.name in ("linear", "mlp") else 16
    side = pool or None
    width = config.width or min(1024, 2 * max(channels for channels, _, _ in shapes.values()))
    if config.name == "linear":
        return LinearHead(shapes, num_classes, side)
    if config.name == "mlp":
        hidden = (config.width or 2048,) * (config.depth or 1)
        return MLPHead(shapes, num_classes, side, hidden, config.dropout)
    if config.name == "cnn":
        widths = tuple(width * 2**i for i in range(config.depth or 2))
        return CNNHead(shapes, num_classes, side, widths)
    if config.name == "attention" and len(shapes) > 1:
        raise DiffLensError(
            f"the attention head reads one map, not {len(shapes)}; DifFormer reads several blocks and noise steps"
        )
    return DifFormerHead(
        shapes, num_classes, width, depth=config.depth or 2, pool=side, dropout=config.dropout
    )
