"""Parts of a store that were extracted by runs which never met become the store of a single run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from difflens import DiffLensError, ExtractConfig, FeatureStore, extract
from difflens.studies import extract as extraction
from tests.helpers.files import contents
from tests.helpers.images import make_image_tree


@pytest.fixture(scope="module", autouse=True)
def small_files() -> object:
    """Stores have a file for each twelve images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction.Layout, "shard_images", 12)
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_tree(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def whole(backbone_folder: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> ExtractConfig:
    """The extraction of one run: three files of training images, two of validation images."""
    config = ExtractConfig(
        out=tmp_path_factory.mktemp("whole") / "store",
        backbone=str(backbone_folder),
        data=str(images),
        blocks=(4,),
        noise_steps=(3,),
        device="cpu",
        workers=0,
    )
    extract(config)
    return config


@pytest.fixture(scope="module")
def parts(whole: ExtractConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("parts")
    for k in (1, 2):
        extract(replace(whole, out=folder / f"{k}", part=(k, 2)))
    return folder / "1", folder / "2"


def merge(out: Path, *parts: Path) -> None:
    extract(ExtractConfig(out=out, merge=tuple(map(str, parts))))


def test_merged_parts_are_the_store_of_one_run(
    whole: ExtractConfig, parts: tuple[Path, Path], tmp_path: Path
) -> None:
    merge(tmp_path / "merged", *parts)
    merge(tmp_path / "turned", *parts[::-1])
    assert contents(tmp_path / "merged") == contents(tmp_path / "turned") == contents(whole.out)
    assert FeatureStore(tmp_path / "merged").maps("train", 4, 3).shape[0] == 36
    counts = [json.loads((part / "metrics.json").read_text())["images"] for part in parts]
    assert counts == [{"train": 24, "val": 3}, {"train": 12, "val": 12}]
    with pytest.raises(DiffLensError, match="put its parts together"):
        FeatureStore(parts[0])


def test_noise_steps_are_added_to_a_merged_store(
    whole: ExtractConfig, parts: tuple[Path, Path], tmp_path: Path
) -> None:
    merge(tmp_path / "merged", *parts)
    extract(replace(whole, out=tmp_path / "merged", noise_steps=(3, 9), resume=True))
    extract(replace(whole, out=tmp_path / "both", noise_steps=(3, 9)))
    assert contents(tmp_path / "merged") == contents(tmp_path / "both")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "no parts of one store: seed is 0 and 1"),
        ({"noise_steps": (9,)}, r"no parts of one store: noise_steps is \[3\] and \[9\]"),
        ({"blocks": (6,)}, r"no parts of one store: blocks is \[4\] and \[6\]"),
        ({"limit": 30}, r"no parts of one store: images is "),
        ({"dtype": "float32"}, "no parts of one store: dtype is 'float16' and 'float32'"),
    ],
)
def test_parts_of_other_settings(
    whole: ExtractConfig,
    parts: tuple[Path, Path],
    tmp_path: Path,
    changes: dict[str, object],
    message: str,
) -> None:
    extract(replace(whole, out=tmp_path / "other", part=(2, 2), **changes))
    with pytest.raises(DiffLensError, match=message):
        merge(tmp_path / "merged", parts[0], tmp_path / "other")
    assert not (tmp_path / "merged").exists()


def test_parts_of_another_backbone_or_of_other_images(
    whole: ExtractConfig, parts: tuple[Path, Path], tmp_path: Path
) -> None:
    network = UNet2DModel.from_pretrained(whole.backbone)
    with torch.no_grad():
        network.conv_in.weight.add_(1e-3)
    network.save_pretrained(tmp_path / "network")
    DDPMScheduler.from_pretrained(whole.backbone).save_pretrained(tmp_path / "network")
    extract(replace(whole, out=tmp_path / "a", part=(2, 2), backbone=str(tmp_path / "network")))
    with pytest.raises(DiffLensError, match=r"no parts of one store: backbone fingerprint is "):
        merge(tmp_path / "merged", parts[0], tmp_path / "a")
    tree = make_image_tree(tmp_path / "images")
    (tree / "train" / "red" / "0.png").write_bytes((tree / "train" / "red" / "1.png").read_bytes())
    extract(replace(whole, out=tmp_path / "b", part=(2, 2), data=str(tree)))
    with pytest.raises(DiffLensError, match=r"no parts of one store: data fingerprint is "):
        merge(tmp_path / "merged", parts[0], tmp_path / "b")


def test_what_overlaps_is_missing_unfinished_or_damaged(
    whole: ExtractConfig, parts: tuple[Path, Path], tmp_path: Path
) -> None:
    first = parts[0]
    cases: list[tuple[tuple[Path, ...], str]] = [
        ((first, whole.out), r"overlap: both have train/t00003-00000\.safetensors"),
        ((first, first), "two or more different stores"),
        ((first,), "two or more different stores"),
        ((first, tmp_path / "none"), "is not a feature store"),
    ]
    third = tmp_path / "third"
    extract(replace(whole, out=third, part=(1, 3)))
    extract(replace(whole, out=tmp_path / "thirds", part=(2, 3)))
    cases.append(((third, tmp_path / "thirds"), r"1 file is in none of .*: train/t00003-00002\.safetensors"))
    for stores, message in cases:
        with pytest.raises(DiffLensError, match=message):
            merge(tmp_path / "merged", *stores)
        assert not (tmp_path / "merged").exists()
    file = third / "train" / "t00003-00000.safetensors"
    extract(replace(whole, out=tmp_path / "last", part=(3, 3)))
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DiffLensError, match=rf"{file} is damaged"):
        merge(tmp_path / "merged", third, tmp_path / "thirds", tmp_path / "last")
    assert not (tmp_path / "merged").exists()
    (third / "metrics.json").unlink()
    with pytest.raises(DiffLensError, match="third is not finished"):
        merge(tmp_path / "merged", third, tmp_path / "thirds", tmp_path / "last")


def test_options_that_cannot_be(whole: ExtractConfig, tmp_path: Path) -> None:
    with pytest.raises(DiffLensError, match="reads no images: leave out --backbone, --blocks, --data"):
        extract(replace(whole, out=tmp_path / "merged", merge=("a", "b")))
    with pytest.raises(DiffLensError, match="--part 3 2: there is no part 3 of 2"):
        extract(replace(whole, out=tmp_path / "part", part=(3, 2)))
    with pytest.raises(DiffLensError, match="--part 1 6: the store has 5 shards"):
        extract(replace(whole, out=tmp_path / "part", part=(1, 6)))
    assert not (tmp_path / "part").exists()
