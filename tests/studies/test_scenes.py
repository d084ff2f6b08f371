"""Scenes: their objects, their labels, and equal bytes for an equal seed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from difflens import DiffLensError, ScenesConfig, scenes
from difflens.choices import Background
from difflens.data.dense.cutouts import fashion_cutouts, folder_cutouts
from difflens.data.dense.masks import load_masks


def make(stamps: Path, out: Path, seed: int = 3, backgrounds: tuple[Background, ...] | None = None) -> Path:
    scenes(
        ScenesConfig(
            source=str(stamps),
            out=out,
            train=6,
            val=4,
            size=48,
            objects=(2, 4),
            seed=seed,
            backgrounds=backgrounds,
        )
    )
    return out


def test_other_tools_read_the_objects_and_they_are_where_the_masks_say(stamps: Path, tmp_path: Path) -> None:
    root = make(stamps, tmp_path / "scenes")
    data = load_masks(root)
    assert data.classes == ("background", "bar", "disc")
    for split, count in ((data.train, 6), (data.val, 4)):
        coco = COCO(root / "annotations" / f"instances_{split.name}.json")
        assert len(coco.imgs) == len(split) == count
        for i, (identity, image) in enumerate(sorted(coco.imgs.items())):
            assert image["file_name"] == f"{i:05d}.png"
            semantic = np.zeros((48, 48), np.uint8)
            for annotation in coco.imgToAnns[identity]:
                mask = coco.annToMask(annotation).astype(bool)
                assert not semantic[mask].any(), "visible parts do not overlap"
                semantic[mask] = annotation["category_id"]
                assert annotation["area"] == mask.sum() > 0
                rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
                left, top, width, height = annotation["bbox"]
                assert (left, top) == (columns[0], rows[0])
                assert (left + width - 1, top + height - 1) == (columns[-1], rows[-1])
            assert np.array_equal(split.mask(i).numpy(), semantic)


def test_a_mask_covers_its_object(stamps: Path, tmp_path: Path) -> None:
    root = make(stamps, tmp_path / "scenes", backgrounds=("plain",))
    image = np.asarray(Image.open(root / "images" / "train" / "00000.png")).astype(int)
    mask = np.asarray(Image.open(root / "masks" / "train" / "00000.png")) > 0
    background = image[~mask]
    differs = np.abs(image - np.median(background, axis=0)).max(-1) > 12
    assert differs[mask].mean() > 0.95
    assert differs[~mask].mean() < 0.05


def test_the_seed_fixes_every_byte(stamps: Path, tmp_path: Path) -> None:
    def content(root: Path) -> dict[str, bytes]:
        kept = (path for path in root.rglob("*") if path.is_file() and path.name != "config.yaml")
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in kept}

    first, again, other = (
        content(make(stamps, tmp_path / n, seed)) for n, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again
    assert first["images/train/00000.png"] != other["images/train/00000.png"]


def test_objects_are_disjoint_and_views_of_one_stay_together(stamps: Path, tmp_path: Path) -> None:
    cutouts = folder_cutouts(stamps)
    assert [len(items) for items in cutouts.train] == [8, 8]
    assert [len(items) for items in cutouts.val] == [2, 2]
    assert len(cutouts.left_out) == 2  # what is opaque, and what is no image
    for train, val in zip(cutouts.train, cutouts.val, strict=True):
        assert not {item.tobytes() for item in train} & {item.tobytes() for item in val}
    for k in range(4):
        for name in (f"{k}.png", f"{k}_mirror.png"):
            image = Image.open(stamps / "disc" / "0.png")
            image.putpixel((20, 15), (k, 0, 0, 255))
            (tmp_path / "thing").mkdir(exist_ok=True)
            image.save(tmp_path / "thing" / name)
    (train,), (val,) = folder_cutouts(tmp_path).train, folder_cutouts(tmp_path).val
    assert len(train) == 6
    assert len(val) == 2
    assert len({item.tobytes() for item in val}) == 1


def test_a_copy_of_an_object_in_another_class_is_left_out(tmp_path: Path) -> None:
    for kind, red in (("fireman", 10), ("person", 20)):
        (tmp_path / kind).mkdir()
        for k in range(6):
            image = Image.new("RGBA", (9, 9))
            image.paste((red + k, 0, 0, 255), (2, 2, 6, 6))
            image.save(tmp_path / kind / f"{k}.png")
    (tmp_path / "person" / "4.png").write_bytes((tmp_path / "fireman" / "0.png").read_bytes())
    cutouts = folder_cutouts(tmp_path)
    assert [len(items) for items in cutouts.train] == [5, 4]
    assert [item.getpixel((0, 0)) for (item,) in cutouts.val] == [(14, 0, 0, 255), (25, 0, 0, 255)]
    assert cutouts.left_out == (
        f"{tmp_path / 'person' / '4.png'}: the same pixels as {tmp_path / 'fireman' / '0.png'}",
    )


def test_fashion_items_lose_their_black_ground() -> None:
    cutouts = fashion_cutouts()
    assert sum(map(len, cutouts.train)) == 10_000
    assert sum(map(len, cutouts.val)) == 2_000
    item = cutouts.train[8][0]  # a bag
    grey, alpha = np.asarray(item)[..., 0], np.asarray(item)[..., 1]
    assert alpha[0].max() >= 16, "cropped to what is opaque"
    assert grey[alpha > 200].mean() > 60
    assert (alpha == 0).any()


def test_photo_backgrounds_come_from_photos(stamps: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for k in range(5):
        Image.new("RGB", (60, 70), (200 if k < 4 else 100, 10, 10)).save(photos / f"{k}.png")
    scenes(
        ScenesConfig(
            source=str(stamps),
            out=tmp_path / "out",
            train=3,
            val=3,
            size=32,
            objects=(1, 1),
            photos=photos,
            backgrounds=("photo",),
        )
    )
    for split, red in (("train", 200), ("val", 100)):
        for path in (tmp_path / "out" / "images" / split).iterdir():
            mask = np.asarray(Image.open(tmp_path / "out" / "masks" / split / path.name)) > 0
            assert np.median(np.asarray(Image.open(path))[~mask], axis=0).tolist() == [red, 10, 10]


def test_photos_of_16_bits_are_not_clipped(stamps: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for k in range(2):
        Image.fromarray(np.full((60, 70), 100 * 257, np.uint16)).save(photos / f"{k}.png")
    options = {"train": 1, "val": 1, "size": 32, "objects": (1, 1), "backgrounds": ("photo",)}
    scenes(ScenesConfig(source=str(stamps), out=tmp_path / "out", photos=photos, **options))  # type: ignore[arg-type]
    (path,) = (tmp_path / "out" / "images" / "train").iterdir()
    mask = np.asarray(Image.open(tmp_path / "out" / "masks" / "train" / path.name)) > 0
    assert np.median(np.asarray(Image.open(path))[~mask], axis=0).tolist() == [100] * 3


def _opaque(root: Path) -> ScenesConfig:
    (root / "source" / "thing").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "source" / "thing" / "a.png")
    return ScenesConfig(source=str(root / "source"), out=root / "out")


def _too_many(root: Path) -> ScenesConfig:
    for k in range(254):
        folder = root / "source" / f"{k:03}"
        folder.mkdir(parents=True)
        for name, value in (("_flip", 2 * k), ("b", 2 * k + 1)):  # _flip alone names no view of another
            image = Image.new("RGBA", (4, 4), (value % 256, value // 256, 0, 0))
            image.putpixel((1, 1), (value % 256, value // 256, 0, 255))
            image.save(folder / f"{name}.png")
    return ScenesConfig(source=str(root / "source"), out=root / "out", train=1, val=1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (_too_many, "254 classes: masks of 8 bits hold at most 253"),
        (lambda root: ScenesConfig(source=str(root / "nowhere"), out=root / "out"), "no such folder"),
        (_opaque, "no class folder with at least two images with transparency"),
        (lambda root: ScenesConfig(out=root / "out", backgrounds=("photo",)), "--photos"),
        (lambda root: ScenesConfig(out=root / "out", objects=(3, 2)), "--objects takes the smaller number"),
        (lambda root: ScenesConfig(out=root / "out", train=0), "train"),
    ],
)
def test_wrong_input_is_said_and_nothing_is_left(
    config: Callable[[Path], ScenesConfig], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DiffLensError, match=message):
        scenes(config(tmp_path))
    assert not (tmp_path / "out").exists()


def test_a_folder_is_not_written_twice(stamps: Path, tmp_path: Path) -> None:
    make(stamps, tmp_path / "scenes")
    with pytest.raises(DiffLensError, match="choose another folder"):
        make(stamps, tmp_path / "scenes")
    assert json.loads((tmp_path / "scenes" / "scenes.json").read_text())["train_scenes"] == 6
