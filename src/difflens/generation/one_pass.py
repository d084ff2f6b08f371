"""Images of a generator that needs one pass and no steps."""

from collections.abc import Callable

import torch
from torch import Tensor

from difflens.backbones.bigan import BiGANBackbone
from difflens.generation.base import Sampler, not_finite
from difflens.noise import Stream, seeded_noise


class OnePassSampler(Sampler):
    """A sampler for a generator from latents to images in one pass.

    Args:
        backbone: a backbone with a generator.
        seed: seed of all latents.
    """

    name = "one pass"
    steps = calls = 1
    backbone: BiGANBackbone

    def __init__(self, backbone: BiGANBackbone, seed: int = 0):
        self.backbone, self.seed = backbone, seed

    @torch.inference_mode()
    def __call__(self, index: Tensor, watch: Callable[[], object] = lambda: None) -> Tensor:
        latents = seeded_noise((self.backbone.generator.config.latent,), index, Stream.LATENT, self.seed)
        dtype = self.backbone.dtype
        images = self.backbone.generator(latents.to(dtype)).float()
        watch()
        if not images.isfinite().all():
            raise not_finite(self.backbone)
        return images
