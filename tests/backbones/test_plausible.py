"""What the weights of a checkpoint do not show: attention of another kind; and the check of denoising."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from difflens import DiffLensError, DiffusionBackbone, load_backbone
from difflens.backbones.adm import unet_from_adm
from difflens.backbones.plausible import denoising_error
from tests.helpers.adm import Adm

ADM = Adm(head_channels=16)
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
STEPS = torch.tensor([0, 999])


def in_new_order(state: dict[str, Tensor], head: int) -> dict[str, Tensor]:
    """The same network with the rows of query, key and value in the order (3, heads, channels)."""
    moved = dict(state)
    for name, value in state.items():
        if ".qkv." in name:
            rows = value.unflatten(0, (-1, 3, head))
            moved[name] = rows.transpose(0, 1).flatten(0, 2)
    return moved


@torch.no_grad()
def test_the_new_order_of_attention() -> None:
    state = ADM.random_state()
    expected = ADM.forward(state, X, STEPS)
    moved = in_new_order(state, 16)
    new = unet_from_adm(moved, 16, order="new")(X, STEPS).sample
    torch.testing.assert_close(new, expected, atol=1e-4, rtol=0)
    assert float((unet_from_adm(moved, 16)(X, STEPS).sample - expected).abs().max()) > 0.1


@torch.no_grad()
def test_a_fixed_number_of_heads() -> None:
    """Attention of 32 and 64 channels in two heads each."""
    adm = Adm(multipliers=(1, 2), attention_rates=(1, 2), num_heads=2)
    state = adm.random_state()
    network = unet_from_adm(state, num_heads=2)
    torch.testing.assert_close(network(X, STEPS).sample, adm.forward(state, X, STEPS), atol=1e-4, rtol=0)
    with pytest.raises(DiffLensError, match="num_heads 3 does not divide the attention width 32"):
        unet_from_adm(state, num_heads=3)


@torch.no_grad()
def test_flags_beside_the_checkpoint(tmp_path: Path) -> None:
    state = ADM.random_state()
    path = tmp_path / "model.pt"
    torch.save(in_new_order(state, 16), path)
    flags = {
        "num_head_channels": 16,
        "num_heads": 4,
        "use_new_attention_order": True,
        "noise_schedule": "cosine",
    }
    (tmp_path / "model.json").write_text(json.dumps(flags))
    backbone = load_backbone(str(path), image_size=16)
    assert isinstance(backbone, DiffusionBackbone)
    torch.testing.assert_close(
        backbone.denoise(X, 20), ADM.forward(state, X, torch.tensor([20, 20])), atol=1e-4, rtol=0
    )
    assert backbone.process.config["beta_schedule"] == "squaredcos_cap_v2"
    with pytest.raises(
        DiffLensError, match=r"model.json says num_head_channels 16, and --num-head-channels says 32"
    ):
        load_backbone(str(path), image_size=16, num_head_channels=32)
    (tmp_path / "model.json").write_text(json.dumps({**flags, "image_size": 16}))
    assert load_backbone(str(path)).image_size == 16
    assert load_backbone(str(path), image_size=32).image_size == 32
    (tmp_path / "model.json").write_text(json.dumps({**flags, "predict_xstart": True}))
    with pytest.raises(DiffLensError, match="says predict_xstart: difflens reads networks that predict the"):
        load_backbone(str(path), image_size=16)
    (tmp_path / "model.json").write_text(json.dumps({**flags, "diffusion_steps": 4000}))
    with pytest.raises(DiffLensError, match="says diffusion_steps 4,000: difflens reads 1,000"):
        load_backbone(str(path), image_size=16)
    for content in ("[1]", "{", "a: [", ""):
        (tmp_path / "model.json").write_text(content)
        with pytest.raises(DiffLensError, match=r"model\.json"):
            load_backbone(str(path), image_size=16)


def test_a_trained_network_is_plausible_and_a_mixed_up_one_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained, untrained = load_backbone("fashion"), load_backbone("random:fashion")
    assert isinstance(trained, DiffusionBackbone)
    assert isinstance(untrained, DiffusionBackbone)
    assert denoising_error(trained) < 0.5
    assert not denoising_error(untrained) < 0.9
    torch.save(ADM.random_state(), tmp_path / "x.pt")
    load_backbone(str(tmp_path / "x.pt"), num_head_channels=16, image_size=32)
    assert "does not denoise" in " ".join(capsys.readouterr().err.split())
    load_backbone(f"random:{tmp_path / 'x.pt'}", num_head_channels=16, image_size=32)
    assert not capsys.readouterr().err
