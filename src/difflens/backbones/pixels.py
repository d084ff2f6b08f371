"""The images themselves as a backbone: the baseline of a head without a network."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from difflens.backbones.base import Block, CleanBackbone, Defaults
from difflens.errors import DiffLensError


def is_pixels(spec: str) -> bool:
    """Return True for the name of a pixel backbone, "pixels" or "pixels:CHANNELSxSIDE"."""
    return spec.partition(":")[0] == "pixels"


class PixelBackbone(CleanBackbone):
    """One block, the clean image, (B, channels, side, side) in [-1, 1]; noise step 0 only.

    Args:
        channels: 1 or 3.
        side: side of the images, in pixels.
    """

    def __init__(self, channels: int = 3, side: int = 32):
        super().__init__()
        self.register_buffer("_anchor", torch.empty(0), persistent=False)  # it moves with the module
        self.spec = f"pixels:{channels}x{side}"
        self.in_channels, self.image_size = channels, side
        self.blocks = (Block(1, "encoder", channels, 1),)
        self.defaults = Defaults(1, 0, (1,), (0,))

    @classmethod
    def from_spec(cls, spec: str, image_size: int | None = None) -> "PixelBackbone":
        """Return the backbone named "pixels" (3 x 32) or "pixels:CHANNELSxSIDE".

        Args:
            image_size: side of the images, in pixels, instead of SIDE.

        Raises:
            DiffLensError: `spec` has another form.
        """
        _, _, shape = spec.partition(":")
        channels, _, side = (shape or "3x32").partition("x")
        if channels not in ("1", "3") or not side.isdecimal() or int(side) < 1:
            raise DiffLensError(
                f"{spec!r} is not a pixel backbone; write pixels or pixels:1x28 (channels x side)"
            )
        return cls(int(channels), image_size or int(side))

    def features(
        self,
        x_t: Tensor,
        t: float | Tensor,
        blocks: Iterable[int],
        feedback: Mapping[int, Tensor] | None = None,
        *,
        compiled: bool = False,
    ) -> dict[int, Tensor]:
        self.check_blocks(blocks)
        if feedback:
            raise DiffLensError("pixels have no decoder, so there is nothing to feed back")
        return {1: x_t}

    def fingerprint(self) -> str:
        return self.spec

    def modules_of(self, block: int) -> list[torch.nn.Module]:
        return []
