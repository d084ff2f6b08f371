"""Distances between images: closed forms, estimators by definition, and the command on real small things."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from difflens import DiffLensError, ProbeConfig, probe
from difflens.tasks import fidelity as module
from difflens.tasks.fidelity import FidelityConfig, fidelity, frechet_distance, kid


def test_frechet_distance_equals_the_closed_form_for_gaussians() -> None:
    """Of diagonal Gaussians: sum (m1 - m2)^2 + (s1 - s2)^2; of samples, up to their number."""
    generator = torch.Generator().manual_seed(0)
    means, scales = torch.tensor([[0.0, 1, -2], [1, 1, 0]]), torch.tensor([[1.0, 2, 0.5], [0.5, 2, 1.5]])
    a, b = (m + s * torch.randn(200_000, 3, generator=generator) for m, s in zip(means, scales, strict=True))
    expected = float((means[0] - means[1]).square().sum() + (scales[0] - scales[1]).square().sum())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=0.02)


def test_frechet_distance_equals_the_matrix_square_root() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (
        torch.randn(60, 5, generator=generator) @ torch.randn(5, 5, generator=generator) for _ in range(2)
    )
    first, second = (np.cov(each.double().numpy().T) for each in (a, b))
    root = scipy.linalg.sqrtm(first @ second).real
    expected = np.square((a - b).double().mean(0).numpy()).sum() + np.trace(first + second - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
    # fewer images than dimensions: singular covariances
    assert frechet_distance(a[:3], b[:4]) > 0


def test_kid_equals_its_definition_and_is_unbiased() -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(6, 4, generator=generator), torch.randn(6, 4, generator=generator) + 1

    def kernel(x: torch.Tensor, y: torch.Tensor) -> float:
        return float((x @ y / 4 + 1) ** 3)

    pairs = [(i, j) for i in range(6) for j in range(6)]
    expected = sum(kernel(a[i], a[j]) + kernel(b[i], b[j]) for i, j in pairs if i != j) / 30
    expected -= 2 * sum(kernel(a[i], b[j]) for i, j in pairs) / 36
    assert kid(a, b, 1, 6, 0)[0] == pytest.approx(expected, rel=1e-5)
    same = torch.randn(4000, 4, generator=generator)
    mean, spread = kid(same[:2000], same[2000:], 50, 200, 0)
    assert abs(mean) < 0.5 * spread


def config(samples: Path, images: Path, backbone: Path, /, **changes: object) -> FidelityConfig:
    base = FidelityConfig(
        samples=samples, data=str(images), features=str(backbone), block=6, noise_step=5, device="cpu", workers=0,
        kid_subsets=5,
    )  # fmt: skip
    return replace(base, **changes)


def test_the_ruler_orders_what_is_further_away(
    backbone_folder: Path, image_tree: Path, tmp_path: Path
) -> None:
    run = config(image_tree / "train" / "red", image_tree, backbone_folder, ruler=True)
    result = fidelity(run)
    assert (result.dimensions, result.real) == (16, 15)
    assert "block 6 at noise step 5" in result.space
    names = [each.images for each in result.distances]
    assert names == [
        "samples",
        "train images",
        *(f"val images + noise {s:g}" for s in module.NOISE_STRENGTHS),
    ]
    by_name = {each.images: each.frechet for each in result.distances}
    ruler = [by_name[name] for name in names[2:]]
    assert ruler == sorted(ruler)
    # one colour alone is further from all three than other images of all three
    assert by_name["samples"] > by_name["train images"]
    # against themselves, which have no other split
    alone = fidelity(replace(run, data=str(image_tree / "train" / "red")))
    assert alone.distances[0].frechet == pytest.approx(0, abs=1e-6)


def test_the_space_of_a_trained_model_and_its_classes(
    backbone_folder: Path, image_tree: Path, tmp_path: Path
) -> None:
    for head in ("mlp", "knn"):
        out = tmp_path / head
        probe(ProbeConfig(
            out=out, backbone=str(backbone_folder), data=str(image_tree), head=head, width=64, blocks=(6,),
            noise_steps=(5,), epochs=15, learning_rate=3e-3, batch_size=8, device="cpu", workers=0,
        ))  # fmt: skip
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
