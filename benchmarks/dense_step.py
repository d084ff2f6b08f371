"""One training step of UPerNet and of Mask R-CNN on the whole ADM-256 network, with random weights: time and
memory.

Usage: python benchmarks/dense_step.py [--device cuda] [--batch 16] [--side 512] [--steps 10] [--json FILE]

The setting of the presets paper-ade20k and paper-coco: blocks 24, 27, 30 and 33 at t = 90, batch, side, width
of the heads and proposals; SGD with momentum. What does not fit into memory is a row that says so. A step is
forward, backward and update; the median of --steps after three that are not counted. Frozen features in
bfloat16 on a GPU, DifFeed likewise, fine-tuning in float32. `--narrow` runs the same with an eighth of the
channels.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel

from difflens.backbones.unet import UNetBackbone
from difflens.choices import ExtractorName, Precision
from difflens.extractors.config import ExtractorConfig
from difflens.heads.config import DetectionHeadConfig, SegmentationHeadConfig
from difflens.heads.pyramid import usual_strides
from difflens.models.probe import DenseProbe
from difflens.models.saved import DetectionModel, SegmentationModel
from difflens.presets import DETECT, SEGMENT
from difflens.processes.schedulers import process_of

SETTINGS = {"UPerNet": SEGMENT["paper-ade20k"], "Mask R-CNN": DETECT["paper-coco"]}


def adm(narrow: bool) -> UNetBackbone:
    """ADM-256's architecture, 552.8 M parameters."""
    scale = 8 if narrow else 1
    attention = {3, 4, 5}
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=256,
        in_channels=3,
        out_channels=6,
        layers_per_block=2,
        attention_head_dim=64 // scale,
        block_out_channels=tuple(channels // scale for channels in (256, 256, 512, 512, 1024, 1024)),
        down_block_types=tuple("AttnDownBlock2D" if i in attention else "DownBlock2D" for i in range(6)),
        up_block_types=tuple("AttnUpBlock2D" if i in attention else "UpBlock2D" for i in reversed(range(6))),
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
    )
    return UNetBackbone(unet, process_of(), "random ADM-256")


def make(task: str, extractor: ExtractorName, device: torch.device, side: int, narrow: bool) -> DenseProbe:
    setting = SETTINGS[task]
    blocks = setting["blocks"]
    backbone = adm(narrow).to(device)
    half = device.type == "cuda" and extractor != "finetuned"
    precision: Precision = "bfloat16" if half else "float32"
    config = ExtractorConfig(extractor, blocks, setting["noise_steps"], precision=precision)
    strides = usual_strides(backbone, blocks)
    built = config.build(backbone)
    if task == "UPerNet":
        return SegmentationModel.make(
            built, SegmentationHeadConfig("upernet", side, strides, setting["width"]), 150
        ).to(device)
    head = DetectionHeadConfig("mask-rcnn", side, strides, setting["width"], setting["proposals"])
    return DetectionModel.make(built, head, 80).to(device)


def inputs(task: str, batch: int, side: int, device: torch.device) -> dict[str, Any]:
    if task == "UPerNet":
        return {"size": (side, side)}
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.6], [0.4, 0.3, 0.9, 0.9]], device=device) * side
    masks = torch.zeros(2, side, side, dtype=torch.uint8, device=device)
    for mask, (left, top, right, bottom) in zip(masks, boxes.long().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    return {
        "targets": [{"boxes": boxes, "labels": torch.tensor([1, 2], device=device), "masks": masks}] * batch
    }


def measure(task: str, extractor: ExtractorName, asked: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(asked.device)
    cuda = device.type == "cuda"
    batch, side = (
        getattr(asked, key) or SETTINGS[task][name]
        for key, name in (("batch", "batch_size"), ("side", "side"))
    )
    probe = make(task, extractor, device, side, asked.narrow).train()
    parameters = [parameter for parameter in probe.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(batch, 3, side, side, generator=generator) * 2 - 1).to(device)
    index = torch.arange(batch, device=device)
    more = inputs(task, batch, side, device)
    truth = torch.randint(0, 150, (batch, side, side), generator=generator).to(device)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for step in range(asked.steps + 3):
        begun = time.monotonic()
        found = probe(images, index, step + 1, **more)
        loss = torch.nn.functional.cross_entropy(found, truth) if task == "UPerNet" else sum(found.values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.monotonic() - begun)
    seconds = statistics.median(times[3:])
    return {
        "task": task,
        "extractor": extractor,
        "batch": batch,
        "side": side,
        "seconds": round(seconds, 4),
        "images_per_second": round(batch / seconds, 2),
        "peak_gigabytes": round(torch.cuda.max_memory_allocated() / 1e9, 2) if cuda else None,
        "trainable_parameters": sum(parameter.numel() for parameter in parameters),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="default: the preset's")
    parser.add_argument("--side", type=int, help="default: the preset's")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--extractors", nargs="+", default=["frozen", "feedback", "finetuned"])
    parser.add_argument("--narrow", action="store_true")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows = []
    print(
        "| head | extractor | batch | side | seconds a step | images/s | peak GB | trainable parameters |\n"
        + "|---" * 8
        + "|"
    )
    for task in ("UPerNet", "Mask R-CNN"):
        for extractor in asked.extractors:
            try:
                row = measure(task, extractor, asked)
            except torch.OutOfMemoryError:
                row = {"task": task, "extractor": extractor, "batch": "does not fit into memory"}
            rows.append(row)
            print(f"| {' | '.join(str(value) for value in row.values())} |", flush=True)
            if asked.device == "cuda":
                torch.cuda.empty_cache()
    device = (
        torch.cuda.get_device_name() if asked.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    )
    print(f"\n{device}, torch {torch.__version__}")
    if asked.json:
        asked.json.write_text(
            json.dumps({"device": device, "torch": torch.__version__, "rows": rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
