"""A space in which images are compared: a backbone's features, or what a trained model's classifier reads."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from difflens.backbones.base import Backbone
from difflens.backbones.config import BackboneConfig
from difflens.data.images import to_float
from difflens.data.loader import Batch
from difflens.data.split import ImageSplit
from difflens.extractors.base import Extractor, evaluating
from difflens.extractors.cache import Reading
from difflens.extractors.frozen import FrozenExtractor
from difflens.heads.knn import NeighbourHead
from difflens.models.probe import Probe
from difflens.models.saved import TrainedModel
from difflens.noise import Stream, seeded_noise
from difflens.run.console import progress_bar


@dataclass
class Vectors:
    """Some images of a split and where they lie in the space.

    Attributes:
        batch: the images.
        vectors: (B, D) float32.
        logits: (B, K) of a trained model, else None.
    """

    batch: Batch
    vectors: Tensor
    logits: Tensor | None


@dataclass
class FeatureSpace:
    """Images to vectors.

    Attributes:
        name: in words, to label every distance with.
        extractor: reads one map of a backbone, which is averaged over places; or is `model`'s.
        model: a trained model, whose last linear layer's input is the space (of k-NN, the unit vectors).
    """

    name: str
    extractor: Extractor
    model: TrainedModel | None = None

    @classmethod
    def load(
        cls,
        features: BackboneConfig,
        block: int | None = None,
        noise_step: int | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> "FeatureSpace":
        """The space of what `features.spec` names: a trained model's folder, its run directory, or any backbone.

        Args:
            features: all but the spec is of a backbone.
            block, noise_step: of a backbone; None: its own choice.
            seed: of a backbone's noise; a trained model has its own.

        Raises:
            DiffLensError: there is no such thing, or the backbone has no such block or noise step.
        """
        folder = Path(features.spec)
        if any((place / "model.safetensors").is_file() for place in (folder, folder / "model")):
            model = TrainedModel.load(folder, device=device)
            return cls(f"input of the classifier of {features.spec}", model.probe.extractor, model)
        return cls.of(features.load(device), block, noise_step, seed)

    @classmethod
    def of(
        cls, backbone: Backbone, block: int | None = None, noise_step: int | None = None, seed: int = 0
    ) -> "FeatureSpace":
        """The space of one block of a backbone; arguments and errors as for `load`."""
        defaults = backbone.defaults
        block = defaults.block if block is None else block
        step = defaults.noise_step if noise_step is None else noise_step
        extractor = FrozenExtractor(backbone, (block,), (step,), seed)
        return cls(f"{backbone.spec}, block {block} at noise step {step}, averaged over places", extractor)

    def read(self, split: ImageSplit, reading: Reading, noise: float = 0.0) -> Iterator[Vectors]:
        """All images of `split`, batch by batch.

        Args:
            noise: standard deviation of Gaussian noise that the images, in [-1, 1], get first; they are cut off there.
        """
        seed = self.extractor.seed
        with progress_bar() as bar, evaluating(self.extractor):
            task = bar.add_task(f"features of {split.name}", total=len(split), note="")
            for batch in reading.batches(self.extractor, split, torch.arange(len(split))):
                images = to_float(batch.images)
                if noise:
                    added = seeded_noise(tuple(images.shape[1:]), batch.index, Stream.PERTURBATION, seed)
                    images = (images + noise * added).clamp(-1, 1)
                yield Vectors(batch, *self._vectors(images, batch.index))
                bar.update(task, advance=len(batch))

    def _vectors(self, images: Tensor, index: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.model is not None:
            return classifier_input(self.model.probe, images, index)
        (maps,) = self.extractor(images, index).values()
        return maps.mean((2, 3)), None


def classifier_input(probe: Probe, images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """What the last linear layer of a probe's head reads (of k-NN, the unit vectors), (B, D), and its logits (B, K)."""
    head = probe.head
    maps = probe.extractor(images, index)
    if isinstance(head, NeighbourHead):
        return head.vectors(maps), head(maps)
    last = head.classifier[-1] if isinstance(head.classifier, nn.Sequential) else head.classifier
    kept: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    try:
        logits = head(maps)
    finally:
        hook.remove()
    return kept[0], logits
