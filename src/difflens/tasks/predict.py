"""The part of `difflens predict` that segmentation and detection share: reads images and writes
predictions."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from difflens.backbones.base import Backbone
from difflens.choices import Exif
from difflens.configs.predict import PredictConfig
from difflens.data.changes import say_changes
from difflens.data.files import list_images
from difflens.data.images import BadImage, read_image
from difflens.data.split import FileSplit
from difflens.errors import DiffLensError
from difflens.models.saved import DetectionModel, SegmentationModel
from difflens.processes.clean import Clean
from difflens.results.predict import DensePrediction, DensePredictResult, line_of
from difflens.run.files import replace_with, write_text
from difflens.run.reading import read_json

_RECORD = "predictions.json"
_LONGEST_STEM = 200  # bytes
_MOST = 2**30  # bytes; the masks of many objects in many images

Announce = Callable[[str], object]
"""Receives the text of a prediction."""

Answer = tuple[dict[str, Any], dict[str, Image.Image]]
"""The fields of a prediction, and its pictures: "overlay" and, for a segmentation, "mask"."""


def check_dense(config: PredictConfig) -> None:
    """Check, before a model is loaded, the options of a dense model and the folder of its predictions.

    Raises:
        DiffLensError: the format is csv, or the folder holds other files than predictions.
    """
    out = _folder(config)
    if config.format == "csv":
        raise DiffLensError("csv is a format of classes; take --format json")
    if out.exists() and _pictures(out) is None and (not out.is_dir() or any(out.iterdir())):
        raise DiffLensError(
            f"{out} is not a folder of predictions, and its files are not replaced: name another folder with "
            "--out"
        )


def _pictures(out: Path) -> set[str] | None:
    """Return the names of the overlays and masks in a folder of predictions; None for another folder."""
    try:
        records = read_json(out / _RECORD, tuple[_Pictures, ...], _MOST)
    except DiffLensError:
        return None
    names = {name for record in records for name in (record.overlay, record.mask) if name is not None}
    return {
        name for name in names if name.endswith((".overlay.png", ".mask.png")) and Path(name).name == name
    }


@dataclass(frozen=True)
class _Pictures:
    """The pictures of an image in predictions.json."""

    overlay: str | None = None
    mask: str | None = None


def check_draws(config: PredictConfig, backbone: Backbone) -> None:
    """Raise DiffLensError if `draws` noise samples are asked for of a backbone that adds no noise."""
    if config.draws > 1 and isinstance(backbone.process, Clean):
        raise DiffLensError(f"{backbone.spec} reads images without noise: leave out --draws")


def write_predictions(
    config: PredictConfig,
    kind: type[DensePrediction],
    answer: Callable[[Tensor], Answer],
    model: SegmentationModel | DetectionModel,
    announce: Announce | None = None,
    check: Callable[[int, int], object] = lambda height, width: None,
) -> DensePredictResult:
    """Apply a model to each image, and write overlays, masks and predictions.json to `config.out`.

    Args:
        kind: the class of the predictions.
        answer: gives the model's answer for an image, uint8 (C, H, W).
        model: the model that answers.
        announce: receives the text of each prediction as soon as it is known; None announces nothing.
        check: called with height and width of each image before any file is written; it raises for an image
            that is too large.

    Raises:
        DiffLensError: an image cannot be read or is too large, or there are no images.
    """
    out, skipped = _folder(config), list[str]()
    pictures_before = [out / name for name in _pictures(out) or ()]
    made = {picture.resolve() for picture in pictures_before}
    paths = [path for path in list_images(config.images) if path.resolve() not in made]
    if not paths:
        raise DiffLensError(f"no images but those that an earlier prediction wrote to {out}")
    # an unreadable image is an error before any file is written
    readable = list(_readable(paths, config, model.exif, skipped, check))
    backbone = model.probe.extractor.backbone
    split, whole = FileSplit("images", [*map(str, paths)], exif=model.exif), isinstance(model, DetectionModel)
    say_changes(split, backbone.spec, backbone.in_channels, model.head.side, whole)
    # nothing of another model or of other images stays
    for before in pictures_before:
        before.unlink(missing_ok=True)
    predictions: list[DensePrediction] = []
    for path, name in zip(readable, _names(readable), strict=True):
        image = read_image(path, model.exif)
        found, pictures = answer(image)
        files = {key: f"{name}.{key}.png" for key in pictures}
        for key, picture in pictures.items():
            replace_with(out / files[key], picture.save)
        predictions.append(
            kind(image=str(path), width=image.shape[-1], height=image.shape[-2], **files, **found)
        )
        if announce is not None:
            announce(line_of(predictions[-1], config.format, config.top, len(predictions) == 1))
    result = DensePredictResult(
        predictions=tuple(predictions),
        skipped_images=tuple(skipped),
        out=out,
        format=config.format,
        top=config.top,
        announced=announce is not None and bool(predictions),
    )
    text = json.dumps(result.records(), indent=2) + "\n"
    write_text(out / _RECORD, text)
    return result


def _folder(config: PredictConfig) -> Path:
    return config.out or Path("predictions")


def _readable(
    paths: list[Path],
    config: PredictConfig,
    exif: Exif,
    skipped: list[str],
    check: Callable[[int, int], object],
) -> Iterator[Path]:
    for path in paths:
        try:
            height, width = read_image(path, exif).shape[-2:]
        except BadImage as error:
            if config.on_bad_image == "error":
                raise
            skipped.append(f"{path}: {error.reason}")
        else:
            check(height, width)
            yield path


def _names(paths: list[Path]) -> list[str]:
    """Return a name for each path: its stem, with a number if an earlier path has the same stem.

    Stems are cut at `_LONGEST_STEM`, as a file system takes names of 255 bytes and pictures add to them.
    """
    numbers: dict[str, int] = {}  # the last number of each name; insertion keeps the order
    names: dict[str, None] = {}
    for path in paths:
        stem = path.stem
        if len(os.fsencode(stem)) > _LONGEST_STEM:
            stem = os.fsencode(stem)[:_LONGEST_STEM].decode(errors="ignore")
        name, number = stem, numbers.get(stem, 1)
        while name in names:
            number += 1
            name = f"{stem}-{number}"
        numbers[stem] = number
        names[name] = None
    return [*names]
