"""SimCLR (Chen et al., 2020): the features of two views of an image become similar, and different from all
others."""

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F
from torchvision.transforms import v2

from difflens.data.images import augmentation_draws, to_float
from difflens.data.loader import Batch
from difflens.data.split import ImageSplit
from difflens.pretraining.methods.base import EncoderMethod
from difflens.run.seeding import seeded

TEMPERATURE = 0.5
"""The temperature of the paper for CIFAR-10 (appendix B.9)."""
PROJECTION = 128
"""Channels that the loss compares, as in the paper."""


class SimCLRMethod(EncoderMethod):
    """A ResNet with a projection of two layers.

    Views are those of the paper for CIFAR-10 (appendix B.9): crops, colour jitter at half strength, no blur.
    Grey images change in brightness and contrast. Crops have at least a fifth of the area; views are mirrored
    only with --augment flip. With several processes, an image is compared with the images of all of them.
    """

    method = "SimCLR"
    description = f"NT-Xent at temperature {TEMPERATURE}"

    def make_head(self, images: ImageSplit) -> nn.Module:
        self.views = v2.Compose(
            [
                v2.RandomResizedCrop(self.side, scale=(0.2, 1.0)),
                v2.RandomHorizontalFlip(0.5 if self.config.augment == "flip" else 0.0),
                v2.RandomApply([v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)], 0.8),
                v2.RandomGrayscale(0.2 if self.channels == 3 else 0.0),
            ]
        )
        size = self.encoder.num_features
        return nn.Sequential(
            nn.Linear(size, size, bias=False),
            nn.BatchNorm1d(size),
            nn.ReLU(),
            nn.Linear(size, PROJECTION, bias=False),
            nn.BatchNorm1d(PROJECTION),
        )

    def loss(self, batch: Batch) -> Tensor:
        first, second = self.head(self.encoder(self._views(batch))).float().chunk(2)
        return nt_xent(first, second, TEMPERATURE)

    def _views(self, batch: Batch) -> Tensor:
        """Return (2 B, C, S, S) in [-1, 1]: one view of each image, then the other, by (seed, epoch,
        image)."""
        draws = augmentation_draws(batch.index.cpu(), self.config.seed, self.epoch)
        seeds = (draws[:, 0] << 31 | draws[:, 1] >> 1).tolist()
        first, second = [], []
        for image, seed in zip(batch.images.cpu(), seeds, strict=True):
            with seeded(seed):
                first.append(self.views(image))
                second.append(self.views(image))
        return to_float(torch.stack(first + second).to(self.device))


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Return the normalised temperature-scaled cross-entropy, () (Chen et al., 2020, equation 1).

    Each view is told from all other views, of all processes, by its cosine similarity to its partner. The
    value is the mean over this process's views.

    Args:
        first, second: (B, D), the projections of the two views of each image.
        temperature: tau.
    """
    mine = F.normalize(torch.cat([first, second]), dim=1)
    views, start = mine, 0
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        views = torch.cat(all_gather(mine))
        start = torch.distributed.get_rank() * len(mine)
    own = torch.arange(len(mine), device=mine.device)
    with torch.autocast(mine.device.type, enabled=False):  # it would round the similarities
        similarity = (mine @ views.T / temperature).scatter(1, start + own[:, None], -torch.inf)
        return F.cross_entropy(similarity, start + own.roll(len(first)))
