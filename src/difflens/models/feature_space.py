"""A space in which images are compared: a backbone's features, or the input of a trained classifier."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from difflens.backbones.base import Backbone
from difflens.backbones.config import BackboneConfig
from difflens.data.images import to_float
from difflens.data.loader import Batch
from difflens.data.split import ImageSplit
from difflens.errors import DiffLensError, expanded
from difflens.extractors.base import Extractor, evaluating
from difflens.extractors.cache import Reading
from difflens.extractors.frozen import FrozenExtractor
from difflens.heads.knn import NeighbourHead
from difflens.models.probe import Probe
from difflens.models.saved import TrainedModel, is_model
from difflens.noise import Stream, seeded_noise
from difflens.processes.base import Level
from difflens.run.console import progress_bar


@dataclass
class Vectors:
    """A batch of images and their vectors in the space.

    Attributes:
        batch: the images.
        vectors: (B, D) float32.
        logits: (B, K) for a trained model, else None.
    """

    batch: Batch
    vectors: Tensor
    logits: Tensor | None


@dataclass
class FeatureSpace:
    """A function from images to vectors.

    Attributes:
        name: a description, which labels the distances.
        extractor: the model's extractor, or one that reads a single map, which is averaged over positions.
        model: a trained model; the space is the input of its last linear layer (k-NN: the unit vectors).
    """

    name: str
    extractor: Extractor
    model: TrainedModel | None = None

    @classmethod
    def load(
        cls,
        features: BackboneConfig,
        block: int | None = None,
        noise_step: Level | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> "FeatureSpace":
        """Load a trained model or a backbone, and return its space.

        Args:
            features: the spec is a trained model's folder, its run directory, or a backbone. The other fields
                apply to a backbone only.
            block, noise_step: the place to read in a backbone; None: the backbone's default.
            seed: seed of the noise for a backbone; a trained model has its own.
            device: the device for the network.

        Raises:
            DiffLensError: there is no such model or backbone, or the backbone has no such block or noise
                step.
        """
        folder = expanded(features.spec)
        if folder.is_dir() and is_model(folder):
            if (block, noise_step) != (None, None) or features != BackboneConfig(features.spec):
                raise DiffLensError(
                    f"{features.spec} is a trained model with a backbone and a place of its own: leave out "
                    "--block, --noise-step and options of the backbone"
                )
            model = TrainedModel.load(folder, device=device)
            return cls(f"input of the classifier of {features.spec}", model.probe.extractor, model)
        return cls.of(features.load(device), block, noise_step, seed)

    @classmethod
    def of(
        cls, backbone: Backbone, block: int | None = None, noise_step: Level | None = None, seed: int = 0
    ) -> "FeatureSpace":
        """Return the space of one block of a backbone; arguments and errors as in `load`."""
        defaults = backbone.defaults
        block = defaults.block if block is None else block
        step = defaults.noise_step if noise_step is None else noise_step
        extractor = FrozenExtractor(backbone, (block,), (step,), seed)
        return cls(f"{backbone.spec}, block {block} at noise step {step}, averaged over positions", extractor)

    def read(self, split: ImageSplit, reading: Reading, noise: float = 0.0) -> Iterator[Vectors]:
        """Yield the vectors of all images of `split`, batch by batch.

        Args:
            split: the images.
            reading: settings of the loader; it collects the images that are skipped.
            noise: standard deviation of Gaussian noise that is added to the images, in [-1, 1], first. The
                noised images are clipped to [-1, 1].
        """
        seed = self.extractor.seed
        with progress_bar() as bar, evaluating(self.extractor):
            task = bar.add_task(f"features of {split.name}", total=len(split), note="")
            for batch in reading.batches(self.extractor, split, torch.arange(len(split))):
                images = to_float(batch.images)
                if noise:
                    added = seeded_noise(tuple(images.shape[1:]), batch.index, Stream.PERTURBATION, seed)
                    images = (images + noise * added).clamp(-1, 1)
                vectors, logits = self._vectors(images, batch.index)
                finite = vectors.isfinite().all(1)
                if not finite.all():
                    first = split.ids[int(batch.rows[(~finite).nonzero()[0, 0]])]
                    raise DiffLensError(f"the features of {first} are not finite: {self.name}")
                yield Vectors(batch, vectors, logits)
                bar.update(task, advance=len(batch))

    def _vectors(self, images: Tensor, index: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.model is not None:
            return classifier_input(self.model.probe, images, index)
        (maps,) = self.extractor(images, index).values()
        return maps.mean((2, 3)), None


def classifier_input(probe: Probe, images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return the input of the last linear layer of a probe's head, (B, D), and the logits, (B, K).

    For the k-NN head, the input is the unit vectors.

    Args:
        images: (B, C, S, S) in [-1, 1].
        index: numbers of the images, which select their noise, (B,) long.
    """
    head = probe.head
    maps = probe.extractor(images, index)
    if isinstance(head, NeighbourHead):
        return head.vectors(maps), head(maps)
    last = head.classifier[-1] if isinstance(head.classifier, nn.Sequential) else head.classifier
    vectors: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: vectors.append(inputs[0]))
    try:
        logits = head(maps)
    finally:
        hook.remove()
    return vectors[0], logits
