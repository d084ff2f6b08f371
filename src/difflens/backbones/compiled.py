"""Functions of tensors, compiled for each shape of their inputs, or run uncompiled where that fails."""

import os
import time
import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from difflens.run.console import console, first_process, warn
from difflens.run.processes import float32_products

TOLERANCE = 0.02
"""Largest relative error of a compiled result, in the Euclidean norm of a whole tensor."""

# Most compiled graphs of one function. torch's own limit, 8, is meant to catch code that compiles for ever.
_GRAPHS = 256


class CompiledGraphs:
    """One compiled graph for each function and shape, made at first use.

    Shapes are static, and maps enter in channels-last order. A batch of more than half the rows of a graph is
    padded with its last row and uses that graph. A power of two has a graph of its own, so the last bits of
    its results do not depend on the batches before. The first result of a graph is compared with the
    function's own. If compilation fails or the error exceeds `TOLERANCE`, a warning says so and the function
    runs uncompiled from then on. Inductor stores compiled code on disk, so the next process starts in
    seconds.

    Args:
        cuda_graphs: also record the kernels of each graph as one CUDA graph where nothing needs a gradient.
            This helps small networks, whose time is spent on launching kernels. It reserves the memory of
            each graph's tensors.
    """

    def __init__(self, cuda_graphs: bool = False):
        self.cuda_graphs = cuda_graphs
        self._graphs: dict[Hashable, dict[int, Callable[..., Any] | None]] = {}

    def __call__(self, name: str, key: Hashable, function: Callable[..., Any], *inputs: Any) -> Any:
        """Return `function(*inputs)`, computed by its graph.

        Args:
            name: the name of the function in messages.
            key: identifies the computation, together with the shapes of `inputs`.
            function: takes and gives trees of tensors whose first dimension is the batch.
            inputs: its arguments.
        """
        tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
        rows = len(tensors[0])
        gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        shapes = ((tensor.shape[1:], tensor.dtype, tensor.device) for tensor in tensors)
        # what torch guards a graph by, besides its inputs
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), float32_products()
        graphs = self._graphs.setdefault((key, gradient, *modes, *shapes), {})
        larger = [size for size in graphs if rows <= size < 2 * rows]
        size = rows if rows.bit_count() == 1 else min(larger, default=rows)
        padded = tree_map_only(Tensor, lambda tensor: _laid_out(_padded(tensor, size)), inputs)
        if size not in graphs:
            graphs[size] = self._compile(name, function, gradient, padded)
        graph = graphs[size]
        if graph is None:
            return function(*inputs)
        return tree_map_only(Tensor, lambda tensor: tensor[:rows], graph(*padded))

    def _compile(
        self, name: str, function: Callable[..., Any], gradient: bool, inputs: tuple[Any, ...]
    ) -> Callable[..., Any] | None:
        """Return the graph of `function` for the shapes of `inputs`; None if it does not compile."""
        if torch._dynamo.config.disable:  # TORCH_COMPILE_DISABLE=1
            return None
        first = tree_leaves(inputs)[0]
        recorded = self.cuda_graphs and not gradient and first.device.type == "cuda"
        options: dict[str, Any] = {"triton.cudagraphs": True} if recorded else {}
        graph = torch.compile(function, fullgraph=True, dynamic=False, options=options)
        began = time.monotonic()
        try:
            with (
                torch._dynamo.config.patch(recompile_limit=_GRAPHS),
                warnings.catch_warnings(action="ignore"),
            ):
                outputs = graph(*inputs)
                if gradient:
                    _backward(outputs, inputs)
            with torch.no_grad():
                error = _difference(outputs, function(*inputs))
        except torch.OutOfMemoryError:
            raise  # callers read fewer images at once
        except Exception as problem:  # the compiler, its tools and the driver raise many types
            reason = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
            warn(f"{name} runs uncompiled: {reason}")
            return None
        # in lower precision both results have an error
        halved = any(isinstance(leaf, Tensor) and leaf.element_size() < 4 for leaf in tree_leaves(outputs))
        if not error <= TOLERANCE * (2 if halved else 1):
            warn(f"{name} runs uncompiled: compiled, its result is off by {error:.1%}")
            return None
        _say(f"compiled {name}, {tuple(first.shape)}, in {time.monotonic() - began:.0f} s")
        # the next replay of a recorded graph overwrites the tensors that it returned
        return (lambda *given: tree_map_only(Tensor, Tensor.clone, graph(*given))) if recorded else graph


def _padded(tensor: Tensor, rows: int) -> Tensor:
    """Return `tensor` with its last row repeated up to `rows` rows."""
    if len(tensor) == rows:
        return tensor
    return tensor[torch.arange(rows, device=tensor.device).clamp(max=len(tensor) - 1)]


def _laid_out(tensor: Tensor) -> Tensor:
    """Return `tensor` with maps in channels-last order and its strides; other strides need another graph."""
    order = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
    strides = torch.empty_like(tensor, device="meta", memory_format=order).stride()
    return tensor if tensor.stride() == strides else tensor.clone(memory_format=order)


def _backward(outputs: Any, inputs: Any) -> None:
    """Run the backward pass, which torch compiles at its first run."""
    total = sum(leaf.float().sum() for leaf in tree_leaves(outputs) if leaf.requires_grad)
    wanted = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
    torch.autograd.grad(total, wanted, allow_unused=True)


def _difference(compiled: Any, plain: Any) -> float:
    """Return the largest relative error of any tensor, in the Euclidean norm."""
    pairs = zip(tree_leaves(compiled), tree_leaves(plain), strict=True)
    return max(
        float((a.float() - b.float()).norm() / b.float().norm().clamp(min=1e-12))
        for a, b in pairs
        if isinstance(a, Tensor)
    )


def _say(line: str) -> None:
    if "DIFFLENS_QUIET" not in os.environ and first_process():
        console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)
