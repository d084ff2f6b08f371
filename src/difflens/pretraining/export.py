"""Writes the results of pre-training: the loss curve, the model card and, for diffusion, a diffusers
pipeline."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from difflens.backbones.load import BUNDLED, bundled_folder
from difflens.backbones.runs import network_folder
from difflens.errors import expanded
from difflens.processes.variance_preserving import VariancePreserving
from difflens.ranges import Natural
from difflens.reports.charts import probe_curves
from difflens.run.files import write_text
from difflens.run.reading import read_json, read_text

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
_PROBE = """
Recognition per epoch, by simple classifiers on labelled images:

![accuracy per epoch](probe.png)
"""
_SAMPLES = """
Samples ({caption}, not selected):

![samples](samples.png)
"""


RECORD = "pretraining.json"
"""The file beside a model card that programs read."""


@dataclass(frozen=True)
class Record:
    """What later trainings need to know of one that has ended.

    Attributes:
        images_seen: images of all steps, with those of the trainings that it continued; None if one of these
            is not known.
    """

    images_seen: Natural | None


@dataclass(frozen=True)
class Card:
    """The part of a model card that depends on the method.

    Attributes:
        title: the heading, without the shape of the images.
        introduction: one or two lines below the heading.
        library, tags: the metadata of the Hugging Face hub.
        samples: the sampler of the sample grid; None if the model generates no images.
    """

    title: str
    introduction: str
    library: str
    tags: tuple[str, ...]
    samples: str | None = None


def write_pipeline(folder: Path, unet: UNet2DModel, schedule: VariancePreserving) -> None:
    """Fill `folder` with a `DDPMPipeline` in float16.

    Args:
        unet: the network with averaged weights; it is moved to the CPU and converted to float16.
        schedule: the noise schedule, whose configuration names the prediction type.
    """
    config = {key: value for key, value in schedule.config.items() if not key.startswith("_")}
    DDPMPipeline(unet.cpu().half(), DDPMScheduler(**config, clip_sample=True)).save_pretrained(folder)


def write_card(
    folder: Path, card: Card, shape: tuple[int, int], log: list[dict[str, Any]], facts: dict[str, str]
) -> None:
    """Add `loss.png` and README.md to a folder, which has `samples.png` if the card names a sampler.

    A log with a probe also gives `probe.png`.

    Args:
        shape: channels and side of the images.
        log: one record for each epoch.
        facts: the rows of the card's table.
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
    if any("probe" in record for record in log):
        probe_curves(log).savefig(folder / "probe.png", dpi=120)
        text += _PROBE
    if card.samples is not None:
        text += _SAMPLES.format(caption=card.samples)
    write_text(folder / "README.md", text)


def write_record(folder: Path, record: Record) -> None:
    """Add pretraining.json to a folder."""
    write_text(folder / RECORD, json.dumps(asdict(record), indent=2) + "\n")


def images_seen(backbone: str) -> int | None:
    """Return how many images the training of a bundled backbone or of a folder saw; None if it does not say.

    Folders of earlier versions have no pretraining.json. Their model cards state steps and batch size.

    Raises:
        DiffLensError: pretraining.json is damaged.
    """
    record = _folder(backbone) / RECORD
    if record.exists():
        return read_json(record, Record).images_seen
    steps = re.fullmatch(r"([\d,]+), batch (\d+)", card_fact(backbone, "steps") or "")
    return int(steps[1].replace(",", "")) * int(steps[2]) if steps else None


def card_fact(backbone: str, name: str) -> str | None:
    """Return the row `name` in the model card of a bundled backbone or of a folder; None if there is none."""
    card = _folder(backbone) / "README.md"
    lines = read_text(card).splitlines() if card.is_file() else []
    start = f"| {name} | "
    return next(
        (line.removeprefix(start).removesuffix(" |") for line in lines if line.startswith(start)), None
    )


def _folder(backbone: str) -> Path:
    """Return the folder of a bundled backbone, or the folder that is named."""
    return bundled_folder(backbone) if backbone in BUNDLED else network_folder(expanded(backbone))


def plot_loss(log: list[dict[str, Any]], path: Path) -> None:
    """Write the loss by epoch as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([line["epoch"] for line in log], [line["loss"] for line in log])
    axes.set(xlabel="epoch", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=120)
