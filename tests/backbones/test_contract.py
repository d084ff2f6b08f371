"""The contract that all kinds of backbones keep; heads, sweeps, stores and reports rely on it alone."""

import copy
import json
import pickle
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from difflens import (
    DiffLensError,
    ExtractConfig,
    HeadConfig,
    Probe,
    SegmentationModel,
    SweepConfig,
    TrainedModel,
    extract,
    make_head,
    sample,
    sweep,
)
from difflens.backbones.base import Backbone, DiffusionBackbone
from difflens.backbones.bigan import BiGANBackbone, Generator, GeneratorConfig
from difflens.backbones.config import BACKBONE_OPTIONS, BackboneConfig
from difflens.backbones.encoder import EncoderBackbone
from difflens.extractors.config import ExtractorConfig
from difflens.extractors.feedback import FeedbackExtractor
from difflens.extractors.finetuned import FineTunedExtractor
from difflens.heads.config import SegmentationHeadConfig
from difflens.pretraining import networks
from tests.helpers.every import FAMILIES, TRANSFORMERS, write
from tests.helpers.files import contents
from tests.helpers.images import make_image_tree
from tests.helpers.processes import run_several

GOLDEN = Path(__file__).parents[1] / "fixtures" / "adm_tiny.safetensors"

KINDS = {
    "bundled": BackboneConfig("fashion"),
    "diffusers": BackboneConfig("FOLDER"),
    "adm": BackboneConfig("ADM", num_head_channels=16, image_size=32),
    "pixels": BackboneConfig("pixels:3x16"),
    "untrained": BackboneConfig("random:FOLDER"),
    "timm ResNet": BackboneConfig("random:timm:test_resnet", image_size=64),
    "timm ViT": BackboneConfig("random:timm:test_vit", image_size=64),
    "BiGAN": BackboneConfig("BIGAN"),
    "pre-trained ViT": BackboneConfig("VIT"),
    "untrained ViT": BackboneConfig("random:VIT"),
    **{name: BackboneConfig(name) for name in FAMILIES},
    "untrained LDM": BackboneConfig("random:LDM"),
    "untrained DiT": BackboneConfig("random:DiT"),
    "DiT, adaln": BackboneConfig("DiT", tap="adaln"),
    "mean class": BackboneConfig("classes", condition="mean"),
}
ENCODERS = ("timm ResNet", "timm ViT", "BiGAN", "pre-trained ViT", "untrained ViT")
SQUARE = ("DiT", "untrained DiT", "DiT, adaln", "DiT.pt", "SiT.pt", "REPA.pt")
WITHOUT_DECODER = ("pixels", *ENCODERS, *TRANSFORMERS, "DiT, adaln", "untrained DiT")


@pytest.fixture(scope="module")
def adm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = {k.removeprefix("weights."): v for k, v in load_file(GOLDEN).items() if k.startswith("weights.")}
    path = tmp_path_factory.mktemp("adm") / "x.pt"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def encoder_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return folders in the form that `pretrain` writes."""
    root = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    resnet, vit = (networks.encoder_config("tiny", kind) for kind in ("resnet", "vit"))
    generator = Generator(GeneratorConfig(8, (16, 8, 4), 3, 16))
    backbones = {
        "BIGAN": BiGANBackbone(resnet.build(), resnet, generator),
        "VIT": EncoderBackbone(vit.build(), vit, "mae"),
    }
    for name, backbone in backbones.items():
        (root / name).mkdir()
        backbone.save(root / name)
    return {name: root / name for name in backbones}


@pytest.fixture(scope="module")
def family_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(params=list(KINDS))
def config(
    request: pytest.FixtureRequest,
    backbone_folder: Path,
    adm_file: Path,
    encoder_folders: dict[str, Path],
    family_root: Path,
) -> BackboneConfig:
    template = KINDS[request.param]
    kind, colon, name = template.spec.rpartition(":")
    if name in FAMILIES:
        written = write(name, family_root)
        own = {"condition": template.condition or written.condition, "tap": template.tap}
        return replace(written, spec=f"{kind}{colon}{written.spec}", **own)
    folders = {"FOLDER": backbone_folder, "ADM": adm_file, **encoder_folders}
    return replace(template, spec=f"{kind}{colon}{folders.get(name, name)}")


@pytest.fixture(scope="module")
def loaded() -> dict[BackboneConfig, Backbone]:
    return {}


@pytest.fixture
def backbone(config: BackboneConfig, loaded: dict[BackboneConfig, Backbone]) -> Backbone:
    """A copy of the loaded backbone, whose weights a test may change."""
    if config not in loaded:
        loaded[config] = config.load()
    return copy.deepcopy(loaded[config])


def images_for(backbone: Backbone, count: int = 2) -> torch.Tensor:
    side = backbone.image_size
    return (
        torch.rand(count, backbone.in_channels, side, side, generator=torch.Generator().manual_seed(1)) * 2
        - 1
    )


def read(backbone: Backbone, images: torch.Tensor, blocks: list[int]) -> dict[int, torch.Tensor]:
    t = backbone.defaults.noise_step
    x_0 = backbone.encode(images)
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(2))
    return backbone.features(backbone.add_noise(x_0, t, noise), t, blocks)


def test_maps_are_as_the_blocks_say(backbone: Backbone) -> None:
    images = images_for(backbone)
    maps = read(backbone, images, [block.index for block in backbone.blocks])
    assert list(maps) == [block.index for block in backbone.blocks]
    for block in backbone.blocks:
        side = backbone.image_size // block.stride
        assert maps[block.index].shape == (2, block.channels, side, side)
        assert maps[block.index].isfinite().all()


def test_rectangles_keep_their_rows_and_columns(backbone: Backbone, request: pytest.FixtureRequest) -> None:
    kind, side, t = request.node.callspec.id, backbone.image_size, backbone.defaults.noise_step
    if kind in SQUARE:
        with pytest.raises(DiffLensError, match=f"{2 * side} x {side} pixels: .* square|other size"):
            backbone.check_size((side, 2 * side))
        return
    backbone.check_size((side, 2 * side))
    image = images_for(backbone, 1).repeat(1, 1, 1, 2)
    changed = image.clone()
    stride = backbone.block(1).stride
    changed[..., :stride, -stride:] *= -1  # the first row, the last column
    first, second = (backbone.features(backbone.encode(each), t, [1])[1] for each in (image, changed))
    assert first.shape[2:] == (side // stride, 2 * side // stride)
    difference = (first - second).abs().sum(1)[0]
    row, column = divmod(int(difference.argmax()), difference.shape[1])
    assert row <= 2
    assert column >= difference.shape[1] - 3


def test_a_block_alone_is_the_same_map(backbone: Backbone) -> None:
    images, last = images_for(backbone), len(backbone.blocks)
    everything = read(backbone, images, list(range(1, last + 1)))
    for index in {1, (last + 1) // 2, last}:
        alone = read(backbone, images, [index])
        assert list(alone) == [index]
        torch.testing.assert_close(alone[index], everything[index])


def test_an_image_has_its_maps_whatever_it_is_read_with(backbone: Backbone) -> None:
    images, last = images_for(backbone, 3), len(backbone.blocks)
    t = backbone.defaults.noise_step
    x_0 = backbone.encode(images)
    together, alone = (backbone.features(each, t, [last])[last] for each in (x_0, x_0[1:2]))
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=1e-3)


def test_a_copy_and_a_pickle_walk_their_own_weights(backbone: Backbone) -> None:
    images, last = images_for(backbone), [len(backbone.blocks)]
    expected = read(backbone, images, last)[last[0]]
    copied = copy.deepcopy(backbone)
    # diffusers' blocks that resample by FIR filters hold local functions, which have no pickle
    others = [copied] if "NCSN++" in backbone.spec else [copied, pickle.loads(pickle.dumps(backbone))]
    for other in others:
        assert torch.equal(read(other, images, last)[last[0]], expected)
    parameters = list(copied.parameters())
    for parameter in parameters:
        parameter.data.zero_()
    assert not parameters or not torch.equal(read(copied, images, last)[last[0]], expected)
    assert torch.equal(read(backbone, images, last)[last[0]], expected)


def test_it_is_frozen_and_stays_in_evaluation_mode(backbone: Backbone) -> None:
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    backbone.train()
    assert not any(module.training for module in list(backbone.modules())[1:])


def test_the_fingerprint_is_of_the_weights(backbone: Backbone, config: BackboneConfig) -> None:
    before = backbone.fingerprint()
    assert config.load().fingerprint() == before
    for parameter in list(backbone.parameters())[:1]:
        with torch.no_grad():
            parameter += 1
        assert backbone.fingerprint() != before


def test_wrong_places_are_refused_with_what_there_is(backbone: Backbone) -> None:
    images, count = images_for(backbone), len(backbone.blocks)
    with pytest.raises(DiffLensError, match=rf"no block {count + 1}: the backbone has {count} block"):
        backbone.features(images, 0, [count + 1])
    with pytest.raises(DiffLensError, match="is outside the schedule"):
        backbone.check_noise_steps([backbone.process.bounds[1] + 1])


def test_defaults_exist(backbone: Backbone) -> None:
    defaults = backbone.defaults
    backbone.check_blocks([defaults.block, *defaults.fusion_blocks, *defaults.feedback_blocks])
    backbone.check_noise_steps([defaults.noise_step, *defaults.fusion_noise_steps])


def test_parameters_of_all_blocks_are_found_once(backbone: Backbone) -> None:
    """The map of a block does not depend on the parameters of a later block."""
    images, middle = images_for(backbone), (len(backbone.blocks) + 1) // 2
    all_parameters = [p for block in backbone.blocks for p in backbone.parameters_of(block.index)]
    assert len({id(parameter) for parameter in all_parameters}) == len(all_parameters)
    if not all_parameters:
        pytest.skip("pixels have no parameters")
    earlier = read(backbone, images, [middle])[middle]
    with torch.no_grad():
        for index in range(middle + 1, len(backbone.blocks) + 1):
            for parameter in backbone.parameters_of(index):
                parameter.add_(1)
    assert torch.equal(read(backbone, images, [middle])[middle], earlier)
    with torch.no_grad():
        for parameter in backbone.parameters_of(middle):
            parameter.mul_(1.5)
    assert not torch.equal(read(backbone, images, [middle])[middle], earlier)


def test_what_generates_gives_images(backbone: Backbone) -> None:
    steps = 1 if isinstance(backbone, DiffusionBackbone) else None
    if not backbone.generates:
        with pytest.raises(DiffLensError, match="cannot generate"):
            sample(backbone, 2)
        return
    images = sample(backbone, 2, steps)
    assert images.shape[:2] == (2, backbone.in_channels)
    assert images.shape[2] == images.shape[3]
    assert images.dtype == torch.float32
    assert images.abs().max() <= 1
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize("config", WITHOUT_DECODER, indirect=True)
def test_feedback_needs_a_decoder(backbone: Backbone) -> None:
    images = images_for(backbone)
    with pytest.raises(DiffLensError, match="no decoder, so there is nothing to feed back"):
        backbone.features(images, 0, [1], feedback={1: images})
    with pytest.raises(DiffLensError, match="feedback needs a decoder"):
        FeedbackExtractor(backbone, [1], [backbone.defaults.noise_step])


@pytest.mark.parametrize("head", ["linear", "attention", "difformer"])
def test_a_probe_is_saved_and_loaded(config: BackboneConfig, tmp_path: Path, head: str) -> None:
    backbone = config.load()
    fusion = head == "difformer"
    blocks = backbone.defaults.fusion_blocks if fusion else (backbone.defaults.block,)
    steps = backbone.defaults.fusion_noise_steps if fusion else (backbone.defaults.noise_step,)
    extractor_config = ExtractorConfig("frozen", blocks, steps)
    extractor = extractor_config.build(backbone)
    head_config = HeadConfig(head, pool=4, width=16)  # type: ignore[arg-type]
    probe = Probe(extractor, make_head(head_config, extractor.shapes(), 3))
    model = TrainedModel(
        probe, ("a", "b", "c"), config, extractor_config, head_config, backbone.fingerprint()
    )
    model.save(tmp_path)
    images = images_for(backbone)
    torch.testing.assert_close(TrainedModel.load(tmp_path).probabilities(images), model.probabilities(images))


@pytest.mark.parametrize("config", ["EDM", "DiT", "DiT.pt"], indirect=True)
def test_a_fine_tuned_network_is_saved_and_loaded(config: BackboneConfig, tmp_path: Path) -> None:
    """The blocks of DiT.pt share one embedding, which is trained and saved once."""
    backbone = config.load()
    places = ExtractorConfig("finetuned", (2,), (backbone.defaults.noise_step,), from_block=1)
    extractor = places.build(backbone)
    head = HeadConfig("linear", pool=2)
    probe = Probe(extractor, make_head(head, extractor.shapes(), 3))
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.add_(0.01 * parameter.requires_grad)
    model = TrainedModel(probe, ("a", "b", "c"), config, places, head, config.load().fingerprint())
    model.save(tmp_path)
    images = images_for(backbone)
    torch.testing.assert_close(TrainedModel.load(tmp_path).probabilities(images), model.probabilities(images))


def test_fine_tuning_reaches_the_blocks_asked_for(backbone: Backbone) -> None:
    if not list(backbone.parameters()):
        pytest.skip("pixels have no parameters")
    last = len(backbone.blocks)
    extractor = FineTunedExtractor(backbone, [last], [backbone.defaults.noise_step], from_block=last)
    images = images_for(backbone)
    sum(maps.sum() for maps in extractor(images, torch.arange(2)).values()).backward()
    trained = {id(p) for parameters in extractor.trained_blocks.values() for p in parameters}
    assert trained
    for parameter in backbone.parameters():
        assert parameter.requires_grad == (id(parameter) in trained)
        assert parameter.grad is not None or not parameter.requires_grad


def options_of(config: BackboneConfig) -> dict[str, Any]:
    """The options of any command that reads a backbone, without its name."""
    return {name: getattr(config, name) for name in BACKBONE_OPTIONS}


@pytest.mark.parametrize("config", FAMILIES, indirect=True)
def test_a_sweep_measures_its_blocks(config: BackboneConfig, image_tree: Path, tmp_path: Path) -> None:
    backbone = config.load()
    blocks, level = (1, len(backbone.blocks)), backbone.defaults.noise_step
    result = sweep(
        SweepConfig(
            out=tmp_path / "sweep",
            backbone=config.spec,
            data=f"folder:{image_tree}",
            blocks=tuple({*blocks}),
            noise_steps=(level,),
            pool=1,
            workers=0,
            **options_of(config),
        )
    )
    assert result.noise_steps == (level,)
    assert result.accuracy["ridge"].shape == (1, len({*blocks}))
    (log_snr,) = result.log_snr
    expected = backbone.process.log_snr(level)
    assert log_snr == (expected if isfinite(expected) else None)


def test_its_maps_make_a_pyramid(backbone: Backbone) -> None:
    """A dense head reads blocks of several strides, or makes several levels of one stride."""
    strides = {block.stride: block.index for block in backbone.blocks}
    level = backbone.defaults.noise_step
    extractor = ExtractorConfig("frozen", tuple(strides.values()), (level,)).build(backbone)
    side = backbone.image_size
    head = SegmentationHeadConfig("upernet", side, strides=(4, 8, 16), width=8)
    probe = SegmentationModel.make(extractor, head, 3).eval()
    logits = probe(images_for(backbone), torch.arange(2), 0, size=(side, side))
    assert logits.shape == (2, 3, side, side)
    assert logits.isfinite().all()


@pytest.mark.parametrize("config", FAMILIES, indirect=True)
def test_the_same_network_untrained(config: BackboneConfig) -> None:
    """`random:` keeps structure, process and autoencoder, and draws the same weights each time."""
    trained = config.load()
    fresh, again = (replace(config, spec=f"random:{config.spec}").load() for _ in range(2))
    assert isinstance(trained, DiffusionBackbone)
    assert isinstance(fresh, DiffusionBackbone)
    assert (fresh.blocks, fresh.defaults) == (trained.blocks, trained.defaults)
    assert (fresh.input_shape, fresh.image_size) == (trained.input_shape, trained.image_size)
    assert fresh.process.fingerprint() == trained.process.fingerprint()
    assert fresh.fingerprint() == again.fingerprint() != trained.fingerprint()
    images = images_for(trained)
    assert torch.equal(fresh.encode(images), trained.encode(images))
    maps = [read(each, images, [fresh.defaults.block])[fresh.defaults.block] for each in (fresh, trained)]
    assert maps[0].isfinite().all()
    assert not torch.allclose(*maps)


@pytest.fixture(scope="module")
def by_two(family_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Options of `extract` by family, whose stores one pair of processes has written."""
    root = tmp_path_factory.mktemp("stores")
    data = str(make_image_tree(root / "images", per_class=3))
    wanted = {}
    for name in FAMILIES:
        config = write(name, family_root)
        wanted[name] = {
            "out": str(root / name.replace(".", "-")),  # NAME.pt would be a file of vectors
            "backbone": config.spec,
            "data": data,
            "noise_steps": (config.load().defaults.noise_step,),
            "pool": 2,
            "workers": 0,
            "device": "cpu",
            **options_of(config),
        }
    script = root / "stores.json"
    script.write_text(json.dumps([*wanted.values()]))
    run_several(2, "tests.helpers.stores", script)
    return wanted


@pytest.mark.parametrize("name", FAMILIES)
def test_two_processes_write_the_store_that_one_writes(
    by_two: dict[str, dict[str, Any]], name: str, tmp_path: Path
) -> None:
    options = by_two[name]
    result = extract(ExtractConfig(**{**options, "out": tmp_path / "store"}))
    assert result.bytes > 0
    assert contents(Path(options["out"])) == contents(tmp_path / "store")
