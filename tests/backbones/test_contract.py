"""The contract that all kinds of backbones keep; heads, sweeps, stores and reports rely on it alone."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from difflens import DiffLensError, HeadConfig, Probe, TrainedModel, make_head, sample
from difflens.backbones.base import Backbone, DiffusionBackbone
from difflens.backbones.bigan import BiGANBackbone, Generator, GeneratorConfig
from difflens.backbones.config import BackboneConfig
from difflens.backbones.encoder import EncoderBackbone
from difflens.extractors.config import ExtractorConfig
from difflens.extractors.feedback import FeedbackExtractor
from difflens.extractors.finetuned import FineTunedExtractor
from difflens.pretraining import networks
from tests.helpers import families, pipelines

FAMILIES: dict[str, Callable[[Path], Path]] = {
    "EDM": families.write_edm,
    "flow": families.write_flow,
    "consistency model": families.write_consistency_model,
    "NCSN++": families.write_ncsnpp,
    "LDM": families.write_ldm,
    "DiT": families.write_dit,
    "SD": pipelines.write_stable_diffusion,
    "SDXL": pipelines.write_stable_diffusion_xl,
    "PixArt": pipelines.write_pixart_alpha,
    "SD3": pipelines.write_stable_diffusion_3,
    "Flux": pipelines.write_flux,
    "CLASSES": partial(families.write_unet, num_class_embeds=5),
}

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
    **{name: BackboneConfig(name) for name in FAMILIES if name not in ("CLASSES", "Flux")},
    "Flux": BackboneConfig("Flux", image_size=32),
    "untrained LDM": BackboneConfig("random:LDM"),
    "untrained DiT": BackboneConfig("random:DiT"),
    "DiT, adaln": BackboneConfig("DiT", tap="adaln"),
    "classes": BackboneConfig("CLASSES", condition="3"),
    "mean class": BackboneConfig("CLASSES"),
}
ENCODERS = ("timm ResNet", "timm ViT", "BiGAN", "pre-trained ViT", "untrained ViT")
TRANSFORMERS = ("DiT", "DiT, adaln", "untrained DiT", "PixArt", "SD3", "Flux")
WITHOUT_DECODER = ("pixels", *ENCODERS, *TRANSFORMERS)


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
    folders = {"FOLDER": backbone_folder, "ADM": adm_file, **encoder_folders}
    if name in FAMILIES:
        folders[name] = family_root / name
        if not folders[name].exists():
            FAMILIES[name](folders[name])
    return replace(template, spec=f"{kind}{colon}{folders.get(name, name)}")


@pytest.fixture
def backbone(config: BackboneConfig) -> Backbone:
    return config.load()


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
    with pytest.raises(DiffLensError, match=rf"no block {count + 1}: the backbone has {count} blocks"):
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
