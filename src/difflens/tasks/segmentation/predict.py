"""Segments image files with a model of `difflens segment`."""

from functools import reduce

import torch
from torch import Tensor

from difflens.configs.predict import PredictConfig
from difflens.data.dense.base import IGNORED
from difflens.data.dense.masks import to_palette_image
from difflens.data.images import with_channels
from difflens.extractors.base import evaluating
from difflens.models.saved import SegmentationModel
from difflens.noise import PICTURE
from difflens.reports.overlays import legend_of, mask_overlay, with_legend
from difflens.results.predict import DensePredictResult, SegmentedImage
from difflens.run.processes import accelerator
from difflens.tasks.predict import Announce, Answer, check_dense, check_draws, write_predictions
from difflens.tasks.segmentation.inference import Sliding, class_probabilities, require_probabilities


def mask_of(model: SegmentationModel, image: Tensor, draws: int = 1, threshold: float = 0.0) -> Tensor:
    """Return the class at each pixel, (H, W) uint8, on the CPU.

    Args:
        image: uint8, (C, H, W) of any size, C 1 or 3. It gets the noise of pictures (`noise.PICTURE`).
        draws: the number of noise samples that the probabilities are averaged over.
        threshold: a pixel whose class has less probability is `IGNORED`.
    """
    seen = with_channels(image, model.probe.extractor.backbone.in_channels).to(model.device)
    sliding = Sliding(model.head.side)
    with evaluating(model.probe):
        each = (class_probabilities(model.probe, seen, PICTURE, sliding, draw) for draw in range(draws))
        share, best = (reduce(torch.Tensor.add_, each) / draws).max(0)
    return best.masked_fill(share < threshold, IGNORED).to(torch.uint8).cpu()


def predict_masks(config: PredictConfig, announce: Announce | None = None) -> DensePredictResult:
    """Segment images, and write NAME.overlay.png with a legend, NAME.mask.png with the values of the training
    masks, and predictions.json.

    The prediction for an image does not depend on the other images.

    Raises:
        DiffLensError: the model or an image cannot be read, there are no images, or the folder holds other
            things.
    """
    check_dense(config)
    device = accelerator(config.device).device
    model = SegmentationModel.load(config.model, config.backbone, device)
    check_draws(config, model.probe.extractor.backbone)
    values = model.mask_values

    def answer(image: Tensor) -> Answer:
        mask = mask_of(model, image, config.draws, config.threshold or 0.0)
        known = mask[mask != IGNORED].long()
        counts = known.bincount(minlength=len(model.classes)) / mask.numel()
        order = counts.argsort(descending=True, stable=True).tolist()
        shares = {model.classes[k]: round(float(counts[k]), 6) for k in order if counts[k]}
        legend = legend_of(mask.unique().tolist(), model.classes)
        pictures = {
            "overlay": with_legend(mask_overlay(image, mask, model.classes), legend),
            "mask": to_palette_image(mask.numpy(), model.classes, values),
        }
        shown = {str(values[k]): model.classes[k] for k in known.unique().tolist()}
        return {"classes": shares, "values": shown}, pictures

    def check(height: int, width: int) -> None:
        if device.type == "cpu":
            require_probabilities(len(model.classes), height, width, Sliding(model.head.side))

    return write_predictions(config, SegmentedImage, answer, model, announce, check)
