"""Pictures: what is in them, read back from the figures."""

from io import BytesIO

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import Tensor

from difflens import presets
from difflens.analysis import pictures
from difflens.analysis.pictures import pca_rgb
from difflens.backbones.unet import UNetBackbone
from difflens.errors import DiffLensError
from difflens.noise import NoiseSchedule, seeded_noise


@pytest.fixture(scope="module")
def backbone() -> UNetBackbone:
    torch.manual_seed(0)
    schedule = NoiseSchedule.from_config({"beta_schedule": "linear"})
    return UNetBackbone(UNet2DModel(**presets.unet_config("tiny")), schedule, "tiny")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def shown(figure: Figure, row: int, column: int, columns: int) -> np.ndarray:
    return np.asarray(figure.axes[row * columns + column].get_images()[0].get_array())


def titles(figure: Figure) -> list[str]:
    return [title for axes in figure.axes if (title := axes.get_title())]


def draw(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    return buffer.getvalue()


def scaled(scores: Tensor) -> Tensor:
    low, high = np.percentile(scores.numpy(), [1, 99])
    return ((scores - low) / (high - low)).clamp(0, 1)


def test_components_of_known_directions() -> None:
    generator = torch.Generator().manual_seed(1)
    directions = torch.linalg.qr(torch.randn(12, 3, generator=generator, dtype=torch.float64)).Q
    directions *= directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    scores = torch.randn(2 * 20 * 30, 3, generator=generator, dtype=torch.float64)
    # uncorrelated exactly, so that the directions are the components exactly
    scores = torch.linalg.qr(scores - scores.mean(0)).Q * torch.tensor([9.0, 4.0, 1.0])
    maps = (scores @ directions.T + 5).reshape(2, 20, 30, 12).permute(0, 3, 1, 2)
    rgb = pca_rgb(maps)
    assert rgb.shape == (2, 3, 20, 30)
    for k in range(3):
        expected = scaled(scores[:, k]).reshape(2, 20, 30)
        torch.testing.assert_close(rgb[:, k].double(), expected, atol=1e-5, rtol=0)


def test_components_do_not_depend_on_units() -> None:
    maps = torch.randn(3, 6, 5, 5, generator=torch.Generator().manual_seed(0))
    rgb = pca_rgb(maps)
    assert torch.equal(rgb, pca_rgb(maps.clone()))
    torch.testing.assert_close(pca_rgb(100 * maps + 7), rgb, atol=1e-4, rtol=0)
    torch.testing.assert_close(pca_rgb(-maps), 1 - rgb, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_components_of_few_and_many_channels(channels: int, dtype: torch.dtype) -> None:
    maps = torch.randn(2, channels, 4, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    rgb = pca_rgb(maps)
    assert rgb.shape == (2, 3, 4, 3)
    assert rgb.dtype == torch.float32
    assert rgb.amin() >= 0
    assert rgb.amax() <= 1
    assert (rgb[:, channels:] == 0.5).all()
    assert (rgb[:, : min(channels, 3)].amax((0, 2, 3)) == 1).all()


@pytest.mark.parametrize("value", [0.0, 0.1, -1e8])
def test_constant_maps_are_grey(value: float) -> None:
    assert (pca_rgb(torch.full((2, 5, 4, 4), value)) == 0.5).all()
    assert (pca_rgb(torch.full((1, 5, 1, 1), value)) == 0.5).all()


def test_one_component_that_varies() -> None:
    maps = torch.ones(1, 7, 1, 1) * torch.linspace(0, 1, 50).reshape(1, 1, 5, 10)
    rgb = pca_rgb(maps)
    assert (rgb[:, 0].flatten().diff() >= 0).all()
    assert (rgb[:, 1:] == 0.5).all()


def test_noised_images(backbone: UNetBackbone, images: Tensor) -> None:
    figure = pictures.noised_images(backbone, images, (500, 20), seed=3)
    assert titles(figure) == ["clean", "t = 20", "t = 500"]
    for row in range(2):
        np.testing.assert_allclose(
            shown(figure, row, 0, 3), (images[row].permute(1, 2, 0) + 1) / 2, atol=1e-6
        )
        for column, t in ((1, 20), (2, 500)):
            noise = seeded_noise((3, 16, 16), torch.tensor([row]), t, seed=3)
            x_t = backbone.add_noise(images[row : row + 1], t, noise)[0]
            np.testing.assert_allclose(
                shown(figure, row, column, 3), ((x_t + 1) / 2).clamp(0, 1).permute(1, 2, 0), atol=1e-6
            )
    with pytest.raises(DiffLensError, match="outside the schedule"):
        pictures.noised_images(backbone, images, (1000,), seed=0)


def test_grey_images_are_grey(images: Tensor) -> None:
    torch.manual_seed(0)
    unet = UNet2DModel(**{**presets.unet_config("tiny"), "in_channels": 1, "out_channels": 1})
    backbone = UNetBackbone(unet, NoiseSchedule.from_config({"beta_schedule": "linear"}), "grey")
    figure = pictures.noised_images(backbone, images[:, :1], (20,), seed=0)
    for axes in figure.axes:
        (picture,) = axes.get_images()
        assert picture.get_array().shape == (16, 16)
        assert (picture.get_cmap().name, picture.get_clim()) == ("gray", (0, 1))


def test_principal_components(backbone: UNetBackbone, images: Tensor) -> None:
    last = len(backbone.blocks)
    figure = pictures.principal_components(backbone, images, (last, 3), 20, seed=3)
    x_t = backbone.add_noise(images, 20, seeded_noise((3, 16, 16), torch.arange(2), 20, seed=3))
    with torch.no_grad():
        maps = backbone.features(x_t, 20, (3, last))
    side = maps[3].shape[-1]
    assert titles(figure) == ["input", f"block 3\n{side} x {side}", f"block {last}\n16 x 16"]
    for column, block in ((1, 3), (2, last)):
        expected = pca_rgb(maps[block]).permute(0, 2, 3, 1)
        for row in range(2):
            np.testing.assert_allclose(shown(figure, row, column, 3), expected[row], atol=1e-5)
    assert draw(figure) == draw(pictures.principal_components(backbone, images, (last, 3), 20, seed=3))
    with pytest.raises(DiffLensError, match="no block 99"):
        pictures.principal_components(backbone, images, (99,), 20, seed=0)


def test_confusion_matrix_counts() -> None:
    matrix = torch.tensor([[8, 2, 0], [0, 0, 0], [1, 0, 3]])
    figure = pictures.confusion_matrix(matrix, ("a $\\broken$", "b" * 99, "c\nd"), "which $ is which")
    axes = figure.axes[0]
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (0, 0): "8", (1, 0): "2", (0, 2): "1", (2, 2): "3"
    }  # fmt: skip
    shares = np.asarray(axes.get_images()[0].get_array()) ** 2
    np.testing.assert_allclose(shares, [[0.8, 0.2, 0], [0, 0, 0], [0.25, 0, 0.75]], atol=1e-9)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["a $\\broken$", "b" * 23 + "\u2026", "c d"]
    assert draw(figure)  # a dollar sign starts no formula


@pytest.mark.parametrize(
    ("count", "written", "labels"), [(10, True, 10), (30, True, 30), (31, False, 16), (1000, False, 25)]
)
def test_confusion_matrix_of_many_classes(count: int, written: bool, labels: int) -> None:
    figure = pictures.confusion_matrix(torch.eye(count, dtype=torch.long), [str(k) for k in range(count)], "")
    axes = figure.axes[0]
    assert len(axes.texts) == (count if written else 0)
    assert len(axes.get_xticks()) == len(axes.get_yticks()) == labels
    assert max(figure.get_size_inches()) <= 10


def test_confusion_matrix_of_other_classes() -> None:
    with pytest.raises(AssertionError, match="2 classes"):
        pictures.confusion_matrix(torch.eye(3), ("a", "b"), "")


def test_accuracy_bars() -> None:
    figure = pictures.accuracy_bars(
        ["pixels", "linear $x", "best"],
        [0.845, 0.903, 1.0],
        [(0.83, 0.86), (0.89, 0.915), (0.998, 1.0)],
        ["pixels"],
    )
    (axes,) = figure.axes
    dots = {line.get_ydata()[0]: line for line in axes.lines if line.get_marker() == "o"}
    assert [dots[row].get_xdata()[0] for row in range(3)] == pytest.approx([84.5, 90.3, 100])
    colours = [to_hex(dots[row].get_color()) for row in range(3)]
    assert colours == [pictures.BASELINE, pictures.ACCENT, pictures.ACCENT]
    intervals = [line.get_xdata() for line in axes.lines if line.get_marker() == "None" and line.get_alpha()]
    np.testing.assert_allclose(intervals, [[83, 86], [89, 91.5], [99.8, 100]])
    assert [text.get_text() for text in axes.texts] == ["84.5", "90.3", "100.0"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row is on top
    assert max(axes.get_xticks()) <= 100
    left, right = axes.get_xlim()
    assert right - left < 1.2 * (100 - 83)
    assert draw(figure)


def test_accuracy_bars_without_baseline() -> None:
    figure = pictures.accuracy_bars(["one"], [0.0], [(0.0, 0.0)], [])
    assert len(figure.axes[0].lines) == 2
    assert draw(figure)
