"""What pre-training hands over: a folder that diffusers loads, with samples, the loss and a model card."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image

from difflens.backbones.load import BUNDLED
from difflens.noise import NoiseSchedule

_CARD = """\
---
library_name: diffusers
tags: [unconditional-image-generation, difflens]
---
# Unconditional diffusion U-Net, {channels}x{side}x{side}

Pre-trained by difflens, without labels. {parameters} parameters, averaged weights (EMA), float16.

| | |
|---|---|
{rows}

![loss per epoch](loss.png)

Samples (DDIM, 50 steps, not selected):

![samples](samples.png)
"""


def write_pretrained(
    folder: Path,
    unet: UNet2DModel,
    schedule: NoiseSchedule,
    samples: Image.Image,
    log: list[dict[str, Any]],
    facts: dict[str, str],
) -> None:
    """Fill `folder` with a `DDPMPipeline` in float16, `samples.png`, `loss.png` and README.md.

    Args:
        unet: the averaged weights; comes back in float16 on the CPU.
        schedule: its configuration also says what the network predicts.
        log: a line an epoch.
        facts: rows of the card's table.
    """
    config = {key: value for key, value in schedule.config.items() if not key.startswith("_")}
    DDPMPipeline(unet.cpu().half(), DDPMScheduler(**config, clip_sample=True)).save_pretrained(folder)
    samples.save(folder / "samples.png")
    plot_loss(log, folder / "loss.png")
    facts = {**facts, "torch": torch.__version__, "final loss": f"{log[-1]['loss']:.4f}" if log else "none"}
    card = _CARD.format(
        channels=unet.config.in_channels,
        side=unet.config.sample_size,
        parameters=f"{unet.num_parameters():,}",
        rows="\n".join(f"| {name} | {fact} |" for name, fact in facts.items()),
    )
    (folder / "README.md").write_text(card)


def card_fact(backbone: str, name: str) -> str | None:
    """What the model card of a bundled backbone or of a folder says in the row `name` of its table; None: nothing."""
    folder = Path(str(files("difflens") / "assets" / backbone)) if backbone in BUNDLED else Path(backbone)
    card = folder / "README.md"
    lines = card.read_text().splitlines() if card.is_file() else []
    start = f"| {name} | "
    return next(
        (line.removeprefix(start).removesuffix(" |") for line in lines if line.startswith(start)), None
    )


def plot_loss(log: list[dict[str, Any]], path: Path) -> None:
    """Loss per epoch as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([line["epoch"] for line in log], [line["loss"] for line in log])
    axes.set(xlabel="epoch", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=120)
