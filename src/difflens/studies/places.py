"""What commands that look for a place to read share: noise levels, rows of tables, and the next command."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import TypeVar

from difflens.backbones.base import Backbone
from difflens.configs.options import Options
from difflens.configs.probe import ProbeConfig
from difflens.processes.base import Level

V = TypeVar("V")

_LADDER = (0.005, 0.02, 0.05, 0.1, 0.2, 0.4)  # default noise levels, as shares of the schedule

PLACE_COLUMNS = ("noise_step", "log_snr", "block", "part", "channels", "stride")
"""The first columns of a table of places."""


def default_levels(backbone: Backbone) -> list[Level]:
    """Return noise levels that span the useful part of the backbone's noise process."""
    return sorted({*map(backbone.process.at, _LADDER)})


def evenly(values: Sequence[V], count: int) -> list[V]:
    """Return `count` of `values`, evenly over their order, from the first to the last; all if there are no
    more."""
    count = min(count, len(values))
    return [values[round(k * (len(values) - 1) / max(1, count - 1))] for k in range(count)]


def place_rows(
    backbone: Backbone, blocks: Sequence[int], log_snr: Mapping[Level, float]
) -> Iterator[tuple[tuple[int, int], list[object]]]:
    """Yield (row, column) of each place among T x B, and its values of `PLACE_COLUMNS`.

    Args:
        blocks: indices of the B columns.
        log_snr: log-SNR of the T rows by noise level.
    """
    for row, (t, snr) in enumerate(log_snr.items()):
        for column, index in enumerate(blocks):
            block = backbone.block(index)
            yield (row, column), [t, f"{snr:.4f}", index, block.role, block.channels, block.stride]


def probe_like(config: Options) -> ProbeConfig:
    """Return a configuration of `probe` with the options that it shares with `config`.

    Not shared are how maps are pooled and normalised, the number of images, and whether a run is continued.
    """
    names = {field.name for field in fields(ProbeConfig)} & {field.name for field in fields(config)}
    return ProbeConfig(
        **{name: getattr(config, name) for name in names - {"pool", "normalise", "limit", "resume"}}
    )
