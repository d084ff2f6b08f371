"""What several files of tests of pre-training share."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from difflens.pretraining import pretrain as pretraining


@pytest.fixture(scope="module")
def no_samples() -> Iterator[None]:
    """Grey squares instead of samples, which take longer than all else."""

    def squares(backbone: Any, count: int, **options: object) -> torch.Tensor:
        return torch.zeros(count, backbone.in_channels, backbone.image_size, backbone.image_size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "sample", squares)
        yield
