"""The part of a shard that has been read so far, on disk, so that a stop loses minutes and not the shard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from difflens.backbones.maps import MapShape
from difflens.extractors.cache import READ_BATCH
from difflens.extractors.latents import Latents
from difflens.extractors.manifest import Shard
from difflens.processes.base import Level, level_name
from difflens.run.files import write_bytes

_PATTERN = ".shard-*.partial.safetensors"


@dataclass
class PartialShard:
    """The maps of the first images of a shard.

    Attributes:
        shard: the shard.
        steps: the noise steps that are read for it.
        shapes: (C, H, W) of the map of each block.
        dtype: the type of the maps.
        latents: latents that are read with the maps and belong to the shard; None: none.
        seen: how many images of the shard are read or left out: whole batches.
    """

    shard: Shard
    steps: Sequence[Level]
    shapes: Mapping[int, MapShape]
    dtype: torch.dtype
    latents: Latents | None = None
    seen: int = 0
    _rows: list[Tensor] = field(default_factory=list)
    _maps: dict[tuple[Level, int], list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rows = [torch.empty(0, dtype=torch.long)]
        self._maps = {
            (t, block): [torch.empty(0, *shape, dtype=self.dtype)]
            for t in self.steps
            for block, shape in self.shapes.items()
        }

    @property
    def path(self) -> Path:
        """The file, relative to the store."""
        return Path(self.shard.split) / _PATTERN.replace("*", f"{self.shard.number:05d}")

    @property
    def rows(self) -> Tensor:
        """(N,) long: positions in the split of the images that could be read."""
        return torch.cat(self._rows)

    def maps(self, t: Level) -> dict[int, Tensor]:
        """Return the maps at a noise step, (N, C, H, W) by block, and forget them."""
        return {block: torch.cat(self._maps.pop((t, block))) for block in self.shapes}

    def add(self, rows: Tensor, features: Mapping[tuple[int, Level], Tensor]) -> None:
        """Add the maps, (B, C, H, W) by place, of the images of one batch that could be read, at `rows`,
        (B,)."""
        self._rows.append(rows)
        for (block, t), maps in features.items():
            self._maps[t, block].append(maps)
        batches = (int(rows[-1]) - int(self.shard.rows[0])) // READ_BATCH + 1
        self.seen = min(len(self.shard.rows), batches * READ_BATCH)

    def content(self) -> bytes:
        """Return the file's content."""
        return save(self._tensors())

    def read(self, content: bytes) -> bool:
        """Take what `content` wrote; return False if it is of other noise steps, blocks or a damaged file."""
        try:
            found = load(content)
        except SafetensorError:
            return False
        own = self._tensors()
        if {*found} != {*own} or any(found[name].shape[1:] != own[name].shape[1:] for name in own):
            return False
        self.seen = int(found["seen"])
        self._rows = [found["rows"]]
        self._maps = {key: [found[_name(*key)]] for key in self._maps}
        if self.latents is not None:
            self.latents.values[: self.seen] = found["latents"]
            self.latents.readable[: self.seen] = found["readable"]
        return True

    def write(self, folder: Path) -> bytes:
        """Write the file into the store `folder`, and return its content."""
        content = self.content()
        write_bytes(folder / self.path, content)
        return content

    def _tensors(self) -> dict[str, Tensor]:
        self._rows = [torch.cat(self._rows)]
        self._maps = {key: [torch.cat(parts)] for key, parts in self._maps.items()}
        tensors = {_name(*key): parts[0] for key, parts in self._maps.items()}
        tensors |= {"rows": self._rows[0], "seen": torch.tensor(self.seen)}
        if self.latents is not None:
            tensors["latents"] = self.latents.values[: self.seen].contiguous()
            tensors["readable"] = self.latents.readable[: self.seen].contiguous()
        return tensors


def remove_partial(folder: Path) -> None:
    """Remove the partial shards of a finished store."""
    for path in folder.glob(f"*/{_PATTERN}"):
        path.unlink()


def _name(t: Level, block: int) -> str:
    return f"t{level_name(t)}-block{block:03d}"
