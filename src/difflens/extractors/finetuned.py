"""The extractor that fine-tunes the backbone, from a chosen block on."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from difflens.backbones.base import Backbone
from difflens.errors import DiffLensError
from difflens.extractors.base import Extractor
from difflens.processes.base import Level


class FineTunedExtractor(Extractor):
    """The maps of a backbone whose blocks are trained, from `from_block` to the last block that is read.

    Args:
        from_block: the first block that is trained, from 1.

    Attributes:
        checkpoint: store only the inputs of the trained blocks' modules, and compute them again for their
            gradients (Chen et al., 2016). It takes less memory, and steps are slower.

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
        self._recomputed: list[nn.Module] = []
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

    @property
    def checkpoint(self) -> bool:
        """See the class.

        Raises:
            DiffLensError: it is set, and the modules of the blocks are not known.
        """
        return bool(self._recomputed)

    @checkpoint.setter
    def checkpoint(self, again: bool) -> None:
        blocks = range(self.from_block, max(self.blocks) + 1) if again else ()
        modules = dict.fromkeys(module for block in blocks for module in self.backbone.modules_of(block))
        if any(isinstance(module, nn.ParameterList) for module in modules):
            raise DiffLensError(
                f"the modules of the blocks of {self.backbone.spec} are not known, so their activations "
                "cannot be computed again: leave out --checkpoint-activations"
            )
        self._recomputed = list(modules)

    def _read(self, x_t: Tensor, t: Level | Tensor) -> dict[int, Tensor]:
        with _recomputing(self._recomputed) if torch.is_grad_enabled() else nullcontext():
            return self.backbone.features(x_t, t, self.blocks)


@contextmanager
def _recomputing(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let modules that are called inside the context compute their activations again in the backward pass."""
    forwards = {module: module.forward for module in modules}
    for module, forward in forwards.items():
        module.forward = partial(checkpoint, forward, use_reentrant=False)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in forwards:
            del module.forward
