"""The configurations of the heads."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from difflens.choices import DetectionHeadName, HeadName, MixName, NormaliseName, SegmentationHeadName
from difflens.ranges import Count, Depth, Natural, Pixels, Range, Share, Width

_WITHOUT_EFFECT: dict[HeadName, tuple[str, ...]] = {
    "linear": ("width", "depth", "dropout", "mix"),
    "knn": ("width", "depth", "dropout", "mix"),
    "mlp": ("mix", "normalise"),
    "cnn": ("dropout", "mix", "normalise"),
    "attention": ("mix", "normalise"),
    "difformer": ("mix", "normalise"),
}


def options_without_effect(head: HeadName) -> Iterator[tuple[str, Iterable[str]]]:
    """Yield the options that a classification head does not read: the reason, and the options' names."""
    if head in _WITHOUT_EFFECT:
        yield f"the {head} head does not read them", _WITHOUT_EFFECT[head]


@dataclass(frozen=True)
class DetectionHeadConfig:
    """The configuration of a detection head.

    Attributes:
        name: mask-rcnn (He et al., 2017), or faster-rcnn (Ren et al., 2015) for boxes alone.
        side: side of the square images, in pixels; a multiple of the last stride.
        strides: strides of the levels, ascending, each twice the one before. One more level is pooled from
            the last.
        width: channels of the feature pyramid network and of the mask head; the box head has four times as
            many.
        proposals: regions that are classified in an image; in training the loss samples half as many.
        mix: the maps of a stride are added with learned weights, not concatenated.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: DetectionHeadName
    side: Pixels
    strides: tuple[Pixels, ...]
    width: Width = 256
    proposals: Width = 1000
    mix: bool = False


@dataclass(frozen=True)
class HeadConfig:
    """The configuration of a classification head.

    Attributes:
        name: the kind of head.
        pool: side that larger maps are average-pooled to; None: 2 (linear, MLP, k-NN) or 16; 0: no pooling.
        width: width of the tokens (attention, DifFormer, mix), the hidden layers (MLP) or the first
            convolution (CNN). None, for maps of 512 channels and more: the paper's 1024 (MLP 2048, CNN 512).
            None, for smaller maps: half the channels, but at least 64 (MLP 512, CNN 128). Mix: None is 64.
        depth: number of transformer blocks, hidden layers or convolutions; None: 2, but 1 for the MLP.
        dropout: probability in [0, 1), for attention, DifFormer, mix and MLP.
        neighbours: number of training images that vote (k-NN).
        bank: number of training images that are stored (k-NN).
        mix: one set of weights for the image, or spatial: one for each position (mix).
        normalise: the affine map of the channels that is stored with the head (k-NN, mix, and linear while it
            is trained).
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: HeadName = "attention"
    pool: Annotated[int, Range(0, 2**13)] | None = None
    width: Width | None = None
    depth: Depth | None = None
    dropout: Share = 0.0
    neighbours: Count = 20
    bank: Natural = 0
    mix: MixName = "image"
    normalise: NormaliseName = "none"

    @property
    def side(self) -> int | None:
        """The side that the head pools larger maps to; None: it reads whole maps."""
        usual = 2 if self.name in ("linear", "mlp", "knn") else 16
        return (usual if self.pool is None else self.pool) or None


@dataclass(frozen=True)
class SegmentationHeadConfig:
    """The configuration of a segmentation head.

    Attributes:
        name: the kind of head.
        side: side of the square images, or windows of images, in pixels.
        strides: strides of the levels that UPerNet reads, ascending.
        width: channels of UPerNet.
        dropout: probability in [0, 1) that drops a channel before UPerNet's last layer.
        mix: the maps of a stride are added with learned weights, not concatenated.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: SegmentationHeadName
    side: Pixels
    strides: tuple[Pixels, ...]
    width: Width = 256
    dropout: Share = 0.1
    mix: bool = False
