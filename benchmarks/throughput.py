"""How fast features are read, heads are trained and images are drawn, and what each optimisation brings.

Usage: python benchmarks/throughput.py --device cpu --backbone fashion --json FILE
       python benchmarks/throughput.py --device cuda --backbone adm-256-random --json FILE

Every group of rows does the same work. Its first row is the released way: the whole network whichever block
is read, one pass for each noise step, eager, NCHW, float32 on the CPU and float16 on CUDA. Each further row
adds one optimisation to the row above it; `--without NAME ...` leaves some out, so that the others show what
they bring alone. Times are medians over repetitions in which all rows of a group take turns. An image at one
noise step counts as one image.

Predicted gains were written before they were measured: for what does less arithmetic, the ratio of counted
operations.
"""

import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from diffusers import UNet2DModel
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from difflens import (
    FeedbackExtractor,
    FrozenExtractor,
    HeadConfig,
    Probe,
    load_backbone,
    load_data,
    make_head,
)
from difflens.backbones.maps import pool_to
from difflens.backbones.unet import UNetBackbone
from difflens.choices import Augmentation, Precision
from difflens.configs.pretrain import PretrainConfig
from difflens.data.images import to_float
from difflens.data.split import FileSplit, ImageSplit
from difflens.extractors.base import Extractor
from difflens.extractors.cache import FeatureCache, Reading
from difflens.heads.base import Head
from difflens.pretraining.gradients import Gradients
from difflens.pretraining.loss import DiffusionLoss
from difflens.pretraining.networks import unet_config
from difflens.pretraining.pretrain import pretrain
from difflens.processes.base import Level
from difflens.processes.schedulers import process_of
from difflens.processes.variance_preserving import VariancePreserving
from difflens.run.processes import accelerator
from difflens.tasks.classification.train import cached_batches

Option = Literal[
    "stop",
    "gradient",
    "shared",
    "channels-last",
    "joint",
    "bfloat16",
    "compile",
    "cuda-graphs",
    "checkpoint",
    "cache",
]
Step = tuple[Option, str, float | None]
"""An optimisation, the name of its row, and the gain predicted for it."""
Group = Literal[
    "extraction", "linear", "attention", "difformer", "diffeed", "sampling", "pretraining", "pretrain", "data"
]

# The architecture of OpenAI's 256x256_diffusion_uncond.pt.
ADM_256: dict[str, Any] = {
    "sample_size": 256,
    "in_channels": 3,
    "out_channels": 6,
    "layers_per_block": 2,
    "block_out_channels": (256, 256, 512, 512, 1024, 1024),
    "time_embedding_dim": 1024,
    "down_block_types": ("ResnetDownsampleBlock2D",) * 3 + ("AttnDownBlock2D",) * 3,
    "up_block_types": ("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",) * 3,
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "attention_head_dim": 64,
    "attn_norm_num_groups": 32,
    "resnet_time_scale_shift": "scale_shift",
    "downsample_padding": 1,
}

CACHED = "on cached features"


@dataclass
class Config:
    """How fast features are read, heads are trained and images are drawn, and what each optimisation
    brings."""

    device: Literal["cpu", "cuda"] = "cpu"
    backbone: str = "fashion"
    """adm-256-random (the architecture of ADM-256, random weights), or what `load_backbone` takes."""
    json: Path | None = None
    """Where to write the table."""
    without: tuple[Option, ...] = ()
    """Optimisations to switch off."""
    groups: tuple[Group, ...] = (
        "extraction",
        "linear",
        "attention",
        "difformer",
        "diffeed",
        "sampling",
        "pretraining",
        "pretrain",
        "data",
    )
    """The groups of rows to measure."""
    batch_size: int | None = None
    """Images a pass where nothing is trained; half of it in training, a quarter in DifFeed's. (default: 32,
    on CUDA 64)"""
    repetitions: int = 9
    """Times that a row is measured: at least 2."""
    seconds: float = 0.2
    """Steps shorter than this are repeated to fill it."""
    threads: int | None = None
    """Threads of the CPU. (default: PyTorch's)"""


@dataclass
class Row:
    """One line of the table, and what is run to fill it in.

    Attributes:
        step: does the work once.
        count: does the same arithmetic uncompiled, for counting; None: `step` does.
        images: in one step.
        weights: bytes of the parameters that it needs.
        gain: predicted speed over the row above; None: by counted operations.
        over: the row that it is compared with, if not the one above.
        maps: the features that it reads, to be compared with float32, if that is what it does.
        products: does the matrix products of the step alone, for the steps that are compared with them.
    """

    group: str
    name: str
    step: Callable[[], Any]
    images: int
    weights: int = 0
    gain: float | None = None
    count: Callable[[], Any] | None = None
    maps: Callable[[], dict[Any, Tensor]] | None = None
    compiles: bool = False
    products: Callable[[], Any] | None = None
    over: str | None = None
    seconds: list[float] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)


class WholeNetwork(FrozenExtractor):
    """The released way: runs the network's own forward to its end and catches maps on their way."""

    def _read(self, x_t: Tensor, t: Level | Tensor) -> dict[int, Tensor]:
        with torch.no_grad():
            if self.compiled:  # nothing can be caught in a graph, so it returns the last map too
                return self.backbone.features(
                    x_t, t, (*self.blocks, len(self.backbone.blocks)), compiled=True
                )
            return whole_pass(self.backbone, x_t, t, self.blocks, {})


class TwoWholePasses(FeedbackExtractor):
    """The released way of DifFeed: both passes run the network to its end."""

    def _read(self, x_t: Tensor, t: Level | Tensor) -> dict[int, Tensor]:
        with torch.no_grad():
            first = whole_pass(self.backbone, x_t, t, self.feedback_blocks, {})
        return whole_pass(self.backbone, x_t, t, self.blocks, self._respond(first, x_t))


class TwoPasses(FeedbackExtractor):
    """DifFeed with two passes that begin at the input and stop after the last block needed."""

    def _read(self, x_t: Tensor, t: Level | Tensor) -> dict[int, Tensor]:
        with torch.no_grad():
            first = self.backbone.features(x_t, t, self.feedback_blocks)
        return self.backbone.features(x_t, t, self.blocks, self._respond(first, x_t))


def chosen(*options: Option) -> frozenset[Option]:
    return frozenset(options)


def whole_pass(
    backbone: Any, x_t: Tensor, t: Level | Tensor, blocks: tuple[int, ...], feedback: dict[int, Tensor]
) -> dict[int, Tensor]:
    maps: dict[int, Tensor] = {}

    def catch(index: int) -> Callable[..., Tensor]:
        def hook(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            maps[index] = output + feedback[index] if index in feedback else output
            return maps[index]

        return hook

    hooks = [backbone.modules_of(b)[-1].register_forward_hook(catch(b)) for b in {*blocks, *feedback}]
    try:
        backbone.denoise(x_t, t)
    finally:
        for hook in hooks:
            hook.remove()
    return {block: maps[block] for block in blocks}


class Bench:
    """Everything that rows are made of: networks, images, options."""

    def __init__(self, config: Config):
        self.config = config
        self.device = torch.device(config.device)
        self.cuda = self.device.type == "cuda"
        accelerator(config.device)  # what every command of difflens sets
        if config.backbone == "adm-256-random":
            torch.manual_seed(0)
            self.base = UNetBackbone(UNet2DModel(**ADM_256), process_of(), config.backbone)
        else:
            loaded = load_backbone(config.backbone)
            assert isinstance(loaded, UNetBackbone), "only a U-Net has passes to compare"
            self.base = loaded
        self.defaults = self.base.defaults
        self.batch_size = config.batch_size or (64 if self.cuda else 32)
        self.classes = 1000 if self.base.image_size >= 128 else 10
        self.networks: dict[Any, UNetBackbone] = {}

    def reference(self) -> dict[Any, Tensor]:
        """The maps that `extraction` reads, by float32 and the plain walk."""
        images, index, _ = self.images(self.batch_size)
        network = copy.deepcopy(self.base).to(self.device)
        extractor = FrozenExtractor(network, (self.defaults.block,), self.defaults.fusion_noise_steps)
        extractor.compiled = False
        return extractor.eval()(images, index)

    def network(self, options: frozenset[Option], trained: bool = False) -> UNetBackbone:
        """The backbone in the precision and layout that `options` ask for; `trained`: its weights take
        gradients."""
        released = torch.float16 if self.cuda else torch.float32
        dtype = torch.bfloat16 if "bfloat16" in options else released
        key = (
            dtype,
            bool(options & {"channels-last", "compile"}),
            "compile" in options,
            "cuda-graphs" in options,
            trained,
        )
        if key not in self.networks:
            network = copy.deepcopy(self.base).to(self.device, dtype)
            if "channels-last" in options:
                network.unet.to(memory_format=torch.channels_last)
            network.cuda_graphs = "cuda-graphs" in options
            self.networks[key] = network.requires_grad_(trained)
        return self.networks[key]

    def images(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """(images, index, labels)."""
        side = self.base.image_size
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(count, self.base.in_channels, side, side, generator=generator) * 2 - 1
        labels = torch.randint(self.classes, (count,), generator=generator)
        return images.to(self.device), torch.arange(count, device=self.device), labels.to(self.device)

    def ladder(self, *steps: Step) -> Iterator[tuple[frozenset[Option], str, float | None]]:
        """The released way, then each optimisation on top of those before it, but for those switched off."""
        options: frozenset[Option] = frozenset()
        yield options, "the released way", None
        for option, name, gain in steps:
            if option not in self.config.without:
                options |= {option}
                yield options, name, gain

    def hardware_steps(self) -> list[Step]:
        """Options that run the same operations faster, with the gain predicted for it."""
        steps: list[Step] = [("channels-last", "+ channels-last", 1.1 if self.cuda else 1.0)]
        if self.cuda:
            steps += [
                ("bfloat16", "+ bfloat16 for float16", 1.0),
                ("compile", "+ compiled", 1.4),
            ]
            if self.base.launch_bound:
                steps += [("cuda-graphs", "+ CUDA graphs", 2.0)]
        return steps

    def frozen(
        self, options: frozenset[Option], blocks: tuple[int, ...], steps: tuple[Level, ...]
    ) -> Extractor:
        kind = FrozenExtractor if "stop" in options else WholeNetwork
        extractor = kind(self.network(options), blocks, steps)
        extractor.compiled, extractor.joint = "compile" in options, "joint" in options
        return extractor.train("joint" in options)

    def extraction(self) -> Iterator[Row]:
        images, index, _ = self.images(self.batch_size)
        blocks, steps = (self.defaults.block,), self.defaults.fusion_noise_steps
        ladder: list[Step] = [
            ("stop", f"+ stop after block {blocks[0]}", None),
            ("joint", f"+ {len(steps)} noise steps in one batch", 1.0),
            *self.hardware_steps(),
        ]
        if not self.cuda:
            ladder += [("compile", "+ compiled", 1.0)]
        rungs = list(self.ladder(*ladder))
        stopped = chosen("stop") - {*self.config.without}
        if (
            not self.cuda and "bfloat16" not in self.config.without
        ):  # twice the products in an instruction of AVX-512
            rungs.append((stopped | chosen("bfloat16"), "stop, with --precision bfloat16", 2.0))
        for options, name, gain in rungs:
            extractor = self.frozen(options, blocks, steps)

            def read(extractor: Extractor = extractor) -> dict[Any, Tensor]:
                return extractor(images, index)

            row = self.row("extraction", name, read, len(images) * len(steps), gain, extractor, maps=read)
            if options == stopped | {"bfloat16"} and not self.cuda:
                row.over = rungs[len(stopped)][1]
            yield row

    def training(self, head: Literal["linear", "attention", "difformer"]) -> Iterator[Row]:
        images, index, labels = self.images(max(1, self.batch_size // 2))
        many = head == "difformer"
        blocks = self.defaults.fusion_blocks if many else (self.defaults.block,)
        steps = self.defaults.fusion_noise_steps if many else (self.defaults.noise_step,)
        ladder: list[Step] = [("stop", f"+ stop after block {max(blocks)}", None)]
        if many:
            ladder += [("joint", f"+ {len(steps)} noise steps in one batch", 1.0)]
        if self.cuda:
            ladder += self.hardware_steps()
        for options, name, gain in self.ladder(*ladder):
            extractor = self.frozen(options, blocks, steps)
            probe = Probe(extractor, self.head(head, extractor)).to(self.device)
            probe.head.train()
            step = stepper(probe, partial(probe, images, index, 1), labels)
            yield self.row(head, name, step, len(images) * len(steps), gain, extractor, probe.head)
        if "cache" not in self.config.without:
            extractor = self.frozen(frozenset({"stop"}), blocks, steps)
            probe = Probe(extractor, self.head(head, extractor)).to(self.device)
            cache = cached(extractor, images, index, probe.head.pool, labels)
            rows = torch.arange(len(images))
            step = stepper(probe, lambda: probe.head(cache.batch(rows, self.device)), labels)
            count = len(images) * len(steps)
            row = self.row(head, CACHED, step, count, None, None, probe.head)
            row.products = products_of(step)
            yield row

    def head(self, name: Any, extractor: Extractor) -> Head:
        pool = None if name == "linear" else self.defaults.token_side
        return make_head(HeadConfig(name, pool=pool), extractor.shapes(), self.classes)

    def diffeed(self) -> Iterator[Row]:
        images, index, labels = self.images(max(2, self.batch_size // 4))
        block, step_read = self.defaults.block, self.defaults.noise_step
        ladder: list[Step] = [
            ("stop", "+ stop after the last block of each pass", None),
            ("gradient", "+ no gradient for frozen weights", None),
            ("shared", "+ early blocks shared by both passes", None),
        ]
        if self.cuda:
            ladder += self.hardware_steps()
        ladder += [("checkpoint", "+ checkpointing (for memory)", None)]
        rungs = list(self.ladder(*ladder))
        if not self.cuda and "bfloat16" not in self.config.without:
            half = (chosen("stop", "gradient", "shared") - {*self.config.without}) | chosen("bfloat16")
            rungs.append((half, "shared, with --precision bfloat16", 2.0))
        for options, name, gain in rungs:
            network = self.network(options, trained="gradient" not in options)
            kind: type[FeedbackExtractor] = TwoWholePasses
            if "stop" in options:
                kind = FeedbackExtractor if "shared" in options else TwoPasses
            extractor = kind(network, (block,), (step_read,)).to(self.device)
            extractor.compiled, extractor.checkpoint = "compile" in options, "checkpoint" in options
            probe = Probe(extractor, self.head("attention", extractor)).to(self.device)
            head = nn.ModuleList([probe.head, extractor.feedback])
            head.train()
            step = stepper(probe, partial(probe, images, index, 1), labels, head)
            row = self.row("diffeed", name, step, len(images), gain, extractor, head)
            if "bfloat16" in options and not self.cuda:
                row.over = "+ early blocks shared by both passes"
            yield row

    def pretraining(self) -> Iterator[Row]:
        """Gradients of the network of `photos-32`, as `difflens pretrain` computes them."""
        count = self.batch_size * 2
        network = unet_config("photos-32")
        side, channels = network["sample_size"], network["in_channels"]
        images = torch.randint(0, 256, (count, channels, side, side)).to(self.device, torch.uint8)
        index, t = (torch.arange(count, device=self.device) for _ in range(2))
        draw = torch.zeros((), dtype=torch.long, device=self.device)
        process = accelerator(self.config.device)
        precisions: list[tuple[str, Precision]] = [("float32, eager", "float32")]
        if "bfloat16" not in self.config.without:
            precisions.append(("bfloat16, float32 weights", "bfloat16"))
        for name, precision in precisions:
            unet = UNet2DModel(**network).to(self.device)
            schedule = process_of({})
            assert isinstance(schedule, VariancePreserving)
            loss = DiffusionLoss(schedule, device=self.device)
            gradients = Gradients(unet, loss, process, precision)
            step = partial(gradients, images, index, t, draw)
            row = Row("pretraining", name, step, count, size_of(unet), 2.0)
            # the replay of a CUDA graph shows no operations
            row.count = partial(gradients._batch, images, index, t, draw)
            yield row

    def sampling(self) -> Iterator[Row]:
        images, _, _ = self.images(self.batch_size)
        for options, name, gain in self.ladder(*self.hardware_steps()):
            network = self.network(options)
            x = images.to(next(network.parameters()).dtype)

            def draw(
                network: UNetBackbone = network, x: Tensor = x, compiled: bool = "compile" in options
            ) -> Tensor:
                with torch.inference_mode():
                    return network.denoise(x, 500, compiled=compiled)

            row = Row("sampling", name, draw, len(x), size_of(network), gain, compiles="compile" in options)
            row.count = lambda network=network, x=x: network.denoise(x, 500)
            yield row

    def row(
        self,
        group: str,
        name: str,
        step: Callable[[], Any],
        images: int,
        gain: float | None,
        extractor: Extractor | None,
        head: nn.Module | None = None,
        maps: Callable[[], dict[Any, Tensor]] | None = None,
    ) -> Row:
        weights = size_of(head) + (size_of(extractor.backbone) if extractor else 0)
        row = Row(group, name, step, images, weights, gain, maps=maps)
        if extractor is not None and extractor.compiled:
            row.compiles = True

            def eager() -> Any:
                extractor.compiled = False
                try:
                    return step()
                finally:
                    extractor.compiled = True

            row.count = eager
        return row


def stepper(
    probe: Probe, forward: Callable[[], Tensor], labels: Tensor, trained: nn.Module | None = None
) -> Callable[[], None]:
    """One step of SGD, as the paper's heads train; gradients of everything else are thrown away."""
    optimizer = torch.optim.SGD((trained or probe.head).parameters(), lr=1e-3)

    def step() -> None:
        loss = nn.functional.cross_entropy(forward(), labels)
        probe.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


class Products(TorchDispatchMode):
    """Notes the matrix products, convolutions and fused attention that run inside it."""

    NAMES = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        if name in self.NAMES or name.startswith("_scaled_dot_product"):
            self.calls.append(partial(func, *args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def products_of(step: Callable[[], Any]) -> Callable[[], None]:
    """What repeats the matrix products of `step`, forward and backward, on the same operands, and nothing
    else."""
    with Products() as products:
        step()

    def run() -> None:
        with torch.no_grad():
            for call in products.calls:
                call()

    return run


def cached(
    extractor: Extractor, images: Tensor, index: Tensor, side: int | None, labels: Tensor
) -> FeatureCache:
    with torch.no_grad():
        maps = {place: pool_to(found, side).half().cpu() for place, found in extractor(images, index).items()}
    return FeatureCache(maps, labels.cpu(), torch.arange(len(images)))


def size_of(module: nn.Module | None) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters()) if module else 0


def synchronised(step: Callable[[], Any], device: torch.device, times: int = 1) -> float:
    """Seconds for one of `times` steps."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


def measure(rows: list[Row], config: Config, device: torch.device, reference: dict[Any, Tensor]) -> None:
    """Fill in the results of a group, its rows and a matrix product taking turns."""
    product, product_operations = matrix_product(device)
    product_seconds = []
    times = {}
    for row in rows:
        first = synchronised(row.step, device)
        second = synchronised(row.step, device)
        times[row.name] = max(1, round(config.seconds / second))
        with FlopCounterMode(display=False) as counter:
            (row.count or row.step)()
        row.result = {
            "group": row.group,
            "name": f"{row.group}: {row.name}",
            "operations_per_image": counter.get_total_flops() / row.images,
            "peak_bytes": row.weights + peak(row.step, device),
            "compile_seconds": round(first - second, 1) if row.compiles else None,
            "relative_error": difference(row.maps(), reference) if row.maps else None,
        }
    alone: dict[str, list[float]] = {row.name: [] for row in rows if row.products}
    for _ in range(config.repetitions):
        product_seconds.append(synchronised(product, device))
        for row in rows:
            row.seconds.append(synchronised(row.step, device, times[row.name]))
            if row.products:
                alone[row.name].append(synchronised(row.products, device, times[row.name]))
    matrix = product_operations / statistics.median(product_seconds)
    named = {row.name: row for row in rows}
    for row, before in zip(rows, [None, *rows], strict=False):
        above = named.get(row.over) if row.over else before
        quartiles = statistics.quantiles([row.images / second for second in row.seconds], n=4)
        rate = quartiles[1]
        flops = row.result["operations_per_image"]
        row.result |= {
            "images_per_second": rate,
            "quartiles": [quartiles[0], quartiles[2]],
            "tflops": rate * flops / 1e12,
            "matrix_share": rate * flops / matrix,
            "matrix_tflops": matrix / 1e12,
        }
        if row.products:
            row.result["over_products"] = statistics.median(row.seconds) / statistics.median(alone[row.name])
        row.result["over_released"] = rate / rows[0].result["images_per_second"]
        if above is not None:
            counted = above.result["operations_per_image"] / flops if flops else None
            row.result |= {
                "predicted_gain": row.gain or (None if row.name == CACHED else counted),
                "gain": rate / above.result["images_per_second"],
            }


def peak(step: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that one step holds at a time beyond what was there before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    events = list(record.profiler.kineto_results.experimental_event_tree())
    sizes: list[tuple[int, int]] = []
    while events:
        event = events.pop()
        events += event.children
        if event.tag == torch._C._profiler._EventType.Allocation:
            sizes.append((event.start_time_ns, event.extra_fields.alloc_size))
    held = most = 0
    for _, size in sorted(sizes, key=lambda each: each[0]):
        held += size
        most = max(most, held)
    return most


def difference(maps: dict[Any, Tensor], reference: dict[Any, Tensor]) -> float:
    """The largest relative error of any map."""
    return max(float((maps[k] - reference[k]).norm() / reference[k].norm()) for k in reference)


def matrix_product(device: torch.device) -> tuple[Callable[[], Tensor], int]:
    """A large matrix product, bfloat16 on CUDA and float32 on the CPU, and its operations."""
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (2048, torch.float32)
    a = torch.randn(side, side, device=device, dtype=dtype)
    synchronised(lambda: a @ a, device)
    return lambda: a @ a, 2 * side**3


def pretraining_rate(config: Config) -> float:
    """Images per second of the last epoch that `difflens pretrain` logs, for the bundled network on bundled
    images."""
    limit, batch_size = (10_000, 256) if config.device == "cuda" else (128, 32)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        pretrain(
            PretrainConfig(
                data="fashion",
                out=out,
                limit=limit,
                epochs=2,
                batch_size=batch_size,
                device="cpu" if config.device == "cpu" else None,
            )
        )
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return float([line["images_per_second"] for line in lines if "images_per_second" in line][-1])


def waiting(bench: Bench) -> Iterator[dict[str, Any]]:
    """How much of the time of training a head is spent waiting for its data, after the first batch."""
    images, index, labels = bench.images(bench.batch_size)
    places = (bench.defaults.block,), (bench.defaults.noise_step,)
    options: frozenset[Option] = frozenset(
        {"stop", "compile", "channels-last", "bfloat16"} if bench.cuda else {"stop"}
    )
    for name in ("linear", "attention"):
        extractor = bench.frozen(frozenset({"stop"}), *places)
        probe = Probe(extractor, bench.head(name, extractor)).to(bench.device)
        few = cached(extractor, images, index, probe.head.pool, labels)
        rows = torch.arange(4096) % len(images)  # as many entries as a small data set has
        cache = FeatureCache({p: maps[rows] for p, maps in few.maps.items()}, few.labels[rows], rows)
        batches = cached_batches(cache, torch.randperm(4096), 128, bench.device)
        yield shares(f"{name} head on cached features", probe, probe.head, batches, bench.device)
    extractor = bench.frozen(options, *places)
    probe = Probe(extractor, bench.head("linear", extractor)).to(bench.device)
    rows = torch.arange(8192 if bench.cuda else 512)
    with tempfile.TemporaryDirectory() as folder:
        sources: list[tuple[str, ImageSplit, Augmentation]] = [
            ("linear head, online, images in memory", load_data("fashion").train, "flip"),
            ("linear head, online, JPEG files of 500 x 375", photographs(Path(folder)), "crop"),
        ]
        for name, split, augment in sources:
            yield shares(name, probe, probe, online(bench, extractor, split, rows, augment), bench.device)
        decoded = online(bench, extractor, photographs(Path(folder)), torch.arange(64), "crop", workers=0)
        yield {
            "name": "decoding and cropping these files, one process",
            "images_per_second": 64 / synchronised(lambda: list(decoded), bench.device),
        }


def online(
    bench: Bench,
    extractor: Extractor,
    split: ImageSplit,
    rows: Tensor,
    augment: Augmentation,
    workers: int | None = None,
) -> Iterator[tuple[Any, Tensor]]:
    """Batches as `difflens probe` trains on them without a cache."""
    size = max(1, bench.batch_size // 2)
    for batch in Reading(workers, "error", []).batches(
        extractor, split, rows % len(split), size, augment=augment
    ):
        assert batch.labels is not None
        yield (to_float(batch.images), batch.index, 1), batch.labels


def photographs(folder: Path, count: int = 128) -> ImageSplit:
    """JPEG files of the size and detail of ImageNet's: blurred noise at a usual quality."""
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        small = torch.randint(0, 256, (94, 125, 3), generator=generator).to(torch.uint8).numpy()
        Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(
            folder / f"{number}.jpg", quality=90
        )
    names = [f"{number}.jpg" for number in range(count)]
    return FileSplit("train", names, torch.zeros(count, dtype=torch.long), folder)


def shares(
    name: str, probe: Probe, module: nn.Module, batches: Iterator[tuple[Any, Tensor]], device: torch.device
) -> dict[str, Any]:
    """Train `module` on `batches`; what share of the time it waited for them."""
    module.train()
    given: list[Any] = [next(batches)]

    def forward() -> Tensor:
        inputs = given[0][0]
        return module(*inputs) if isinstance(inputs, tuple) else module(inputs)

    optimizer = torch.optim.SGD(probe.head.parameters(), lr=1e-3)
    waited, images, began = 0.0, 0, time.perf_counter()

    def step() -> None:
        loss = nn.functional.cross_entropy(forward(), given[0][1].to(device))
        probe.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    while True:
        images += len(given[0][1])
        synchronised(step, device)
        asked = time.perf_counter()
        following = next(batches, None)
        if following is None:
            break
        waited += time.perf_counter() - asked
        given[0] = following
    seconds = time.perf_counter() - began
    return {"name": name, "images_per_second": images / seconds, "waiting_share": waited / seconds}


def shown(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "",
        "images/s",
        "x released",
        "gain",
        "predicted",
        "TFLOP/s",
        "of matrix rate",
        "peak GB",
        "compile s",
        "error",
        "x products",
    )
    group = None
    for row in rows:
        if row["group"] != group:
            group = row["group"]
            table.add_section()
            table.add_row(f"[bold]{group}")

        def text(key: str, pattern: str, row: dict[str, Any] = row) -> str:
            return "" if row.get(key) is None else pattern.format(row[key])

        table.add_row(
            row["name"].removeprefix(f"{group}: "),
            text("images_per_second", "{:,.1f}"),
            text("over_released", "{:.2f}"),
            text("gain", "{:.2f}"),
            text("predicted_gain", "{:.2f}"),
            text("tflops", "{:.3g}"),
            text("matrix_share", "{:.0%}"),
            "" if row.get("peak_bytes") is None else f"{row['peak_bytes'] / 1e9:.3f}",
            text("compile_seconds", "{:.0f}"),
            text("relative_error", "{:.1e}"),
            text("over_products", "{:.2f}"),
        )
    return table


def main(config: Config) -> None:
    os.environ["KINETO_LOG_LEVEL"] = "99"  # the profiler that measures memory on the CPU otherwise chats
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device is to be seen: --device cpu")
    console = Console(width=150)
    bench = Bench(config)
    device = bench.device
    makers: dict[str, Callable[[], Iterator[Row]]] = {
        "extraction": bench.extraction,
        "linear": lambda: bench.training("linear"),
        "attention": lambda: bench.training("attention"),
        "difformer": lambda: bench.training("difformer"),
        "diffeed": bench.diffeed,
        "sampling": bench.sampling,
        "pretraining": bench.pretraining,
    }
    results: list[dict[str, Any]] = []
    for group, make in makers.items():
        if group not in config.groups:
            continue
        rows = list(make())
        reference = bench.reference() if group == "extraction" else {}
        measure(rows, config, device, reference)
        results += [row.result for row in rows]
        bench.networks.clear()
        console.print(shown([row.result for row in rows]))
    if "pretrain" in config.groups:
        name = "pretrain: difflens pretrain, fashion-32"
        results.append({"group": "pretrain", "name": name, "images_per_second": pretraining_rate(config)})
    data = list(waiting(bench)) if "data" in config.groups else []
    hardware = torch.cuda.get_device_name() if bench.cuda else f"CPU, {torch.get_num_threads()} threads"
    console.print(shown(results))
    for each in data:
        share = f", waiting for data {each['waiting_share']:.1%}" if "waiting_share" in each else ""
        console.print(f"{each['name']}: {each['images_per_second']:,.0f} images/s{share}")
    console.print(f"{hardware}; torch {torch.__version__}")
    if config.json:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "hardware": hardware,
            "torch": torch.__version__,
            "config": {**asdict(config), "json": str(config.json)},
            "rows": results,
            "data": data,
        }
        config.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config))
