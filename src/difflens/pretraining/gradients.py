"""The gradients of one optimiser step: micro-batches, lower precision, recomputed activations, one CUDA
graph."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from difflens.choices import Precision
from difflens.data.images import to_float
from difflens.noise import seeded_noise
from difflens.pretraining.loss import DiffusionLoss


class Gradients:
    """Sets the gradients of a network's float32 weights from a batch of images.

    On a GPU with one process, one CUDA graph holds forward and backward.

    Args:
        unet: on the process's device.
        loss: what is trained on.
        process: with several processes, gradients are the mean of theirs.
        precision: of the network's arithmetic.
        accumulate: micro-batches that a batch is cut into, of equal size; the gradient is the batch's.
        recompute: keep only the inputs of residual blocks and compute the rest again in the backward pass
            (gradient checkpointing).
        compile: torch.compile the loss.
        seed: of the noise.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        loss: DiffusionLoss,
        process: Accelerator,
        precision: Precision = "float32",
        accumulate: int = 1,
        recompute: bool = False,
        compile: bool = False,
        seed: int = 0,
    ):
        if recompute:
            unet.enable_gradient_checkpointing(_recomputed)
        self.model: nn.Module = process.prepare(unet)
        self.loss, self.process, self.seed = loss, process, seed
        self.dtype: torch.dtype = getattr(torch, precision)
        self.accumulate = accumulate
        self._part: Callable[..., Tensor] = (
            torch.compile(self._loss, dynamic=False) if compile else self._loss
        )
        alone = process.device.type == "cuda" and process.num_processes == 1
        self._run: Callable[..., Tensor] = _Captured(self._batch) if alone else self._batch

    def __call__(self, images: Tensor, index: Tensor, t: Tensor, draw: Tensor) -> Tensor:
        """The mean loss of this process's images, detached; the next call may overwrite it.

        Args:
            images: uint8, (B, C, S, S); B a multiple of `accumulate`, and the same in every call.
            index: of each image in its data set, which seeds its noise, (B,) long.
            t: noise steps, (B,) long.
            draw: which draw of noise, a scalar.
        """
        return self._run(images, index, t, draw)

    def _batch(self, images: Tensor, index: Tensor, t: Tensor, draw: Tensor) -> Tensor:
        self.model.zero_grad(set_to_none=True)
        total = torch.zeros((), device=images.device)
        for number in range(self.accumulate):
            part = (tensor.chunk(self.accumulate)[number] for tensor in (images, index, t))
            last = number == self.accumulate - 1
            # processes exchange gradients once a step
            with nullcontext() if last else self.process.no_sync(self.model):
                loss = self._part(*part, draw) / self.accumulate
                self.process.backward(loss)
            total = total + loss.detach()
        return total

    def _loss(self, images: Tensor, index: Tensor, t: Tensor, draw: Tensor) -> Tensor:
        x0 = to_float(images)
        noise = seeded_noise(tuple(x0.shape[1:]), index, t, self.seed, draw)
        return self.loss(self._predict, x0, noise, t)

    def _predict(self, x_t: Tensor, t: Tensor) -> Tensor:
        if self.dtype == torch.float32:
            return self.model(x_t, t).sample
        # the whole network in the lower precision: autocast would take every normalisation to float32 and
        # back. Gradients pass through the cast to the float32 weights.
        cast = {name: parameter.to(self.dtype) for name, parameter in self.model.named_parameters()}
        return torch.func.functional_call(self.model, cast, (x_t.to(self.dtype), t)).sample


def _recomputed(module: nn.Module, *inputs: Tensor) -> Tensor:
    """`module(*inputs)` without keeping what is inside.

    The weights are those of now: cast to a lower precision, they are no longer in the module when the
    backward pass comes. There is no dropout, so no state of a generator to keep, which a captured graph could
    not.
    """
    weights: dict[str, Tensor] = dict(module.named_parameters())

    def run(*inputs: Tensor) -> Tensor:
        return torch.func.functional_call(module, weights, inputs)

    output: Tensor = checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False)
    return output


class _Captured:
    """A computation of fixed shapes, its gradients included, as one CUDA graph.

    A small network is bound by kernel launches otherwise. Replaying writes into the gradients of the capture.
    """

    def __init__(self, compute: Callable[..., Tensor]):
        self.compute = compute
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.graph is None:
            self._capture(inputs)
        assert self.graph is not None
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.loss

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # lets libraries choose their algorithms before the capture
            for _ in range(3):
                self.compute(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = self.compute(*self.inputs)
