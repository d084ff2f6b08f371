"""timm models as backbones: timm's maps on the model's range of pixels, and all errors."""

import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from difflens import DiffLensError, load_backbone
from difflens.backbones.load import resolved
from difflens.backbones.timm import TimmBackbone

NAMES = ("test_resnet", "test_vit")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write a checkpoint of each model, with its classifier, like published ones."""
    folder, found = tmp_path_factory.mktemp("timm"), {}
    for name in NAMES:
        torch.manual_seed(5)
        found[name] = folder / f"{name}.safetensors"
        save_file(timm.create_model(name).state_dict(), found[name])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_maps_are_the_models_own(name: str, weights: dict[str, Path]) -> None:
    """Compare with timm on pixels normalised as in the model's training, by torchvision's definition."""
    backbone = load_backbone(f"timm:{name}@{weights[name]}")
    pixels = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    model = timm.create_model(name, checkpoint_path=str(weights[name])).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        last = model.forward_features((pixels - mean) / std)
    maps = backbone.features(2 * pixels - 1, 0, [len(backbone.blocks)])[len(backbone.blocks)]
    if name == "test_vit":
        last = last[:, 1:].transpose(1, 2).unflatten(2, (10, 10))  # without the class token
    torch.testing.assert_close(maps, last, atol=1e-4, rtol=1e-4)


def test_a_model_with_a_mean_of_its_own() -> None:
    backbone = load_backbone("random:timm:resnet18")
    settings = timm.get_pretrained_cfg("resnet18")
    assert settings.mean != (0.5, 0.5, 0.5)
    # an image that is the model's mean at every pixel is normalised to 0
    image = (2 * torch.tensor(settings.mean) - 1).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    seen: list[torch.Tensor] = []
    backbone.network.conv1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    backbone.features(image, 0, [1])
    assert seen[0].abs().max() < 1e-6


def test_grey_images_are_taken_as_rgb() -> None:
    backbone = load_backbone("random:timm:test_resnet")
    grey = torch.rand(2, 1, 160, 160) * 2 - 1
    torch.testing.assert_close(
        backbone.features(grey, 0, [5])[5], backbone.features(grey.expand(2, 3, 160, 160), 0, [5])[5]
    )


def test_blocks() -> None:
    resnet, vit = load_backbone("random:timm:resnet18"), load_backbone("random:timm:vit_tiny_patch16_224")
    assert [block.channels for block in resnet.blocks] == [64, 64, 128, 256, 512]
    assert [block.stride for block in resnet.blocks] == [2, 4, 8, 16, 32]
    assert [(block.channels, block.stride) for block in vit.blocks] == [(192, 16)] * 12
    assert (resnet.image_size, resnet.in_channels, resnet.process.bounds) == (224, 3, (0, 0))
    assert resnet.defaults.block == 5
    assert vit.defaults.fusion_blocks == (6, 9, 12)


def test_the_walk_stops_after_the_last_block() -> None:
    backbone = load_backbone("random:timm:test_vit")
    ran: list[int] = []
    for number, block in enumerate(backbone.network.blocks, start=1):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    backbone.features(torch.zeros(1, 3, 160, 160), 0, [2])
    assert ran == [1, 2]


def test_another_image_size() -> None:
    assert load_backbone("random:timm:test_vit", image_size=64).block(1).stride == 16
    with pytest.raises(DiffLensError, match=r"timm does not give|does not take images of 50 pixels"):
        load_backbone("random:timm:test_vit", image_size=50)


@torch.no_grad()
def test_a_family_without_a_norm_of_maps_gives_them_raw() -> None:
    backbone = load_backbone("random:timm:hiera_tiny_224")
    assert isinstance(backbone, TimmBackbone)
    assert [block.stride for block in backbone.blocks] == [4, 8, 16, 32]
    pixels = torch.rand(1, 3, 224, 224)
    mean, deviation = (torch.tensor(backbone.network.pretrained_cfg[name]) for name in ("mean", "std"))
    images = (pixels - mean[:, None, None]) / deviation[:, None, None]
    (expected,) = backbone.network.forward_intermediates(images, indices=[1], intermediates_only=True)
    torch.testing.assert_close(backbone.features(2 * pixels - 1, 0, [2])[2], expected, atol=1e-5, rtol=1e-4)


def test_untrained_weights_are_always_the_same_and_need_no_hub() -> None:
    torch.manual_seed(1)
    first = load_backbone("random:timm:test_resnet")
    torch.manual_seed(2)
    assert load_backbone("random:timm:test_resnet").fingerprint() == first.fingerprint()
    assert first.spec == "random:timm:test_resnet"


def test_weights_of_a_torch_checkpoint(tmp_path: Path, weights: dict[str, Path]) -> None:
    model = timm.create_model("test_resnet", checkpoint_path=str(weights["test_resnet"]))
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "x.pth")
    stored = load_backbone(f"timm:test_resnet@{tmp_path / 'x.pth'}")
    assert stored.fingerprint() == load_backbone(f"timm:test_resnet@{weights['test_resnet']}").fingerprint()
    assert stored.fingerprint() != load_backbone("random:timm:test_resnet").fingerprint()


def test_files_of_moco_and_swav_hold_more_than_the_encoder(tmp_path: Path, weights: dict[str, Path]) -> None:
    expected = load_backbone(f"timm:test_resnet@{weights['test_resnet']}").fingerprint()
    encoder = timm.create_model("test_resnet", checkpoint_path=str(weights["test_resnet"])).state_dict()
    encoder = {name: value for name, value in encoder.items() if not name.startswith("fc.")}
    other = torch.ones(2)
    moco = {f"module.encoder_{which}.{name}": value for which in "qk" for name, value in encoder.items()}
    moco |= {"module.encoder_q.fc.0.weight": other, "module.queue": other, "module.queue_ptr": other}
    swav = {f"module.{name}": value for name, value in encoder.items()}
    swav |= {"module.projection_head.0.weight": other, "module.prototypes.weight": other}
    for name, content in (("moco", {"epoch": 1, "state_dict": moco}), ("swav", swav)):
        torch.save(content, tmp_path / f"{name}.pth")
        assert load_backbone(f"timm:test_resnet@{tmp_path / name}.pth").fingerprint() == expected, name


def test_files_that_are_not_the_weights(tmp_path: Path, weights: dict[str, Path]) -> None:
    with pytest.raises(DiffLensError, match=r"no weights: there is no file .*missing"):
        load_backbone(f"timm:test_resnet@{tmp_path / 'missing.pth'}")
    with pytest.raises(DiffLensError, match="does not hold weights of this model"):
        load_backbone(f"timm:test_resnet@{weights['test_vit']}")
    (tmp_path / "broken.safetensors").write_bytes(weights["test_vit"].read_bytes()[:1000])
    with pytest.raises(DiffLensError, match="does not hold weights of this model"):
        load_backbone(f"timm:test_vit@{tmp_path / 'broken.safetensors'}")
    larger = timm.create_model("test_vit").state_dict()
    larger["blocks.6.norm1.weight"] = torch.ones(64)
    save_file(larger, tmp_path / "larger.safetensors")
    with pytest.raises(DiffLensError, match=r"1 are missing or left over, blocks\.6\.norm1\.weight"):
        load_backbone(f"timm:test_vit@{tmp_path / 'larger.safetensors'}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("timm:resnet19", r"timm has no model 'resnet19'; did you mean .*resnet18"),
        ("timm:resnet18.nonsense", "timm has no model 'resnet18.nonsense'; did you mean .*resnet18"),
        ("timm:", "timm has no model ''"),
        ("random:timm:test_vit@x.pth", "write random:timm:test_vit"),
    ],
)
def test_names_that_mean_nothing(spec: str, message: str) -> None:
    with pytest.raises(DiffLensError, match=message):
        load_backbone(spec)


def test_weights_that_nobody_has() -> None:
    with pytest.raises(DiffLensError, match=r"No pretrained weights exist.*random:timm:coatnet_0_224"):
        load_backbone("timm:coatnet_0_224")


def test_the_hub_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/nowhere")
    with pytest.raises(DiffLensError, match=r"timm does not give the model resnet18 .*timm:resnet18@FILE"):
        load_backbone("timm:resnet18")


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(DiffLensError, match=r'pip install "difflens\[compare\]"'):
        load_backbone("random:timm:resnet18")


def test_a_spec_that_means_the_same_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet18").mkdir()
    assert resolved("timm:resnet18") == "timm:resnet18"
    assert resolved("random:timm:resnet18") == "random:timm:resnet18"
    assert resolved("timm:resnet18@x.pth") == f"timm:resnet18@{tmp_path / 'x.pth'}"
    assert resolved("random:resnet18") == f"random:{tmp_path / 'resnet18'}"
    assert resolved("fashion") == "fashion"


def test_a_vit_takes_images_of_its_own_size() -> None:
    backbone = load_backbone("random:timm:vit_tiny_patch16_224", image_size=32)
    for size in ((48, 48), (32, 48)):
        with pytest.raises(DiffLensError, match="of 32 pixels, as it was loaded"):
            backbone.check_size(size)
