"""Detection heads: maps in, objects with boxes and masks out. Their layers are torchvision's."""

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, clip_boxes_to_image, remove_small_boxes
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from difflens.backbones.maps import MapShape, Place
from difflens.heads.config import DetectionHeadConfig
from difflens.heads.pyramid import FeaturePyramid

_ANCHOR = 8
"""The side of an anchor in cells of its level, as in torchvision: 32 pixels at stride 4."""

_BOX_CELLS = 7
"""The side of the grid of features in a box, as in torchvision."""


class DetectionHead(nn.Module):
    """Mask R-CNN (He et al., 2017) or Faster R-CNN (Ren et al., 2015) on the pyramid.

    Args:
        config: name, strides and widths.
        shapes: (C, H, W) of the maps for images of `config.side` pixels, by place.
        num_classes: number of classes, without the background.
    """

    def __init__(self, config: DetectionHeadConfig, shapes: Mapping[Place, MapShape], num_classes: int):
        super().__init__()
        self.num_classes, self.side = num_classes, config.side
        self.pyramid = FeaturePyramid(
            shapes, config.side, config.strides, config.width if config.mix else None
        )
        width, proposals = config.width, config.proposals
        self.fpn = FeaturePyramidNetwork(list(self.pyramid.channels), width, LastLevelMaxPool())
        strides = (*config.strides, 2 * config.strides[-1])
        names = [str(k) for k in range(len(config.strides))]
        anchors = tuple((_ANCHOR * stride,) for stride in strides)
        settings: dict[str, Any] = {
            "rpn_anchor_generator": AnchorGenerator(anchors, ((0.5, 1.0, 2.0),) * len(strides)),
            "rpn_pre_nms_top_n_train": 2 * proposals,
            "rpn_post_nms_top_n_train": proposals,
            "rpn_pre_nms_top_n_test": proposals,
            "rpn_post_nms_top_n_test": proposals,
            "box_batch_size_per_image": max(2, proposals // 2),
            "box_roi_pool": _regions(names, config.strides, _BOX_CELLS),
            "box_head": TwoMLPHead(width * _BOX_CELLS**2, 4 * width),
            "box_predictor": FastRCNNPredictor(4 * width, num_classes + 1),
        }
        if config.name == "mask-rcnn":
            network: FasterRCNN = MaskRCNN(
                _Backbone(width),
                mask_roi_pool=_regions(names, config.strides, 2 * _BOX_CELLS),
                mask_head=MaskRCNNHeads(width, (width,) * 4, 1),
                mask_predictor=MaskRCNNPredictor(width, width, num_classes + 1),
                **settings,
            )
        else:
            network = FasterRCNN(_Backbone(width), **settings)
        self.rpn, self.roi_heads = network.rpn, network.roi_heads

    def forward(
        self,
        maps: Mapping[Place, Tensor],
        targets: Sequence[Mapping[str, Tensor]] | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
        originals: Sequence[tuple[int, int]] | None = None,
    ) -> Any:
        """Return losses in training mode, and detections in evaluation mode.

        Args:
            maps: (B, C, H, W), keyed by (block, noise step).
            targets: for training, a dictionary for each image: "boxes" (N, 4), left, top, right and bottom in
                pixels; "labels" (N,) from 1; for Mask R-CNN also "masks" (N, side, side).
            sizes: for evaluation, (height, width) of the image, which is at the top left of each square;
                None: the whole square.
            originals: (height, width) of the original images, in whose pixels detections are given; None: the
                whole square.

        Returns:
            In training, a dictionary of losses. In evaluation, a dictionary for each image: "boxes" (N, 4),
            "labels" (N,), "scores" (N,) in [0, 1] and, for Mask R-CNN, "masks" (N, H, W) bool.
        """
        levels = self.pyramid(maps)
        features = self.fpn(OrderedDict((str(k), level) for k, level in enumerate(levels)))
        count = len(levels[0])
        whole = [(self.side, self.side)] * count
        images = ImageList(levels[0].new_empty(1).expand(count, 1, self.side, self.side), whole)
        regions, region_losses = self.rpn(images, features, targets)
        detections, losses = self.roi_heads(features, regions, whole, targets)
        if self.training:
            return {**losses, **region_losses}
        return [
            _in_original(objects, size, original)
            for objects, size, original in zip(detections, sizes or whole, originals or whole, strict=True)
        ]

    def layers_on(self, maps: Mapping[Place, Tensor]) -> Iterator[Tensor]:
        """Yield the outputs of all layers, with as many regions as training samples, without choosing any.

        What a step costs does not depend on where the regions are.

        Args:
            maps: (B, C, H, W), keyed by (block, noise step).
        """
        levels = self.pyramid(maps)
        features = self.fpn(OrderedDict((str(k), level) for k, level in enumerate(levels)))
        for outputs in self.rpn.head([*features.values()]):
            yield from outputs
        sampler, first = self.roi_heads.fg_bg_sampler, levels[0]
        regions = len(first) * sampler.batch_size_per_image
        width, cells = features["0"].shape[1], _BOX_CELLS
        yield from self.roi_heads.box_predictor(
            self.roi_heads.box_head(first.new_empty(regions, width, cells, cells))
        )
        if self.roi_heads.has_mask():
            objects = round(regions * sampler.positive_fraction)
            inside = first.new_empty(objects, width, 2 * cells, 2 * cells)
            yield self.roi_heads.mask_predictor(self.roi_heads.mask_head(inside))


def _in_original(
    objects: dict[str, Tensor], size: tuple[int, int], original: tuple[int, int]
) -> dict[str, Tensor]:
    """Return the detections in a square's part of `size` in pixels of the original image.

    Detections in the rest of the square are dropped.
    """
    boxes = resize_boxes(objects["boxes"], list(size), list(original))
    inside = clip_boxes_to_image(boxes, original)
    rows = remove_small_boxes(inside, 1.0)
    result = {"boxes": inside[rows], "labels": objects["labels"][rows], "scores": objects["scores"][rows]}
    if "masks" in objects:
        # one by one: in floating point, a hundred masks of a large photo would take gigabytes
        masks = [
            paste_masks_in_image(objects["masks"][k : k + 1], boxes[k : k + 1], original)[0, 0] >= 0.5
            for k in rows.tolist()
        ]
        result["masks"] = torch.stack(masks) if masks else boxes.new_zeros((0, *original), dtype=torch.bool)
    return result


class _Backbone(nn.Module):
    """A placeholder that torchvision needs to build a network; the real backbone is outside of it."""

    def __init__(self, width: int):
        super().__init__()
        self.out_channels = width


def _regions(names: list[str], strides: Sequence[int], cells: int) -> nn.Module:
    regions = MultiScaleRoIAlign(names, cells, sampling_ratio=2)
    # torchvision would take the scales from the maps as powers of two; a ViT's strides are others
    regions.scales = [1 / stride for stride in strides]
    finest, coarsest = (round(math.log2(stride)) for stride in (strides[0], strides[-1]))
    regions.map_levels = initLevelMapper(finest, coarsest)
    return regions
