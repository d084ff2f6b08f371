"""Masked autoencoding (He et al., 2022): a ViT reads a quarter of the patches, and a small one predicts the
others."""

from functools import partial

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
    from timm.layers import build_sincos2d_pos_embed
    from timm.models.vision_transformer import Block
except ImportError as error:
    raise DiffLensError('masked autoencoding needs timm: pip install "difflens[compare]"') from error

MASKED = 0.75
"""The share of patches that is masked, as in the paper."""
DECODER_DEPTH = 2
DECODER_HEADS = 4


class MAEMethod(EncoderMethod):
    """A ViT that reads visible patches only, and a decoder, which is half as wide and is not saved.

    The target is each masked patch, normalised by its own mean and variance: the best target of the paper.
    Weights begin as in the paper (appendix A.1): Xavier's, and sines and cosines as fixed positions.
    """

    method = "masked autoencoding"
    description = f"mean squared error of normalised pixels in the {MASKED:.0%} of patches that are masked"
    architecture = "vit"

    def make_head(self, images: ImageSplit) -> nn.Module:
        grid = self.side // PATCH
        self.patches = grid**2
        _initialise(self.encoder)
        nn.init.xavier_uniform_(self.encoder.patch_embed.proj.weight.flatten(1))
        nn.init.normal_(self.encoder.cls_token, std=0.02)
        self.encoder.pos_embed.data = _positions(grid, self.encoder.embed_dim)
        self.encoder.pos_embed.requires_grad = False
        return _Decoder(grid, self.encoder.embed_dim, PATCH**2 * self.channels)

    def loss(self, batch: Batch) -> Tensor:
        images = to_float(batch.images)
        visible, masked = self._split(batch.index)
        predicted = self.head(self.encode(images, visible), visible, masked)
        return reconstruction_loss(predicted, images, masked)

    def encode(self, images: Tensor, visible: Tensor) -> Tensor:
        """Return the encoder's tokens, (B, V, C), of the visible tokens `visible`, (B, V) long."""

        def keep_visible(module: nn.Module, inputs: tuple[Tensor], tokens: Tensor) -> Tensor:
            return _at(tokens, visible)

        # timm drops patches here: behind the positions, before the blocks
        with self.encoder.patch_drop.register_forward_hook(keep_visible):
            tokens: Tensor = self.encoder.forward_features(images)
        return tokens

    def _split(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the visible tokens of each image, (B, V) long, with the class token, and the masked ones,
        (B, M) long.

        They are a function of (seed, epoch, image).
        """
        draws = seeded_noise((self.patches,), index, Stream.MASK, self.config.seed, draw=self.epoch + 1)
        order = draws.argsort(1) + 1
        visible = order[:, : round(self.patches * (1 - MASKED))]
        return torch.cat([torch.zeros_like(order[:, :1]), visible], 1), order[:, visible.shape[1] :]


class _Decoder(nn.Module):
    """A small ViT on the encoded tokens, with one learned token in each masked place.

    Args:
        grid: number of patches along a side.
        width: channels of the encoder's tokens, twice those of the decoder.
        pixels: values of a patch.
    """

    positions: Tensor

    def __init__(self, grid: int, width: int, pixels: int):
        super().__init__()
        norm, width, inputs = partial(nn.LayerNorm, eps=1e-6), width // 2, width
        self.embed = nn.Linear(inputs, width)
        self.mask = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        self.register_buffer("positions", _positions(grid, width), persistent=False)
        self.blocks = nn.Sequential(
            *[Block(width, DECODER_HEADS, qkv_bias=True, norm_layer=norm) for _ in range(DECODER_DEPTH)]
        )
        self.norm = norm(width)
        self.predict = nn.Linear(width, pixels)
        _initialise(self)

    def forward(self, encoded: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """Return the patches of the masked tokens, (B, M, P), from the tokens of the visible ones."""
        embedded = self.embed(encoded)
        tokens = self.mask.to(embedded.dtype).expand(len(encoded), self.positions.shape[1], -1)
        tokens = tokens.scatter(1, _columns(visible, embedded), embedded) + self.positions
        return self.predict(_at(self.norm(self.blocks(tokens)), masked))


def reconstruction_loss(predicted: Tensor, images: Tensor, masked: Tensor) -> Tensor:
    """Return the mean squared error to normalised patches, () (He et al., 2022, section 3).

    Args:
        predicted: (B, M, C P^2), a prediction of each masked patch.
        images: (B, C, S, S).
        masked: (B, M) long, the tokens of the masked patches; 0 is the class token.
    """
    patches = _at(F.unfold(images, PATCH, stride=PATCH).mT, masked - 1)
    variance, mean = torch.var_mean(patches, -1, keepdim=True)
    return F.mse_loss(predicted.float(), (patches - mean) / (variance + 1e-6).sqrt())


def _positions(grid: int, width: int) -> Tensor:
    """Return sines and cosines of rows and columns, (1, 1 + grid^2, width); the class token has zeros."""
    return F.pad(build_sincos2d_pos_embed([grid, grid], width), (0, 0, 1, 0))[None]


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)


def _at(tokens: Tensor, index: Tensor) -> Tensor:
    """Return the tokens (B, I, C) at `index`, (B, I) long."""
    return tokens.gather(1, _columns(index, tokens))


def _columns(index: Tensor, tokens: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, tokens.shape[-1])
