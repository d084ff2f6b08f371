"""The extractor of a frozen backbone."""

import torch
from torch import Tensor

from difflens.extractors.base import Extractor
from difflens.processes.base import Level


class FrozenExtractor(Extractor):
    """The maps of a frozen backbone: a fixed function of the image, the seed and the noise sample."""

    trainable = False

    def _read(self, x_t: Tensor, t: Level | Tensor) -> dict[int, Tensor]:
        with torch.no_grad():
            return self.backbone.features(x_t, t, self.blocks, compiled=self._default(self.compiled))
