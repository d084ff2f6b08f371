"""The configuration of every head."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from difflens.choices import DetectionHeadName, HeadName, SegmentationHeadName

_WITHOUT_EFFECT: dict[HeadName, tuple[str, ...]] = {
    "linear": ("width", "depth", "dropout"),
    "knn": ("width", "depth", "dropout"),
    "cnn": ("dropout",),
}


def options_without_effect(head: HeadName) -> Iterator[tuple[str, Iterable[str]]]:
    """Options that a classification head does not read: the reason, and their names."""
    if head in _WITHOUT_EFFECT:
        yield f"the {head} head does not read them", _WITHOUT_EFFECT[head]


@dataclass(frozen=True)
class DetectionHeadConfig:
    """Everything needed to build a detection head but the shapes of its maps.

    Attributes:
        name: mask-rcnn (He et al., 2017), or faster-rcnn (Ren et al., 2015) for boxes alone.
        side: of the square images that it sees.
        strides: of the levels that it reads, ascending, each twice the one before, and `side` a multiple of the last; a
            further level is pooled from the last.
        width: channels of the feature pyramid network and of the mask head; a quarter of the box head's.
        proposals: regions that are looked at in an image; in training the loss is of half as many.
    """

    name: DetectionHeadName
    side: int
    strides: tuple[int, ...]
    width: int = 256
    proposals: int = 1000


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


@dataclass(frozen=True)
class SegmentationHeadConfig:
    """Everything needed to build a segmentation head but the shapes of its maps.

    Attributes:
        name: which head.
        side: of the square images, or windows of images, that it sees.
        strides: of the levels that UPerNet reads.
        width: channels of UPerNet.
        dropout: of channels before UPerNet's last layer.
    """

    name: SegmentationHeadName
    side: int
    strides: tuple[int, ...]
    width: int = 256
    dropout: float = 0.1
