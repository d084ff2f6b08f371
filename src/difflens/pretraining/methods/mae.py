"""Masked autoencoding (He et al., 2022): a ViT sees a quarter of an image's patches, a small one guesses the others."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from difflens.data.images import to_float
from difflens.data.loader import Batch
from difflens.data.split import ImageSplit
from difflens.errors import DiffLensError
from difflens.noise import Stream, seeded_noise
from difflens.presets import PATCH
from difflens.pretraining.methods.base import EncoderLearner

try:
    from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM
    from lightly.models.utils import get_at_index, normalize_mean_var, patchify, set_at_index
except ImportError as error:
    raise DiffLensError('masked autoencoding needs lightly: pip install "difflens[rivals]"') from error

MASKED = 0.75
"""The share of patches that is hidden, the paper's."""
DECODER_DEPTH = 2


class MAELearner(EncoderLearner):
    """A ViT with lightly's masking and its decoder, which is half as wide and not kept.

    The target is each hidden patch, normalised by its own mean and variance, as the paper's best.
    """

    method = "masked autoencoding"
    description = f"mean squared error of normalised pixels in the {MASKED:.0%} of patches that are masked"
    architecture = "vit"

    def make_head(self, images: ImageSplit) -> nn.Module:
        self.patches = (self.side // PATCH) ** 2
        self.masked = MaskedVisionTransformerTIMM(self.encoder)
        width = self.encoder.embed_dim // 2
        return nn.ModuleDict({
            "embed": nn.Linear(self.encoder.embed_dim, width),
            "decoder": MaskedVisionTransformerDecoderTIMM(self.patches, width, DECODER_DEPTH, num_heads=4),
            "predict": nn.Linear(width, PATCH**2 * self.channels),
        })  # fmt: skip

    def loss(self, batch: Batch) -> Tensor:
        images = to_float(batch.images)
        shown, hidden = self._split(batch.index)
        seen = self.head["embed"](self.masked.encode(images, idx_keep=shown))
        tokens = set_at_index(seen.new_zeros(len(images), self.patches + 1, seen.shape[-1]), shown, seen)
        decoded = self.head["decoder"](tokens, idx_mask=hidden)
        guess = self.head["predict"](get_at_index(decoded, hidden))
        # the class token is the first
        target = normalize_mean_var(get_at_index(patchify(images, PATCH), hidden - 1))
        return F.mse_loss(guess.float(), target)

    def _split(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of each image that are shown, the class token always, and those that are hidden, (B, ...) long.

        A function of (seed, epoch, image).
        """
        draws = seeded_noise((self.patches,), index, Stream.MASK, self.config.seed, draw=self.epoch + 1)
        order = draws.argsort(1) + 1
        shown = order[:, : round(self.patches * (1 - MASKED))]
        return torch.cat([torch.zeros_like(order[:, :1]), shown], 1), order[:, shown.shape[1] :]
