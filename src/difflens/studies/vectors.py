"""`difflens extract PHOTOS --out features.npy`: a vector for each image, in one file."""

import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from difflens.backbones.base import Backbone
from difflens.configs.extract import ExtractConfig
from difflens.configs.options import given
from difflens.data.split import ImageData, ImageSplit
from difflens.errors import DiffLensError, counted, named, plural
from difflens.extractors.base import Extractor
from difflens.extractors.cache import Reading
from difflens.extractors.config import ExtractorConfig
from difflens.extractors.manifest import DTYPES
from difflens.opening import open_run
from difflens.processes.base import in_words
from difflens.results.extract import VectorsResult
from difflens.run.console import progress_bar
from difflens.run.files import check_writable, write_bytes, write_text
from difflens.run.memory import require_memory
from difflens.run.text import csv_text, on_disk
from difflens.version import __version__


def check_file_of_vectors(config: ExtractConfig) -> None:
    """Raise DiffLensError if the file, or the one of names beside it, exists or cannot be written."""
    for path in dict.fromkeys((config.out, _names_file(config.out))):
        if path.exists():
            raise DiffLensError(f"{path} exists already: choose another name, or remove it")
    if config.out.suffix.lower() == ".parquet":
        _pyarrow()
    check_writable(config.out)


def extract_vectors(
    config: ExtractConfig, images: ImageData | ImageSplit, sources: Sequence[ImageSplit]
) -> VectorsResult:
    """Write the mean of each map over its positions, for every image.

    The noise of an image is that of its position among the images, as in a store.

    Args:
        config: resolved options, with a backbone.
        images: the data as it was loaded, and `sources` the splits to read of it.

    Raises:
        DiffLensError: the backbone cannot be loaded or has no such place, an image or a feature is bad, or
            the vectors do not fit into memory.
    """
    opened = open_run(config, images, one_process=" where it writes a file; a folder takes several")
    backbone = opened.backbone
    extractor = ExtractorConfig(
        "frozen",
        config.blocks or (backbone.defaults.block,),
        config.noise_steps or (backbone.defaults.noise_step,),
        config.seed,
        precision=config.decided_precision,
        draws=config.draws,
    ).build(backbone)
    size = sum(shape[0] for shape in extractor.shapes().values())
    count = sum(map(len, sources))
    # the vectors, and their bytes in the format
    needed = 2 * count * size * DTYPES[given(config.dtype)].itemsize
    require_memory(needed, f"{counted(count, 'vector')} of {counted(size, 'number')}", "read fewer places")
    extractor.to(opened.process.device)
    reading, began = Reading.of(config), time.monotonic()
    # in one piece: many small tensors would keep the memory of the activations between them
    vectors = torch.empty(count, size, dtype=DTYPES[given(config.dtype)])
    names, labels, noise = list[str](), list[int](), list[int]()
    with progress_bar() as bar:
        task = bar.add_task("extracting", total=count, note="")
        for split in sources:
            for rows, maps in reading.features(
                extractor, split, torch.arange(len(split)), 1, DTYPES[given(config.dtype)]
            ):
                found = torch.cat([maps[place].flatten(1) for place in extractor.places], dim=1)
                vectors[len(names) : len(names) + len(rows)] = found
                names += [on_disk(split.ids[row]) for row in rows.tolist()]
                noise += split.noise_index[rows].tolist()
                labels += [] if split.labels is None else split.labels[rows].tolist()
                bar.update(task, advance=len(rows))
    if not names:
        raise DiffLensError(f"no image of {config.spec} could be read")
    rate = len(names) / max(time.monotonic() - began, 1e-9)
    described: dict[str, Any] = {
        "difflens": __version__,
        "images": names,
        "noise_index": noise,
        **({"labels": labels, "classes": list(images.classes)} if isinstance(images, ImageData) else {}),
        "columns": _columns(extractor),
        "seed": config.seed,
        "draws": config.draws,
        "backbone": {
            **opened.backbone_config.stored(),
            "precision": config.decided_precision,
            "fingerprint": opened.fingerprints["backbone_fingerprint"],
        },
        "preprocessing": preprocessing(backbone),
        "data": {"spec": config.spec, "fingerprint": opened.fingerprints["data_fingerprint"]},
    }
    _write(config.out, vectors[: len(names)].clone() if len(names) < count else vectors, described)
    levels = in_words(backbone.process.by_noise(extractor.noise_steps))
    return VectorsResult(
        out=config.out,
        names=_names_file(config.out),
        images=len(names),
        features=size,
        places=f"{named('block', extractor.blocks)} at {plural('noise step', len(extractor.noise_steps))} "
        f"{levels}",
        images_per_second=rate,
        skipped_images=tuple(reading.skipped),
    )


def preprocessing(backbone: Backbone) -> dict[str, Any]:
    """Return how images become the input of a backbone, for the description of features."""
    return {
        "channels": backbone.in_channels,
        "side": backbone.image_size,
        "range": [-1, 1],
        "steps": "EXIF orientation, RGB or grey, shorter side resized with antialiasing, centre crop",
    }


def _columns(extractor: Extractor) -> list[dict[str, Any]]:
    """Return, in the order of a vector's numbers, each place and the number of its channels."""
    return [
        {"block": block, "noise_step": t, "channels": extractor.backbone.block(block).channels}
        for block, t in extractor.places
    ]


def _names_file(out: Path) -> Path:
    """Return the file that holds the names of the images."""
    return out.with_suffix(".json") if out.suffix.lower() == ".npy" else out


def _write(out: Path, vectors: Tensor, described: dict[str, Any]) -> None:
    """Write vectors, (N, D), and what describes them, in the format of the file's suffix."""
    kind = out.suffix.lower()
    content = io.BytesIO()
    if kind == ".pt":
        torch.save({"vectors": vectors, **described}, content)
    elif kind == ".parquet":
        _write_parquet(content, vectors, described)
    elif kind == ".csv":
        content.write(_csv(vectors, described).encode())
    else:
        np.save(content, vectors.numpy())
        write_text(_names_file(out), json.dumps(described, indent=1) + "\n")
    try:
        write_bytes(out, content.getbuffer())
    except BaseException:
        if _names_file(out) != out:
            _names_file(out).unlink(missing_ok=True)
        raise


def _csv(vectors: Tensor, described: dict[str, Any]) -> str:
    """Return a row for each image: its name, its label if it has one, and its numbers."""
    labels = described.get("labels")
    header = ["image", *(["label"] if labels else [])]
    for place in described["columns"]:
        header += [f"block{place['block']}-t{place['noise_step']}-{k}" for k in range(place["channels"])]
    rows: list[list[Any]] = [header]
    for row, (name, values) in enumerate(zip(described["images"], vectors.float().tolist(), strict=True)):
        # nine digits give back a float32
        numbers = [f"{value:.9g}" for value in values]
        rows.append([name, *([described["classes"][labels[row]]] if labels else []), *numbers])
    return csv_text(rows)


def _write_parquet(content: io.BytesIO, vectors: Tensor, described: dict[str, Any]) -> None:
    """Write a table: name, label if there is one, and the vector of each image; settings in its metadata."""
    pyarrow = _pyarrow()
    columns: dict[str, Any] = {"image": described["images"]}
    if described.get("labels"):
        columns["label"] = [described["classes"][label] for label in described["labels"]]
    flat = pyarrow.array(vectors.flatten().numpy())
    columns["vector"] = pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    settings = {name: value for name, value in described.items() if name not in ("images", "labels")}
    table = pyarrow.table(columns).replace_schema_metadata({"difflens": json.dumps(settings)})
    pyarrow.parquet.write_table(table, content, use_dictionary=False)


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DiffLensError('parquet needs pyarrow: `pip install "difflens[hub]"` installs it') from error
    return pyarrow
