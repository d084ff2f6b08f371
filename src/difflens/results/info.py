"""The result of `difflens info`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table

from difflens.errors import counted, listing, named
from difflens.results.base import Result, plain
from difflens.run.console import table_text


@dataclass(frozen=True)
class NoiseInfo:
    """The noise process of a backbone.

    Attributes:
        process: its kind, in words.
        formula: kind and formula, in one line.
        unit: what a level counts: whole steps, sigma, or a time.
        bounds: lowest and highest level.
        log_snr: natural logarithm of the signal-to-noise ratio at both bounds; None where it is infinite.
        rises: True if a higher level has more noise.
        prediction: what the network predicts, in a word, as in `difflens.processes.base.NoiseProcess`.
        target: what the network predicts, with its formula.
        scheduler: scheduler class of the backbone's files; None where there is no such file and the process
            is assumed, or an option named it.
        used: the scheduler's fields that decide the process, with their values.
        unused: names of its other fields, on which features do not depend.
    """

    process: str
    formula: str
    unit: Literal["step", "sigma", "time"]
    bounds: tuple[int | float, int | float]
    log_snr: tuple[float | None, float | None]
    rises: bool
    prediction: str
    target: str
    scheduler: str | None
    used: Mapping[str, Any]
    unused: tuple[str, ...]


@dataclass(frozen=True)
class LatentsInfo:
    """The latents that a network reads in place of pixels: scale * (z - shift).

    Attributes:
        autoencoder: class of the autoencoder.
        parameters: its number of parameters.
        channels, side: of the latents.
        stride: side of the images divided by the side of the latents.
        scale, shift: one number for all channels, or one each.
    """

    autoencoder: str
    parameters: int
    channels: int
    side: int
    stride: int
    scale: tuple[float, ...]
    shift: tuple[float, ...]


@dataclass(frozen=True)
class ConditionInfo:
    """The condition of a network: its name, and in words what --condition takes."""

    name: str
    takes: str


@dataclass(frozen=True)
class BlockInfo:
    """One block of the network.

    Attributes:
        index: its number, from 1, in the order in which blocks run.
        role: encoder, middle or decoder.
        channels: those of its map.
        stride: pixels of the image for each position of its map, along a side.
        mirror: the encoder block whose map a decoder block takes; None for other blocks.
        cost: its share of the network's multiplications, in [0, 1]; None where it is not known.
    """

    index: int
    role: str
    channels: int
    stride: int
    mirror: int | None
    cost: float | None


@dataclass(frozen=True)
class DefaultsInfo:
    """The places that are read by default, as in `Backbone.defaults`, with the log-SNR of their levels.

    Attributes:
        log_snr: at `noise_step`; None where it is infinite.
        fusion_log_snr: at each of `fusion_noise_steps`.
    """

    block: int
    noise_step: int | float
    log_snr: float | None
    fusion_blocks: tuple[int, ...]
    fusion_noise_steps: tuple[int | float, ...]
    fusion_log_snr: tuple[float | None, ...]
    feedback_blocks: tuple[int, ...]
    token_side: int


@dataclass(frozen=True, kw_only=True)
class InfoResult(Result):
    """The result of `info`.

    Attributes:
        backbone: its name.
        network: class of the network.
        parameters: number of parameters of the network, without autoencoder and text encoders.
        channels, image_size: of the images that it takes; the side is in pixels.
        noise: the noise process; None for a network of clean images.
        latents: what the network reads in place of pixels; None for a network of pixels.
        condition: None for an unconditional network.
        tap: how tokens are read; None for a network that is no diffusion transformer.
        time_embedding: the frequencies of a DiT's time embedding, in words; None for other networks.
        samplers: samplers of `generate` that draw images from it; empty if there is none.
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
    latents: LatentsInfo | None = None
    condition: ConditionInfo | None = None
    tap: str | None = None
    time_embedding: str | None = None
    samplers: tuple[str, ...]
    blocks: tuple[BlockInfo, ...]
    defaults: DefaultsInfo
    licence: str | None
    card: str | None
    json: bool = False

    @property
    def generates(self) -> bool:
        """True if `generate` draws images from the backbone."""
        return bool(self.samplers)

    def metrics(self) -> dict[str, Any]:
        """Plain values: the JSON object that --json prints."""
        values: dict[str, Any] = plain(self)
        del values["json"]
        return {**values, "generates": self.generates}

    def summary(self) -> str:
        if self.json:
            return json.dumps(self.metrics(), indent=2)
        facts = {
            "network": f"{self.network}, {counted(self.parameters, 'parameter')}",
            "images": f"{self.channels} x {self.image_size} x {self.image_size} pixels",
            **self._latent_facts(),
            **self._noise_facts(),
            **self._network_facts(),
            "generates": f"yes, with {_either(self.samplers)}" if self.samplers else "no",
            **self._place_facts(),
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

    def _latent_facts(self) -> dict[str, str]:
        latents = self.latents
        if latents is None:
            return {}
        shape = f"{latents.channels} x {latents.side} x {latents.side}"
        shift = f", shift {_numbers(latents.shift)}" if any(latents.shift) else ""
        return {
            "latents": f"{shape}, stride {latents.stride}, scale {_numbers(latents.scale)}{shift}",
            "autoencoder": f"{latents.autoencoder}, {counted(latents.parameters, 'parameter')}",
        }

    def _noise_facts(self) -> dict[str, str]:
        noise = self.noise
        if noise is None:
            return {"noise": "none: the network takes clean images"}
        low, high = noise.bounds
        # an infinite log-SNR is that of the image at the end without noise
        ends = [
            ("infinity" if first == noise.rises else "minus infinity") if value is None else f"{value:.2f}"
            for first, value in zip((True, False), noise.log_snr, strict=True)
        ]
        names = {"step": "steps t", "sigma": "sigma", "time": "times t"}
        source = noise.scheduler or "assumed, or named by an option: no scheduler file was read"
        facts = {
            "noise": noise.formula,
            "levels": f"{names[noise.unit]} from {low:g} to {high:g}, log-SNR from {ends[0]} to {ends[1]}",
            "predicts": noise.target,
            "scheduler": source,
        }
        if noise.scheduler is not None:
            facts["fields used"] = listing([f"{name} {_short(value)}" for name, value in noise.used.items()])
            facts["features ignore"] = listing(noise.unused, len(noise.unused)) or "none"
        return facts

    def _network_facts(self) -> dict[str, str]:
        facts = {}
        if self.condition is not None:
            facts["condition"] = f"{self.condition.name}; --condition takes {self.condition.takes}"
        if self.tap is not None:
            facts["tap"] = f"{self.tap}; --tap takes raw, norm or adaln"
        if self.time_embedding is not None:
            facts["time embedding"] = self.time_embedding
        return facts

    def _place_facts(self) -> dict[str, str]:
        places = self.defaults
        level = "sigma" if self.noise is not None and self.noise.unit == "sigma" else "t"

        def at(levels: Sequence[int | float], ratios: Sequence[float | None]) -> str:
            text = f"{level} = {listing([f'{each:g}' for each in levels])}"
            if self.noise is None:
                return text
            known = ["infinite" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
            return f"{text} (log-SNR {listing(known)})"

        return {
            "one map is read at": f"block {places.block}, {at((places.noise_step,), (places.log_snr,))}",
            "DifFormer reads": f"{named('block', places.fusion_blocks)} at "
            f"{at(places.fusion_noise_steps, places.fusion_log_snr)}",
            "DifFeed sends back": f"{named('block', places.feedback_blocks)}"
            if places.feedback_blocks
            else "nothing: the network has no decoder",
        }


def _either(names: Sequence[str]) -> str:
    """Return names joined by commas and "or"."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def _short(value: object) -> str:
    """Return a field's value; the length of a list."""
    return f"({counted(len(value), 'number')})" if isinstance(value, list | tuple) else str(value)


def _numbers(values: Sequence[float]) -> str:
    """Return one number, or several in brackets."""
    text = listing([f"{value:.5g}" for value in values], 4)
    return text if len(values) == 1 else f"({text})"
