"""The contract of a sampler, and what all samplers of diffusion networks share."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from difflens.backbones.base import Backbone, DiffusionBackbone
from difflens.errors import DiffLensError
from difflens.noise import Stream, seeded_noise
from difflens.processes.variance_preserving import VariancePreserving


def not_finite(backbone: Backbone) -> DiffLensError:
    """Return the error of a backbone whose images have NaN or infinity, with the likely remedy."""
    remedy = "check its weights" if backbone.dtype == torch.float32 else "use --precision float32"
    return DiffLensError(f"{backbone.spec} gives images that are not finite: {remedy}")


class Sampler(ABC):
    """What draws images from a backbone.

    Attributes:
        backbone: what it draws from.
        name: the kind of sampler.
        steps: number of steps.
        calls: how often `watch` is called for a batch; a few schedulers run the network twice in a step.
        seed: seed of all noise.
    """

    backbone: Backbone
    name: str
    steps: int
    calls: int
    seed: int

    @abstractmethod
    def __call__(self, index: Tensor, watch: Callable[[], object] = lambda: None) -> Tensor:
        """Return the images with these numbers, (B, C, H, W) float32 in [-1, 1].

        Image k depends on (seed, k) alone, except for its last bits. Kernels choose their order of summation
        by the size of the batch: image k is bit-equal at the same position of a batch of the same size.

        Args:
            index: numbers of the images, (B,) long, on the backbone's device.
            watch: a function that is called after each step.

        Raises:
            DiffLensError: the network's output has another shape than its input, or an image is not finite.
        """


class DiffusionSampler(Sampler):
    """A sampler of a diffusion network; it draws x_0 in pixels or latents, which the backbone decodes.

    Args:
        backbone: the network with its noise process.
        seed: seed of all noise.
        compiled: run the network compiled, as in `Extractor.compiled`.

    Attributes:
        shape: (C, H, W) of x_t.
    """

    backbone: DiffusionBackbone

    def __init__(self, backbone: DiffusionBackbone, seed: int = 0, compiled: bool = False):
        self.backbone, self.seed, self.compiled = backbone, seed, compiled
        self.shape = backbone.input_shape

    @torch.inference_mode()
    def __call__(self, index: Tensor, watch: Callable[[], object] = lambda: None) -> Tensor:
        x_0 = self._draw(index, watch)
        images = self.backbone.decode(x_0)
        # a quantising autoencoder makes finite images of any latents
        if not (x_0.isfinite().all() and images.isfinite().all()):
            raise not_finite(self.backbone)
        return images.clamp(-1, 1)

    @abstractmethod
    def _draw(self, index: Tensor, watch: Callable[[], object]) -> Tensor:
        """Return x_0, (B, C, H, W) float32, as the backbone's `decode` takes it; arguments as in a call."""

    def _start(self, index: Tensor) -> Tensor:
        """Return the initial noise of the images, (B, C, H, W), of standard deviation 1."""
        process = self.backbone.process
        # the noise of steps and that of a sampler are numbered apart
        stream = Stream.start(int(process.bounds[1]) + 1) if process.unit == "step" else Stream.INITIAL
        return seeded_noise(self.shape, index, stream, self.seed)

    def _checked(self, output: Tensor) -> Tensor:
        """Return the network's output in float32.

        Raises:
            DiffLensError: it has neither as many channels as x_t nor twice as many, or another size.
        """
        channels = self.shape[0]
        if output.shape[1] not in (channels, 2 * channels) or output.shape[2:] != self.shape[1:]:
            made, fed = (" x ".join(map(str, shape)) for shape in (output.shape[1:], self.shape))
            raise DiffLensError(f"{self.backbone.spec} cannot generate: it makes {made} out of {fed}")
        return output.float()


def refuse_eta(eta: float, name: str) -> None:
    """Raise a DiffLensError if `eta` is not 0: only ddim has one."""
    if eta:
        raise DiffLensError(f"eta is {eta:g}, and {name} has none: it is for the sampler ddim")


def refuse_pure_noise(backbone: DiffusionBackbone) -> None:
    """Raise a DiffLensError if no image follows from what the network predicts at the last step."""
    process = backbone.process
    if not isinstance(process, VariancePreserving) or process.prediction != "epsilon":
        return
    if not float(process.alphas_cumprod[-1]):
        raise DiffLensError(
            f"{backbone.spec} predicts noise, and its last step is pure noise (zero terminal SNR): no "
            "image follows from it"
        )
