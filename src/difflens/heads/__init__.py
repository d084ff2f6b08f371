"""Heads: maps in, logits out. One table says which there are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from difflens.errors import DiffLensError
from difflens.heads.base import Head, MapShape, Place
from difflens.heads.cnn import CNNHead
from difflens.heads.difformer import DifFormerHead
from difflens.heads.neighbours import NeighbourHead
from difflens.heads.vector import LinearHead, MLPHead

HeadName = Literal["linear", "mlp", "cnn", "attention", "difformer", "knn"]

__all__ = ["CNNHead", "DifFormerHead", "Head", "HeadConfig", "HeadName", "LinearHead", "MLPHead", "MapShape",
           "NeighbourHead", "Place", "make_head"]  # fmt: skip


@dataclass(frozen=True)
class HeadConfig:
    """Everything needed to build a head but the shapes of its maps.

    Attributes:
        name: which head.
        pool: side that larger maps are average-pooled to; None: 2 (linear, MLP, k-NN) or 16; 0: no pooling.
        width: of tokens (attention, DifFormer), hidden layer (MLP) or first convolution (CNN). None: the paper's
            1024 (CNN: 512) for maps of 512 channels and more; for smaller ones half the channels, but at least 64
            (CNN and MLP: 128 and 512).
        depth: transformer blocks, hidden layers or convolutions; None: 2, but 1 for the MLP.
        dropout: in all heads but linear, CNN and k-NN.
        neighbours, bank: of the k-NN head: how many training images vote, of how many that it remembers.
    """

    name: HeadName = "attention"
    pool: int | None = None
    width: int | None = None
    depth: int | None = None
    dropout: float = 0.0
    neighbours: int = 20
    bank: int = 0


def make_head(config: HeadConfig, shapes: Mapping[Place, MapShape], num_classes: int) -> Head:
    """Build a head for maps of `shapes`.

    Raises:
        DiffLensError: several blocks or noise steps for the attention head, which reads one map.
    """
    pool = config.pool if config.pool is not None else 2 if config.name in ("linear", "mlp", "knn") else 16
    side = pool or None
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
            f"the attention head reads one map, not {len(shapes)}; DifFormer reads several blocks and noise steps"
        )
    heads = max(1, min(8, width // 16))  # the paper's 8 where they have at least 16 channels each
    return DifFormerHead(
        shapes, num_classes, width, heads, config.depth or 2, pool=side, dropout=config.dropout
    )
