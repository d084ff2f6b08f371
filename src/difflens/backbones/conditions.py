"""Conditions of a network, fixed when it is loaded: a class, or the embedding of the empty prompt."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn

from difflens.backbones.text import default_guidance, empty_prompt, load_condition, pipeline_class
from difflens.errors import DiffLensError, counted

# the widths of SDXL's refiner: 1,280 of the text, and five times 256 of sizes and the aesthetic score
_REFINER = (2560, 256)


class Condition(nn.Module):
    """The further arguments of a network's forward call, the same for all images.

    Args:
        name: the condition in words, for reports.
        tensors: arguments by name, with a first dimension of 1; the entries of a dictionary are named
            "argument.entry".
        computed: True if text encoders computed the tensors, which are then kept beside a run.
    """

    def __init__(self, name: str, tensors: Mapping[str, Tensor], computed: bool = False):
        super().__init__()
        self.name, self.computed = name, computed
        self._names = tuple(sorted(tensors))
        for number, key in enumerate(self._names):
            self.register_buffer(f"tensor_{number}", tensors[key], persistent=False)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The arguments by name, each with a first dimension of 1."""
        return {key: self.get_buffer(f"tensor_{number}") for number, key in enumerate(self._names)}

    def arguments(self, count: int, dtype: torch.dtype, size: tuple[int, int]) -> dict[str, Any]:
        """Return the arguments for `count` images of `size` (height, width), in pixels, floats in `dtype`.

        What a network is told of the size of its images is that of these images.
        """
        arguments: dict[str, Any] = {}
        for key, tensor in self.tensors.items():
            value = tensor.to(dtype) if tensor.is_floating_point() else tensor
            name, _, entry = key.partition(".")
            expanded = value.expand(count, *value.shape[1:])
            if entry:
                arguments.setdefault(name, {})[entry] = expanded
            else:
                arguments[name] = expanded
        added = arguments.get("added_cond_kwargs", {})
        for name, values in _of_size(*size).items():
            if name in added:
                added[name] = added[name].new_tensor([values]).expand(count, -1)
        return arguments

    def fingerprint(self) -> bytes:
        """Return bytes that differ between different conditions."""
        parts = [self.name.encode()]
        for key, tensor in self.tensors.items():
            parts += [key.encode(), tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()]
        return b"".join(parts)


def _of_size(height: int, width: int) -> dict[str, list[float]]:
    """Return what SDXL (time_ids) and PixArt-alpha are told of images as they are."""
    return {
        # size of the image as it was, place of the crop, size as it is
        "time_ids": [height, width, 0, 0, height, width],
        "resolution": [height, width],
        "aspect_ratio": [height / width],
    }


class _FixedEmbedding(nn.Module):
    """The class embedding of a network for no single class: the mean over its classes, or zero.

    Args:
        embedding: the network's own embedding; its weights stay in the state dict.
        width: length of an embedding.
        classes: the number of rows that the mean is over; None: zero.
    """

    def __init__(self, embedding: nn.Module, width: int, classes: int | None):
        super().__init__()
        self.embedding, self.width, self.classes = embedding, width, classes

    def forward(self, labels: Tensor) -> Tensor:
        weight = next(self.embedding.parameters(), None)
        if self.classes is not None and weight is not None:
            return weight[: self.classes].mean(dim=0, keepdim=True).expand(labels.shape[0], -1)
        like = labels.float() if weight is None else weight
        return torch.zeros(labels.shape[0], self.width, device=labels.device, dtype=like.dtype)


def class_condition(unet: Any, asked: str | None, spec: str) -> Condition | None:
    """Return the condition of a U-Net with class embeddings; None for a network without.

    "mean" and "zero" replace the network's `class_embedding` by one that gives this vector for any label.

    Args:
        unet: a `UNet2DModel`; it changes for "mean" and "zero".
        asked: null, mean, zero or the number of a class. None: "mean" where there is one row for each class,
            else "zero".
        spec: the backbone's name in messages.

    Raises:
        DiffLensError: the network has no such condition.
    """
    embedding = unet.class_embedding
    if embedding is None:
        if asked is not None:
            raise DiffLensError(f"{spec} is unconditional: leave out --condition")
        return None
    rows = embedding.num_embeddings if isinstance(embedding, nn.Embedding) else None
    asked = asked or ("zero" if rows is None else "mean")
    label = torch.zeros(1, dtype=torch.long)
    if asked == "null":
        raise DiffLensError(
            f"{spec} has no row that is known to be its null class: --condition takes mean, zero or a class"
        )
    if asked == "mean" and rows is not None:
        unet.class_embedding = _FixedEmbedding(embedding, embedding.embedding_dim, rows)
        return Condition(f"mean of {counted(rows, 'class embedding')}", {"class_labels": label})
    if asked == "zero":
        width = unet.time_embedding.linear_2.out_features
        unet.class_embedding = _FixedEmbedding(embedding, width, None)
        if rows is None:
            label = label.float()
        return Condition("class embedding of zero", {"class_labels": label})
    if asked.isdecimal():
        number = int(asked)
        if rows is not None and number < rows:
            return Condition(f"class {number}", {"class_labels": label + number})
        if isinstance(embedding, TimestepEmbedding):
            return Condition(f"class {number}", {"class_labels": label + number})
        if rows is not None:
            raise DiffLensError(f"{spec} has no class {number}: its classes are 0 to {rows - 1}")
    known = "mean, zero or a class" if rows else "zero or a class"
    if isinstance(embedding, nn.Identity):
        known = "zero: its class embedding is given from outside"
    raise DiffLensError(f"{spec} has no condition {asked!r}: --condition takes {known}")


def dit_condition(network: Any, asked: str | None, spec: str) -> Condition:
    """Return the condition of a `DiTTransformer2DModel`, whose last class is the null class.

    Args:
        network: the transformer; the class embeddings of its blocks change for "mean" and "zero".
        asked: null, mean, zero or the number of a class; None: null.
        spec: the backbone's name in messages.

    Raises:
        DiffLensError: the network has no such condition.
    """
    classes = int(network.config.num_embeds_ada_norm)
    asked = asked or "null"
    label = torch.zeros(1, dtype=torch.long)
    if asked == "null":
        return Condition(f"null class {classes}", {"class_labels": label + classes})
    if asked in ("mean", "zero"):
        for block in network.transformer_blocks:
            embed = block.norm1.emb
            if not isinstance(embed.class_embedder, _FixedEmbedding):  # blocks of a .pt share one embedder
                mean = classes if asked == "mean" else None
                embed.class_embedder = _FixedEmbedding(embed.class_embedder, network.inner_dim, mean)
        name = (
            f"mean of {counted(classes, 'class embedding')}" if asked == "mean" else "class embedding of zero"
        )
        return Condition(name, {"class_labels": label})
    if asked.isdecimal() and int(asked) < classes:
        return Condition(f"class {int(asked)}", {"class_labels": label + int(asked)})
    raise DiffLensError(
        f"{spec} has no condition {asked!r}: --condition takes null, mean, zero or a class from 0 "
        f"to {classes - 1}"
    )


def text_condition(
    network: Any,
    asked: str | None,
    folder: Path,
    side: int | None,
    stored: Path | None,
    spec: str,
    *,
    meta: bool = False,
) -> Condition:
    """Return the condition of a text-to-image network.

    Args:
        network: a `UNet2DConditionModel` or a transformer.
        asked: null, the empty prompt, or zero, an embedding of zeros; None: null.
        folder: the pipeline, whose text encoders compute the embedding of the empty prompt.
        side: side of the images, in pixels, which some networks are told, whatever the text is; None: the
            pipeline's own, or 0 for an embedding of zeros.
        stored: a file of `save_condition` that holds it already; no text encoder runs then.
        spec: the backbone's name in messages.
        meta: the network has no values, so the condition needs none: no text encoder runs.

    Raises:
        DiffLensError: the network has no such condition, or the text encoders cannot run.
    """
    if asked == "zero":
        return Condition("text embedding of zeros", _zeros(network, side or 0, folder))
    if asked not in (None, "null"):
        raise DiffLensError(
            f"{spec} has no condition {asked!r}: a text-to-image network takes null (the empty prompt) or "
            "zero"
        )
    zeros = _zeros(network, side or 0, folder)
    if meta:
        return Condition("empty prompt", zeros, computed=True)
    try:
        tensors = empty_prompt(folder, side) if stored is None else load_condition(stored)
    except DiffLensError as error:
        raise DiffLensError(f"{error}. --condition zero reads the network without text") from error
    # the positions of Flux follow from the side of x_t
    given = {name: tensor for name, tensor in tensors.items() if name not in ("img_ids", "txt_ids")}
    for name, zero in zeros.items():
        shape = tuple(given[name].shape) if name in given else None
        if shape is None or (shape[0], shape[-1]) != (1, zero.shape[-1]):
            raise DiffLensError(
                f"{spec} takes {name} of width {zero.shape[-1]}, and the empty prompt has "
                f"{'none' if shape is None else f'the shape {shape}'}: they do not belong together"
            )
    return Condition("empty prompt", given, computed=True)


def check_conditions(config: Mapping[str, Any], spec: str) -> None:
    """Raise DiffLensError if a `UNet2DConditionModel` takes more than a text: a class or an image, for
    example."""
    told = config.get("projection_class_embeddings_input_dim"), config.get("addition_time_embed_dim")
    if told == _REFINER:
        raise DiffLensError(f"{spec} is told an aesthetic score of images, which difflens does not know")
    known = {
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "addition_embed_type": (None, "text_time"),
        "encoder_hid_dim_type": (None, "text_proj"),
    }
    for field, values in known.items():
        if config.get(field) not in values:
            raise DiffLensError(
                f"{spec} takes a condition that difflens cannot give: its {field} is {config.get(field)!r}"
            )


def condition_choices(network: Any) -> str:
    """Return, in words, what `--condition` takes for a network that has a condition."""
    embedding = getattr(network, "class_embedding", None)
    if isinstance(embedding, _FixedEmbedding):
        embedding = embedding.embedding
    if isinstance(network, DiTTransformer2DModel):
        return f"null, mean, zero or a class from 0 to {network.config.num_embeds_ada_norm - 1}"
    if embedding is None or isinstance(network, UNet2DConditionModel):
        return "null (the empty prompt) or zero"
    if isinstance(embedding, nn.Embedding):
        return f"mean, zero or a class from 0 to {embedding.num_embeddings - 1}"
    return "zero" if isinstance(embedding, nn.Identity) else "zero or a class"


def _zeros(network: Any, side: int, folder: Path) -> dict[str, Tensor]:
    """Return a text embedding of zeros, with what a network is told of images of `side` pixels, and of the
    scale of guidance, which is that of the pipeline in `folder`."""
    config, name = network.config, type(network).__name__
    if name == "UNet2DConditionModel":
        width = config.encoder_hid_dim or config.cross_attention_dim
        width = max(width) if isinstance(width, list | tuple) else width
        tensors = {"encoder_hidden_states": torch.zeros(1, 77, width)}
        if config.addition_embed_type == "text_time":
            ids = torch.tensor([_of_size(side, side)["time_ids"]]).float()
            pooled = (
                config.projection_class_embeddings_input_dim - ids.numel() * config.addition_time_embed_dim
            )
            tensors["added_cond_kwargs.text_embeds"] = torch.zeros(1, pooled)
            tensors["added_cond_kwargs.time_ids"] = ids
        if config.time_cond_proj_dim is not None:
            scale = torch.tensor([default_guidance(pipeline_class(folder)) - 1])
            tensors["timestep_cond"] = StableDiffusionPipeline.get_guidance_scale_embedding(
                None, scale, embedding_dim=config.time_cond_proj_dim
            )
        return tensors
    if name == "PixArtTransformer2DModel":
        tensors = {"encoder_hidden_states": torch.zeros(1, 120, config.caption_channels)}
        if network.use_additional_conditions:
            for part in ("resolution", "aspect_ratio"):
                tensors[f"added_cond_kwargs.{part}"] = torch.tensor([_of_size(side, side)[part]]).float()
        return tensors
    tensors = {
        "encoder_hidden_states": torch.zeros(1, 77, config.joint_attention_dim),
        "pooled_projections": torch.zeros(1, config.pooled_projection_dim),
    }
    if getattr(config, "guidance_embeds", False):
        tensors["guidance"] = torch.tensor([default_guidance(pipeline_class(folder))])
    return tensors
