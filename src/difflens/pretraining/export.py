"""What pre-training hands over besides the weights themselves: the loss and a model card; for diffusion, a
pipeline."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from difflens.backbones.load import BUNDLED
from difflens.noise import NoiseSchedule

_CARD = """\
---
library_name: {library}
tags: [{tags}]
---
# {title}, {channels}x{side}x{side}

{introduction}

| | |
|---|---|
{rows}

![loss per epoch](loss.png)
"""
_SAMPLES = """
Samples ({caption}, not selected):

![samples](samples.png)
"""


@dataclass(frozen=True)
class Card:
    """What a model card says of the model's kind.

    Attributes:
        title: a heading, without the shape of the images.
        introduction: a line or two below it.
        library, tags: of the hub.
        samples: how they were drawn; None where nothing is drawn.
    """

    title: str
    introduction: str
    library: str
    tags: tuple[str, ...]
    samples: str | None = None


def write_pipeline(folder: Path, unet: UNet2DModel, schedule: NoiseSchedule) -> None:
    """Fill `folder` with a `DDPMPipeline` in float16.

    Args:
        unet: the averaged weights; comes back in float16 on the CPU.
        schedule: its configuration also says what the network predicts.
    """
    config = {key: value for key, value in schedule.config.items() if not key.startswith("_")}
    DDPMPipeline(unet.cpu().half(), DDPMScheduler(**config, clip_sample=True)).save_pretrained(folder)


def write_card(
    folder: Path, card: Card, shape: tuple[int, int], log: list[dict[str, Any]], facts: dict[str, str]
) -> None:
    """Add `loss.png` and README.md to a folder, which has `samples.png` where the card speaks of samples.

    Args:
        shape: channels and side of the images.
        log: a line an epoch.
        facts: rows of the card's table.
    """
    plot_loss(log, folder / "loss.png")
    facts = {**facts, "torch": torch.__version__, "final loss": f"{log[-1]['loss']:.4f}" if log else "none"}
    text = _CARD.format(
        library=card.library,
        tags=", ".join(card.tags),
        title=card.title,
        channels=shape[0],
        side=shape[1],
        introduction=card.introduction,
        rows="\n".join(f"| {name} | {fact} |" for name, fact in facts.items()),
    )
    if card.samples is not None:
        text += _SAMPLES.format(caption=card.samples)
    (folder / "README.md").write_text(text)


def card_fact(backbone: str, name: str) -> str | None:
    """What the model card of a bundled backbone or of a folder says in the row `name` of its table; None:
    nothing."""
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
