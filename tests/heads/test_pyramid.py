"""Pyramids from several networks: their strides, and the maps behind their levels."""

from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from difflens import DiffLensError, load_backbone
from difflens.backbones.base import Backbone
from difflens.backbones.unet import UNetBackbone
from difflens.extractors.base import Extractor
from difflens.extractors.feedback import FeedbackExtractor
from difflens.extractors.finetuned import FineTunedExtractor
from difflens.extractors.frozen import FrozenExtractor
from difflens.heads.pyramid import FeaturePyramid, usual_blocks, usual_strides
from difflens.pretraining.networks import unet_config
from difflens.processes.schedulers import process_of


def unet(levels: int, layers: int = 1, side: int = 64, **more: Any) -> Backbone:
    torch.manual_seed(levels)
    network = UNet2DModel(
        sample_size=side,
        in_channels=1,
        out_channels=1,
        layers_per_block=layers,
        norm_num_groups=4,
        block_out_channels=tuple(4 * (k + 1) for k in range(levels)),
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        **more,
    )
    return UNetBackbone(network, process_of())


def preset(name: str) -> Backbone:
    return UNetBackbone(UNet2DModel(**unet_config(name)), process_of())


def adm() -> Backbone:
    """Return a narrow network with the levels of ADM-256."""
    return unet(6, layers=2, side=256)


@pytest.mark.parametrize(
    ("make", "blocks", "strides"),
    [
        (adm, (24, 27, 30, 33), (2, 4, 8, 16)),  # the paper's
        (lambda: load_backbone("fashion"), (15, 18, 21, 25), (1, 2, 4, 8)),
        (lambda: unet(5), (12, 14, 16, 18), (2, 4, 8, 16)),
        (lambda: preset("scenes-small"), (12, 14, 16, 18), (2, 4, 8, 16)),
        (lambda: unet(3), (8, 10, 13), (1, 2, 4, 8)),
        (lambda: unet(2), (6, 9), (1, 2, 4, 8)),
        (lambda: load_backbone("pixels:1x32"), (1,), (1, 2, 4, 8)),
    ],
)
def test_usual_places_and_strides(make: Any, blocks: tuple[int, ...], strides: tuple[int, ...]) -> None:
    backbone = make()
    assert usual_blocks(backbone) == blocks
    assert usual_strides(backbone) == strides


def levels_of(
    extractor: Extractor, side: int, strides: tuple[int, ...] | None
) -> tuple[FeaturePyramid, list[torch.Tensor]]:
    backbone = extractor.backbone
    images = torch.rand(2, backbone.in_channels, side, side) * 2 - 1
    pyramid = FeaturePyramid(extractor.shapes(side), side, strides)
    return pyramid, pyramid(extractor(images, torch.arange(2)))


@pytest.mark.parametrize("levels", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", [FrozenExtractor, FeedbackExtractor, FineTunedExtractor])
def test_every_network_and_extractor_gives_every_stride_at_other_sides_too(levels: int, kind: Any) -> None:
    backbone = unet(levels)
    extractor = kind(backbone, usual_blocks(backbone), (5, 90))
    strides = usual_strides(backbone)
    for side in (64, 96):
        pyramid, maps = levels_of(extractor, side, strides)
        assert pyramid.strides == strides
        assert [tuple(level.shape) for level in maps] == [
            (2, channels, side // stride, side // stride)
            for channels, stride in zip(pyramid.channels, strides, strict=True)
        ]


def test_a_side_that_the_network_cannot_halve_is_refused() -> None:
    extractor = FrozenExtractor(unet(4), (7,), (5,))
    with pytest.raises(DiffLensError, match="multiple of 8"):
        extractor.shapes(36)


def test_a_pyramid_without_levels_is_refused() -> None:
    with pytest.raises(DiffLensError, match="strides is empty"):
        FeaturePyramid({(1, 5): (4, 8, 8)}, 16, ())


def test_noise_steps_and_blocks_of_one_stride_are_fused() -> None:
    backbone = load_backbone("fashion")
    extractor = FrozenExtractor(backbone, (16, 17, 20), (5, 20))
    pyramid, levels = levels_of(extractor, 32, None)
    assert pyramid.strides == (2, 4)
    assert pyramid.channels == (2 * 64, 2 * (96 + 128))
    for level in levels:  # normalised: every channel alike
        assert torch.allclose(level.mean((0, 2, 3)), torch.zeros(level.shape[1]), atol=1e-4)
        assert torch.allclose(level.std((0, 2, 3)), torch.ones(level.shape[1]), atol=0.05)


def test_maps_of_one_stride_can_be_mixed() -> None:
    """Each level is the mixture of the normalised maps of its stride, which a pyramid without it gives."""
    extractor = FrozenExtractor(load_backbone("fashion"), (16, 17, 20), (5, 20))
    maps = extractor(torch.rand(2, 1, 32, 32) * 2 - 1, torch.arange(2))
    plain = FeaturePyramid(extractor.shapes(32), 32)
    pyramid = FeaturePyramid(extractor.shapes(32), 32, (2, 4, 8), mixed=12)
    assert pyramid.channels == (12, 12, 12)
    two, four = plain(maps)
    fine, coarse, pooled = pyramid(maps)
    places = [(20, 5), (20, 20)], [(16, 5), (16, 20), (17, 5), (17, 20)]
    for stride, level, found, read in zip((2, 4), (two, four), (fine, coarse), places, strict=True):
        split = level.split([extractor.shapes(32)[place][0] for place in read], dim=1)
        expected = pyramid.mixtures[str(stride)](dict(zip(read, split, strict=True)))
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(pooled, torch.nn.functional.avg_pool2d(coarse, 2))


def test_a_level_that_is_no_whole_step_has_a_place() -> None:
    pyramid = FeaturePyramid({(1, 0.5): (8, 16, 16), (1, 2): (8, 16, 16)}, 16)
    assert set(pyramid.norms) == {"block1-t0_5", "block1-t2"}


def test_missing_levels_are_pooled_and_upsampled() -> None:
    extractor = FrozenExtractor(load_backbone("fashion"), (18,), (5,))  # stride 4
    _, (one, two, four, eight) = levels_of(extractor, 32, (1, 2, 4, 8))
    assert torch.allclose(eight, torch.nn.functional.avg_pool2d(four, 2), atol=1e-5)
    for fine, factor in ((two, 2), (one, 4)):
        again = torch.nn.functional.interpolate(four, scale_factor=factor, mode="bilinear")
        assert torch.allclose(fine, again, atol=1e-5)


def test_blocks_outside_the_usual_levels_add_theirs() -> None:
    backbone = adm()
    assert usual_strides(backbone, (37,)) == (1, 2, 4, 8)
    assert usual_strides(backbone, (21, 33)) == (2, 4, 8, 16, 32)
    assert usual_strides(backbone, (24,)) == (2, 4, 8, 16)
    assert usual_strides(backbone, (21, 37)) == (1, 2, 4, 8, 16, 32)
