"""The end of an extraction: checksums of all files of a store, and its metrics."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from difflens.choices import StoreFormat
from difflens.extractors.manifest import MANIFEST, Layout, Shard
from difflens.extractors.store import CHECKSUMS, IMAGES, write_checksums
from difflens.run.files import checksum


def files_of(layout: Layout, shards: Sequence[Shard], suffix: StoreFormat) -> dict[str, Shard]:
    """Return the shard of each file of features and of latents, by the file's name in the store."""
    latents = {shard.latents_path.as_posix(): shard for shard in shards if layout.latents}
    features = {shard.path(t, suffix).as_posix(): shard for shard in shards for t in layout.noise_steps}
    return latents | features


def close_store(
    out: Path, layout: Layout, shards: Sequence[Shard], suffix: StoreFormat, digests: Mapping[str, str]
) -> dict[str, Any]:
    """Write the checksums of a store whose files are all there, and return its metrics.

    Args:
        shards: those that the store has: all, or one part's.
        suffix: the format of the files.
        digests: known checksums by file; those of other files are computed.
    """
    files = files_of(layout, shards, suffix)
    names = [MANIFEST, *(f"{split}/{IMAGES}" for split in layout.images), *files]
    write_checksums(out, {name: digests.get(name) or checksum(out / name) for name in names})
    images = dict.fromkeys(layout.images, 0)
    stored = 0
    for shard in shards:
        images[shard.split] += len(shard.rows)
        stored += stored_images(out / shard.path(layout.noise_steps[0], suffix))
    return {
        "images": images,
        "predicted_bytes": layout.bytes_in(shards),
        "bytes": sum((out / name).stat().st_size for name in files),
        "shards": len(shards) * len(layout.noise_steps),
        "skipped": sum(images.values()) - stored,
        "sha256": checksum(out / CHECKSUMS),
    }


def stored_images(path: Path) -> int:
    """Return the number of images in a file of a store."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return int(pyarrow.parquet.read_metadata(path).num_rows)
    with safe_open(path, framework="pt") as file:
        return int(file.get_slice("rows").get_shape()[0])
