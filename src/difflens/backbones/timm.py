"""Any timm model as a backbone of clean images: the blocks are a ResNet's stages or a ViT's layers.

The maps come from timm's `forward_intermediates`, which reads all families alike. Spatial tokens become a
map; class and register tokens are left out. A ViT's maps go through its last normalisation, as in the
evaluation of DINOv2 (Oquab et al., 2023). Families that have none for maps, such as Hiera, give them raw.
"""

import difflib
import json
import sys
from collections.abc import Iterable, Mapping
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from difflens.backbones.base import Block, CleanBackbone, Defaults
from difflens.backbones.maps import ImageSize, sides_of, size_in_words
from difflens.backbones.pretrained import digest_of
from difflens.errors import DiffLensError, expanded, listing
from difflens.run.reading import reason
from difflens.run.seeding import seeded

_SWAV_HEADS = ("projection_head.", "prototypes.")
_SUGGESTIONS = 5  # most model names that an error message suggests


class TimmBackbone(CleanBackbone):
    """A frozen timm model without its classifier.

    The backbone brings images in [-1, 1] to the model's own mean and standard deviation.

    Args:
        network: a model made with `num_classes=0`; it is frozen and set to evaluation mode.
        spec: the user's name of the backbone.
        image_size: side of the images, in pixels.

    Raises:
        DiffLensError: timm cannot read the model block by block, or its maps are not square with a side that
            divides `image_size`.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, spec: str, image_size: int):
        super().__init__()
        self.network: Any = network.requires_grad_(False).eval()
        self.spec, self.image_size = spec, image_size
        settings: Any = network.pretrained_cfg
        self.in_channels = int(settings["input_size"][0])
        # the model takes (p - mean) / deviation of pixels p in [0, 1]; the images hold x = 2 p - 1
        mean, deviation = [2 * m - 1 for m in settings["mean"]], [2 * d for d in settings["std"]]
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(1, -1, 1, 1), persistent=False)
        self._fixed = bool(settings["fixed_input_size"]) and not getattr(network, "dynamic_img_size", False)
        self._has_norm = True
        self.blocks = self._describe()
        self.check_size(image_size)
        depth = len(self.blocks)
        self.defaults = Defaults(
            block=depth,
            noise_step=0,
            fusion_blocks=tuple(sorted({ceil(share * depth) for share in (0.5, 0.75, 1)})),
            fusion_noise_steps=(0,),
        )

    @classmethod
    def from_spec(cls, spec: str, image_size: int | None = None, untrained: bool = False) -> "TimmBackbone":
        """Return the model "timm:NAME" with the hub's weights, or "timm:NAME@FILE" with those of a file.

        Args:
            spec: NAME may have timm's tag of the weights, as in resnet18.a1_in1k.
            image_size: side of the images, in pixels; None: that of the training images.
            untrained: load no weights; timm draws them (seed 0).

        Raises:
            DiffLensError: timm is not installed or has no such model, or its weights cannot be loaded.
        """
        try:
            import timm
        except ImportError as error:
            raise DiffLensError(f'{spec} needs timm: pip install "difflens[compare]"') from error
        name, at, file = spec.removeprefix("timm:").partition("@")
        _check_name(name, spec, {*timm.list_models(), *timm.list_models(include_tags=True)})
        if untrained and at:
            raise DiffLensError(f"an untrained network has no weights to read: write random:timm:{name}")
        settings = timm.get_pretrained_cfg(name)
        size = image_size or int(settings.input_size[-1])
        options = {"img_size": size} if settings.fixed_input_size and image_size else {}
        try:
            with seeded():
                network = timm.create_model(name, pretrained=not (untrained or at), num_classes=0, **options)
        except Exception as error:  # no network, no published weights, an image size that the model refuses
            raise DiffLensError(
                f"timm does not give the model {name} ({reason(error)}). Without the hub, give its weights "
                f"as timm:{name}@FILE; random:timm:{name} is the untrained network"
            ) from error
        if at:
            _load_file(network, expanded(file))
        return cls(network, spec, size)

    def features(
        self,
        x_t: Tensor,
        t: float | Tensor,
        blocks: Iterable[int],
        feedback: Mapping[int, Tensor] | None = None,
        *,
        compiled: bool = False,
    ) -> dict[int, Tensor]:
        wanted = self.check_blocks(blocks)
        if feedback:
            raise DiffLensError(f"{self.spec} has no decoder, so there is nothing to feed back")
        return dict(zip(wanted, self._maps(x_t, [index - 1 for index in wanted]), strict=True))

    def check_size(self, size: ImageSize) -> None:
        super().check_size(size)
        own = self.image_size
        if self._fixed and sides_of(size) != (own, own):
            raise DiffLensError(
                f"{size_in_words(size)}: {self.spec} takes images of {own} pixels, as it was loaded; another "
                "side is its --image-size"
            )

    def fingerprint(self) -> str:
        settings = [type(self.network).__name__, self.image_size, self.mean.tolist(), self.deviation.tolist()]
        return digest_of(self.network, json.dumps(settings).encode())

    def modules_of(self, block: int) -> list[nn.Module]:
        """Return lists of the parameters that `block` is the first to use; timm names no modules of a block.

        The model's own parameters (tokens, positions) belong to block 1.
        """
        used = self._used[: self.block(block).index]
        before = {id(module) for modules in used[:-1] for module in modules}
        modules = [module for module in used[-1] if id(module) not in before]
        if block == 1:
            modules = [self.network, *modules]
        return [nn.ParameterList(module.parameters(recurse=False)) for module in modules]

    def train(self, mode: bool = True) -> "TimmBackbone":
        """Stay in evaluation mode: a frozen network keeps its statistics while the head is trained."""
        return super().train(False)

    def _maps(self, images: Tensor, indices: list[int] | None) -> list[Tensor]:
        dtype = next(self.network.parameters()).dtype
        normalised = ((images - self.mean) / self.deviation).to(dtype)
        maps: list[Tensor] = self.network.forward_intermediates(
            normalised,
            indices=indices,
            norm=self._has_norm,
            stop_early=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        return maps

    def _maps_of_blank(self, blank: Tensor) -> list[Tensor]:
        """Return all maps of a blank image, and note whether the family has a norm for them."""
        try:
            return self._maps(blank, None)
        except AssertionError as error:
            if "norm" not in str(error):
                raise
        self._has_norm = False
        return self._maps(blank, None)

    @torch.no_grad()
    def _describe(self) -> tuple[Block, ...]:
        """Return the blocks, whose shapes are measured on a blank image."""
        if not hasattr(self.network, "forward_intermediates"):
            raise DiffLensError(
                f"timm does not read {self.spec} block by block (it has no forward_intermediates)"
            )
        side = self.image_size
        try:
            maps = self._maps_of_blank(torch.zeros(1, self.in_channels, side, side))
        except Exception as error:  # each family of models refuses sizes and formats in its own way
            raise DiffLensError(
                f"{self.spec} does not take images of {side} pixels: {reason(error)}"
            ) from error
        blocks = []
        for number, features in enumerate(maps, start=1):
            _, channels, height, width = features.shape
            if height != width or side % height:
                raise DiffLensError(
                    f"{self.spec} makes a map of {height} x {width} of {side} pixels in block {number}; maps "
                    "must be square and divide the image: choose another --image-size"
                )
            blocks.append(Block(number, "encoder", channels, side // width))
        return tuple(blocks)

    @cached_property
    def _used(self) -> list[list[nn.Module]]:
        """The submodules that run up to the end of each block."""
        return [self._executed(number) for number in range(len(self.blocks))]

    @torch.no_grad()
    def _executed(self, number: int) -> list[nn.Module]:
        """Return the submodules that run up to the end of the block at position `number`, from 0."""
        executed: list[nn.Module] = []
        hooks = [
            module.register_forward_hook(lambda module, *_: executed.append(module))
            for module in self.network.modules()
        ]
        side = self.image_size
        try:
            self._maps(torch.zeros(1, self.in_channels, side, side, device=self.device), [number])
        finally:
            for hook in hooks:
                hook.remove()
        return list({id(module): module for module in executed}.values())


def _check_name(name: str, spec: str, models: set[str]) -> None:
    if name not in models:
        near = difflib.get_close_matches(name, sorted(models), n=_SUGGESTIONS)
        hint = f"did you mean {listing(near)}? " if near else ""
        raise DiffLensError(
            f"no backbone {spec!r}: timm has no model {name!r}; {hint}timm.list_models() has them all"
        )


def _load_file(network: Any, path: Path) -> None:
    """Load all weights of `network` from a checkpoint in timm's format or that of the model's authors.

    Of MoCo's files the query encoder is read, and of SwAV's neither projection head nor prototypes are.

    Raises:
        DiffLensError: there is no such file, it is damaged, or its weights are not those of the model.
    """
    from timm.models import load_state_dict

    if not path.is_file():
        raise DiffLensError(f"no weights: there is no file {path}")
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        state = _encoder_in(load_state_dict(str(path), weights_only=True))
        keys = network.load_state_dict(state if convert is None else convert(state, network), strict=False)
    except Exception as error:  # damaged files, other formats, weights of other shapes
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise DiffLensError(f"{path} does not hold weights of this model: {reason}") from error
    classifiers = network.pretrained_cfg.get("classifier") or ()
    names = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    prefixes = tuple(f"{name}." for name in names)
    wrong = [*keys.missing_keys, *(key for key in keys.unexpected_keys if not key.startswith(prefixes))]
    if wrong:
        raise DiffLensError(
            f"{path} does not hold weights of this model: {len(wrong)} are missing or left over, "
            f"{listing(wrong, 1)}"
        )


def _encoder_in(state: dict[str, Any]) -> dict[str, Any]:
    """Return the weights of the encoder in a file of MoCo or SwAV, and those of any other file unchanged."""
    query = "encoder_q."
    if any(name.startswith(query) for name in state):
        return {name.removeprefix(query): value for name, value in state.items() if name.startswith(query)}
    return {name: value for name, value in state.items() if not name.startswith(_SWAV_HEADS)}
