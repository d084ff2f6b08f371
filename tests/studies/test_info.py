"""`difflens info`: a backbone described without reading an image."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from difflens import DiffLensError, InfoConfig, ProbeConfig, info, load_backbone, probe
from difflens.backbones.base import DiffusionBackbone
from difflens.studies.info import block_costs
from tests.helpers import families, pipelines
from tests.helpers.adm import Adm
from tests.helpers.cli import run
from tests.helpers.dit import Dit

WRITERS = {
    write.__name__: write
    for write in (
        families.write_edm,
        families.write_flow,
        families.write_consistency_model,
        families.write_ncsnpp,
        families.write_ldm,
        families.write_dit,
        pipelines.write_stable_diffusion,
        pipelines.write_stable_diffusion_3,
        pipelines.write_pixart_alpha,
    )
}


def test_the_bundled_backbone() -> None:
    result = info(InfoConfig(backbone="fashion"))
    backbone = load_backbone("fashion")
    assert (result.parameters, result.channels, result.image_size) == (4_946_369, 1, 32)
    for described, block in zip(result.blocks, backbone.blocks, strict=True):
        assert (described.index, described.role, described.mirror) == (block.index, block.role, block.mirror)
        assert (described.channels, described.stride) == (block.channels, block.stride)
    noise = result.noise
    assert noise is not None
    assert (noise.unit, noise.bounds, noise.scheduler, noise.prediction) == (
        "step",
        (0, 999),
        "DDPMScheduler",
        "epsilon",
    )
    assert noise.rises
    first, last = noise.log_snr
    assert first == pytest.approx(float(torch.tensor(1 / 1e-4 - 1).log()), rel=1e-4)  # abar_0 = 1 - 1e-4
    assert last == pytest.approx(-10.12, abs=0.01)
    assert (result.latents, result.condition, result.tap, result.time_embedding) == (None, None, None, None)
    assert result.defaults.log_snr == pytest.approx(backbone.process.log_snr(5))
    assert {"ddpm", "ddim"} <= set(result.samplers)
    assert result.generates
    assert result.card is not None


def counted(backbone: DiffusionBackbone, last: int) -> int:
    level = backbone.defaults.noise_step
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        backbone.features(torch.zeros(1, *backbone.input_shape), level, [last])
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "write", [families.write_unet, families.write_ncsnpp, pipelines.write_stable_diffusion]
)
def test_shares_of_the_cost_are_those_of_a_real_pass(write: Callable[[Path], Path], tmp_path: Path) -> None:
    """The walk to block k costs what its blocks cost together, and the embedding of the time besides."""
    backbone = load_backbone(str(write(tmp_path)))
    assert isinstance(backbone, DiffusionBackbone)
    costs = block_costs(backbone)
    assert sum(costs.values()) == pytest.approx(1)
    walks = [counted(backbone, last) for last in range(1, len(backbone.blocks) + 1)]
    together = (walks[-1] - walks[0]) / (1 - costs[1])
    for index in range(2, len(backbone.blocks) + 1):
        assert costs[index] == pytest.approx((walks[index - 1] - walks[index - 2]) / together)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_untrained_networks_are_described_without_weights(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    trained = info(InfoConfig(backbone=str(write(tmp_path))))
    for part in ("unet", "transformer", "vae", "vqvae", "text_encoder", "."):
        for weights in (tmp_path / part).glob("*.safetensors"):
            weights.unlink()
    untrained = info(InfoConfig(backbone=f"random:{tmp_path}"))
    assert [block.index for block in untrained.blocks] == [block.index for block in trained.blocks]
    same = ("network", "parameters", "image_size", "noise", "latents", "condition", "tap", "defaults")
    for name in same:
        assert getattr(untrained, name) == getattr(trained, name)
    for one, other in zip(untrained.blocks, trained.blocks, strict=True):
        assert one.cost == pytest.approx(other.cost, abs=0.01)  # a prompt of 77 tokens stands for a tiny one


@pytest.mark.parametrize(
    ("write", "unit", "bounds", "infinite", "formula", "prediction"),
    [
        (families.write_edm, "sigma", (0.002, 80), (False, False), "ln(sigma) / 4 is told", "F"),
        (families.write_consistency_model, "sigma", (0.002, 80), (False, False), "250 ln(sigma)", "F"),
        (families.write_ncsnpp, "sigma", (0.01, 1348), (False, False), "sigma is told", "score"),
        (families.write_flow, "time", (0, 1), (True, True), "(1 - t) x_0 + t noise", "velocity"),
        (families.write_ldm, "step", (0, 999), (False, False), "sqrt(abar_t) x_0", "epsilon"),
    ],
)
def test_noise_processes(
    write: Callable[[Path], Path],
    unit: str,
    bounds: tuple[float, float],
    infinite: tuple[bool, bool],
    formula: str,
    prediction: str,
    tmp_path: Path,
) -> None:
    noise = info(InfoConfig(backbone=f"random:{write(tmp_path)}")).noise
    assert noise is not None
    assert (noise.unit, noise.bounds, noise.rises) == (unit, bounds, True)
    assert tuple(value is None for value in noise.log_snr) == infinite
    assert formula in noise.formula
    assert noise.prediction == prediction


def test_fields_of_the_scheduler_that_are_used_and_those_that_are_not(tmp_path: Path) -> None:
    result = info(InfoConfig(backbone=f"random:{families.write_edm(tmp_path)}"))
    noise = result.noise
    assert noise is not None
    assert noise.used == {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}
    assert {"rho", "prediction_type", "sigma_schedule"} <= {*noise.unused}
    lines = result.summary().splitlines()
    assert any(re.fullmatch(r" *fields used +sigma_min 0.002, .*", line) for line in lines)
    assert any(re.fullmatch(r" *features ignore +.*prediction_type, rho.*", line) for line in lines)


def test_latents_of_an_ldm(tmp_path: Path) -> None:
    families.write_ldm(tmp_path)
    config = tmp_path / "vqvae" / "config.json"
    written = json.loads(config.read_text())
    del written["scaling_factor"]
    config.write_text(json.dumps(written))
    result = info(InfoConfig(backbone=f"random:{tmp_path}"))
    latents = result.latents
    assert latents is not None
    assert (latents.autoencoder, latents.channels, latents.side, latents.stride) == ("VQModel", 3, 16, 2)
    assert (latents.scale, latents.shift) == ((1.0,), (0.0,))
    assert "3 x 16 x 16, stride 2, scale 1\n" in result.summary()
    assert result.parameters == sum(
        parameter.numel() for parameter in UNet2DModel(**families.UNET).parameters()
    )


def test_a_folder_of_dit_and_a_file_in_its_layout(tmp_path: Path) -> None:
    """The two embed time by different formulas; the file's blocks share one embedding."""
    folder = info(InfoConfig(backbone=str(families.write_dit(tmp_path / "folder")), tap="norm"))
    assert (folder.tap, folder.condition and folder.condition.name) == ("norm", "null class 10")
    assert folder.condition is not None
    assert folder.condition.takes == "null, mean, zero or a class from 0 to 9"
    assert folder.time_embedding is not None
    assert "-k / 127" in folder.time_embedding
    file, dit = tmp_path / "dit.pt", Dit()
    torch.save(dit.random_state(), file)
    vae = families.write_autoencoder(tmp_path / "vae")
    for prefix in ("", "random:"):
        given = InfoConfig(
            backbone=f"{prefix}{file}", family="sit", num_head_channels=8, autoencoder=str(vae)
        )
        result = info(given)
        assert result.time_embedding is not None
        assert "-k / 128" in result.time_embedding
        assert [block.cost for block in result.blocks] == pytest.approx([1 / 3] * 3)
        shapes = {name: torch.Size(shape) for name, shape in dit.shapes().items() if name != "pos_embed"}
        assert result.parameters == sum(shape.numel() for shape in shapes.values())
        assert result.noise is not None
        assert (result.noise.scheduler, result.noise.log_snr, result.noise.rises) == (
            None,
            (None, None),
            False,
        )
        summary = result.summary()
        assert "log-SNR from minus infinity to infinity" in summary
        assert "no scheduler file was read" in summary


@pytest.mark.parametrize("write", [families.write_dit, pipelines.write_stable_diffusion_3])
def test_the_tap_changes_no_cost(write: Callable[[Path], Path], tmp_path: Path) -> None:
    """The norm of the next block, which adaln reads, counts in that block alone."""
    spec = f"random:{write(tmp_path)}"
    raw, adaln = (info(InfoConfig(backbone=spec, tap=tap)).blocks for tap in ("raw", "adaln"))
    assert [block.cost for block in raw] == pytest.approx([block.cost for block in adaln])


def test_classes_of_an_adm_checkpoint(tmp_path: Path) -> None:
    state = Adm().random_state() | {"label_emb.weight": torch.zeros(7, 128)}
    torch.save(state, tmp_path / "adm.pt")
    given = InfoConfig(backbone=f"random:{tmp_path / 'adm.pt'}", num_head_channels=16, image_size=32)
    condition = info(given).condition
    assert condition is not None
    assert condition.name == "mean of 7 class embeddings"
    assert condition.takes == "mean, zero or a class from 0 to 6"


@pytest.mark.parametrize("spec", ["pixels:1x28", "random:timm:test_resnet", "random:fashion"])
def test_every_family(spec: str) -> None:
    result = info(InfoConfig(backbone=spec))
    assert (result.noise is None) == (spec != "random:fashion")
    assert result.summary().startswith(spec)


def test_a_folder_without_a_scheduler_says_that_the_schedule_is_assumed(
    backbone_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (tmp_path / name).write_bytes((backbone_folder / name).read_bytes())
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A network\n")
    assert run("info", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "no scheduler file was read" in printed
    assert "mit" in printed
    for text, licence in (
        (b"---\r\nlicense: mit\r\n---\r\n# A network\r\n", "mit"),
        (b"# A network\n\n---\nlicense: see the wiki\n---\n", None),
    ):
        (tmp_path / "README.md").write_bytes(text)
        assert info(InfoConfig(backbone=str(tmp_path))).licence == licence


def test_json(backbone_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", backbone_folder, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["image_size"] == 16
    assert record["noise"]["bounds"] == [0, 99]
    assert record["generates"]
    assert record["defaults"]["noise_step"] == 15
    assert [block["role"] for block in record["blocks"]] == ["encoder"] * 4 + ["middle"] + ["decoder"] * 4


def test_json_has_no_infinite_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", f"random:{families.write_flow(tmp_path)}", "--json") == 0
    record = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert record["noise"]["log_snr"] == [None, None]


def test_what_is_not_there() -> None:
    with pytest.raises(DiffLensError, match=r"no backbone 'nowhere\.pt'"):
        info(InfoConfig(backbone="nowhere.pt"))


def test_a_run_has_the_licence_of_its_backbone(
    backbone_folder: Path, image_tree: Path, tmp_path: Path
) -> None:
    backbone = tmp_path / "backbone"
    shutil.copytree(backbone_folder, backbone)
    (backbone / "README.md").write_text("---\nlicense: mit\n---\n# A network\n")
    out = tmp_path / "run"
    probe(
        ProbeConfig(
            backbone=str(backbone),
            data=str(image_tree),
            out=out,
            head="linear",
            epochs=1,
            device="cpu",
            workers=0,
        )
    )
    result = info(InfoConfig(backbone=str(out)))
    assert result.licence == "mit"
    assert result.card == str(backbone / "README.md")
