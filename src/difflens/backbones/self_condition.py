"""Self-conditioned U-Nets: features of the network guide its own decoder (Xiang et al., 2025,
arXiv:2505.10999).

Encoder and middle read the time embedding e. The residual blocks of the decoder read

    e' = e + W norm(pool(h)) + b

h, (B, C, S, S), is the map of the middle block; pool is the mean over positions; norm is a layer
normalisation without parameters, as W and b would take them in. W and b begin as zero, so the network begins
as the plain one. The idea is the paper's. The choice of h, the normalisation and the zeros are ours.
"""

from functools import wraps
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from safetensors.torch import save_file
from torch import Tensor, nn

from difflens.errors import DiffLensError, listing
from difflens.run.files import replace_with
from difflens.run.reading import read_tensors, shapes_of

SELF_CONDITION = "self_condition.safetensors"
"""The file beside a network's config.json that holds W, `weight`, and b, `bias`."""

# Fields of a UNet2DModel with which its forward pass does more than that of this file, and the plain value.
_PLAIN = {
    "mid_block_type": "UNetMidBlock2D",
    "class_embed_type": None,
    "num_class_embeds": None,
    "center_input_sample": False,
    "time_embedding_type": "positional",
}


class SelfCondition(nn.Linear):
    """W norm(pool(h)) + b, (B, E), of a map h, (B, C, S, S)."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, h: Tensor) -> Tensor:
        pooled = h.mean(dim=(2, 3))
        return super().forward(nn.functional.layer_norm(pooled, pooled.shape[-1:]))


class SelfConditionedUNet2DModel(UNet2DModel):  # type: ignore[misc]
    """A `UNet2DModel` whose decoder also reads the pooled map of the middle block.

    Its folder is that of a `UNet2DModel` with one more file, `SELF_CONDITION`. config.json and the
    model_index.json of a pipeline name this class, so a pipeline of diffusers refuses the folder.

    Raises:
        DiffLensError: the arguments are those of a network with classes, without a middle block, or with an
            image path beside its blocks.
    """

    # diffusers reads the names of the arguments
    @wraps(UNet2DModel.__init__)  # type: ignore[misc]
    def __init__(self, *arguments: Any, **fields: Any):
        super().__init__(*arguments, **fields)
        for name, plain in _PLAIN.items():
            if self.config[name] != plain:
                raise DiffLensError(f"a self-conditioned network has {name} {plain}, not {self.config[name]}")
        if any(hasattr(level, "skip_conv") for level in (*self.down_blocks, *self.up_blocks)):
            raise DiffLensError("a self-conditioned network has no image path beside its blocks (NCSN++)")
        width = self.time_embedding.linear_2.out_features
        self.self_condition = SelfCondition(self.config["block_out_channels"][-1], width)

    def forward(
        self, sample: Tensor, timestep: Tensor | float, class_labels: None = None, return_dict: bool = True
    ) -> Any:
        """Return the network's output for x_t, (B, C, S, S), at one time or one for each image, (B,)."""
        time = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        embedding = self.time_embedding(self.time_proj(time).to(self.dtype))
        hidden = self.conv_in(sample)
        skips = [hidden]
        for level in self.down_blocks:
            hidden, stored = level(hidden_states=hidden, temb=embedding)
            skips += stored
        hidden = self.mid_block(hidden, embedding)
        embedding = embedding + self.self_condition(hidden)
        for level in self.up_blocks:
            count = len(level.resnets)
            skips, read = skips[:-count], tuple(skips[-count:])
            hidden = level(hidden, read, embedding)
        output = self.conv_out(self.conv_act(self.conv_norm_out(hidden)))
        return UNet2DOutput(sample=output) if return_dict else (output,)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Write config.json, the weights of a `UNet2DModel`, and `SELF_CONDITION`.

        Raises:
            DiffLensError: the last file cannot be written.
        """
        projection = self.self_condition
        del self.self_condition
        try:
            super().save_pretrained(save_directory, **options)
        finally:
            self.self_condition = projection
        tensors = {name: tensor.contiguous() for name, tensor in projection.state_dict().items()}
        replace_with(Path(save_directory) / SELF_CONDITION, lambda file: save_file(tensors, file))

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> Any:
        """Return the network in a folder of `save_pretrained`; options and result as in diffusers.

        Raises:
            DiffLensError: `SELF_CONDITION` is missing, damaged, or does not fit the network.
        """
        loaded = UNet2DModel.from_pretrained(folder, **options)
        plain, *further = loaded if isinstance(loaded, tuple) else (loaded,)
        network = cls.from_config(plain.config)
        projection = _read_projection(Path(folder) / SELF_CONDITION, network.self_condition)
        own = {f"self_condition.{name}": tensor for name, tensor in projection.items()}
        network.load_state_dict({**plain.state_dict(), **own})
        nn.Module.to(network, plain.dtype).eval()
        return (network, *further) if further else network


def _read_projection(file: Path, expected: SelfCondition) -> dict[str, Tensor]:
    """Return the tensors in a file, whose names and shapes must be those of `expected`."""
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.state_dict().items()}
    found = shapes_of(file)
    if found != shapes:
        raise DiffLensError(f"{file} has {_described(found)}, and the network needs {_described(shapes)}")
    tensors = read_tensors(file)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise DiffLensError(f"{file}: {name} must hold finite numbers with a fraction")
    return tensors


def _described(shapes: dict[str, tuple[int, ...]]) -> str:
    """Return names and shapes in words."""
    words = [f"{name} of {' x '.join(map(str, shape))}" for name, shape in sorted(shapes.items())]
    return listing(words) or "no tensors"
