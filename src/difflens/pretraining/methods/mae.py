"""Masked autoencoding (He et al., 2022): a ViT reads a quarter of the patches, and a small one predicts the
others."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from difflens.data.images import to_float
from difflens.data.loader import Batch
from difflens.data.split import ImageSplit
from difflens.errors import DiffLensError
from difflens.noise import Stream, seeded_noise
from difflens.presets import PATCH
from difflens.pretraining.methods.base import EncoderMethod

try:
    from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM
    from lightly.models.utils import get_at_index, normalize_mean_var, patchify, set_at_index
except ImportError as error:
    raise DiffLensError('masked autoencoding needs lightly: pip install "difflens[compare]"') from error

MASKED = 0.75
"""The share of patches that is masked, as in the paper."""
DECODER_DEPTH = 2


class MAEMethod(EncoderMethod):
    """A ViT with lightly's masking and its decoder, which is half as wide and is not saved.

    The target is each masked patch, normalised by its own mean and variance: the best target of the paper.
    """

    method = "masked autoencoding"
    description = f"mean squared error of normalised pixels in the {MASKED:.0%} of patches that are masked"
    architecture = "vit"

    def make_head(self, images: ImageSplit) -> nn.Module:
        self.patches = (self.side // PATCH) ** 2
        self.masked = MaskedVisionTransformerTIMM(self.encoder)
        width = self.encoder.embed_dim // 2
        return nn.ModuleDict(
            {
                "embed": nn.Linear(self.encoder.embed_dim, width),
                "decoder": MaskedVisionTransformerDecoderTIMM(
                    self.patches, width, DECODER_DEPTH, num_heads=4
                ),
                "predict": nn.Linear(width, PATCH**2 * self.channels),
            }
        )

    def loss(self, batch: Batch) -> Tensor:
        images = to_float(batch.images)
        visible, masked = self._split(batch.index)
        encoded = self.head["embed"](self.masked.encode(images, idx_keep=visible))
        tokens = encoded.new_zeros(len(images), self.patches + 1, encoded.shape[-1])
        decoded = self.head["decoder"](set_at_index(tokens, visible, encoded), idx_mask=masked)
        predicted = self.head["predict"](get_at_index(decoded, masked))
        # the class token is the first
        target = normalize_mean_var(get_at_index(patchify(images, PATCH), masked - 1))
        return F.mse_loss(predicted.float(), target)

    def _split(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the visible tokens of each image, (B, V) long, with the class token, and the masked ones,
        (B, M) long.

        They are a function of (seed, epoch, image).
        """
        draws = seeded_noise((self.patches,), index, Stream.MASK, self.config.seed, draw=self.epoch + 1)
        order = draws.argsort(1) + 1
        visible = order[:, : round(self.patches * (1 - MASKED))]
        return torch.cat([torch.zeros_like(order[:, :1]), visible], 1), order[:, visible.shape[1] :]
