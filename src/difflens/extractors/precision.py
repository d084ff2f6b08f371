"""The floating-point format of a frozen backbone, where it is left open: bfloat16 where it is faster."""

import copy

import torch
from torch import Tensor

from difflens.backbones.base import Backbone
from difflens.choices import Precision
from difflens.extractors.frozen import FrozenExtractor
from difflens.run.console import note
from difflens.run.measuring import WORTH, bfloat16_speedup, images_to_measure

# the largest relative error of a map
_TOLERANCE = 0.02


def measured_precision(backbone: Backbone) -> Precision:
    """Return bfloat16 if it reads the backbone's default place faster than float32, else float32; say which.

    bfloat16 must be more than 1.1 times as fast, and its map may differ from that of float32 by 2 % (relative
    L2 norm).

    Raises:
        DiffLensError: the activations do not fit into memory.
    """
    if not any(parameter.is_floating_point() for parameter in backbone.parameters()):
        note(f"precision: float32, since {backbone.spec} has no weights")
        return "float32"
    block, t, side = backbone.defaults.block, backbone.defaults.noise_step, backbone.image_size
    most = images_to_measure(side)
    backbone.require_memory(most, (block,))
    generator = torch.Generator().manual_seed(0)
    images = 2 * torch.rand(most, backbone.in_channels, side, side, generator=generator) - 1
    half = copy.deepcopy(backbone)
    half.convert(torch.bfloat16)
    maps: dict[torch.dtype, Tensor] = {}
    extractors = {
        dtype: FrozenExtractor(network, (block,), (t,))
        for dtype, network in ((torch.float32, backbone), (torch.bfloat16, half))
    }
    for extractor in extractors.values():
        extractor.compiled = False

    def read(dtype: torch.dtype, count: int) -> None:
        batch, index = (each[:count].to(backbone.device) for each in (images, torch.arange(most)))
        with torch.no_grad():
            (found,) = extractors[dtype](batch, index).values()
        maps[dtype] = found.float().cpu()  # the copy waits for a GPU

    factor = bfloat16_speedup(read, most)
    error = float((maps[torch.bfloat16] - maps[torch.float32]).norm() / maps[torch.float32].norm())
    # an error that is not finite fails the comparison, too
    chosen: Precision = "bfloat16" if factor > WORTH and error <= _TOLERANCE else "float32"
    processor = "CPU" if backbone.device.type == "cpu" else "GPU"
    note(
        f"precision: {chosen}, since {backbone.spec} is read {factor:.2f} times as fast in bfloat16 as in "
        f"float32 on this {processor}, with an error of {100 * error:.1f} % (measured)"
    )
    return chosen
