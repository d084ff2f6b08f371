"""The gradients of one optimiser step: micro-batches, lower precision, recomputed activations, one CUDA
graph."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from difflens.choices import Precision
from difflens.data.images import to_float
from difflens.noise import seeded_noise
from difflens.pretraining.loss import DiffusionLoss
from difflens.run.processes import averaged

# In bfloat16 on a CPU, the backward pass of PyTorch's flash attention takes 5 times as long as the explicit
# matrix products for 64 positions, and a quarter of the training step of photos-32; at 256 it is the faster.
_FEW_TOKENS = 128


class Gradients:
    """Sets the gradients of a network's float32 weights from a batch of images.

    On a GPU with one process, one CUDA graph holds forward and backward.

    Args:
        unet: the network, on the process's device.
        loss: the loss that is minimised.
        process: with several processes, gradients are averaged over all.
        precision: floating-point format of the network's arithmetic.
        accumulate: micro-batches of equal size into which a batch is divided; the gradient is that of the
            batch.
        recompute: store only the inputs of residual blocks and recompute the rest in the backward pass
            (gradient checkpointing).
        compile: compile the loss with torch.compile.
        seed: seed of the noise.
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
            unet.enable_gradient_checkpointing(recomputed)
        self.model: nn.Module = averaged(unet, process)
        self.loss, self.process, self.seed = loss, process, seed
        self.dtype: torch.dtype = getattr(torch, precision)
        self.accumulate = accumulate
        self.explicit = process.device.type == "cpu" and attends_explicitly(unet, self.dtype)
        self._part: Callable[..., Tensor] = (
            torch.compile(self._loss, dynamic=False) if compile else self._loss
        )
        alone = process.device.type == "cuda" and process.num_processes == 1
        self._run: Callable[..., Tensor] = _Captured(self._batch) if alone else self._batch

    def __call__(self, images: Tensor, index: Tensor, t: Tensor, draw: Tensor) -> Tensor:
        """Set the gradients; return the mean loss of this process's images, detached. The next call may
        overwrite it.

        Args:
            images: uint8, (B, C, S, S); B is a multiple of `accumulate`, and the same in each call.
            index: (B,) long: the position of each image in its data set, which seeds its noise.
            t: (B,) long: noise steps.
            draw: (): the number of the noise sample.
        """
        with attention_kernel(self.explicit):
            return self._run(images, index, t, draw)

    def _batch(self, images: Tensor, index: Tensor, t: Tensor, draw: Tensor) -> Tensor:
        self.model.zero_grad(set_to_none=True)
        total = torch.zeros((), device=images.device)
        for number in range(self.accumulate):
            part = (tensor.chunk(self.accumulate)[number] for tensor in (images, index, t))
            last = number == self.accumulate - 1
            # processes exchange gradients once a step, with the last micro-batch
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


def attends_explicitly(unet: UNet2DModel, dtype: torch.dtype) -> bool:
    """Say whether explicit matrix products train this network's attention faster on a CPU, in this format."""
    return dtype == torch.bfloat16 and _most_tokens(unet) <= _FEW_TOKENS


def attention_kernel(explicit: bool) -> AbstractContextManager[None]:
    """Return the context that computes attention by explicit matrix products, or as PyTorch chooses."""
    return sdpa_kernel(SDPBackend.MATH) if explicit else nullcontext()


def _most_tokens(unet: UNet2DModel) -> int:
    """Return the longest sequence over which the network attends: the positions of its finest such map."""
    side, stage = unet.config["sample_size"], unet.config["down_block_types"]
    finest = next((level for level, name in enumerate(stage) if "Attn" in name), len(stage) - 1)
    positions: int = (side >> finest) ** 2
    return positions


def recomputed(module: nn.Module, *inputs: Tensor) -> Tensor:
    """Return `module(*inputs)`; the backward pass recomputes the activations inside the module.

    The function holds the current weights: those cast to a lower precision are no longer in the module in the
    backward pass. There is no dropout, so no generator state to restore, which a captured graph could not do.
    """
    weights: dict[str, Tensor] = dict(module.named_parameters())

    def run(*inputs: Tensor) -> Tensor:
        return torch.func.functional_call(module, weights, inputs)

    output: Tensor = checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False)
    return output


class _Captured:
    """A computation of fixed shapes, its gradients included, as one CUDA graph.

    Without the graph, kernel launches limit the speed of a small network. A replay writes into the captured
    gradients.
    """

    def __init__(self, compute: Callable[..., Tensor]):
        self.compute = compute
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.graph is None:
            self._capture(inputs)
        assert self.graph is not None
        for captured, given in zip(self.inputs, inputs, strict=True):
            captured.copy_(given)
        self.graph.replay()
        return self.loss

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # warm-up: libraries choose their algorithms before the capture
            for _ in range(3):
                self.compute(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        # the thread that pins the memory of loaded images calls CUDA meanwhile
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.loss = self.compute(*self.inputs)
