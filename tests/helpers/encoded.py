"""Counts what the autoencoder encodes."""

import pytest
from torch import Tensor

from difflens.backbones.autoencoder import Autoencoder


def count_encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that receives the size of each batch that is encoded from now on."""
    sizes: list[int] = []
    encode = Autoencoder.encode

    def counting(self: Autoencoder, images: Tensor) -> Tensor:
        sizes.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(Autoencoder, "encode", counting)
    return sizes
