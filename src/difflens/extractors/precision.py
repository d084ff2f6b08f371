"""The floating-point format of a frozen backbone, where it is left open: bfloat16 where it is faster."""

import copy

import torch
from torch import Tensor

from difflens.backbones.base import Backbone
from difflens.choices import Precision
from difflens.extractors.frozen import FrozenExtractor
from difflens.run.console import note
from difflens.run.measuring import fastest_of_each

_SECONDS = 2.0
# below this factor, and above this relative error of a map, float32's digits are worth more
_WORTH = 1.1
_TOLERANCE = 0.02
# as many pixels as 32 images of side 32
_PIXELS = 32 * 32**2


def measured_precision(backbone: Backbone) -> Precision:
    """Return bfloat16 if it reads the backbone's default place faster than float32, else float32; say which.

    Readings in both formats take turns for about two seconds. bfloat16 must be more than 1.1 times as fast,
    and its map may differ from that of float32 by 2 % (relative L2 norm).

    Raises:
        DiffLensError: the activations do not fit into memory.
    """
    if not any(parameter.is_floating_point() for parameter in backbone.parameters()):
        note(f"precision: float32, since {backbone.spec} has no weights")
        return "float32"
    block, t, side = backbone.defaults.block, backbone.defaults.noise_step, backbone.image_size
    count = max(1, _PIXELS // side**2)
    backbone.require_memory(count, (block,))
    generator = torch.Generator().manual_seed(0)
    images = 2 * torch.rand(count, backbone.in_channels, side, side, generator=generator) - 1
    half = copy.deepcopy(backbone)
    half.convert(torch.bfloat16)
    maps: dict[Precision, Tensor] = {}
    formats: dict[Precision, Backbone] = {"float32": backbone, "bfloat16": half}

    def read(precision: Precision, extractor: FrozenExtractor) -> None:
        with torch.no_grad():
            (found,) = extractor(images.to(backbone.device), torch.arange(count)).values()
        maps[precision] = found.float().cpu()  # the copy waits for a GPU

    steps = {}
    for precision, network in formats.items():
        extractor = FrozenExtractor(network, (block,), (t,))
        extractor.compiled = False
        steps[precision] = lambda precision=precision, extractor=extractor: read(precision, extractor)
    seconds = fastest_of_each(steps, _SECONDS)
    factor = seconds["float32"] / seconds["bfloat16"]
    error = float((maps["bfloat16"] - maps["float32"]).norm() / maps["float32"].norm())
    # an error that is not finite fails the comparison, too
    chosen: Precision = "bfloat16" if factor > _WORTH and error <= _TOLERANCE else "float32"
    processor = "CPU" if backbone.device.type == "cpu" else "GPU"
    note(
        f"precision: {chosen}, since {backbone.spec} is read {factor:.2f} times as fast in bfloat16 as in "
        f"float32 on this {processor}, with an error of {100 * error:.1f} % (measured)"
    )
    return chosen
