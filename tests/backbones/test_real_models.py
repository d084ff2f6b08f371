"""The structure of published models, from their configurations or shapes: no weights are needed.

Known numbers of parameters come from the papers and model cards that the comments name.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from difflens import DiffLensError, load_backbone
from difflens.backbones.adm import unet_from_adm
from difflens.backbones.autoencoder import Autoencoder
from difflens.backbones.base import DiffusionBackbone
from difflens.backbones.conditions import class_condition, dit_condition
from difflens.backbones.config import BackboneConfig
from difflens.backbones.dit import transformer_from_dit
from difflens.backbones.load import _schedule as chosen_schedule
from difflens.backbones.transformer import TransformerBackbone
from difflens.backbones.unet import UNetBackbone
from difflens.processes.base import NoiseProcess
from difflens.processes.interpolant import LinearInterpolant
from difflens.processes.schedulers import process_of
from difflens.studies.info import block_costs
from tests.helpers import families, real_configs
from tests.helpers.adm import ADM_256, Adm
from tests.helpers.dit import XL_256, XL_512, Dit
from tests.helpers.real_configs import Files, write_model


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@dataclass(frozen=True)
class Facts:
    """What is known of a model.

    Attributes:
        roles: numbers of encoder, middle and decoder blocks.
        blocks: (channels, stride in pixels) by index.
        parameters: of the network, without autoencoder and text encoders.
        image_size: in pixels.
        latents: (channels, side), and None for pixels.
        scale, shift: of the latents.
        process: the process' name, and its bounds.
    """

    roles: tuple[int, int, int]
    blocks: dict[int, tuple[int, int]]
    parameters: int
    image_size: int
    process: str
    bounds: tuple[float, float]
    latents: tuple[int, int] | None = None
    scale: float = 1.0
    shift: float = 0.0


STEPS, TIMES = (0, 999), (0.0, 1.0)
# Stable Diffusion 1 and 2: the side of the map halves three times, from 1/8 of the image's
SD_BLOCKS = {
    1: (320, 8),
    4: (320, 16),
    6: (640, 16),
    7: (640, 32),
    9: (1280, 32),
    10: (1280, 64),
    13: (1280, 64),
    15: (1280, 64),
    16: (1280, 32),
    19: (1280, 16),
    21: (640, 16),
    22: (640, 8),
    25: (320, 8),
}

CONFIGURED: dict[str, tuple[Files, Facts]] = {
    # 675,129,632 parameters with the table of positions (Peebles and Xie, 2023: 675 M), which
    # diffusers keeps as a buffer of 256 x 1152; each of 28 blocks has embeddings of time (1,624,320) and
    # class (1,153,152) of its own
    "facebook/DiT-XL-2-256": (
        real_configs.DIT_256,
        Facts(
            (28, 0, 0),
            {1: (1152, 16), 28: (1152, 16)},
            675_129_632 - 256 * 1152 + 27 * (1_624_320 + 1_153_152),
            256,
            "variance preserving",
            STEPS,
            (4, 32),
            0.18215,
        ),
    ),
    # 274 M (Rombach et al., 2022, appendix)
    "CompVis/ldm-celebahq-256": (
        real_configs.LDM_CELEBAHQ,
        Facts(
            (12, 1, 12),
            {
                1: (224, 4),
                3: (224, 4),
                4: (224, 8),
                6: (448, 8),
                9: (672, 16),
                12: (896, 32),
                13: (896, 32),
                16: (896, 16),
                19: (672, 8),
                22: (448, 4),
                25: (224, 4),
            },
            274_056_163,
            256,
            "variance preserving",
            STEPS,
            (3, 64),
        ),
    ),
    # 35.7 M (Ho et al., 2020)
    "google/ddpm-cifar10-32": (
        real_configs.DDPM_CIFAR10,
        Facts(
            (12, 1, 12),
            {1: (128, 1), 4: (128, 2), 6: (256, 2), 12: (256, 8), 13: (256, 8), 22: (256, 1), 25: (128, 1)},
            35_746_307,
            32,
            "variance preserving",
            STEPS,
        ),
    ),
    # the same widths as in SGMSE+ (Richter et al., 2023), "about 65 million"; the figure is computed
    "google/ncsnpp-celebahq-256": (
        real_configs.NCSNPP_CELEBAHQ,
        Facts(
            (21, 1, 21),
            {
                1: (128, 1),
                4: (128, 2),
                9: (256, 4),
                21: (256, 64),
                22: (256, 64),
                25: (256, 32),
                43: (128, 1),
            },
            65_574_549,
            256,
            "variance exploding",
            (0.01, 1348.0),
        ),
    ),
    # guided-diffusion's network with an additive time embedding and three output channels, in place of six
    "openai/diffusers-cd_bedroom256_l2": (
        real_configs.CONSISTENCY_BEDROOM,
        Facts(
            (18, 1, 18),
            {
                1: (256, 1),
                4: (256, 2),
                12: (512, 8),
                13: (512, 16),
                18: (1024, 32),
                19: (1024, 32),
                22: (1024, 16),
                37: (256, 1),
            },
            sum(
                shape.numel()
                for shape in map(
                    torch.Size,
                    replace(ADM_256, scale_shift=False).shapes().values(),
                )
            )
            - 3 * (256 * 9 + 1),
            256,
            "consistency model",
            (0.002, 80.0),
        ),
    ),
    # "860M UNet" (model card of Stable Diffusion 1)
    "runwayml/stable-diffusion-v1-5": (
        real_configs.STABLE_DIFFUSION_1_5,
        Facts((12, 1, 12), SD_BLOCKS, 859_520_964, 512, "variance preserving", STEPS, (4, 64), 0.18215),
    ),
    # 865.9 M, as in repositories that print it (DiffBIR's ControlLDM: 865,910,724)
    "stabilityai/stable-diffusion-2-1": (
        real_configs.STABLE_DIFFUSION_2_1,
        Facts((12, 1, 12), SD_BLOCKS, 865_910_724, 768, "variance preserving", STEPS, (4, 96), 0.18215),
    ),
    # 0.6 B (Chen et al., 2024); the figure is computed
    "PixArt-alpha/PixArt-XL-2-512x512": (
        real_configs.PIXART_512,
        Facts(
            (28, 0, 0),
            {1: (1152, 16), 28: (1152, 16)},
            610_856_096,
            512,
            "variance preserving",
            STEPS,
            (4, 64),
            0.18215,
        ),
    ),
    # "2 billion parameters" (Stability AI's announcement); the figure is computed
    "stabilityai/stable-diffusion-3-medium-diffusers": (
        real_configs.STABLE_DIFFUSION_3,
        Facts(
            (24, 0, 0),
            {1: (1536, 16), 24: (1536, 16)},
            2_028_328_000,
            1024,
            "linear interpolant",
            TIMES,
            (16, 128),
            1.5305,
            0.0609,
        ),
    ),
    # "12 billion parameters" (model card); 11,901,408,320 as in diffusers' training examples
    "black-forest-labs/FLUX.1-dev": (
        real_configs.FLUX_DEV,
        Facts(
            (57, 0, 0),
            {1: (3072, 16), 19: (3072, 16), 20: (3072, 16), 57: (3072, 16)},
            11_901_408_320,
            1024,
            "linear interpolant",
            TIMES,
            (16, 128),
            0.3611,
            0.1159,
        ),
    ),
}


def check(backbone: DiffusionBackbone, facts: Facts) -> None:
    counts = tuple(len(backbone.of_role(role)) for role in ("encoder", "middle", "decoder"))
    assert counts == facts.roles
    for index, block in facts.blocks.items():
        assert (backbone.block(index).channels, backbone.block(index).stride) == block
    total = len(backbone.blocks)
    for block in backbone.blocks:
        mirrored = facts.roles[2] and block.role != "middle"
        assert block.mirror == (total + 1 - block.index if mirrored else None)
    assert parameters(backbone.network) == facts.parameters
    assert {parameter.device.type for parameter in backbone.parameters()} == {"meta"}
    assert (backbone.in_channels, backbone.image_size) == (3, facts.image_size)
    assert (backbone.process.name, backbone.process.bounds) == (facts.process, facts.bounds)
    if facts.latents is None:
        assert backbone.autoencoder is None
        assert backbone.input_shape == (3, facts.image_size, facts.image_size)
    else:
        channels, side = facts.latents
        assert backbone.input_shape == (channels, side, side)
        autoencoder = backbone.autoencoder
        assert autoencoder is not None
        assert autoencoder.stride == facts.image_size // side
        assert (autoencoder.scales, autoencoder.shifts) == ((facts.scale,), (facts.shift,))


@pytest.mark.parametrize("name", CONFIGURED)
def test_configured_models(name: str, tmp_path: Path) -> None:
    files, facts = CONFIGURED[name]
    text = "text_encoder" in files["model_index.json"]
    folder = write_model(tmp_path, files)
    backbone = load_backbone(f"random:{folder}", device="meta", condition="zero" if text else None)
    assert isinstance(backbone, DiffusionBackbone)
    check(backbone, facts)
    costs = block_costs(backbone)
    assert list(costs) == [block.index for block in backbone.blocks]
    assert sum(costs.values()) == pytest.approx(1)
    assert min(costs.values()) > 0


def test_the_autoencoders_of_latent_models(tmp_path: Path) -> None:
    """83.65 M and 55.3 M: the KL autoencoder of Stable Diffusion, and VQ-f4 of latent diffusion."""
    for name, expected in (("vae", 83_653_863), ("vqvae", 55_322_782)):
        files = real_configs.DIT_256 if name == "vae" else real_configs.LDM_CELEBAHQ
        folder = write_model(tmp_path / name, files) / name
        assert parameters(Autoencoder.from_folder(folder, meta=True).network) == expected


ADM_256_BLOCKS = {
    1: (256, 1),
    12: (512, 8),
    13: (512, 16),
    18: (1024, 32),
    19: (1024, 32),
    24: (1024, 16),
    37: (256, 1),
}
ADM = {
    # Dhariwal and Nichol (2021), appendix: 296, 422, 554 and 559 M. The unconditional network, without the
    # embeddings of 1,000 classes, has 552,814,086
    "64x64_diffusion.pt": (
        Adm(192, (1, 2, 3, 4), 3, (2, 4, 8), head_channels=64),
        True,
        Facts(
            (16, 1, 16),
            {1: (192, 1), 5: (192, 2), 8: (384, 2), 16: (768, 8), 17: (768, 8), 21: (768, 4), 33: (192, 1)},
            295_904_454,
            64,
            "variance preserving",
            STEPS,
        ),
        296,
    ),
    "128x128_diffusion.pt": (
        Adm(256, (1, 1, 2, 3, 4), 2, (4, 8, 16), head_channels=64),
        True,
        Facts(
            (15, 1, 15),
            {
                1: (256, 1),
                4: (256, 2),
                9: (512, 4),
                12: (768, 8),
                15: (1024, 16),
                16: (1024, 16),
                31: (256, 1),
            },
            421_529_606,
            128,
            "variance preserving",
            STEPS,
        ),
        422,
    ),
    "256x256_diffusion.pt": (
        ADM_256,
        True,
        Facts(
            (18, 1, 18),
            ADM_256_BLOCKS,
            553_838_086,
            256,
            "variance preserving",
            STEPS,
        ),
        554,
    ),
    "256x256_diffusion_uncond.pt": (
        ADM_256,
        False,
        Facts(
            (18, 1, 18),
            ADM_256_BLOCKS,
            552_814_086,
            256,
            "variance preserving",
            STEPS,
        ),
        553,
    ),
    "512x512_diffusion.pt": (
        Adm(256, (0.5, 1, 1, 2, 2, 4, 4), 2, (16, 32, 64), head_channels=64),
        True,
        Facts(
            (21, 1, 21),
            {1: (128, 1), 4: (128, 2), 6: (256, 2), 21: (1024, 64), 22: (1024, 64), 43: (128, 1)},
            558_997_638,
            512,
            "variance preserving",
            STEPS,
        ),
        559,
    ),
}


@pytest.mark.parametrize("name", ADM)
def test_adm(name: str) -> None:
    adm, conditional, facts, millions = ADM[name]
    state: dict[str, Tensor] = adm.meta_state()
    if conditional:
        state["label_emb.weight"] = torch.empty(1000, 4 * adm.model_channels, device="meta")
    unet = unet_from_adm(state)
    condition = class_condition(unet, None, name)
    assert (condition is not None) == conditional
    if condition is not None:
        assert condition.name == "mean of 1,000 class embeddings"
    backbone = UNetBackbone(unet, process_of(), name, condition=condition)
    check(backbone, facts)
    # the flags in guided-diffusion's README: --num_heads 4 for 128 pixels, --num_head_channels 64 for others
    widths = {(part.inner_dim, part.heads) for part in unet.modules() if isinstance(part, Attention)}
    assert all(heads == (4 if name.startswith("128") else width // 64) for width, heads in widths)
    assert round(facts.parameters / 1e6) == millions
    costs = block_costs(backbone.to("meta"))
    assert sum(costs.values()) == pytest.approx(1)


def test_settings_that_are_given_win_over_those_of_a_release() -> None:
    adm, conditional, *_ = ADM["128x128_diffusion.pt"]
    state: dict[str, Tensor] = adm.meta_state()
    assert conditional
    state["label_emb.weight"] = torch.empty(1000, 4 * adm.model_channels, device="meta")
    unet = unet_from_adm(state, 64)
    widths = {(part.inner_dim, part.heads) for part in unet.modules() if isinstance(part, Attention)}
    assert widths == {(width, width // 64) for width in (512, 768, 1024)}
    config = BackboneConfig("own.pt", noise_schedule="squaredcos_cap_v2")
    assert chosen_schedule(config, unet, {"noise_schedule"}) == "squaredcos_cap_v2"
    assert chosen_schedule(config, unet, set()) == "linear"


XL = {1: (1152, 16), 28: (1152, 16)}
# 675 M (Peebles and Xie, 2023; Ma et al., 2024), without the table of positions
XL_PARAMETERS = 675_129_632 - 256 * 1152


@pytest.mark.parametrize(
    ("dit", "process", "facts"),
    [
        (
            XL_256,
            LinearInterpolant(towards_noise=False),
            Facts((28, 0, 0), XL, XL_PARAMETERS, 256, "linear interpolant", TIMES, (4, 32), 0.18215),
        ),
        (
            XL_512,
            process_of(),
            Facts((28, 0, 0), XL, XL_PARAMETERS, 512, "variance preserving", STEPS, (4, 64), 0.18215),
        ),
    ],
    ids=["SiT-XL-2-256x256.pt", "DiT-XL-2-512x512.pt"],
)
def test_files_in_the_layout_of_dit(dit: Dit, process: NoiseProcess, facts: Facts, tmp_path: Path) -> None:
    network = transformer_from_dit(dit.meta_state())
    autoencoder = Autoencoder.from_folder(write_model(tmp_path, real_configs.SD_VAE), meta=True)
    condition = dit_condition(network, None, "dit")
    assert condition.name == "null class 1000"
    backbone = TransformerBackbone(network, process, "dit", autoencoder=autoencoder, condition=condition)
    check(backbone, facts)
    # 28 equal blocks; the embedding that they share runs in each
    assert list(block_costs(backbone.to("meta")).values()) == pytest.approx([1 / 28] * 28)
    with pytest.raises(DiffLensError, match=f"table of positions for images of {facts.image_size} pixels"):
        backbone.check_size(facts.image_size // 2)


def test_positions_of_a_file_are_not_computed_for_another_side(tmp_path: Path) -> None:
    torch.save(Dit().random_state(), tmp_path / "dit.pt")
    vae = str(families.write_autoencoder(tmp_path / "vae"))
    given = {"num_head_channels": 8, "family": "dit", "autoencoder": vae}
    assert load_backbone(str(tmp_path / "dit.pt"), **given).image_size == 16  # type: ignore[arg-type]
    with pytest.raises(DiffLensError, match="table of positions for images of 16 pixels"):
        load_backbone(str(tmp_path / "dit.pt"), image_size=32, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("classes", [1000, None])
def test_the_order_of_rows_in_adm_64(classes: int | None) -> None:
    """--use_new_attention_order True, for OpenAI's 64 pixels only (guided-diffusion's README)."""
    adm = ADM["64x64_diffusion.pt"][0]
    state = adm.meta_state()
    if classes is not None:
        state["label_emb.weight"] = torch.empty(classes, 4 * adm.model_channels, device="meta")
    name = "input_blocks.6.1.qkv.weight"
    width = state[name].shape[1]
    rows = torch.arange(3.0 * width)[:, None, None].expand(-1, width, 1)
    keys = unet_from_adm(state | {name: rows}).down_blocks[1].attentions[1].to_k.weight
    assert int(keys[0, 0].detach()) == (64 if classes is None else width)
