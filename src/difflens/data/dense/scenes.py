"""Pictures composed of cut-out objects, with the exact mask of each object."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from difflens.configs.scenes import ScenesConfig
from difflens.data.dense.cutouts import Cutouts
from difflens.data.dense.masks import to_palette_image
from difflens.data.dense.run_lengths import run_lengths
from difflens.data.files import list_images
from difflens.data.images import open_picture
from difflens.errors import DiffLensError
from difflens.run.console import progress_bar
from difflens.run.directory import RunDirectory

_SOLID = 128
"""The lowest alpha of a pixel that belongs to an object."""
_TRIES = 20
"""Positions tried for an object before it is left out of the scene."""


class ScenePhotos:
    """Photos for backgrounds, loaded when they are used; no photo is in both splits."""

    def __init__(self, folder: Path):
        paths = list_images([folder])
        if len(paths) < 2:
            raise DiffLensError(
                f"{folder} has one image; photo backgrounds need at least two, one for each split"
            )
        every = min(5, len(paths))
        self.paths: dict[str, list[Path]] = {"train": [], "val": []}
        for number, path in enumerate(paths):
            self.paths["val" if number % every == every - 1 else "train"].append(path)

    def window(self, split: str, size: int, mode: str, generator: np.random.Generator) -> Image.Image:
        """Return a random square of a random photo, at least half as wide as the photo's shorter side."""
        paths = self.paths[split]
        photo = open_picture(paths[generator.integers(len(paths))]).convert(mode)
        shorter = min(photo.size)
        side = int(generator.integers(max(1, shorter // 2), shorter + 1))
        left, top = (int(generator.integers(length - side + 1)) for length in photo.size)
        return photo.resize((size, size), Image.Resampling.LANCZOS, (left, top, left + side, top + side))


class ScenePainter:
    """Composes scenes and writes them with their labels."""

    def __init__(self, config: ScenesConfig, cutouts: Cutouts, photos: ScenePhotos | None):
        self.config, self.cutouts, self.photos = config, cutouts, photos
        self.kinds = config.backgrounds or ("plain", "gradient", *(("photo",) if photos else ()))
        grey = all(item.mode == "LA" for items in cutouts.train for item in items)
        self.mode = "L" if grey else "RGB"

    def write(self, run: RunDirectory, split: str, number: int) -> dict[str, Any]:
        """Write images and masks of a split of `number` scenes; return its annotations in COCO's format."""
        classes = self.cutouts.classes
        record: dict[str, Any] = {
            "info": {"description": f"scenes of {self.config.source}, seed {self.config.seed}"},
            "images": [],
            "annotations": [],
            "categories": [{"id": k, "name": name} for k, name in enumerate(classes, start=1)],
        }

        def write_images(images: Path) -> None:
            def write_masks(masks: Path) -> None:
                with progress_bar() as bar:
                    task = bar.add_task(f"{split} scenes", total=number, note="")
                    for k in range(number):
                        self._write_one(split, k, images, masks, record)
                        bar.update(task, advance=1)

            run.write_folder(f"masks/{split}", write_masks)

        run.write_folder(f"images/{split}", write_images)
        return record

    def _write_one(self, split: str, k: int, images: Path, masks: Path, record: dict[str, Any]) -> None:
        generator = np.random.default_rng([self.config.seed, split == "val", k])
        scene, labels, visible = self._compose(split, generator)
        name = f"{k:05d}.png"
        scene.save(images / name)
        size = self.config.size
        semantic = np.zeros((size, size), np.uint8)
        record["images"].append({"id": k + 1, "file_name": name, "width": size, "height": size})
        for label, mask in zip(labels, visible, strict=True):
            semantic[mask] = label + 1
            rows, columns = (np.flatnonzero(mask.any(axis)).tolist() for axis in (1, 0))
            left, top = columns[0], rows[0]
            annotation = {
                "id": len(record["annotations"]) + 1,
                "image_id": k + 1,
                "category_id": label + 1,
                "bbox": [left, top, columns[-1] - left + 1, rows[-1] - top + 1],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": run_lengths(mask),
            }
            record["annotations"].append(annotation)
        to_palette_image(semantic).save(masks / name)

    def _compose(
        self, split: str, generator: np.random.Generator
    ) -> tuple[Image.Image, list[int], list[NDArray[np.bool_]]]:
        """Return a scene, and the class and the visible mask, bool (H, W), of each object in it."""
        config = self.config
        items = getattr(self.cutouts, split)
        scene = self._background(split, generator)
        labels: list[int] = []
        visible: list[NDArray[np.bool_]] = []
        whole: list[int] = []
        for _ in range(generator.integers(config.objects[0], config.objects[1] + 1)):
            # draw a class, an object of it, and its size
            label = int(generator.integers(len(items)))
            item = self._sized(items[label][generator.integers(len(items[label]))], generator)
            for _ in range(_TRIES):
                # draw a position, until every earlier object stays visible enough
                left, top = (int(generator.integers(config.size - side + 1)) for side in item.size)
                layer = Image.new("L", (config.size, config.size))
                layer.paste(item.getchannel("A"), (left, top))
                mask = np.asarray(layer) >= _SOLID
                rest = [other & ~mask for other in visible]
                enough = (
                    other.sum() >= config.visible * size for other, size in zip(rest, whole, strict=True)
                )
                if mask.any() and all(other.any() for other in rest) and all(enough):
                    scene.paste(item.convert(self.mode), (left, top), item.getchannel("A"))
                    visible = [*rest, mask]
                    labels.append(label)
                    whole.append(int(mask.sum()))
                    break
        return scene, labels, visible

    def _sized(self, item: Image.Image, generator: np.random.Generator) -> Image.Image:
        """Return the object at a random size, mirrored with probability 1/2."""
        longer = self.config.size * generator.uniform(*self.config.scale)
        scale = longer / max(item.size)
        width, height = (min(self.config.size, max(2, round(side * scale))) for side in item.size)
        item = item.resize((width, height), Image.Resampling.LANCZOS)
        return item.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if generator.random() < 0.5 else item

    def _background(self, split: str, generator: np.random.Generator) -> Image.Image:
        size = self.config.size
        kind = self.kinds[generator.integers(len(self.kinds))]
        if kind == "photo":
            assert self.photos is not None
            return self.photos.window(split, size, self.mode, generator)
        ends = generator.integers(0, 256, (2, len(self.mode)))
        share = np.zeros((size, size)) if kind == "plain" else _ramp(size, generator.uniform(0, 2 * np.pi))
        pixels = ends[0] + share[..., None] * (ends[1] - ends[0])
        return Image.fromarray(pixels.round().astype(np.uint8).squeeze(), self.mode)


def _ramp(size: int, angle: float) -> NDArray[np.float64]:
    """Return a linear gradient from 0 to 1 across a square, (size, size), in the direction `angle`
    (radians)."""
    steps = np.linspace(-0.5, 0.5, size)
    along = np.cos(angle) * steps + np.sin(angle) * steps[:, None]
    return (along - along.min()) / (along.max() - along.min())
