"""The empty prompt's conditions of a text-to-image pipeline: computed once, kept as plain tensors.

The pipeline's own `encode_prompt` encodes "". A network that reads the tensors needs no text encoder.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from difflens.backbones.pretrained import (
    check_numbers,
    check_size,
    outline_of,
    refuse_quantised,
    variant_of,
)
from difflens.errors import DiffLensError, counted
from difflens.ranges import Range
from difflens.run.files import replace_with
from difflens.run.reading import FieldError, check_files, checked, read_json, read_tensors, reason, short
from difflens.run.text import a

_TABLE = dict[str, Any]
_LONGEST_PROMPT = 2**16  # tokens
_INSTALL = 'pip install "difflens[text]"'


@dataclass(frozen=True)
class _TokenizerFields:
    """The field of tokenizer_config.json that memory depends on; transformers writes 10**30 for no limit."""

    model_max_length: Annotated[int, Range(1, 10**31)] | None = None


@dataclass(frozen=True)
class _Kind:
    """What a class of pipelines asks of the text.

    Attributes:
        denoiser: folder of the denoiser.
        returns: the forward argument that each value of `encode_prompt` becomes; None: it is not used.
        encoders: ends of the names of the text encoders and tokenizers.
        arguments: arguments of `encode_prompt` beside the prompt, the device and the number of images.
        options: arguments of the pipeline's constructor that are no components.
        optional: ends of the names of those that model_index.json may leave out.
    """

    denoiser: str
    returns: tuple[str | None, ...]
    encoders: tuple[str, ...] = ("",)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    optional: tuple[str, ...] = ()


_HIDDEN, _POOLED, _UNGUIDED = "encoder_hidden_states", "pooled_projections", "do_classifier_free_guidance"
_PIXART = _Kind("transformer", (_HIDDEN, "encoder_attention_mask", None, None), arguments={_UNGUIDED: False})
_KINDS = {
    "StableDiffusionPipeline": _Kind(
        "unet",
        (_HIDDEN, None),
        arguments={_UNGUIDED: False},
        options={"requires_safety_checker": False},
    ),
    "StableDiffusionXLPipeline": _Kind(
        "unet",
        (_HIDDEN, None, "added_cond_kwargs.text_embeds", None),
        encoders=("", "_2"),
        arguments={_UNGUIDED: False},
        options={"add_watermarker": False},
    ),
    "PixArtAlphaPipeline": _PIXART,
    "PixArtSigmaPipeline": _PIXART,
    "StableDiffusion3Pipeline": _Kind(
        "transformer",
        (_HIDDEN, None, _POOLED, None),
        encoders=("", "_2", "_3"),
        arguments={_UNGUIDED: False, "prompt_2": "", "prompt_3": ""},
        optional=("_3",),
    ),
    "FluxPipeline": _Kind("transformer", (_HIDDEN, _POOLED, "txt_ids"), encoders=("", "_2")),
}

# a class with none of these sets of files beside it makes up a vocabulary of its own
_TOKENIZERS = {
    "CLIPTokenizer": ({"tokenizer.json"}, {"vocab.json", "merges.txt"}),
    "CLIPTokenizerFast": ({"tokenizer.json"}, {"vocab.json", "merges.txt"}),
    "T5Tokenizer": ({"tokenizer.json"}, {"spiece.model"}),
    "T5TokenizerFast": ({"tokenizer.json"}, {"spiece.model"}),
}
_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")


def empty_prompt(folder: Path, image_side: int | None = None) -> dict[str, Tensor]:
    """Return what a pipeline's own call feeds its denoiser for the prompt "".

    The text encoders encode the empty string, and the call has no guidance by a second prompt. Stable
    Diffusion XL replaces an absent negative prompt by zeros; these are not its empty prompt and are not used.
    The encoders run on the CPU in float32, in evaluation mode, and are dropped afterwards.

    Known are the pipelines of Stable Diffusion 1 and 2, Stable Diffusion XL and 3, PixArt-alpha,
    PixArt-Sigma and Flux. The encodings are those of diffusers' `encode_prompt`.

    Args:
        folder: a pipeline in diffusers format; neither its denoiser nor its VAE is loaded.
        image_side: side of the images, in pixels; None: the pipeline's own.

    Returns:
        Float32 tensors on the CPU, by the name of the forward argument; a dot leads into a dictionary. L is
        the number of the prompt's tokens, and D, E are the encoders' widths.

        - `encoder_hidden_states`: (1, L, D).
        - `encoder_attention_mask`, PixArt: (1, L), 1 for the tokens that are read.
        - `added_cond_kwargs.text_embeds`, Stable Diffusion XL: (1, E).
        - `pooled_projections`, Stable Diffusion 3 and Flux: (1, E).
        - `txt_ids`, Flux: (L, 3), without a batch dimension.
        - `guidance`, Flux with embedded guidance: (1,), the default scale of the pipeline's call.
        - `timestep_cond`, UNets with embedded guidance: (1, E), that of the same scale.
        - what `image_conditions` returns.

    Raises:
        DiffLensError: the pipeline is of another class, a file or folder is missing or damaged, an encoding
            is not finite, or transformers is not installed.
    """
    index = _index(folder)
    name, kind = _kind(folder, index)
    beside = image_conditions(folder, image_side)
    config = read_json(folder / kind.denoiser / "config.json", _TABLE)
    loaded: dict[str, Any] = {}
    with _quiet():
        for end in kind.encoders:
            for component in (f"tokenizer{end}", f"text_encoder{end}"):
                loaded[component] = _component(folder, index, component, end in kind.optional)
            _check_tokens(folder / f"tokenizer{end}", loaded[f"tokenizer{end}"], loaded[f"text_encoder{end}"])
        try:
            conditions = _encode(name, kind, loaded, config)
        except Exception as error:  # tokens without an embedding, widths that do not fit, and many more
            raise DiffLensError(
                f"the text encoders of {folder} cannot encode a prompt: {reason(error)}"
            ) from error
    tensors = {key: value.detach().float().contiguous().clone() for key, value in conditions.items()} | beside
    for key, value in tensors.items():
        if not value.isfinite().all():
            raise DiffLensError(f"the empty prompt of {folder} is not finite: {key} has NaN or infinity")
    return tensors


def image_conditions(folder: Path, image_side: int | None = None) -> dict[str, Tensor]:
    """Return those conditions of a pipeline that depend on the size of its images.

    An image is at its own size: it was neither resized nor cropped.

    Args:
        folder: a pipeline in diffusers format; only its configurations are read.
        image_side: side of the images, in pixels; None: the pipeline's own.

    Returns:
        Float32 tensors, named as in `empty_prompt`.

        - `added_cond_kwargs.time_ids`, Stable Diffusion XL: (1, 6), height and width of the image as it was,
          top and left of the crop, height and width of the image as it is.
        - `added_cond_kwargs.resolution` and `.aspect_ratio`, PixArt-alpha with latents of 128: (1, 2), height
          and width, and (1, 1), their ratio.

    Raises:
        DiffLensError: the pipeline is of another class, a configuration is missing or damaged, or the side
            does not fit the pipeline.
    """
    name, kind = _kind(folder, _index(folder))
    if image_side is not None and image_side < 1:
        raise DiffLensError(f"image-side is {image_side}; it must be at least 1")
    config = read_json(folder / kind.denoiser / "config.json", _TABLE)
    if name == "StableDiffusionXLPipeline":
        side = image_side or _own_side(folder, kind, config)
        return {"added_cond_kwargs.time_ids": torch.tensor([[side, side, 0, 0, side, side]]).float()}
    if name == "PixArtAlphaPipeline" and config.get("sample_size") == 128:
        side = image_side or _own_side(folder, kind, config)
        return {
            "added_cond_kwargs.resolution": torch.tensor([[side, side]]).float(),
            "added_cond_kwargs.aspect_ratio": torch.ones(1, 1),
        }
    return {}


def save_condition(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors of `empty_prompt` to a safetensors file, which appears whole or not at all.

    Raises:
        DiffLensError: the file cannot be written.
    """
    content = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    replace_with(path, lambda temporary: save_file(content, temporary))


def load_condition(path: Path) -> dict[str, Tensor]:
    """Return the tensors that `save_condition` wrote, on the CPU.

    Raises:
        DiffLensError: there is no such file, or it is damaged.
    """
    return read_tensors(path)


def _index(folder: Path) -> dict[str, Any]:
    if not (folder / "model_index.json").is_file():
        raise DiffLensError(
            f"{folder} is no pipeline in diffusers format: there is no model_index.json in it"
        )
    return read_json(folder / "model_index.json", _TABLE)


def _kind(folder: Path, index: Mapping[str, Any]) -> tuple[str, _Kind]:
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in _KINDS:
        held = "a pipeline of its own class" if not isinstance(name, str) else a(name)
        raise DiffLensError(f"{folder} is {held}; the text-to-image pipelines read are {', '.join(_KINDS)}")
    return name, _KINDS[name]


def pipeline_class(folder: Path) -> str:
    """Return the class of a pipeline of diffusers, by its model_index.json.

    Raises:
        DiffLensError: there is no such file, or it names no pipeline of diffusers.
    """
    import diffusers

    name = _index(folder).get("_class_name")
    if not isinstance(name, str) or not hasattr(diffusers, name):
        raise DiffLensError(f"{folder / 'model_index.json'} names {short(name)}, no pipeline of diffusers")
    return name


def _component(folder: Path, index: Mapping[str, Any], component: str, optional: bool) -> Any:
    """Return a tokenizer or a text encoder in float32; None for one that is left out and may be."""
    transformers = _transformers()
    entry = index.get(component)
    name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if name is None and optional:
        return None
    known = list(_TOKENIZERS) if component.startswith("tokenizer") else list(_ENCODERS)
    if name not in known:
        raise DiffLensError(
            f"{folder / 'model_index.json'} says that {component} is {name}; known are {', '.join(known)}"
        )
    home = folder / component
    if not home.is_dir():
        raise DiffLensError(f"{folder} is incomplete: there is no folder {component} in it")
    check_files(home)
    loader = getattr(transformers, name)
    return _tokenizer(home, loader, name) if name in _TOKENIZERS else _encoder(home, loader)


def _tokenizer(home: Path, loader: Any, name: str) -> Any:
    present = {path.name for path in home.iterdir()}
    if not any(files <= present for files in _TOKENIZERS[name]):
        wanted = ", nor ".join(" and ".join(sorted(files)) for files in _TOKENIZERS[name])
        raise DiffLensError(f"{home} is incomplete: there is no {wanted} in it")
    if "spiece.model" in present and "tokenizer.json" not in present:
        missing = [module for module in ("sentencepiece", "google.protobuf") if not _installed(module)]
        if missing:
            raise DiffLensError(f"{home / 'spiece.model'} needs {' and '.join(missing)}: {_INSTALL}")
    file = home / "tokenizer_config.json"
    content = read_json(file, _TABLE) if file.exists() else {}
    try:
        checked(_TokenizerFields, {"model_max_length": content.get("model_max_length")})
        tokenizer = loader.from_pretrained(home, local_files_only=True)
    except FieldError as error:
        raise DiffLensError(f"{file}: {error}") from error
    except Exception as error:  # transformers and tokenizers raise many types for damaged files
        raise DiffLensError(
            f"{home}, {file.name} or another file, cannot be loaded: {reason(error)}"
        ) from error
    # CLIP's prompts are padded to it; transformers has a huge number where it is missing
    if name.startswith("CLIP") and tokenizer.model_max_length > _LONGEST_PROMPT:
        raise DiffLensError(
            f"{file}: model_max_length is missing or too large: it must be at most {_LONGEST_PROMPT:,}"
        )
    return tokenizer


def _encoder(home: Path, loader: Any) -> nn.Module:
    file = home / "config.json"
    content = read_json(file, _TABLE)
    refuse_quantised(content, file)
    try:
        check_numbers(content)
    except FieldError as error:
        raise DiffLensError(f"{file}: {error}") from error
    outline = outline_of(file, content, lambda fields: loader(loader.config_class.from_dict(fields)))
    check_size(outline, home, fresh=False)
    try:
        encoder, info = loader.from_pretrained(
            home,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            variant=variant_of(home),
        )
    except Exception as error:  # transformers raises many types for damaged weights and configurations
        raise DiffLensError(f"{home} cannot be loaded: {reason(error)}") from error
    parts = ("missing_keys", "unexpected_keys", "mismatched_keys")
    # files of earlier versions keep the positions, 0, 1, 2 and so on, among the weights
    wrong = [str(key) for part in parts for key in info[part] if not str(key).endswith("position_ids")]
    if wrong:
        raise DiffLensError(
            f"the weights in {home} do not belong to its config.json: {counted(len(wrong), 'parameter')} "
            f"{'is' if len(wrong) == 1 else 'are'} missing, "
            f"left over or of another shape, {wrong[0]} for example"
        )
    module: nn.Module = encoder.requires_grad_(False).float().eval()
    return module


def _check_tokens(home: Path, tokenizer: Any, encoder: Any) -> None:
    """Raise DiffLensError if a special token has no embedding: a vocabulary takes any other word in."""
    if tokenizer is None or encoder is None:
        return
    embeddings = encoder.get_input_embeddings().num_embeddings
    for role, token in tokenizer.special_tokens_map.items():
        try:
            known = not isinstance(token, str) or tokenizer.convert_tokens_to_ids(token) < embeddings
        except RecursionError:  # an unknown token is looked up as the unknown token, which is unknown itself
            known = False
        if not known:
            raise DiffLensError(
                f"{home / 'tokenizer_config.json'}: {role} {token!r} is not among the {embeddings:,} tokens "
                "of the text encoder"
            )


@torch.no_grad()
def _encode(
    name: str, kind: _Kind, loaded: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return the conditions that a pipeline of `loaded`, without a denoiser and a VAE, makes of ""."""
    import diffusers

    pipeline_class = getattr(diffusers, name)
    parameters = list(inspect.signature(pipeline_class.__init__).parameters.values())[1:]
    required = {part.name: None for part in parameters if part.default is inspect.Parameter.empty}
    pipeline = pipeline_class(**{**required, **loaded, **kind.options})
    # Stable Diffusion 3 reads the denoiser's width where T5 is left out
    setattr(pipeline, kind.denoiser, SimpleNamespace(config=SimpleNamespace(**config)))
    device = torch.device("cpu")
    values = pipeline.encode_prompt("", device=device, num_images_per_prompt=1, **kind.arguments)
    conditions = {key: value for key, value in zip(kind.returns, values, strict=True) if key is not None}
    scale = default_guidance(name)
    if config.get("guidance_embeds"):
        conditions["guidance"] = torch.tensor([scale])
    if config.get("time_cond_proj_dim") is not None:
        conditions["timestep_cond"] = pipeline.get_guidance_scale_embedding(
            torch.tensor([scale - 1]), embedding_dim=config["time_cond_proj_dim"]
        )
    return conditions


def default_guidance(pipeline: str) -> float:
    """Return the scale of guidance by which a class of pipelines of diffusers calls its network."""
    import diffusers

    stated = inspect.signature(getattr(diffusers, pipeline).__call__).parameters.get("guidance_scale")
    if stated is None or not isinstance(stated.default, int | float):
        raise DiffLensError(f"{pipeline} of diffusers states no scale of guidance, which its network is told")
    return float(stated.default)


def _own_side(folder: Path, kind: _Kind, config: Mapping[str, Any]) -> int:
    """Return the side of the images, in pixels, for which the denoiser was made."""
    side = config.get("sample_size")
    if isinstance(side, list) and len(set(side)) == 1:
        side = side[0]
    if not isinstance(side, int) or side < 1:
        raise DiffLensError(
            f"{folder / kind.denoiser / 'config.json'} has the sample_size {side}: name the image side"
        )
    return side * _scale(folder)


def _scale(folder: Path) -> int:
    """Return the number of pixels a latent, along a side."""
    path = folder / "vae" / "config.json"
    channels = read_json(path, _TABLE).get("block_out_channels")
    if not isinstance(channels, list) or not channels:
        raise DiffLensError(f"{path} does not describe a VAE: it has no list of block_out_channels")
    return int(2 ** (len(channels) - 1))


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise DiffLensError(f"the text encoders need transformers: {_INSTALL}") from error
    return transformers


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # of a package above it
        return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide progress bars and warnings of transformers."""
    _transformers()
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
