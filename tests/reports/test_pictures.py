"""Pictures show the right pixels and titles."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from difflens.backbones.unet import UNetBackbone
from difflens.errors import DiffLensError
from difflens.extractors.frozen import FrozenExtractor
from difflens.noise import seeded_noise
from difflens.pretraining import networks
from difflens.processes.schedulers import process_of
from difflens.reports import pictures
from difflens.reports.pictures import pca_rgb
from tests.helpers.figures import assert_room, draw, laid_out, log_snr


@pytest.fixture(scope="module")
def backbone() -> UNetBackbone:
    torch.manual_seed(0)
    schedule = process_of({"beta_schedule": "linear"})
    return UNetBackbone(UNet2DModel(**networks.unet_config("tiny")), schedule, "tiny")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def rows_of(figure: Figure) -> list[list[AxesImage]]:
    """The images by their places: from the top, in each row from the left. None overlaps another."""
    axes = figure.axes[0]  # others hold scales
    found: dict[float, list[AxesImage]] = {}
    for image in axes.get_images():
        found.setdefault(round(image.get_extent()[3], 3), []).append(image)
    rows = [sorted(found[top], key=lambda image: image.get_extent()[0]) for top in sorted(found)]
    for row in rows:
        extents = [image.get_extent() for image in row]
        assert all(one[1] < other[0] for one, other in pairwise(extents))
    assert all(max(i.get_extent()[2] for i in a) < b[0].get_extent()[3] for a, b in pairwise(rows))
    return rows


def shown(figure: Figure, row: int, column: int) -> np.ndarray:
    return np.asarray(rows_of(figure)[row][column].get_array())


def texts(figure: Figure) -> list[str]:
    """The texts by their places: line by line."""
    (axes,) = figure.axes
    placed = sorted(axes.texts, key=lambda text: text.get_position()[::-1])
    assert_room(laid_out(figure), placed)
    return [text.get_text() for text in placed]


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
    noised = FrozenExtractor(backbone, (1,), (500, 20), seed=3).noised(images, torch.arange(2))
    figure = pictures.noised_images(images, noised, log_snr(20, 500))
    assert texts(figure) == ["clean", "t = 20\nlog-SNR 5.1", "t = 500\nlog-SNR -2.5"]
    for row in range(2):
        np.testing.assert_allclose(shown(figure, row, 0), (images[row].permute(1, 2, 0) + 1) / 2, atol=1e-6)
        for column, t in ((1, 20), (2, 500)):
            noise = seeded_noise((3, 16, 16), torch.tensor([row]), t, seed=3)
            x_t = backbone.add_noise(images[row : row + 1], t, noise)[0]
            np.testing.assert_allclose(
                shown(figure, row, column), ((x_t + 1) / 2).clamp(0, 1).permute(1, 2, 0), atol=1e-6
            )
    with pytest.raises(DiffLensError, match="outside the schedule"):
        FrozenExtractor(backbone, (1,), (1000,), seed=0)


def test_grey_images_are_grey(images: Tensor) -> None:
    torch.manual_seed(0)
    unet = UNet2DModel(**{**networks.unet_config("tiny"), "in_channels": 1, "out_channels": 1})
    backbone = UNetBackbone(unet, process_of({"beta_schedule": "linear"}), "grey")
    noised = FrozenExtractor(backbone, (1,), (20,)).noised(images[:, :1], torch.arange(2))
    figure = pictures.noised_images(images[:, :1], noised, log_snr(20))
    for picture in figure.axes[0].get_images():
        assert picture.get_array().shape == (16, 16)
        assert (picture.get_cmap().name, picture.get_clim()) == ("gray", (0, 1))


def test_principal_components(backbone: UNetBackbone, images: Tensor) -> None:
    last = len(backbone.blocks)
    read = FrozenExtractor(backbone, (last, 3), (20,), seed=3)(images, torch.arange(2))
    figure = pictures.principal_components(images, {block: maps for (block, _), maps in read.items()})
    x_t = backbone.add_noise(images, 20, seeded_noise((3, 16, 16), torch.arange(2), 20, seed=3))
    with torch.no_grad():
        maps = backbone.features(x_t, 20, (3, last))
    side = maps[3].shape[-1]
    assert texts(figure) == ["input", f"block 3\n{side} x {side}", f"block {last}\n16 x 16"]
    for column, block in ((1, 3), (2, last)):
        expected = pca_rgb(maps[block]).permute(0, 2, 3, 1)
        for row in range(2):
            np.testing.assert_allclose(shown(figure, row, column), expected[row], atol=1e-5)
    assert draw(figure) == draw(pictures.principal_components(images, maps))
    with pytest.raises(DiffLensError, match="no block 99"):
        FrozenExtractor(backbone, (99,), (20,), seed=0)


def test_confused_pairs(images: Tensor) -> None:
    grey = torch.randint(0, 256, (9, 1, 5, 5), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    pairs = [("a $\\broken$", "b" * 99, 1234, grey), ("cat", "dog", 1, images[:1])]
    figure = pictures.confused_pairs(pairs)
    assert texts(figure) == [
        *("a $\\broken$", "\u2192 " + "b" * 23 + "\u2026", "1,234 images"),
        *("cat", "\u2192 dog", "1 image"),
    ]
    assert [len(row) for row in rows_of(figure)] == [6, 1]
    for column in range(6):
        np.testing.assert_allclose(shown(figure, 0, column), grey[column, 0] / 255, atol=1e-6)
    np.testing.assert_allclose(shown(figure, 1, 0), (images[0].permute(1, 2, 0) + 1) / 2, atol=1e-6)
    assert draw(figure)


def test_no_confused_pairs() -> None:
    with pytest.raises(AssertionError, match="no pair"):
        pictures.confused_pairs([])


def test_components_over_noise_share_their_colours() -> None:
    generator = torch.Generator().manual_seed(0)
    low, high = torch.randn(2, 3, 4, 4, generator=generator), torch.randn(2, 3, 4, 4, generator=generator) + 2
    noised = {5: torch.zeros(2, 1, 8, 8), 50: torch.ones(2, 1, 8, 8)}
    figure = pictures.components_over_noise(noised, {(1, 5): low, (1, 50): high}, log_snr(5, 50), image=1)
    assert texts(figure) == ["input", "block 1\n4 x 4", "t = 5\nlog-SNR 7.0", "t = 50\nlog-SNR 3.5"]
    together = pca_rgb(torch.cat([low, high]))
    for row, number in enumerate((1, 3)):
        np.testing.assert_allclose(shown(figure, row, 1), together[number].permute(1, 2, 0).numpy())
    assert float(shown(figure, 0, 0).max()) == 0.5  # grey 0 in [-1, 1]
    assert draw(figure)


def test_overlays_are_red_where_attention_is_above_its_mean_and_blue_below() -> None:
    """The picture beneath does not matter: its left half is black, and its right half white."""
    images = torch.ones(2, 3, 8, 8)
    images[..., :4] = -1
    weights = torch.full((2, 4, 4), 0.01)
    weights[0, :, :2] = 0.04
    maps = {"block 1": weights, "block 2": 7 * weights}
    figure = pictures.attention_overlays(images, maps)
    redness = shown(figure, 0, 1)[..., 0] - shown(figure, 0, 1)[..., 2]
    assert (redness[:, 0] > 0.2).all()
    assert (redness[:, 7] < -0.2).all()
    assert np.ptp(shown(figure, 1, 1)[:, :4]) < 0.01  # the same everywhere: no colour
    np.testing.assert_allclose(shown(figure, 0, 1), shown(figure, 0, 2), atol=1e-6)
    bar = figure.axes[1]
    assert [label.get_text() for label in bar.get_xticklabels()] == ["1/4", "1/2", "1", "2", "4"]
    assert draw(figure)


def test_nearest_neighbours() -> None:
    queries, found = torch.full((2, 1, 4, 4), -1.0), torch.ones(2, 3, 1, 4, 4)
    figure = pictures.nearest_neighbours(queries, found, ["coat", "bag"], [["a", "b", "$c$"]] * 2)
    assert texts(figure) == ["coat", "a", "b", "$c$", "bag", "a", "b", "$c$"]
    assert shown(figure, 0, 0).max() == 0
    assert shown(figure, 1, 3).min() == 1
    assert draw(figure)
