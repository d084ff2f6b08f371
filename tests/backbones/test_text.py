"""The empty prompt's conditions: those that the pipeline itself feeds its denoiser, and what is refused."""

import json
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, T5EncoderModel

from difflens import DiffLensError
from difflens.backbones.text import (
    empty_prompt,
    image_conditions,
    load_condition,
    save_condition,
)
from tests.helpers.pipelines import (
    write_flux,
    write_pixart_alpha,
    write_pixart_sigma,
    write_stable_diffusion,
    write_stable_diffusion_3,
    write_stable_diffusion_xl,
)

HIDDEN = "encoder_hidden_states"
WRITERS: dict[str, Callable[..., Path]] = {
    "sd": write_stable_diffusion,
    "sdxl": write_stable_diffusion_xl,
    "pixart-alpha": write_pixart_alpha,
    "pixart-sigma": write_pixart_sigma,
    "sd3": write_stable_diffusion_3,
    "flux": write_flux,
}
SHAPES = {
    "sd": {HIDDEN: (1, 12, 16)},
    "sdxl": {
        HIDDEN: (1, 12, 40),
        "added_cond_kwargs.text_embeds": (1, 20),
        "added_cond_kwargs.time_ids": (1, 6),
    },
    "pixart-alpha": {HIDDEN: (1, 120, 48), "encoder_attention_mask": (1, 120)},
    "pixart-sigma": {HIDDEN: (1, 300, 48), "encoder_attention_mask": (1, 300)},
    "sd3": {HIDDEN: (1, 12 + 256, 48), "pooled_projections": (1, 36)},
    "flux": {
        HIDDEN: (1, 512, 48),
        "pooled_projections": (1, 16),
        "txt_ids": (512, 3),
        "guidance": (1,),
    },
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of the pipelines, each written once; tests that change one copy it."""
    root = tmp_path_factory.mktemp("pipelines")
    return lambda name: root / name if (root / name).is_dir() else WRITERS[name](root / name)


@pytest.fixture
def sd(written: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(written("sd"), tmp_path / "sd"))


@pytest.fixture
def sdxl(written: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(written("sdxl"), tmp_path / "sdxl"))


@pytest.fixture
def pixart(written: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(written("pixart-alpha"), tmp_path / "pixart"))


class _Seen(Exception):
    """Ends a pipeline's call at its denoiser."""


def recorded(
    folder: Path, stop: bool = False, components: dict[str, Any] | None = None, **arguments: Any
) -> dict[str, Tensor]:
    """Run the pipeline itself for the prompt "", and return the tensors that its denoiser got by name.

    With `stop`, the call ends at the denoiser. `components` go to the pipeline, and `arguments` to its call.
    """
    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, **(components or {}))
    pipeline.set_progress_bar_config(disable=True)
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    seen: dict[str, Tensor] = {}

    def record(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        flat = {name: value for name, value in kwargs.items() if isinstance(value, Tensor)}
        for name, value in (kwargs.get("added_cond_kwargs") or {}).items():
            if value is not None:
                flat[f"added_cond_kwargs.{name}"] = value
        for name in ("hidden_states", "timestep", "img_ids"):  # what follows from x_t
            flat.pop(name, None)
        seen.update({name: value.clone() for name, value in flat.items()})
        if stop:
            raise _Seen

    denoiser.register_forward_pre_hook(record, with_kwargs=True)
    settings = {} if isinstance(pipeline, FluxPipeline) else {"guidance_scale": 1.0}
    if "PixArt" in type(pipeline).__name__:
        settings["use_resolution_binning"] = False
    settings |= {"num_inference_steps": 2, "output_type": "pt", **arguments}
    try:
        # DPM-Solver does not end in one step in PixArt's pipeline
        images = pipeline("", **settings).images
    except _Seen:
        return seen
    assert images.isfinite().all()
    return seen


def assert_equal(conditions: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert conditions.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(conditions[name], value.float()), name


@pytest.mark.parametrize("name", WRITERS)
def test_the_pipelines_own_call_feeds_its_denoiser_the_same(
    written: Callable[[str], Path], name: str
) -> None:
    folder = written(name)
    assert_equal(empty_prompt(folder, 32), recorded(folder, height=32, width=32))


@pytest.mark.parametrize("name", WRITERS)
def test_at_the_pipelines_own_size(written: Callable[[str], Path], name: str) -> None:
    folder = written(name)
    conditions = empty_prompt(folder)
    assert_equal(conditions, recorded(folder, stop=True))
    assert {key: tuple(value.shape) for key, value in conditions.items()} == SHAPES[name]
    assert all(value.dtype == torch.float32 and value.is_contiguous() for value in conditions.values())
    assert not any(value.requires_grad for value in conditions.values())


@pytest.mark.parametrize(
    ("write", "changes"),
    [
        (write_pixart_alpha, {"sample_size": 128}),
        (write_flux, {"guidance_embeds": False}),
        (write_stable_diffusion, {"sample_size": [16, 16]}),
    ],
    ids=["micro-conditions", "no guidance", "two sides"],
)
def test_other_denoisers(tmp_path: Path, write: Callable[..., Path], changes: dict[str, Any]) -> None:
    folder = write(tmp_path, **changes)
    assert_equal(empty_prompt(folder), recorded(folder, stop=True))


def test_a_unet_with_embedded_guidance_gets_the_default_scale(tmp_path: Path) -> None:
    folder = write_stable_diffusion(tmp_path, time_cond_proj_dim=8)
    conditions = empty_prompt(folder)
    assert "timestep_cond" in conditions
    assert_equal(conditions, recorded(folder, stop=True, guidance_scale=7.5))


def test_stable_diffusion_3_without_t5(tmp_path: Path) -> None:
    """Zeros stand for its encoding, as in the pipeline."""
    folder = write_stable_diffusion_3(tmp_path, t5=False)
    conditions = empty_prompt(folder)
    without = {"text_encoder_3": None, "tokenizer_3": None}
    assert_equal(conditions, recorded(folder, stop=True, components=without))
    assert not conditions[HIDDEN][:, 12:].any()


def test_sdxl_encodes_the_empty_string(sdxl: Path) -> None:
    """Neither the zeros of an absent negative prompt nor another prompt."""
    conditions = empty_prompt(sdxl, 48)
    assert conditions["added_cond_kwargs.time_ids"].tolist() == [[48, 48, 0, 0, 48, 48]]
    assert StableDiffusionXLPipeline.from_pretrained(sdxl).config.force_zeros_for_empty_prompt
    assert conditions[HIDDEN].abs().max() > 0.1
    assert conditions["added_cond_kwargs.text_embeds"].abs().max() > 1e-3


def test_image_conditions_are_those_of_empty_prompt(written: Callable[[str], Path]) -> None:
    for name in ("sdxl", "sd"):
        folder = written(name)
        whole = empty_prompt(folder, 64)
        assert_equal({**empty_prompt(folder, 32), **image_conditions(folder, 64)}, whole)
    assert image_conditions(written("sd")) == image_conditions(written("flux")) == {}


def test_twice_the_same_whatever_the_random_state(sd: Path) -> None:
    torch.manual_seed(1)
    first = empty_prompt(sd)
    torch.manual_seed(2)
    assert_equal(empty_prompt(sd), first)


def test_half_precision_weights_are_computed_in_float32(sd: Path, pixart: Path) -> None:
    for folder, kind in ((sd, CLIPTextModel), (pixart, T5EncoderModel)):
        home = folder / "text_encoder"
        kind.from_pretrained(home).half().save_pretrained(home)
        conditions = empty_prompt(folder)
        assert_equal(conditions, recorded(folder, stop=True))
        rounded = conditions[HIDDEN].half().float()
        assert not torch.equal(conditions[HIDDEN], rounded)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("offline")
def test_reads_encoders_and_configurations_only(sd: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = empty_prompt(sd)
    for path in (sd / "unet", sd / "vae"):
        for weights in path.glob("*.safetensors"):
            weights.unlink()
    shutil.rmtree(sd / "scheduler")
    assert_equal(empty_prompt(sd), before)
    assert capfd.readouterr() == ("", "")


def test_saved_conditions_come_back(written: Callable[[str], Path], tmp_path: Path) -> None:
    conditions = empty_prompt(written("flux"), 32)
    save_condition(tmp_path / "condition.safetensors", conditions)
    assert_equal(load_condition(tmp_path / "condition.safetensors"), conditions)
    assert [path.name for path in tmp_path.iterdir()] == ["condition.safetensors"]


def test_files_that_are_no_conditions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "condition.safetensors"
    with pytest.raises(DiffLensError, match=r"there is no condition\.safetensors"):
        load_condition(path)
    path.write_bytes(b"not a tensor")
    with pytest.raises(DiffLensError, match=r"condition\.safetensors is damaged"):
        load_condition(path)
    with pytest.raises(DiffLensError, match=r"cannot write .*safetensors/condition\.safetensors: "):
        save_condition(path / "condition.safetensors", {"x": torch.ones(1)})


def change(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_other_pipelines_are_refused_by_name(sd: Path, tmp_path: Path) -> None:
    for name in ("StableDiffusionInpaintPipeline", ["pipeline", "Custom"], None):
        change(sd / "model_index.json", _class_name=name)
        for read in (empty_prompt, image_conditions):
            with pytest.raises(DiffLensError, match=r"StableDiffusionPipeline, .*FluxPipeline") as caught:
                read(sd)
            assert (name if isinstance(name, str) else "of its own class") in str(caught.value)
    (sd / "model_index.json").write_text("{")
    with pytest.raises(DiffLensError, match=r"model_index\.json is not readable JSON"):
        empty_prompt(sd)
    with pytest.raises(DiffLensError, match=r"no pipeline.*no model_index\.json"):
        empty_prompt(tmp_path)


@pytest.mark.parametrize("component", ["text_encoder", "tokenizer", "unet", "text_encoder_2", "tokenizer_2"])
def test_missing_folders_are_named(sdxl: Path, component: str) -> None:
    shutil.rmtree(sdxl / component)
    with pytest.raises(DiffLensError, match=rf"sdxl.*\b{component}\b"):
        empty_prompt(sdxl)


def test_components_that_are_left_out_or_unknown_are_refused(sd: Path) -> None:
    for entry in ([None, None], ["custom", "Encoder"], "CLIPTextModel", None):
        change(sd / "model_index.json", text_encoder=entry)
        with pytest.raises(DiffLensError, match=r"model_index\.json says that text_encoder is"):
            empty_prompt(sd)


def test_tokenizers_without_a_vocabulary_are_refused(sd: Path, pixart: Path) -> None:
    """Their classes would make one up."""
    for folder in (sd, pixart):
        for name in ("tokenizer.json", "vocab.json", "merges.txt"):
            (folder / "tokenizer" / name).unlink(missing_ok=True)
        with pytest.raises(DiffLensError, match=r"tokenizer is incomplete: there is no tokenizer\.json"):
            empty_prompt(folder)


def test_a_tokenizer_of_a_vocabulary_and_merges(sd: Path) -> None:
    """Stable Diffusion's pipelines on the hub have no tokenizer.json."""
    before = empty_prompt(sd)
    home = sd / "tokenizer"
    if (home / "vocab.json").is_file():  # transformers 4 writes these files itself
        return
    model = json.loads((home / "tokenizer.json").read_text())["model"]
    (home / "tokenizer.json").unlink()
    (home / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (home / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    assert_equal(empty_prompt(sd), before)


@pytest.mark.parametrize(
    ("component", "name", "content"),
    [
        ("tokenizer", "*.json", b"{"),
        ("text_encoder", "config.json", b"?"),
        ("text_encoder", "model.safetensors", b"?" * 100),
        ("unet", "config.json", b"[]"),
        ("vae", "config.json", b"{}"),
    ],
)
def test_damaged_files_are_named(sdxl: Path, component: str, name: str, content: bytes) -> None:
    for path in (sdxl / component).glob(name):
        path.write_bytes(content)
    with pytest.raises(DiffLensError) as caught:
        empty_prompt(sdxl)
    assert str(sdxl / component) in str(caught.value)


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, metadata={"format": "pt"})


def test_weights_of_another_encoder_are_refused(sd: Path, written: Callable[[str], Path]) -> None:
    original = load_file(sd / "text_encoder" / "model.safetensors")
    name = next(key for key in original if key.endswith("layers.2.mlp.fc1.weight"))
    for edit in (
        lambda weights: weights.pop(name),
        lambda weights: weights.update({name: torch.zeros(3, 3)}),
        lambda weights: weights.update({name.replace("layers.2", "layers.3"): weights[name].clone()}),
    ):
        shutil.copy(written("sd") / "text_encoder" / "model.safetensors", sd / "text_encoder")
        edit_weights(sd, edit)
        with pytest.raises(DiffLensError, match="text_encoder"):
            empty_prompt(sd)


def test_old_files_keep_the_positions_among_the_weights(sd: Path) -> None:
    before = empty_prompt(sd)
    original = load_file(sd / "text_encoder" / "model.safetensors")
    prefix = next(key for key in original if "position_embedding" in key).split("position_embedding")[0]
    edit_weights(sd, lambda weights: weights.update({f"{prefix}position_ids": torch.arange(12)[None]}))
    assert_equal(empty_prompt(sd), before)


def test_encodings_that_are_not_finite_are_refused(sd: Path) -> None:
    edit_weights(sd, lambda weights: next(iter(weights.values())).fill_(torch.nan))
    with pytest.raises(DiffLensError, match=f"not finite: {HIDDEN}"):
        empty_prompt(sd)


def test_tokens_without_an_embedding_are_refused(sd: Path) -> None:
    edit_weights(
        sd,
        lambda weights: weights.update(
            {key: value[:4].clone() for key, value in weights.items() if "token_embedding" in key}
        ),
    )
    change(sd / "text_encoder" / "config.json", vocab_size=4)
    with pytest.raises(DiffLensError, match=r"tokenizer_config.json: bos_token .* not among the 4 tokens"):
        empty_prompt(sd)


def test_a_field_that_transformers_does_not_understand_is_named(sd: Path) -> None:
    change(sd / "text_encoder" / "config.json", hidden_act="swoosh")
    with pytest.raises(DiffLensError, match=r"config.json: hidden_act is 'swoosh': "):
        empty_prompt(sd)


class _Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm"),))


def test_pickled_code_is_not_run(sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = load_file(sd / "text_encoder" / "model.safetensors")
    (sd / "text_encoder" / "model.safetensors").unlink()
    expected_name = sd / "text_encoder" / "pytorch_model.bin"
    torch.save(weights, expected_name)
    assert empty_prompt(sd)
    torch.save({**weights, "x": _Harmful()}, expected_name)
    with pytest.raises(DiffLensError, match="text_encoder cannot be loaded"):
        empty_prompt(sd)
    assert not (tmp_path / "harm").exists()


def test_sides_that_do_not_fit(written: Callable[[str], Path], sdxl: Path) -> None:
    with pytest.raises(DiffLensError, match="image-side is 0"):
        empty_prompt(written("sd"), 0)
    for side in (None, [16, 32]):
        change(sdxl / "unet" / "config.json", sample_size=side)
        with pytest.raises(DiffLensError, match=r"unet/config\.json has the sample_size"):
            image_conditions(sdxl)
    assert image_conditions(sdxl, 32)


def test_without_transformers(sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DiffLensError, match=r'transformers: pip install "difflens\[text\]"'):
        empty_prompt(sd)


def test_without_sentencepiece(pixart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pixart / "tokenizer" / "tokenizer.json").rename(pixart / "tokenizer" / "spiece.model")
    monkeypatch.setattr("difflens.backbones.text._installed", lambda name: name != "sentencepiece")
    with pytest.raises(
        DiffLensError, match=r'spiece\.model needs sentencepiece: pip install "difflens\[text\]"'
    ):
        empty_prompt(pixart)


def test_a_tokenizer_of_sentencepiece(pixart: Path, tmp_path: Path) -> None:
    """PixArt's pipelines on the hub have no tokenizer.json."""
    sentencepiece = pytest.importorskip("sentencepiece")
    before = empty_prompt(pixart)
    sentences = iter(["a cat sat on a mat", "a dog ran far away", "big bad wolves howl at night"] * 20)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences,
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=28,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (pixart / "tokenizer" / "tokenizer.json").unlink()
    shutil.move(tmp_path / "spiece.model", pixart / "tokenizer")
    # the empty prompt is the same: an end, then padding
    assert_equal(empty_prompt(pixart), before)
    assert_equal(empty_prompt(pixart), recorded(pixart, stop=True))
