"""The default of a head's normalisation, and the statistics that it needs on the training features."""

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from difflens.backbones.maps import pool_to
from difflens.choices import NormaliseName
from difflens.extractors.cache import READ_BATCH, FeatureCache
from difflens.heads.normalise import Normalisation
from difflens.tasks.classification.train import cached_batches


def usual_normalisation(channels: Iterable[int], images: int) -> NormaliseName:
    """Return how linear heads and k-NN normalise cached features by default.

    Whitening was the best on held-out training images (benchmarks/RESULTS.md, "Mix and normalisation"). It
    needs as many images as there are channels; with fewer, features are standardised.

    Args:
        channels: the channels of the maps that are read.
        images: the number of training images.
    """
    return "whiten" if images >= max(channels) else "standard"


def fit_normalisation(
    normalisation: Normalisation, cache: FeatureCache, side: int | None, process: Accelerator
) -> None:
    """Fit `normalisation` to cached training features, in one pass.

    Args:
        cache: the maps of the training images, or of this process's share of them.
        side: the side that the head pools larger maps to; None: it reads whole maps.

    Raises:
        DiffLensError: there are fewer images than a whitening needs.
    """
    batches = cached_batches(cache, torch.arange(len(cache)), READ_BATCH, process.device)
    moments = normalisation.moments(
        {place: pool_to(whole, side) for place, whole in maps.items()} for maps, _ in batches
    )
    images = len(cache)
    if process.num_processes > 1:
        first, *others = gather_object([(moments, images)])
        moments, images = first
        for other, count in others:
            images += count
            for place, each in moments.items():
                each.merge([other[place]])
    normalisation.fit(moments, images)
