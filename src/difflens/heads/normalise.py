"""A fixed affine map of the channels of each place, from statistics of training features."""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difflens.backbones.maps import Place, module_name
from difflens.choices import NormaliseName
from difflens.errors import DiffLensError, counted
from difflens.metrics.moments import Moments, standardising, whitening


class Normalisation(nn.Module):
    """Brings the channels of each place to mean 0 and variance 1, or whitens them, over images and positions.

    It is the identity until `fit`. Its buffers are saved with a head.

    Args:
        channels: channels of the maps, by place.
        kind: "standard", a scale for each channel; or "whiten", a matrix (`metrics.moments.whitening`).
    """

    def __init__(self, channels: Mapping[Place, int], kind: NormaliseName):
        super().__init__()
        assert kind != "none", "no normalisation has no module"
        self.kind, self.channels = kind, dict(channels)
        for place, count in channels.items():
            start = torch.ones(count) if kind == "standard" else torch.eye(count)
            self.register_buffer(f"matrix_{module_name(place)}", start)
            self.register_buffer(f"shift_{module_name(place)}", torch.zeros(count))

    def affine(self, place: Place) -> tuple[Tensor, Tensor]:
        """Return the scale (C,) or the matrix (C, C), and the shift (C,), of a place."""
        name = module_name(place)
        return self.get_buffer(f"matrix_{name}"), self.get_buffer(f"shift_{name}")

    def forward(self, features: Mapping[Place, Tensor]) -> dict[Place, Tensor]:
        """Return normalised maps, (B, C, H, W) float32 by place."""
        return {place: self._at(place, features[place].float()) for place in self.channels}

    def _at(self, place: Place, maps: Tensor) -> Tensor:
        matrix, shift = self.affine(place)
        if matrix.ndim == 1:
            return maps * matrix[:, None, None] + shift[:, None, None]
        return F.conv2d(maps, matrix[:, :, None, None], shift)

    @property
    def fitted(self) -> bool:
        """False for the identity."""
        return any(bool(self.affine(place)[1].any()) for place in self.channels)

    def check(self, images: int) -> None:
        """Raise DiffLensError if there are too few images: a whitening needs as many as there are
        channels."""
        needed = max(self.channels.values()) if self.kind == "whiten" else 1
        if images < needed:
            raise DiffLensError(
                f"whitening {counted(needed, 'channel')} needs at least "
                f"{counted(needed, 'training image')}, not "
                f"{images:,}: give more images, or take --normalise standard"
            )

    def moments(self, batches: Iterable[Mapping[Place, Tensor]]) -> dict[Place, Moments]:
        """Return the moments that `fit` takes, in one pass over maps (B, C, H, W) by place."""
        found = {place: Moments(count, self.kind == "whiten") for place, count in self.channels.items()}
        for maps in batches:
            for place, each in found.items():
                each.add(maps[place])
        return found

    def fit(self, moments: Mapping[Place, Moments], images: int) -> None:
        """Set the affine maps from the moments of the training features, of `images` images.

        Raises:
            DiffLensError: there are too few images.
        """
        self.check(images)
        for place, each in moments.items():
            found = standardising(each) if self.kind == "standard" else whitening(each)
            for buffer, value in zip(self.affine(place), found, strict=True):
                buffer.copy_(value)
