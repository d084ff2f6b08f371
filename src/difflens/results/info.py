"""The result of `difflens info`."""

import json
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from difflens.errors import listing
from difflens.results.base import Result, plain
from difflens.run.console import table_text


@dataclass(frozen=True)
class NoiseInfo:
    """The noise process of a backbone.

    Attributes:
        process: its kind, in words.
        steps: number of noise steps, T; levels are the steps 0 .. T - 1.
        log_snr: natural logarithm of the signal-to-noise ratio at the first and at the last step; None where
            the last step is pure noise.
        schedule: name of the beta schedule.
        prediction: what the network predicts: epsilon, v_prediction or sample.
        scheduler: scheduler class of the backbone's files; None where there is no such file and the linear
            schedule is assumed, or an option named the schedule.
    """

    process: str
    steps: int
    log_snr: tuple[float, float | None]
    schedule: str
    prediction: str
    scheduler: str | None


@dataclass(frozen=True)
class BlockInfo:
    """One block: as in `difflens.Block`, and its share of the network's multiplications, in [0, 1]."""

    index: int
    role: str
    channels: int
    stride: int
    mirror: int | None
    cost: float | None


@dataclass(frozen=True, kw_only=True)
class InfoResult(Result):
    """The result of `info`.

    Attributes:
        backbone: its name.
        network: class of the network.
        parameters: number of parameters.
        channels, image_size: of the images that it takes; the side is in pixels.
        noise: the noise process; None for a network of clean images.
        generates: True if `generate` draws images from it.
        blocks: all blocks in execution order.
        defaults: the places that are read by default.
        licence, card: licence and path of the model card, where the backbone's folder has them.
        json: True if the summary is JSON.
    """

    backbone: str
    network: str
    parameters: int
    channels: int
    image_size: int
    noise: NoiseInfo | None
    generates: bool
    blocks: tuple[BlockInfo, ...]
    defaults: dict[str, Any]
    licence: str | None
    card: str | None
    json: bool = False

    def metrics(self) -> dict[str, Any]:
        """Plain values: the JSON object that --json prints."""
        values: dict[str, Any] = plain(self)
        del values["json"]
        return values

    def summary(self) -> str:
        if self.json:
            return json.dumps(self.metrics(), indent=2)
        facts = {
            "network": f"{self.network}, {self.parameters:,} parameters",
            "images": f"{self.channels} x {self.image_size} x {self.image_size} pixels",
            "noise": self._noise(),
            "generates": "yes" if self.generates else "no",
            "one map is read at": f"block {self.defaults['block']}, t = {self.defaults['noise_step']}",
            "DifFormer reads": f"blocks {listing(self.defaults['fusion_blocks'])} at t = "
            f"{listing(self.defaults['fusion_noise_steps'])}",
            "DifFeed sends back": f"blocks {listing(self.defaults['feedback_blocks'])}"
            if self.defaults["feedback_blocks"]
            else "nothing: the network has no decoder",
            "licence": self.licence or "not stated",
            "model card": self.card or "none",
        }
        width = max(map(len, facts))
        lines = [self.backbone, *(f"  {name:{width}}  {fact}" for name, fact in facts.items())]
        table = Table("block", "role", "channels", "stride", "mirror", "cost, %")
        for block in self.blocks:
            mirror = "" if block.mirror is None else str(block.mirror)
            cost = "" if block.cost is None else f"{100 * block.cost:.1f}"
            table.add_row(
                str(block.index), block.role, f"{block.channels:,}", str(block.stride), mirror, cost
            )
        return "\n".join([*lines, table_text(table)])

    def _noise(self) -> str:
        if self.noise is None:
            return "none: the network takes clean images"
        first, last = self.noise.log_snr
        span = f"log-SNR {first:.2f} to {'minus infinity' if last is None else f'{last:.2f}'}"
        source = self.noise.scheduler or "assumed, or named by an option: no scheduler file was read"
        return (
            f"{self.noise.process}, steps 0 to {self.noise.steps - 1}, {span}, {self.noise.schedule} "
            f"({source}), predicts {self.noise.prediction}"
        )
