"""Distances between sets of images: the command on small data, and its errors."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from difflens import (
    DiffLensError,
    FidelityConfig,
    GenerateConfig,
    ProbeConfig,
    fidelity,
    generate,
    load_backbone,
    probe,
)
from difflens.generation import fidelity as module
from difflens.models.feature_space import FeatureSpace
from tests.helpers.networks import write_inception


def config(samples: Path, images: Path, backbone: Path, /, **changes: object) -> FidelityConfig:
    base = FidelityConfig(
        samples=samples,
        data=str(images),
        features=str(backbone),
        block=6,
        noise_step=5,
        device="cpu",
        workers=0,
        kid_subsets=5,
    )
    asked = replace(base, **changes)
    # inception and a trained model have one space
    if asked.features == "inception" or Path(asked.features, "model").is_dir():
        asked = replace(asked, block=None, noise_step=None)
    return replace(asked, workers=None) if asked.features == "inception" else asked


def test_reference_distances_order_what_is_further_away(
    backbone_folder: Path, image_tree: Path, tmp_path: Path
) -> None:
    run = config(image_tree / "train" / "red", image_tree, backbone_folder, reference_distances=True)
    result = fidelity(run)
    assert (result.dimensions, result.real_images, result.source) == (16, 15, None)
    assert result.real == f"val images of {image_tree}"
    assert "block 6 at noise step 5" in result.space
    names = [distance.images for distance in result.distances]
    assert names == [
        "samples",
        "train images",
        *(f"train images + noise {s:g}" for s in module.NOISE_STRENGTHS),
    ]
    # the other split is as large as the samples, and not of one class
    assert {distance.count for distance in result.distances} == {12}
    by_name = {distance.images: distance.frechet for distance in result.distances}
    # on a dozen images, weak noise does not show
    assert by_name[names[-1]] > max(by_name[name] for name in names[1:-1])
    # images of one colour are further from those of three colours than other images of three colours
    assert by_name["samples"] > 1.5 * by_name["train images"]
    # the samples are the real images themselves, which have no other split
    alone = fidelity(replace(run, data=str(image_tree / "train" / "red")))
    assert alone.distances[0].frechet == pytest.approx(0, abs=1e-6)
    assert [distance.images for distance in alone.distances[1:]] == [
        f"the same images + noise {s:g}" for s in module.NOISE_STRENGTHS
    ]


def test_another_split_that_is_smaller_than_the_samples_says_so(
    backbone_folder: Path, image_tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = config(image_tree / "train", image_tree, backbone_folder, split="train", reference_distances=True)
    assert [distance.count for distance in fidelity(run).distances[:2]] == [36, 15]
    assert "the val split has 15 images for 36 samples" in " ".join(capsys.readouterr().err.split())


def test_the_space_of_a_trained_model_and_its_classes(
    backbone_folder: Path, image_tree: Path, tmp_path: Path
) -> None:
    for head, options in (
        ("mlp", {"width": 64, "epochs": 15, "learning_rate": 3e-3, "batch_size": 8}),
        ("knn", {}),
    ):
        out = tmp_path / head
        training = ProbeConfig(
            out=out,
            backbone=str(backbone_folder),
            data=str(image_tree),
            head=head,
            blocks=(6,),
            noise_steps=(5,),
            device="cpu",
            workers=0,
            **options,
        )
        probe(training)
        result = fidelity(config(image_tree / "train" / "red", image_tree, out))
        assert result.dimensions == 64
        assert result.class_shares is not None
        assert result.class_shares["red"] > 0.6
        assert sum(result.class_shares.values()) == pytest.approx(1)


def test_inception_without_its_weights_says_where_to_place_them(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch_fidelity", reason="an optional extra")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    run = config(image_tree / "train" / "red", image_tree, Path("inception"))
    with pytest.raises(
        DiffLensError, match=r"weights-inception.*and place it as .*hub/checkpoints/weights-inception"
    ):
        fidelity(run)
    with pytest.raises(DiffLensError, match="no such file"):
        fidelity(replace(run, inception_weights=tmp_path / "nothing.pth"))
    (tmp_path / "page.pth").write_text("<html>")
    with pytest.raises(DiffLensError, match="does not hold Inception's weights"):
        fidelity(replace(run, inception_weights=tmp_path / "page.pth"))
    for other in ({"fc.weight": torch.ones(2)}, [torch.ones(2)], 3):
        torch.save(other, tmp_path / "other.pth")
        with pytest.raises(DiffLensError, match=r"other\.pth does not hold Inception's weights"):
            fidelity(replace(run, inception_weights=tmp_path / "other.pth"))


def test_features_that_are_not_finite(
    backbone_folder: Path, image_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = FeatureSpace._vectors

    def spoiled(self: FeatureSpace, *given: torch.Tensor) -> tuple[torch.Tensor, None]:
        found, _ = vectors(self, *given)
        found[2, 0] = torch.nan
        return found, None

    monkeypatch.setattr(FeatureSpace, "_vectors", spoiled)
    with pytest.raises(DiffLensError, match=r"features of .*\.png are not finite: .*block 6 at noise step 5"):
        fidelity(config(image_tree / "train" / "red", image_tree, backbone_folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": Path("/nowhere")}, "/nowhere"),
        ({"data": "/nowhere"}, "/nowhere"),
        ({"features": "nothing"}, "no backbone 'nothing'"),
        ({"block": 10}, "no block 10"),
        ({"noise_step": 100}, "noise step 100"),
        ({"limit": 1}, "limit is 1"),
    ],
    ids=str,
)
def test_what_cannot_work_says_so(
    backbone_folder: Path, image_tree: Path, changes: dict, message: str
) -> None:
    with pytest.raises(DiffLensError, match=message):
        fidelity(replace(config(image_tree / "val" / "red", image_tree, backbone_folder), **changes))


def test_figures_are_plain_values(backbone_folder: Path, image_tree: Path) -> None:
    result = fidelity(config(image_tree / "val" / "red", image_tree, backbone_folder))
    assert json.loads(json.dumps(result.metrics()))["distances"][0]["images"] == "samples"


def test_a_run_directory_keeps_the_figures_and_where_the_samples_came_from(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "made"
    drawing = GenerateConfig(
        out=made, n=4, backbone=str(backbone_folder), steps=2, batch_size=2, device="cpu"
    )
    generate(drawing)
    run = config(made, image_tree, backbone_folder, out=tmp_path / "figures")
    result = fidelity(run)
    assert result.source is not None
    assert (result.source.sampler, result.source.steps) == ("ddim", 2)
    assert result.source.backbone_fingerprint == load_backbone(str(backbone_folder)).fingerprint()
    kept = json.loads((tmp_path / "figures" / "metrics.json").read_text())
    assert kept == json.loads(json.dumps(result.metrics()))
    with pytest.raises(DiffLensError, match="figures already holds a run"):
        fidelity(run)
    # the kernel distance reads a part of the images, and the Fréchet distance reads all
    monkeypatch.setattr(module, "KERNEL_IMAGES", 3)
    part = fidelity(replace(run, out=None))
    assert part.distances[0].frechet == result.distances[0].frechet
    assert part.distances[0].kid != result.distances[0].kid
    (made / "metrics.json").unlink()
    with pytest.raises(DiffLensError, match=r"made is not finished: .*--resume"):
        fidelity(run)
    with pytest.raises(DiffLensError, match="figures is a run directory, but not of `difflens generate`"):
        fidelity(replace(run, samples=tmp_path / "figures"))


@pytest.mark.parametrize(("size", "mode"), [((9, 16), "RGB"), ((16, 16), "L")])
def test_samples_of_mixed_size_or_mode_are_refused(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, size: tuple[int, int], mode: str
) -> None:
    red = image_tree / "train" / "red"
    Image.new(mode, size).save(red / "99.png")
    run = config(red, image_tree, backbone_folder, out=tmp_path / "figures")
    with pytest.raises(
        DiffLensError, match=rf"not alike: .*png is 16 x 16 RGB, .*99.png is {size[0]} x 16 {mode}"
    ):
        fidelity(run)
    assert not run.out.exists()


def test_inception_with_weights_at_random(image_tree: Path, tmp_path: Path) -> None:
    """Run torch-fidelity with random weights: the real ones are a download of 95 MB."""
    write_inception(tmp_path / "weights.pth")
    red, green = (image_tree / "val" / colour for colour in ("red", "green"))
    run = config(red, green, Path("inception"), inception_weights=tmp_path / "weights.pth", kid_subsets=2)
    result = fidelity(run)
    assert result.inception is not None
    with pytest.raises(DiffLensError, match="and 3 real images: precision and recall compare"):
        fidelity(replace(run, limit=3))
    assert result.metrics()["inception"].keys() >= {"fid", "kid", "inception_score", "precision", "recall"}
    assert (result.space, result.distances[0].count, result.real_images) == ("Inception (FID)", 5, 5)
    assert result.distances[0].frechet > 0
    with pytest.raises(DiffLensError, match="leave out --reference-distances"):
        fidelity(replace(run, reference_distances=True))
