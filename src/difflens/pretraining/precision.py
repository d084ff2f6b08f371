"""The floating-point format of a pre-training that leaves it open: bfloat16 where it is faster."""

from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator

from difflens.backbones.unet import UNetBackbone
from difflens.choices import TrainingPrecision
from difflens.configs.options import given
from difflens.configs.pretrain import PretrainConfig
from difflens.pretraining.gradients import attends_explicitly, attention_kernel
from difflens.pretraining.networks import build_unet
from difflens.processes.schedulers import process_of
from difflens.run.console import note
from difflens.run.directory import CONFIG, read_record
from difflens.run.measuring import WORTH, bfloat16_speedup, images_to_measure


def choose_precision(config: PretrainConfig, process: Accelerator) -> TrainingPrecision:
    """Return the format of a run's arithmetic: what --precision names, or else what the resumed run has.

    Without either, it is `usual_precision` on a GPU. On a CPU it is measured for diffusion in one process,
    and float32 otherwise. A run of an earlier version that left it open keeps "auto", `usual_precision`.

    Raises:
        DiffLensError: the network does not fit into memory, or its size does not suit the images.
    """
    if config.precision != "auto":
        return config.precision
    if config.resume and (config.out / CONFIG).exists():
        return _kept(config.out)
    if process.device.type == "cuda":
        return usual_precision(process.device)
    if config.method != "diffusion" or process.num_processes > 1:
        return "float32"
    return _measured(config)


def usual_precision(device: torch.device) -> Literal["float32", "bfloat16"]:
    """Return bfloat16 on a GPU that has such units (from Ampere on), and float32 elsewhere."""
    units = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if units else "float32"


def _kept(out: Path) -> TrainingPrecision:
    stored = read_record(out).get("precision")
    return "auto" if stored not in ("float32", "bfloat16") else stored


def _measured(config: PretrainConfig) -> TrainingPrecision:
    """Return the format in which a training step of the network takes less time on this CPU, and say so."""
    with torch.random.fork_rng(devices=[]):
        unet = build_unet(config)
        side, channels = unet.config["sample_size"], unet.config["in_channels"]
        batch = given(config.batch_size) // config.accumulate
        UNetBackbone(unet, process_of({}), config.preset).require_memory(batch)
        unet.requires_grad_(True)
        most = min(batch, images_to_measure(side))
        x_t, t = torch.randn(most, channels, side, side), torch.zeros(most, dtype=torch.long)

    def step(dtype: torch.dtype, count: int) -> None:
        cast = {name: weight.to(dtype) for name, weight in unet.named_parameters()}
        with attention_kernel(attends_explicitly(unet, dtype)):
            output = torch.func.functional_call(unet, cast, (x_t[:count].to(dtype), t[:count])).sample
            output.float().square().mean().backward()
        unet.zero_grad()

    factor = bfloat16_speedup(step, most)
    chosen: TrainingPrecision = "bfloat16" if factor > WORTH else "float32"
    note(
        f"precision: {chosen}, since bfloat16 is {factor:.2f} times as fast as float32 on this CPU (measured)"
    )
    return chosen
