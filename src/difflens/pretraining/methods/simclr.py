"""SimCLR (Chen et al., 2020): the features of two views of an image become similar, and different from all
others."""

import warnings

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image

from difflens.data.images import augmentation_draws
from difflens.data.loader import Batch
from difflens.data.split import ImageSplit
from difflens.errors import DiffLensError
from difflens.pretraining.methods.base import EncoderMethod

try:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform
except ImportError as error:
    raise DiffLensError('SimCLR needs lightly: pip install "difflens[compare]"') from error

TEMPERATURE = 0.5
"""The temperature of the paper for CIFAR-10 (appendix B.9)."""


class SimCLRMethod(EncoderMethod):
    """A ResNet with lightly's projection head, loss and views.

    Views are those of the paper for CIFAR-10 (appendix B.9): crops, colour jitter at half strength, no blur.
    Grey images change in brightness and contrast. Crops have at least a fifth of the area; views are mirrored
    only with --augment flip. With several processes, an image is compared with the images of all of them.
    """

    method = "SimCLR"
    description = f"NT-Xent at temperature {TEMPERATURE}"

    def make_head(self, images: ImageSplit) -> nn.Module:
        self.contrast = NTXentLoss(TEMPERATURE, gather_distributed=self.process.num_processes > 1)
        half = [0.5] * self.channels
        self.views = SimCLRTransform(
            input_size=self.side,
            cj_strength=0.5,
            min_scale=0.2,
            gaussian_blur=0.0,
            random_gray_scale=0.2 if self.channels == 3 else 0.0,
            hf_prob=0.5 if self.config.augment == "flip" else 0.0,
            normalize={"mean": half, "std": half},
        )
        size = self.encoder.num_features
        head: nn.Module = SimCLRProjectionHead(size, size, 128)
        return head

    def loss(self, batch: Batch) -> Tensor:
        projected = self.head(self.encoder(self._views(batch)))
        loss: Tensor = self.contrast(*projected.float().chunk(2))
        return loss

    def _views(self, batch: Batch) -> Tensor:
        """Return (2 B, C, S, S) in [-1, 1]: one view of each image, then the other, by (seed, epoch,
        image)."""
        draws = augmentation_draws(batch.index.cpu(), self.config.seed, self.epoch)
        seeds = (draws[:, 0] << 31 | draws[:, 1] >> 1).tolist()
        pairs = []
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lightly calls functions that torchvision deprecates
            for image, seed in zip(batch.images.cpu(), seeds, strict=True):
                torch.manual_seed(seed)
                pairs.append(self.views(to_pil_image(image)))
        first, second = (torch.stack(views) for views in zip(*pairs, strict=True))
        return torch.cat([first, second]).to(self.device)
