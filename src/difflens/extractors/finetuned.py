"""The extractor that fine-tunes the backbone, from a chosen block on."""

from collections.abc import Iterable

from torch import Tensor, nn

from difflens.backbones.base import Backbone
from difflens.errors import DiffLensError
from difflens.extractors.base import Extractor
from difflens.processes.base import Level


class FineTunedExtractor(Extractor):
    """The maps of a backbone whose blocks are trained, from `from_block` to the last block that is read.

    Args:
        from_block: the first block that is trained, from 1.

    Raises:
        DiffLensError: there is no such block, or it comes after the last block that is read.
    """

    trainable = True

    def __init__(
        self,
        backbone: Backbone,
        blocks: Iterable[int],
        noise_steps: Iterable[Level],
        seed: int = 0,
        from_block: int = 1,
        draws: int = 1,
    ):
        super().__init__(backbone, blocks, noise_steps, seed, draws)
        backbone.block(from_block)
        if from_block > max(self.blocks):
            raise DiffLensError(
                f"nothing to fine-tune: block {from_block} comes after block {max(self.blocks)}, the last "
                "that is read"
            )
        self.from_block = from_block
        backbone.requires_grad_(False)
        for parameters in self.trained_blocks.values():
            for parameter in parameters:
                parameter.requires_grad_(True)

    @property
    def trained_blocks(self) -> dict[int, list[nn.Parameter]]:
        """The parameters of each block that is trained, in the order of the blocks."""
        return {
            block: self.backbone.parameters_of(block)
            for block in range(self.from_block, max(self.blocks) + 1)
        }

    def _read(self, x_t: Tensor, t: Level | Tensor) -> dict[int, Tensor]:
        return self.backbone.features(x_t, t, self.blocks)
