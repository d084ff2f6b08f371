"""Every task on a network that reads latents, on one whose levels are times, on a transformer, and on a
student without noise."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from difflens import (
    DetectConfig,
    DiffLensError,
    FidelityConfig,
    PredictConfig,
    ProbeConfig,
    SegmentConfig,
    detect,
    fidelity,
    load_backbone,
    predict,
    probe,
    segment,
)
from difflens.backbones.base import Backbone
from difflens.backbones.config import BackboneConfig
from difflens.configs.options import resolve
from difflens.extractors.config import ExtractorConfig
from difflens.models.feature_space import FeatureSpace
from difflens.tasks.dense import make_plan
from tests.helpers.families import write_dit, write_edm, write_flow, write_ldm, write_student
from tests.helpers.pipelines import write_stable_diffusion_3

FAMILIES: dict[str, Callable[[Path], Path]] = {
    "ldm": write_ldm,
    "flow": write_flow,
    "edm": write_edm,
    "dit": write_dit,
    "student": write_student,
}
LEVELS: dict[str, tuple[float, ...]] = {
    "ldm": (20, 200),
    "flow": (0.1, 0.5),
    "edm": (0.002, 0.5),
    "dit": (20, 200),
    "student": (0,),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, FAMILIES[request.param](tmp_path_factory.mktemp(request.param))


def segmentation(backbone: Path, scenes: Path, out: Path, **more: object) -> SegmentConfig:
    settings: dict[str, object] = {
        "iterations": 2,
        "batch_size": 2,
        "width": 8,
        "device": "cpu",
        "workers": 0,
    }
    return SegmentConfig(backbone=str(backbone), data=scenes, out=out, **{**settings, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("extractor", ["frozen", "feedback"])
def test_segment_and_predict(
    family: tuple[str, Path], scene_folder: Path, tmp_path: Path, extractor: str
) -> None:
    name, backbone = family
    run = segmentation(
        backbone, scene_folder, tmp_path / "run", noise_steps=LEVELS[name], extractor=extractor, side=32
    )
    if name == "dit" and extractor == "feedback":
        with pytest.raises(DiffLensError, match="feedback needs a decoder"):
            segment(run)
        return
    segment(run)
    assert json.loads((run.out / "metrics.json").read_text())["val_images"] == 5
    image = scene_folder / "images" / "val" / "00002.png"
    result = predict(PredictConfig(model=run.out, images=(image,), out=tmp_path / "predicted", device="cpu"))
    assert len(result.predictions) == 1


def test_detect_and_predict(family: tuple[str, Path], scene_folder: Path, tmp_path: Path) -> None:
    _, backbone = family
    run = DetectConfig(
        backbone=str(backbone),
        data=scene_folder,
        out=tmp_path / "run",
        side=32,
        iterations=2,
        batch_size=2,
        width=8,
        proposals=8,
        device="cpu",
        workers=0,
    )
    detect(run)
    image = scene_folder / "images" / "val" / "00002.png"
    predict(PredictConfig(model=run.out, images=(image,), out=tmp_path / "predicted", device="cpu"))
    assert (tmp_path / "predicted" / "predictions.json").is_file()


@pytest.mark.parametrize("head", ["attention", "diffeed", "difformer"])
def test_probe_and_predict(family: tuple[str, Path], image_tree: Path, tmp_path: Path, head: str) -> None:
    name, backbone = family
    run = ProbeConfig(
        backbone=str(backbone),
        data=str(image_tree),
        out=tmp_path / "run",
        head=head,  # type: ignore[arg-type]
        noise_steps=LEVELS[name] if head == "difformer" else LEVELS[name][-1:],
        epochs=1,
        width=16,
        device="cpu",
        workers=0,
    )
    if name == "dit" and head == "diffeed":
        with pytest.raises(DiffLensError, match="feedback needs a decoder"):
            probe(run)
        return
    result = probe(run)
    assert result.model.probe.extractor.noise_steps == run.noise_steps
    found = predict(PredictConfig(model=run.out, images=(image_tree / "val" / "red",), device="cpu"))
    assert len(found.predictions) == 5


def test_online_training_encodes_each_batch(
    family: tuple[str, Path], image_tree: Path, tmp_path: Path
) -> None:
    name, backbone = family
    run = ProbeConfig(
        backbone=str(backbone),
        data=str(image_tree),
        out=tmp_path / "run",
        head="linear",
        augment="flip",
        noise_steps=LEVELS[name][-1:],
        epochs=1,
        device="cpu",
        workers=0,
    )
    probe(run)
    probe(replace(run, out=tmp_path / "tuned", extractor="finetuned", from_block=2))


def test_fidelity_in_the_space_of_the_network(
    family: tuple[str, Path], image_tree: Path, tmp_path: Path
) -> None:
    name, backbone = family
    level = LEVELS[name][-1]
    run = FidelityConfig(
        samples=image_tree / "train" / "red",
        data=str(image_tree / "val"),
        features=str(backbone),
        noise_step=level,
        kid_subsets=2,
        kid_subset_size=4,
        reference_distances=False,
        device="cpu",
        workers=0,
    )
    fidelity(run)
    space = FeatureSpace.load(BackboneConfig(str(backbone)), 2, level)
    assert space.extractor.noise_steps == (level,)


def test_strides_count_pixels(family: tuple[str, Path]) -> None:
    name, folder = family
    backbone = load_backbone(str(folder))
    side = 2 * backbone.image_size
    places = ExtractorConfig("frozen", tuple(block.index for block in backbone.blocks), LEVELS[name][:1])
    extractor = places.build(backbone)
    maps = extractor(torch.rand(2, 3, side, side) * 2 - 1, torch.arange(2))
    assert {place: tuple(each.shape[1:]) for place, each in maps.items()} == extractor.shapes(side)


def test_a_side_that_no_stride_divides(family: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = family
    backbone = load_backbone(str(folder))
    largest = max(block.stride for block in backbone.blocks)
    asked = resolve(segmentation(folder, Path("data"), tmp_path, side=largest * 5 + 1))
    with pytest.raises(DiffLensError, match=f"is not a multiple of {largest}, the backbone's largest stride"):
        make_plan(asked, backbone)


def test_a_transformer_is_a_pyramid_of_one_stride(tmp_path: Path) -> None:
    folder = write_dit(tmp_path / "dit")
    asked = resolve(segmentation(folder, Path("data"), tmp_path, side=48))
    plan = make_plan(asked, load_backbone(str(folder)))
    assert (plan.side, plan.strides) == (48, (1, 2, 4, 8))
    assert plan.extractor.blocks == (4,)


def test_a_transformer_without_positions_for_a_side_says_so(tmp_path: Path) -> None:
    folder = write_stable_diffusion_3(tmp_path / "sd3")
    backbone: Backbone = load_backbone(str(folder))
    asked = resolve(segmentation(folder, Path("data"), tmp_path, side=32 * backbone.image_size))
    with pytest.raises(DiffLensError, match=r"has positions for images of 64 pixels at most, not \d+"):
        make_plan(asked, backbone)
