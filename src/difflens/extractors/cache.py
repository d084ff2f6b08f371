"""The feature cache: the features of a split, on which a head trains without the backbone."""

import itertools
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from difflens.backbones.maps import Place, pool_to
from difflens.choices import Augmentation, OnBadImage
from difflens.data.images import BadImage, to_float
from difflens.data.loader import Batch, iterate, share_of
from difflens.data.split import ImageSplit
from difflens.errors import DiffLensError, counted, listing
from difflens.extractors.base import Extractor, evaluating
from difflens.extractors.latents import Latents, allocate
from difflens.run.console import note, progress_bar
from difflens.run.memory import require_memory
from difflens.run.processes import processes_for

READ_BATCH = 64
"""Images in each batch that the backbone reads without training."""


class ReadingOptions(Protocol):
    """The options of a command that reads images."""

    @property
    def workers(self) -> int | None: ...

    @property
    def on_bad_image(self) -> OnBadImage: ...


@dataclass(frozen=True)
class Reading:
    """Reads images of a split for an extractor.

    Attributes:
        workers: processes that decode images. None: chosen by the machine and the number of images.
        on_bad_image: "error" raises an error for an image that cannot be read; "skip" leaves it out.
        skipped: receives one line for each image that "skip" leaves out.
    """

    workers: int | None
    on_bad_image: OnBadImage
    skipped: list[str]

    @classmethod
    def of(cls, options: ReadingOptions, skipped: list[str] | None = None) -> "Reading":
        """Return the reading that a command's options describe."""
        return cls(options.workers, options.on_bad_image, [] if skipped is None else skipped)

    def batches(
        self,
        extractor: Extractor,
        split: ImageSplit,
        rows: Tensor,
        batch_size: int = READ_BATCH,
        seed: int = 0,
        epoch: int = 0,
        augment: Augmentation = "none",
    ) -> Iterator[Batch]:
        """Yield batches of `rows`, (M,) long, of `split`, on the backbone's device and in the shape that it
        takes.

        Raises:
            BadImage: an image cannot be decoded, and `on_bad_image` is "error".
        """
        backbone = extractor.backbone
        backbone.require_memory(min(batch_size, len(rows)), extractor.blocks)
        try:
            yield from iterate(
                split,
                channels=backbone.in_channels,
                side=backbone.image_size,
                batch_size=batch_size,
                rows=rows,
                augment=augment,
                seed=seed,
                epoch=epoch,
                workers=self.workers,
                on_bad_image=self.on_bad_image,
                bad=self.skipped,
                device=backbone.device,
            )
        except BadImage as error:
            raise BadImage(error.where, f"{error.reason}; --on-bad-image skip leaves it out") from error

    def inputs(
        self, extractor: Extractor, split: ImageSplit, rows: Tensor, latents: Latents | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the rows of each batch, (B,) long, and x_0, (READ_BATCH, C, H, W) on the backbone's device.

        The networks always read `READ_BATCH` images; a smaller batch is filled with its last image. The order
        of summation in a kernel depends on the size of the batch, so the last bits of features would depend
        on it.

        Args:
            rows: (M,) long: positions in the split.
            latents: latents of these rows. If they are complete, no image is read; else this reading fills
                them.

        Raises:
            DiffLensError: a latent is not finite.
        """
        backbone = extractor.backbone
        if latents is not None and latents.complete:
            for known, x_0 in latents.batches(READ_BATCH):
                yield known, x_0[filled(len(known))].to(backbone.device)
            return
        for batch in self.batches(extractor, split, rows):
            positions = filled(len(batch)).to(backbone.device)
            x_0 = backbone.encode(to_float(batch.images[positions]))
            if latents is not None:
                latents.keep(batch.rows.cpu(), x_0[: len(batch)])
            yield batch.rows.cpu(), x_0
        if latents is not None:
            latents.complete = True

    def features(
        self,
        extractor: Extractor,
        split: ImageSplit,
        rows: Tensor,
        side: int | None,
        dtype: torch.dtype,
        latents: Latents | None = None,
        draw: int = 0,
    ) -> Iterator[tuple[Tensor, dict[Place, Tensor]]]:
        """Yield the rows of each batch, (B,) long, and its maps, (B, C, H, W) by place, on the CPU.

        Args:
            side: larger maps are average-pooled to this side; None: whole maps.
            dtype: the type of the maps.
            rows, latents, draw: as for `maps`.

        Raises:
            DiffLensError: a latent or a feature is not finite, or a feature overflows `dtype`.
        """
        for known, maps in self.maps(extractor, split, rows, latents, draw):
            yield known, {place: _converted(whole, place, side, dtype) for place, whole in maps.items()}

    def maps(
        self,
        extractor: Extractor,
        split: ImageSplit,
        rows: Tensor,
        latents: Latents | None = None,
        draw: int = 0,
    ) -> Iterator[tuple[Tensor, dict[Place, Tensor]]]:
        """Yield the rows of each batch, (B,) long, and its whole maps, (B, C, H, W) by place.

        The maps are on the backbone's device.

        Args:
            rows, latents: as for `inputs`.
            draw: number of the noise draw.

        Raises:
            DiffLensError: a latent is not finite.
        """
        at_once = READ_BATCH
        with evaluating(extractor):
            for known, x_0 in self.inputs(extractor, split, rows, latents):
                index = split.noise_index[known[filled(len(known))]].to(x_0.device)
                start = 0
                while start < len(known):
                    part = slice(start, start + at_once)
                    try:
                        maps = extractor.read(x_0[part], index[part], draw)
                    except torch.OutOfMemoryError:
                        if at_once == 1:
                            raise
                        at_once //= 2
                        note(f"too little memory for {2 * at_once} images: {at_once} are read at once")
                        continue
                    start += at_once
                    read = known[part]
                    yield read, {place: whole[: len(read)] for place, whole in maps.items()}


def is_about(line: str, names: Collection[str]) -> bool:
    """Return whether a line "NAME: REASON" of `Reading.skipped` is about an image of `names`.

    Names and reasons may contain colons.
    """
    return any(line[: found.start()] in names for found in re.finditer(": ", line))


class Maps(Protocol):
    """Feature maps of many images, (N, C, H, W): a tensor, or maps in a feature store."""

    @property
    def shape(self) -> torch.Size: ...

    def __getitem__(self, chosen: Tensor, /) -> Tensor: ...


@dataclass
class FeatureCache:
    """The maps of a split from a frozen extractor, pooled to the side that the head reads.

    Attributes:
        maps: (N, C, H, W) by place.
        labels: as in `ImageSplit`; -1 for images without a label.
        rows: (N,) long: positions in the split, without skipped images.
    """

    maps: Mapping[Place, Maps]
    labels: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def gigabytes(self) -> float:
        """The size of float16 maps, in gigabytes."""
        return sum(math.prod(maps.shape) for maps in self.maps.values()) * 2 / 1e9

    def batch(self, chosen: Tensor, device: torch.device | str = "cpu") -> dict[Place, Tensor]:
        """Return the maps of the entries `chosen`, (M,) long, as float32 on `device`."""
        return {place: maps[chosen].to(device).float() for place, maps in self.maps.items()}


def read_features(
    extractor: Extractor,
    side: int | None,
    split: ImageSplit,
    process: Accelerator | None = None,
    reading: Reading | None = None,
    memory_gigabytes: float = 4.0,
    spill: Path | None = None,
    latents: Latents | None = None,
    show: bool = True,
) -> FeatureCache:
    """Read the features of each image of `split` once, as float16; each process reads its share.

    `fit` and `evaluate` take them as `cache`.

    Args:
        side: larger maps are average-pooled to this side, the `pool` of a head that reads them; None: whole
            maps.
        process: this process; None: a process alone.
        reading: how images are decoded; None: by default, and the first image that cannot be read is an
            error.
        memory_gigabytes, spill, latents, show: as for `read_sides`.

    Raises:
        DiffLensError: a feature is not finite or overflows float16, or no image can be read.
    """
    with processes_for(process) as process:
        sides = read_sides(
            extractor, (side,), split, process, reading, memory_gigabytes, spill, latents, show
        )
    return sides[side]


def read_sides(
    extractor: Extractor,
    sides: Iterable[int | None],
    split: ImageSplit,
    process: Accelerator,
    reading: Reading | None = None,
    memory_gigabytes: float = 4.0,
    spill: Path | None = None,
    latents: Latents | None = None,
    show: bool = True,
) -> dict[int | None, FeatureCache]:
    """Return the features of `split`, float16, at each of several pooled sides; each image is read once.

    Each process reads its share.

    Args:
        sides: larger maps are average-pooled to these sides; None: whole maps.
        memory_gigabytes: a larger cache of one side is kept in files in the folder `spill`, in gigabytes.
        spill: None keeps any cache in memory.
        latents: latents of this process's share, which the first reading fills and later ones read.
        show: show a progress bar.

    Raises:
        DiffLensError: a feature is not finite or overflows float16, or no image can be read.
    """
    reading = reading or Reading(None, "error", [])
    extractor = extractor.to(process.device)
    rows = share_of(len(split), process.process_index, process.num_processes)
    by_side: dict[int | None, dict[Place, Tensor]] = {side: {} for side in sides}
    rows_read, done = [], 0
    levels = listing(extractor.noise_steps)
    if len(split) < process.num_processes:
        raise DiffLensError(
            f"{counted(len(split), 'image')} of the {split.name} split for {process.num_processes} "
            "processes: start fewer"
        )
    title = f"features of {split.name} by {extractor.backbone.spec} at t = {levels}"
    with progress_bar(process.is_main_process and show) as bar:
        task = bar.add_task(title, total=len(rows), note="")
        for known, whole in reading.maps(extractor, split, rows, latents):
            entries = slice(done, done + len(known))
            for place, (side, maps) in itertools.product(whole, by_side.items()):
                feature = _converted(whole[place], place, side, torch.float16)
                if place not in maps:
                    shape = (len(rows), *feature.shape[1:])
                    total = len(extractor.places) * math.prod(shape) * 2
                    name = f"{split.name}-{process.process_index}-b{place[0]}-t{place[1]}-s{side}.bin"
                    file = spill / name if spill and total > memory_gigabytes * 1e9 else None
                    if file is None and not maps:
                        require_memory(total, f"the features of {split.name}", "read fewer images or places")
                    maps[place] = allocate(shape, torch.float16, file)
                maps[place][entries] = feature
            rows_read.append(known)
            done += len(known)
            bar.update(task, advance=len(known))
    if not done:
        raise DiffLensError(f"no image of the {split.name} split could be read")
    there = torch.cat(rows_read)
    labels = torch.full((done,), -1) if split.labels is None else split.labels[there]
    return {
        side: FeatureCache({place: values[:done] for place, values in maps.items()}, labels, there)
        for side, maps in by_side.items()
    }


def filled(size: int) -> Tensor:
    """Return (READ_BATCH,) long: the positions of a batch of `size`, and its last one again and again."""
    return torch.arange(READ_BATCH).clamp(max=size - 1)


def _converted(maps: Tensor, place: Place, side: int | None, dtype: torch.dtype) -> Tensor:
    """Pool maps and convert them to `dtype` on the CPU; raise DiffLensError if a value is not finite."""
    pooled = pool_to(maps, side).to(dtype).cpu()
    if not pooled.isfinite().all():
        name = str(dtype).removeprefix("torch.")
        raise DiffLensError(
            f"the features of block {place[0]} at noise step {place[1]} are not finite or exceed {name} "
            f"(largest magnitude {float(maps.abs().max()):.3g}): read another block, or check the backbone "
            "and its image range"
        )
    return pooled
