"""OpenAI checkpoints: parity with golden tensors and with a reference in this file, and all bad inputs."""

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from difflens.backbones.adm import unet_from_adm
from difflens.backbones.checkpoint import read_checkpoint
from difflens.backbones.unet import UNetBackbone
from difflens.choices import AttentionOrder
from difflens.errors import DiffLensError
from difflens.processes.schedulers import process_of
from tests.helpers.adm import ADM_256, Adm

GOLDEN = Path(__file__).parents[1] / "fixtures" / "adm_tiny.safetensors"


TINY = Adm(multipliers=(1, 2), attention_rates=(2,))


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def weights(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "weights."
    return {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def backbone(weights: dict[str, Tensor]) -> UNetBackbone:
    unet = unet_from_adm(weights, num_head_channels=16)
    return UNetBackbone(unet, process_of({}), "tiny", image_size=32)


@pytest.fixture(scope="module")
def maps(golden: dict[str, Tensor], backbone: UNetBackbone) -> dict[str, dict[int, Tensor]]:
    feedback = {block: golden[f"feedback.{block}"] for block in (2, 4)}
    with torch.no_grad():
        return {
            "block": backbone.features(golden["x_t"], golden["t"], blocks=range(1, 14)),
            "feedback_block": backbone.features(golden["x_t"], golden["t"], range(1, 14), feedback),
        }


# Parity


def test_golden_output(golden: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    unet = unet_from_adm(weights, num_head_channels=16)
    assert not unet.training
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.float32}
    with torch.no_grad():
        torch.testing.assert_close(unet(golden["x_t"], golden["t"]).sample, golden["out"], rtol=0, atol=1e-4)


def test_golden_schedule(golden: dict[str, Tensor]) -> None:
    schedule = process_of({})
    torch.testing.assert_close(schedule.alphas_cumprod, golden["alphas_cumprod"], rtol=0, atol=1e-12)
    x_t = schedule.add_noise(golden["x0"], golden["t"], golden["noise"])
    torch.testing.assert_close(x_t, golden["x_t"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("block", range(1, 14))
@pytest.mark.parametrize("kind", ["block", "feedback_block"])
def test_golden_block(
    golden: dict[str, Tensor], maps: dict[str, dict[int, Tensor]], kind: str, block: int
) -> None:
    torch.testing.assert_close(maps[kind][block], golden[f"{kind}.{block}"], rtol=0, atol=1e-4)


def test_golden_denoise(golden: dict[str, Tensor], backbone: UNetBackbone) -> None:
    with torch.no_grad():
        out = backbone.denoise(golden["x_t"], golden["t"])
    torch.testing.assert_close(out, golden["out"], rtol=0, atol=1e-4)


def test_reference_of_these_tests_agrees_with_golden(
    golden: dict[str, Tensor], weights: dict[str, Tensor]
) -> None:
    with safe_open(GOLDEN, "pt") as file:
        assert json.loads(file.metadata()["config"])["channel_mult"] == [1, 2, 2]
    assert {name: tuple(value.shape) for name, value in weights.items()} == Adm().shapes()
    out = Adm().forward(weights, golden["x_t"], golden["t"])
    torch.testing.assert_close(out, golden["out"], rtol=0, atol=1e-4)


VARIANTS = {
    "two layers": Adm(layers=2),
    "additive, convolutions": Adm(scale_shift=False, resblock_updown=False),
    "additive": Adm(scale_shift=False),
    "convolutions": Adm(resblock_updown=False),
    "convolutions, attention in front": Adm(attention_rates=(1,), head_channels=32, resblock_updown=False),
    "attention in the middle only": Adm(attention_rates=()),
    "one level": Adm(multipliers=(2,), attention_rates=()),
    "heads of one number": Adm(attention_rates=(1, 2), num_heads=4),
    "new order": Adm(attention_rates=(1, 2), new_order=True),
    "first multiplier 0.5": Adm(64, multipliers=(0.5, 1), attention_rates=(2,)),
}


@pytest.mark.parametrize("adm", VARIANTS.values(), ids=VARIANTS)
def test_variant_agrees_with_reference(adm: Adm) -> None:
    state = adm.random_state()
    order: AttentionOrder = "new" if adm.new_order else "legacy"
    unet = unet_from_adm(state, adm.head_channels, num_heads=adm.num_heads, order=order)
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(2, 3, 16, 16, generator=generator), torch.tensor([0, 999])
    with torch.no_grad():
        torch.testing.assert_close(unet(x, t).sample, adm.forward(state, x, t), rtol=0, atol=1e-4)


# Structure


def test_adm_256() -> None:
    state = ADM_256.meta_state()
    unet = unet_from_adm(state)
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    assert parameters == sum(value.numel() for value in state.values())
    assert parameters // 100_000 == 5528
    assert {parameter.device.type for parameter in unet.parameters()} == {"meta"}

    backbone = UNetBackbone(unet, process_of({}), "adm-256")
    assert backbone.image_size == 256
    table = {  # the paper's table of blocks: last block of a row, channels, side at 256x256
        3: (256, 256),
        6: (256, 128),
        7: (256, 64),
        9: (512, 64),
        12: (512, 32),
        13: (512, 16),
        15: (1024, 16),
        21: (1024, 8),
        24: (1024, 16),
        25: (1024, 32),
        27: (512, 32),
        30: (512, 64),
        31: (512, 128),
        33: (256, 128),
        37: (256, 256),
    }
    expected = [table[min(last for last in table if last >= index)] for index in range(1, 38)]
    assert [(block.channels, 256 // block.stride) for block in backbone.blocks] == expected
    roles = ["encoder"] * 18 + ["middle"] + ["decoder"] * 18
    assert [block.role for block in backbone.blocks] == roles
    assert [block.mirror for block in backbone.blocks] == [
        None if index == 19 else 38 - index for index in range(1, 38)
    ]


@pytest.mark.parametrize(
    ("multipliers", "layers", "side"),
    [
        ((1, 2, 3, 4), 3, 64),
        ((1, 1, 2, 3, 4), 2, 128),
        ((1, 1, 2, 2, 4, 4), 2, 256),
        ((0.5, 1, 1, 2, 2, 4, 4), 2, 512),
        ((1, 2, 2, 2), 2, None),
    ],
)
def test_image_side(multipliers: tuple[float, ...], layers: int, side: int | None) -> None:
    unet = unet_from_adm(Adm(256, multipliers, layers, (8, 16)).meta_state())
    assert unet.config.sample_size == side
    assert unet.config.layers_per_block == layers


# Files


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "model.pth", "model.bin", "legacy.pt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_round_trip(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    state = {key: value.to(dtype) for key, value in TINY.random_state().items()}
    path = tmp_path / name
    if name == "model.safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=name != "legacy.pt")
    read = read_checkpoint(path).state
    assert set(read) == set(state)
    assert all(read[key].dtype == dtype and torch.equal(read[key], state[key]) for key in state)
    expected = unet_from_adm(state, 16).state_dict()
    converted = unet_from_adm(read, 16).state_dict()
    assert all(torch.equal(converted[key], expected[key]) for key in expected)


@pytest.mark.parametrize("key", ["ema", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_nested_and_prefixed(tmp_path: Path, key: str, prefix: str) -> None:
    state = {f"{prefix}a.weight": nn.Parameter(torch.arange(3.0)), f"{prefix}b": torch.ones(2)}
    torch.save({key: state, "step": 3, "optimizer": {"state": {}}}, tmp_path / "training.pt")
    read = read_checkpoint(tmp_path / "training.pt").state
    assert list(read) == ["a.weight", "b"]
    assert read["a.weight"].tolist() == [0, 1, 2]
    assert not read["a.weight"].requires_grad


def test_ema_before_model(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}, "ema": {"a": torch.ones(1)}}, tmp_path / "training.pt")
    assert read_checkpoint(tmp_path / "training.pt").state["a"].item() == 1


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_file_is_never_written_to(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    (torch.save if name.endswith("pt") else save_file)({"a": torch.zeros(1000)}, path)
    before = path.read_bytes()
    read_checkpoint(path).state["a"].add_(1)
    assert path.read_bytes() == before


class Malicious:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return eval, (f"open({str(self.marker)!r}, 'w').close()",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["pickle", "zip", "legacy", "nested"])
def test_pickle_with_code_is_refused(tmp_path: Path, form: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "model.pt"
    state = {"weight": torch.zeros(1), "extra": Malicious(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps({"extra": Malicious(marker)}))
    elif form == "nested":
        torch.save({"state_dict": {"a": torch.zeros(1)}, "args": Malicious(marker)}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    # in a plain pickle of protocol 4 torch stops before it knows the function that would be called
    named = "" if form == "pickle" else "would call eval;.*"
    with pytest.raises(DiffLensError, match=rf"model\.pt .* refused, never run.*{named}\.safetensors"):
        read_checkpoint(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes()) if form == "pickle" else torch.load(path, weights_only=False)
    assert marker.exists(), "this file would do no harm anyway"


@pytest.mark.parametrize("name", ["model.pt", "legacy.pt", "model.safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
def test_truncated(tmp_path: Path, name: str, kept: float) -> None:
    path = tmp_path / name
    if name == "model.safetensors":
        save_file(TINY.random_state(), path)
    else:
        torch.save(TINY.random_state(), path, _use_new_zipfile_serialization=name != "legacy.pt")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DiffLensError, match=rf"{re.escape(str(path))} cannot be read as .* truncated"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["notes.pt", "notes.safetensors", "notes.bin"])
@pytest.mark.parametrize("text", ["hello, these are my notes\n", "config: none\n", "\x80\x02."])
def test_text_file(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DiffLensError, match=f"{name} cannot be read as"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.pt", "no checkpoint at .*absent.pt: the file does not exist"),
        ("folder", "folder is a directory"),
        ("model.onnx", r"model.onnx is not a checkpoint: expected \.safetensors, \.pt"),
        ("model.gguf", "quantised weights, and difflens reads float ones"),
        ("list.pt", "list.pt is not a state dict.*it holds one list"),
        ("empty.pt", "empty.pt is not a state dict.*it holds one dict"),
        ("numbers.pt", r"numbers.pt is not a state dict.*it holds 'a' \(Tensor\), 'step' \(int\)"),
    ],
)
def test_not_a_checkpoint(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "model.onnx").touch()
    (tmp_path / "model.gguf").touch()
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    torch.save({}, tmp_path / "empty.pt")
    torch.save({"a": torch.zeros(1), "step": 3}, tmp_path / "numbers.pt")
    with pytest.raises(DiffLensError, match=message):
        read_checkpoint(tmp_path / name)


# State dicts


def test_every_key_is_needed() -> None:
    state = TINY.meta_state()
    for key in state:
        with pytest.raises(DiffLensError, match=f"is not a guided-diffusion U-Net: .*{re.escape(key)}"):
            unet_from_adm({name: value for name, value in state.items() if name != key}, 16)


def test_every_shape_is_checked() -> None:
    state = TINY.meta_state()
    for key, value in state.items():
        for wrong in (value[:-1], value.sum()):
            with pytest.raises(DiffLensError):
                unet_from_adm(state | {key: wrong}, 16)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"out.4.weight": (1,)}, "unexpected: out.4.weight$"),
        ({"input_blocks.1.1.norm.weight": (32,)}, "missing: .*input_blocks.1.1"),
        ({"input_blocks.4.0.op.weight": (32, 32, 3, 3)}, "is not a guided-diffusion U-Net"),
    ],
)
def test_extra_keys(extra: dict[str, tuple[int, ...]], message: str) -> None:
    state = TINY.meta_state() | {name: torch.empty(shape, device="meta") for name, shape in extra.items()}
    with pytest.raises(DiffLensError, match=message):
        unet_from_adm(state, 16, source="tiny.pt")


def test_attention_in_only_some_blocks_of_a_level() -> None:
    state = Adm(layers=2).meta_state()
    partial = {name: value for name, value in state.items() if not name.startswith("input_blocks.5.1.")}
    assert len(partial) == len(state) - 6
    with pytest.raises(DiffLensError, match=r"missing: .*input_blocks\.5\.1\."):
        unet_from_adm(partial, 16)


def test_other_networks() -> None:
    linear = nn.Linear(2, 2).state_dict()
    some = ("time_embed.0.weight", "input_blocks.0.0.weight")
    for state in ({}, linear, *({name: TINY.meta_state()[name] for name in some[:n]} for n in (1, 2))):
        with pytest.raises(DiffLensError, match=r"^model\.pt is not a guided-diffusion U-Net: missing: "):
            unet_from_adm(state, source="model.pt")


def test_widths_that_do_not_fit_the_norms() -> None:
    with pytest.raises(DiffLensError, match="is not a guided-diffusion U-Net: num_channels"):
        unet_from_adm(Adm(48).meta_state(), 16)


@pytest.mark.parametrize("num_head_channels", [0, -16, 24, 128])
def test_wrong_num_head_channels(num_head_channels: int) -> None:
    with pytest.raises(
        DiffLensError, match=f"num_head_channels {num_head_channels} does not divide the attention width 64"
    ):
        unet_from_adm(Adm().meta_state(), num_head_channels)
