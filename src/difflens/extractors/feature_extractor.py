"""`FeatureExtractor`: the features of a backbone in one's own code, as a module of torch."""

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from difflens.backbones.base import Backbone
from difflens.backbones.load import load_backbone
from difflens.backbones.maps import ImageSize, MapShape, Place, pool_to
from difflens.choices import ExtractorName, Precision
from difflens.data.images import ImageTransform, check_shape, in_range
from difflens.errors import DiffLensError, counted, listing
from difflens.extractors.cache import READ_BATCH, filled
from difflens.extractors.config import ExtractorConfig, options_without_effect
from difflens.extractors.finetuned import FineTunedExtractor
from difflens.processes.base import Level
from difflens.run.console import note

_N = TypeVar("_N", int, Level)


def _several(values: Iterable[_N] | _N) -> tuple[_N, ...]:
    """Return numbers as a tuple; one number is a tuple of one. They may be NumPy's or PyTorch's."""
    plain: Any = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(plain, int | float):
        return (plain,)  # type: ignore[return-value]
    return tuple(each.item() if hasattr(each, "item") else each for each in plain)


class FeatureExtractor(nn.Module):
    """Images to the feature maps of a backbone, at chosen blocks and noise levels.

    Noise is an image's own: its content, the seed and the number of the draw decide it, not its batch.
    A frozen extractor begins in evaluation mode, the others in training mode. A frozen one has no gradient.
    Images get their gradient from a finetuned one alone, and not through an autoencoder; that of a feedback
    extractor leaves out the first pass.

    Args:
        backbone: a name, path, hub id or run directory, as for `load_backbone`; or a loaded backbone, which
            is shared; it is copied to be fine-tuned, and for another `precision` than its own.
        blocks, noise_steps: the places that are read: each block at each noise step, several or one. None:
            those of the backbone's default place.
        extractor: frozen; feedback, DifFeed's second pass with feedback layers to train (paper section 3.3);
            or finetuned, whose backbone is trained too.
        seed: seed of the noise.
        draws: the number of noise samples that the maps are averaged over.
        feedback_blocks: feedback: the decoder blocks that are sent back. None: chosen by the backbone.
        from_block: finetuned: the first block that is trained, from 1.
        precision: floating-point format of a frozen backbone. Maps are always float32.
        options: further arguments of `load_backbone`, such as `image_size`, `condition` or `device`.

    Attributes:
        extractor: the extractor that reads the maps; `extractor.backbone` is the backbone.

    Raises:
        DiffLensError: the backbone cannot be loaded, has no such place, or an option has no effect.
    """

    def __init__(
        self,
        backbone: str | Path | Backbone,
        blocks: Iterable[int] | int | None = None,
        noise_steps: Iterable[Level] | Level | None = None,
        *,
        extractor: ExtractorName = "frozen",
        seed: int = 0,
        draws: int = 1,
        feedback_blocks: Iterable[int] | int | None = None,
        from_block: int = 1,
        precision: Precision = "float32",
        **options: Any,
    ):
        super().__init__()
        choices = {"extractor": (extractor, ExtractorName), "precision": (precision, Precision)}
        for name, (value, kinds) in choices.items():
            if value not in get_args(kinds):
                raise DiffLensError(f"no {name} {value!r}; there are {listing(get_args(kinds))}")
        given = {
            "feedback_blocks": feedback_blocks is not None,
            "from_block": from_block != 1,
            "precision": precision != "float32",
        }
        for why, names in options_without_effect(extractor):
            if idle := [name for name in names if given.get(name)]:
                raise DiffLensError(f"{why}: leave out {listing(idle)}")
        if not isinstance(backbone, Backbone):
            backbone = load_backbone(backbone, **options)
        elif options:
            raise DiffLensError(f"{backbone.spec} is loaded already: leave out {listing([*options])}")
        elif extractor == "finetuned" or backbone.dtype != getattr(torch, precision):
            backbone = copy.deepcopy(backbone)  # others may read it as it is
        defaults = backbone.defaults
        self.extractor = ExtractorConfig(
            extractor,
            _several(defaults.block if blocks is None else blocks),
            _several(defaults.noise_step if noise_steps is None else noise_steps),
            seed,
            None if feedback_blocks is None else _several(feedback_blocks),
            from_block,
            precision,
            draws,
        ).build(backbone)
        self.train(extractor != "frozen")
        self._whole: list[nn.Module] = []  # a list keeps the copy out of the modules

    @property
    def backbone(self) -> Backbone:
        """The backbone that is read."""
        return self.extractor.backbone

    @property
    def places(self) -> list[Place]:
        """The places that are read, (block, noise step), in the order of the maps."""
        return self.extractor.places

    @property
    def transform(self) -> ImageTransform:
        """The function from one image to what the extractor takes, float32 (C, S, S) in [-1, 1].

        It holds no weights, so processes of a loader can take it.
        """
        return ImageTransform(self.backbone.in_channels, self.backbone.image_size)

    @property
    def channels(self) -> dict[Place, int]:
        """The channels of the map at each place."""
        return {(block, t): self.backbone.block(block).channels for block, t in self.places}

    @property
    def strides(self) -> dict[Place, int]:
        """The height of the images divided by that of the map, at each place; the same for the width."""
        return {(block, t): self.backbone.block(block).stride for block, t in self.places}

    @property
    def num_features(self) -> int:
        """D, the size of an image's vector from `pooled`."""
        return sum(self.channels.values())

    def shapes(self, size: ImageSize | None = None) -> dict[Place, MapShape]:
        """Return (C, H, W) of the map at each place, for images of `size`; None: the backbone's own size.

        Args:
            size: (height, width) in pixels, or the side of square images.

        Raises:
            DiffLensError: the backbone does not take images of this size.
        """
        return self.extractor.shapes(size)

    def forward(self, images: Tensor, index: Tensor | None = None, draw: int = 0) -> dict[Place, Tensor]:
        """Return the maps, (B, C, H / stride, W / stride) float32, by place.

        Args:
            images: (B, C, H, W) in [-1, 1]. `transform` gives squares of the backbone's own size. Most
                backbones also take other sizes, H and W multiples of the largest stride.
            index: (B,) long: numbers that take the place of the images' content in their noise, such as
                `FeatureStore.index`. With the seed and the draws of a store, a frozen extractor in evaluation
                mode then gives the features that `difflens extract` stored, to the last bit. For this it
                reads full batches of 64, which small ones are filled up to.
            draw: the number of the noise sample: 0 for evaluation, epoch + 1 for fresh noise in training.

        Raises:
            DiffLensError: the images have channels, a size or a range that the backbone does not take; the
                message says what `transform` does.
        """
        if not torch.compiler.is_exporting():  # a graph cannot raise
            self._check(images)
        images = images.float()
        trainable = self.extractor.trainable
        if images.requires_grad and torch.is_grad_enabled() and not self._reaches_images():
            note(
                "warning: the gradient of these images is missing or incomplete: a finetuned extractor gives "
                "it, unless its network reads latents"
            )
        with torch.set_grad_enabled(trainable and torch.is_grad_enabled()):
            if index is None:
                return self._read(images, self.extractor.content_index(images), draw)
            index = torch.as_tensor(index, device=images.device)
            if index.shape != images.shape[:1]:
                raise DiffLensError(
                    f"index of shape {tuple(index.shape)} for {counted(len(images), 'image')}: it is one "
                    "number for each"
                )
            if trainable or self.training or not len(images):
                return self._read(images, index, draw)
            return self._as_stored(images, index, draw)

    def pooled(self, images: Tensor, index: Tensor | None = None, draw: int = 0) -> Tensor:
        """Return a vector for each image, (B, D) float32: the mean of each map over its positions, joined in
        the order of `places`. Arguments and errors as for `forward`."""
        maps = self(images, index, draw)
        return torch.cat([pool_to(maps[place], 1).flatten(1) for place in self.places], dim=1)

    def _as_stored(self, images: Tensor, index: Tensor, draw: int) -> dict[Place, Tensor]:
        """Return the maps, read in full batches as `difflens extract` reads them."""
        parts: list[dict[Place, Tensor]] = []
        for some, numbers in zip(images.split(READ_BATCH), index.split(READ_BATCH), strict=True):
            positions = filled(len(some)).to(images.device)
            maps = self._read(some[positions], numbers[positions], draw)
            parts.append({place: each[: len(some)] for place, each in maps.items()})
        return {place: torch.cat([part[place] for part in parts]) for place in self.places}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _check(self, images: Tensor) -> None:
        """Raise DiffLensError if the images are not such as `transform` gives."""
        try:
            if not isinstance(images, Tensor):
                raise DiffLensError(f"images of type {type(images).__name__}: a batch is one tensor")
            check_shape(images, self.backbone.in_channels, self.backbone.spec)
            height, width = images.shape[2:]
            self.backbone.check_size((height, width))
            in_range(images)
        except DiffLensError as error:
            raise DiffLensError(
                f"{error}; `transform` gives such images: {self.transform.describe()}"
            ) from error

    def _reaches_images(self) -> bool:
        """Return True if gradients of the maps reach the images."""
        return isinstance(self.extractor, FineTunedExtractor) and self.backbone.latent_shape is None

    def _read(self, images: Tensor, index: Tensor, draw: int) -> dict[Place, Tensor]:
        if not len(images):
            height, width = images.shape[2:]
            shapes = self.extractor.shapes((height, width))
            return {place: images.new_zeros(0, *shape) for place, shape in shapes.items()}
        if not self._whole:
            return self.extractor(images, index, draw)
        return functional_call(self._whole[0], dict(_tensors_of(self.extractor)), (images, index, draw))

    def _replicate_for_data_parallel(self) -> Any:
        """Return a replica with a whole copy of the extractor, which reads with the replica's tensors.

        nn.DataParallel copies modules one by one, and a backbone's list of blocks would hold the old ones.
        """
        replica = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        # tensors are shared, since those of the replica take their place; a graph is not compiled for each
        shared = {id(tensor): tensor for tensor in (*self.extractor.parameters(), *self.extractor.buffers())}
        whole = copy.deepcopy(self.extractor, shared)
        whole.compiled = False
        replica._whole = [whole]
        return replica

    def extra_repr(self) -> str:
        return f"{self.backbone.spec!r}, places={self.places}, seed={self.extractor.seed}"


def _tensors_of(replica: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers of a replica that nn.DataParallel made, by name."""
    parameters: Any = replica._former_parameters
    for name, tensor in (*parameters.items(), *replica._buffers.items()):
        if tensor is not None:
            yield f"{prefix}{name}", tensor
    for name, child in replica._modules.items():
        if child is not None:
            yield from _tensors_of(child, f"{prefix}{name}.")
