"""Functions of tensors, compiled for the shapes they meet, with plain execution to fall back on."""

import os
import time
import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from difflens.run.console import console, warn

TOLERANCE = 0.02
"""Relative error, by the Euclidean norm of a whole tensor, that an answer may have."""

# Compiled graphs of one function, by what they are of: torch stops at 8 to catch code that compiles for ever.
_GRAPHS = 256


class CompiledGraphs:
    """One compiled graph for each function and shape, made at first use.

    Shapes are static, and maps enter in channels-last order. A batch smaller than one that has a graph is filled up with its last row and goes through that
    graph, so the last batch of an epoch compiles nothing. A graph's first answer is compared with the plain function's;
    where compiling fails or the answers differ by more than `TOLERANCE` allows, one line says so and the plain function is
    used from then on. Inductor keeps what it compiled on disk, so the next process takes seconds.

    Args:
        cuda_graphs: also record each graph's kernels as one CUDA graph where nothing needs a gradient: for small
            networks, which are bound by the launches of their kernels. It keeps the memory of each graph's tensors.
    """

    def __init__(self, cuda_graphs: bool = False):
        self.cuda_graphs = cuda_graphs
        self._graphs: dict[Hashable, dict[int, Callable[..., Any] | None]] = {}

    def __call__(self, name: str, key: Hashable, function: Callable[..., Any], *inputs: Any) -> Any:
        """`function(*inputs)`, through its graph.

        Args:
            name: what messages call the function.
            key: what besides the shapes of `inputs` decides what `function` computes.
            inputs: trees of tensors whose first dimension is the batch, as are the outputs.
        """
        tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
        rows = len(tensors[0])
        gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        kind = (
            key, gradient, torch.is_inference_mode_enabled(),
            *((tensor.shape[1:], tensor.dtype, tensor.device) for tensor in tensors),
        )  # fmt: skip
        graphs = self._graphs.setdefault(kind, {})
        size = min((size for size in graphs if size >= rows), default=rows)
        filled = tree_map_only(Tensor, lambda tensor: _laid_out(_filled(tensor, size)), inputs)
        if size not in graphs:
            graphs[size] = self._compile(name, function, gradient, filled)
        graph = graphs[size]
        if graph is None:
            return function(*inputs)
        return tree_map_only(Tensor, lambda tensor: tensor[:rows], graph(*filled))

    def _compile(
        self, name: str, function: Callable[..., Any], gradient: bool, inputs: tuple[Any, ...]
    ) -> Callable[..., Any] | None:
        """The graph of `function` for the shapes of `inputs`, or None where it cannot be had."""
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
                found = graph(*inputs)
                if gradient:
                    _backward(found, inputs)
            with torch.no_grad():
                error = _difference(found, function(*inputs))
        except torch.OutOfMemoryError:
            raise
        except Exception as problem:  # the compiler, the tools it calls and the driver raise what they like
            reason = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
            warn(f"{name} runs uncompiled: {reason}")
            return None
        # of two answers in lower precision, each may be off by so much
        halved = any(isinstance(leaf, Tensor) and leaf.element_size() < 4 for leaf in tree_leaves(found))
        if not error <= TOLERANCE * (2 if halved else 1):
            warn(f"{name} runs uncompiled: compiled, its result is off by {error:.1%}")
            return None
        _say(f"compiled {name}, {tuple(first.shape)}, in {time.monotonic() - began:.0f} s")
        # what a recorded graph returns is overwritten by its next replay
        return (lambda *given: tree_map_only(Tensor, Tensor.clone, graph(*given))) if recorded else graph


def _filled(tensor: Tensor, rows: int) -> Tensor:
    """`tensor`, its last row repeated up to `rows`."""
    if len(tensor) == rows:
        return tensor
    return tensor[torch.arange(rows, device=tensor.device).clamp(max=len(tensor) - 1)]


def _laid_out(tensor: Tensor) -> Tensor:
    """`tensor` with maps in channels-last order, and the strides of that order: other strides are another graph."""
    order = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
    strides = torch.empty_like(tensor, device="meta", memory_format=order).stride()
    return tensor if tensor.stride() == strides else tensor.clone(memory_format=order)


def _backward(outputs: Any, inputs: Any) -> None:
    """Run the backward pass, which is compiled when it is first run."""
    total = sum(leaf.float().sum() for leaf in tree_leaves(outputs) if leaf.requires_grad)
    wanted = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
    torch.autograd.grad(total, wanted, allow_unused=True)


def _difference(compiled: Any, plain: Any) -> float:
    """The largest relative error of any tensor."""
    pairs = zip(tree_leaves(compiled), tree_leaves(plain), strict=True)
    return max(
        float((a.float() - b.float()).norm() / b.float().norm().clamp(min=1e-12))
        for a, b in pairs
        if isinstance(a, Tensor)
    )


def _say(line: str) -> None:
    if "DIFFLENS_QUIET" not in os.environ and int(os.environ.get("RANK", 0)) == 0:
        console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)
