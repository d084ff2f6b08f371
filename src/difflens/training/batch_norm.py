"""Batch normalisation of a batch that has one value a channel, as the last image of an epoch leaves it."""

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def steady_batch_norms(network: nn.Module) -> None:
    """Let batch normalisations use their running statistics where one value a channel has no variance."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(_before)
            module.register_forward_hook(_after)


def _before(module: Any, inputs: tuple[Tensor, ...]) -> None:
    if module.training and inputs[0].numel() == inputs[0].shape[1]:
        module.training, module.alone = False, True


def _after(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    if module.__dict__.pop("alone", False):
        module.training = True
