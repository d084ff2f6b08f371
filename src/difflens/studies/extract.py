"""`difflens extract`: the features of a data set in a store on disk."""

import io
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from difflens.backbones.base import Backbone
from difflens.backbones.maps import pooled_shape
from difflens.configs.extract import ExtractConfig
from difflens.configs.options import given, resolve
from difflens.data.labels import limited, one_label
from difflens.data.load import load_data, load_unlabelled
from difflens.data.sources.folder import load_photos
from difflens.data.split import ImageData, ImageSplit
from difflens.errors import DiffLensError, counted, expanded, named, plural
from difflens.extractors.base import Extractor
from difflens.extractors.cache import Reading
from difflens.extractors.config import ExtractorConfig
from difflens.extractors.latents import Latents
from difflens.extractors.manifest import DTYPES, MANIFEST, Layout, Shard, manifest_of
from difflens.extractors.partial import PartialShard, remove_partial
from difflens.extractors.store import (
    check_file,
    read_checksums,
    read_latents,
    record_checksum,
    recorded_noise,
    verified,
    write_checksums,
    write_images,
    write_latents,
    write_shard,
)
from difflens.opening import open_run, with_backbone, with_data
from difflens.processes.base import Level, finite
from difflens.results.extract import ExtractResult, VectorsResult
from difflens.run.console import progress_bar
from difflens.run.directory import FINISHED, RunDirectory
from difflens.run.files import write_bytes
from difflens.run.memory import require_memory
from difflens.run.text import on_disk
from difflens.studies.closing import close_store, files_of, stored_images
from difflens.studies.merge import merge
from difflens.studies.vectors import check_file_of_vectors, extract_vectors, preprocessing


def extract(
    config: ExtractConfig,
    announce: Callable[[str], object] = lambda line: None,
    data: ImageData | None = None,
) -> ExtractResult | VectorsResult:
    """Extract frozen features: a vector for each image into a file, or maps into a store.

    Several processes share the work of a store, shard by shard.

    Args:
        announce: receives a line on the content and the size of the store before anything is written.
        data: as for `probe`.

    Raises:
        DiffLensError: an option is out of range, the data or the backbone cannot be loaded, the folder holds
            another store, the file exists, or the disk has too little room; with `merge`, for the reasons of
            `merge.merge`.
    """
    config = resolve(with_data(config, data))
    if config.merge:
        return merge(config, announce)
    if config.vectors:
        check_file_of_vectors(config)
    if data is not None and config.unlabelled:
        raise DiffLensError("arrays are read with their labels: leave out unlabelled")
    images: ImageData | ImageSplit = _images(config) if data is None else one_label(data, "extract")
    sources = _sources(config, images)
    config = with_backbone(config, images.train if isinstance(images, ImageData) else images)
    if config.vectors:
        return extract_vectors(config, images, sources)
    opened = open_run(config, images)
    backbone = opened.backbone
    places = ExtractorConfig(
        "frozen",
        config.blocks or backbone.defaults.fusion_blocks,
        config.noise_steps or backbone.defaults.fusion_noise_steps,
        config.seed,
        precision=config.decided_precision,
        draws=config.draws,
    )
    extractor = places.build(backbone)
    side = config.pool or None
    shapes = {block: pooled_shape(shape, side) for (block, _), shape in extractor.shapes().items()}
    layout = Layout(
        {split.name: len(split) for split in sources},
        shapes,
        extractor.noise_steps,
        given(config.dtype),
        config.shard_megabytes,
        backbone.latent_shape,
    )
    manifest = manifest_of(
        layout,
        {
            "format": config.format,
            "seed": config.seed,
            "draws": config.draws,
            "pool": config.pool,
            "backbone": {
                **opened.backbone_config.stored(),
                "precision": config.decided_precision,
                "fingerprint": opened.fingerprints["backbone_fingerprint"],
            },
            "preprocessing": preprocessing(backbone),
            "data": {
                "spec": config.spec,
                "name": images.name if isinstance(images, ImageData) else config.spec,
                "classes": list(images.classes) if isinstance(images, ImageData) else [],
                "fingerprint": opened.fingerprints["data_fingerprint"],
                **({} if config.val_fraction is None else {"val_fraction": config.val_fraction}),
            },
            **_noise(backbone, extractor.noise_steps),
        },
    )
    identity = {"blocks": extractor.blocks, "noise_steps": extractor.noise_steps}
    part_of(layout.shards, config.part)
    with opened.directory(identity, growing="noise_steps") as run:
        extraction = _Extraction(config, extractor, layout, sources, run, opened.process, announce)
        return extraction.run_all(manifest)


def _images(config: ExtractConfig) -> ImageData | ImageSplit:
    """Return the images that the options name."""
    if config.photos is not None:
        return load_photos(expanded(config.photos))
    if config.unlabelled:
        return load_unlabelled(config.spec, val_fraction=config.val_fraction)
    data = load_data(config.spec, val_fraction=config.val_fraction)
    return one_label(data, "extract without --unlabelled")


def _sources(config: ExtractConfig, data: ImageData | ImageSplit) -> list[ImageSplit]:
    """Return the splits to read."""
    if isinstance(data, ImageSplit):
        return [limited(data, config.limit, config.seed)]
    chosen = {name: data.train if name == "train" else data.test for name in config.splits}
    return [
        limited(split, config.limit, config.seed) if name == "train" or len(chosen) == 1 else split
        for name, split in chosen.items()
    ]


def _noise(backbone: Backbone, levels: Sequence[Level]) -> dict[str, Any]:
    """Return the manifest's entry on the noise process, with the log-SNR of each level, None if infinite.

    A pixel network with whole steps has none: its store has the bytes that earlier versions gave it.
    """
    process = backbone.process
    if backbone.latent_shape is None and process.unit == "step":
        return {}
    return {
        "noise": {
            "process": process.describe(),
            "unit": process.unit,
            "log_snr": [finite(round(process.log_snr(level), 6)) for level in levels],
        }
    }


def part_of(shards: Sequence[Shard], part: tuple[int, int] | None) -> list[Shard]:
    """Return the shards of part k of n, every n-th from the k-th on; None: all.

    Raises:
        DiffLensError: there are fewer shards than parts.
    """
    number, parts = part or (1, 1)
    if parts > len(shards):
        raise DiffLensError(
            f"--part {number} {parts}: the store has {counted(len(shards), 'shard')}; make fewer parts, or "
            "lower "
            "--shard-megabytes"
        )
    return [*shards[number - 1 :: parts]]


class _Extraction:
    """The shards of a store, and the steps that write them."""

    def __init__(
        self,
        config: ExtractConfig,
        extractor: Extractor,
        layout: Layout,
        sources: list[ImageSplit],
        run: RunDirectory,
        process: Accelerator,
        announce: Callable[[str], object],
    ):
        self.config, self.extractor, self.layout, self.run = config, extractor, layout, run
        self.shards = part_of(layout.shards, config.part)
        self.process, self.announce, self.out = process, announce, config.out
        self.sources = {split.name: split for split in sources}
        self.reading = Reading(config.workers, config.on_bad_image, [])
        self.digests: dict[str, str] = {}
        self.recorded: dict[str, str] = {}
        self.lacking: set[str] = set()

    def run_all(self, manifest: dict[str, Any]) -> ExtractResult:
        """Write the missing shards of this process, the manifest, the checksums and the metrics."""
        self._verify()
        missing = self._missing()
        left = sum(
            self.layout.bytes_of(shard, len(steps), latents=self._lacks_latents(shard))
            for shard, steps in missing
        )
        self._announce(left)
        self._require_room(left)
        largest = max((self.layout.bytes_of(s, len(t), latents=True) for s, t in missing), default=0)
        require_memory(largest, "a shard of the store", "lower --shard-megabytes, or pool the maps")
        for split in self.sources.values():
            split.noise_index = recorded_noise(self.out, split)
        if self.process.is_main_process:  # all have read them in `_verify`
            write_checksums(self.out, self.recorded, finished=False)
        self.process.wait_for_everyone()
        if self.process.num_processes > 1:  # a failing process must not delete the shards of another
            self.run.keep()
        self.run.grow()
        if self.process.is_main_process:
            for split in self.sources.values():
                write_images(self.out, split)
            # an existing store stays readable while noise steps are added
            if not (self.out / MANIFEST).exists():
                self.run.write_json(MANIFEST, manifest)
        self.extractor.to(self.process.device)
        own = missing[self.process.process_index :: self.process.num_processes]
        began = time.monotonic()
        count = sum(len(shard.rows) for shard, _ in missing)
        with progress_bar(self.process.is_main_process) as bar:
            task = bar.add_task("extracting", total=sum(len(shard.rows) for shard, _ in own), note="")
            for shard, steps in own:
                self._write(shard, steps, partial(bar.advance, task))
                self.run.keep()
        self.process.wait_for_everyone()
        rate = count / max(time.monotonic() - began, 1e-9)
        self.run.write_json(MANIFEST, manifest)
        return ExtractResult.from_metrics(self._finish(), self.out, rate, tuple(self._skipped()))

    def _verify(self) -> None:
        """Find the files that are missing or damaged; the processes share the reading of existing ones."""
        files = files_of(self.layout, self.shards, self.config.format)
        there = [name for name in files if (self.out / name).exists()]
        self.recorded = recorded = read_checksums(self.out)
        own = there[self.process.process_index :: self.process.num_processes]
        damaged: list[str] = []
        with progress_bar(self.process.is_main_process and bool(own)) as bar:
            task = bar.add_task("verifying", total=len(own), note="")
            for name, intact in verified(
                self.out, {name: recorded[name] for name in own if name in recorded}
            ):
                damaged += [] if intact else [name]
                bar.update(task, advance=1)
        for name in own:
            if name not in recorded and not _is_sound(self.out / name, files[name], self.layout):
                damaged.append(name)
        if self.process.num_processes > 1:
            damaged = gather_object(damaged)
        unknown = [name for name in there if name not in recorded]
        if self.process.is_main_process:
            for name in sorted(damaged):
                self.announce(f"{name} is damaged and is made again")
            if unknown:
                kept = len({*unknown} - {*damaged})
                self.announce(
                    f"{len(unknown)} of {counted(len(there), 'file')} without a checksum; kept, as sizes and "
                    f"headers are right: {kept}"
                )
        self.lacking = {*files} - {*there} | {*damaged}
        self.digests = {n: recorded[n] for n in there if n in recorded and n not in self.lacking}

    def _missing(self) -> list[tuple[Shard, list[Level]]]:
        """Return each incomplete shard with the noise steps that it lacks; it may lack latents alone."""
        lacking = [
            (shard, [t for t in self.layout.noise_steps if self._name(shard, t) in self.lacking])
            for shard in self.shards
        ]
        return [(shard, steps) for shard, steps in lacking if steps or self._lacks_latents(shard)]

    def _lacks_latents(self, shard: Shard) -> bool:
        return shard.latents_path.as_posix() in self.lacking

    def _announce(self, left: int) -> None:
        images = " + ".join(f"{count:,} {split}" for split, count in self.layout.images.items())
        noun = plural("image", sum(self.layout.images.values()))
        part = "part {} of {}: ".format(*self.config.part) if self.config.part else ""
        total = self.layout.bytes_in(self.shards)
        written = "" if left == total else f"; {(total - left) / 1e9:.3g} GB of them are written already"
        shards = len(self.shards) * len(self.layout.noise_steps)
        self.announce(
            f"Writing {images} {noun}, {named('block', sorted(self.layout.shapes))} at "
            f"{named('noise step', self.layout.noise_steps)}: {part}{counted(total, 'byte')} "
            f"({total / 1e9:.3g} GB) in "
            f"{counted(shards, 'shard')}{written}"
        )

    def _require_room(self, left: int) -> None:
        free = shutil.disk_usage(self.out).free
        if left > free:
            raise DiffLensError(
                f"{self.out} needs {left / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free there: read fewer "
                "blocks or noise steps, pool their maps (--pool 4), or choose another disk"
            )

    def _write(self, shard: Shard, steps: list[Level], advance: Callable[[int], object]) -> None:
        """Read the shard's images or stored latents once, and write one file for each of `steps`.

        Args:
            advance: receives the number of images that are read, after each batch.
        """
        self.extractor.noise_steps = tuple(steps)
        split, latents = self.sources[shard.split], None
        dtype, pool = DTYPES[given(self.config.dtype)], self.config.pool or None
        lacks_latents = self._lacks_latents(shard)
        if self.layout.latents is not None:
            latents = Latents(shard.rows, self.layout.latents)
            if not lacks_latents:
                read_latents(self.out / shard.latents_path, latents)
        part = PartialShard(shard, steps, self.layout.shapes, dtype, latents if lacks_latents else None)
        self._read_partial(part)
        advance(part.seen)
        rest, later = shard.rows[part.seen :], None if latents is None else latents.tail(part.seen)
        kept = time.monotonic()
        for known, features in self.reading.features(self.extractor, split, rest, pool, dtype, later):
            before = part.seen
            part.add(known, features)
            advance(part.seen - before)
            if time.monotonic() - kept >= 60 * self.config.checkpoint_minutes:
                self._write_partial(part)
                kept = time.monotonic()
        advance(len(shard.rows) - part.seen)
        if latents is not None and lacks_latents:
            self._write_file(shard.latents_path.as_posix(), write_latents, latents)
        readable = part.rows  # a shard may have none
        for t in steps:
            maps = part.maps(t)
            if self.config.format == "parquet":
                self._write_file(self._name(shard, t), _write_table, split, readable, maps)
            else:
                self._write_file(self._name(shard, t), write_shard, readable, maps)
        (self.out / part.path).unlink(missing_ok=True)

    def _read_partial(self, part: PartialShard) -> None:
        """Take what a stopped reading kept of a shard, if it is undamaged and of the same noise steps."""
        path, name = self.out / part.path, part.path.as_posix()
        if not path.is_file():
            return
        content = path.read_bytes()
        if sha256(content).hexdigest() != self.recorded.get(name) or not part.read(content):
            self.announce(f"{name} does not fit and is read again")

    def _write_partial(self, part: PartialShard) -> None:
        """Keep what is read of a shard, from where --resume goes on."""
        if part.seen == len(part.shard.rows):
            return
        digest = sha256(part.write(self.out)).hexdigest()
        record_checksum(self.out, self.process.process_index, part.path.as_posix(), digest)
        self.run.keep()

    def _write_file(self, name: str, write: Callable[..., str], *content: object) -> None:
        """Let `write` write `content` to the file `name`, and keep the checksum that it returns."""
        try:
            self.digests[name] = write(self.out / name, *content)
            record_checksum(self.out, self.process.process_index, name, self.digests[name])
        except (OSError, DiffLensError) as error:
            failed = f"{self.out / name} cannot be written"
            reason = f"{failed}: {error.strerror}" if isinstance(error, OSError) else error
            raise DiffLensError(
                f"{reason}. The shards before it are complete; --resume goes on from there"
            ) from error

    def _name(self, shard: Shard, t: Level) -> str:
        return shard.path(t, self.config.format).as_posix()

    def _finish(self) -> dict[str, Any]:
        """Write checksums and metrics, and return the metrics on every process."""
        if self.process.num_processes > 1:
            self.digests = dict(gather_object([*self.digests.items()]))
        if self.process.is_main_process:
            remove_partial(self.out)
            metrics = close_store(self.out, self.layout, self.shards, self.config.format, self.digests)
            self.run.write_json(FINISHED, metrics)
        self.process.wait_for_everyone()
        return self.run.read_json(FINISHED, dict[str, Any])

    def _skipped(self) -> list[str]:
        skipped = self.reading.skipped
        return sorted(gather_object(skipped)) if self.process.num_processes > 1 else skipped


def _is_sound(path: Path, shard: Shard, layout: Layout) -> bool:
    """Return True if the size and the header of a shard's file are right."""
    try:
        if path.suffix == ".parquet":
            return stored_images(path) <= len(shard.rows)
        check_file(path, shard, layout, latents=path.name == shard.latents_path.name)
    except Exception:  # pyarrow raises several kinds
        return False
    return True


def _write_table(path: Path, split: ImageSplit, rows: Tensor, maps: Mapping[int, Tensor]) -> str:
    """Write a Parquet table atomically, and return its SHA-256 as a hex digest."""
    content = _parquet(split, rows, maps)
    write_bytes(path, content)
    return sha256(content).hexdigest()


def _parquet(split: ImageSplit, rows: Tensor, maps: Mapping[int, Tensor]) -> bytes:
    """Return a Parquet table of images, labels, and one column of flattened maps a block.

    The metadata holds the shape of each block's maps.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DiffLensError('parquet needs pyarrow: `pip install "difflens[hub]"` installs it') from error
    columns: dict[str, Any] = {"image": [on_disk(split.ids[row]) for row in rows.tolist()]}
    if split.labels is not None:
        columns["label"] = split.labels[rows].numpy()
    for block, values in maps.items():
        flat = pyarrow.array(values.flatten().numpy())
        columns[f"block{block:03d}"] = pyarrow.FixedSizeListArray.from_arrays(flat, values[:1].numel() or 1)
    table = pyarrow.table(columns).replace_schema_metadata(
        {f"block{block:03d}": json.dumps(list(values.shape[1:])) for block, values in maps.items()}
    )
    buffer = io.BytesIO()
    # features hardly repeat, so a dictionary would only add to the size
    pyarrow.parquet.write_table(table, buffer, use_dictionary=False)
    return buffer.getvalue()
