"""How a classifier is trained."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from difflens import presets
from difflens.choices import Augmentation, ScheduleKind
from difflens.configs.options import Count, NonNegative, OptimiserOptions, ReadingOptions, SeedOptions, Share


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ReadingOptions, OptimiserOptions, SeedOptions):
    """Training of a classifier; the same options for every head and extractor."""

    epochs: Count | None = None
    """Epochs of training. None: the preset's, or the head's, and more where there are few images."""
    lr_schedule: ScheduleKind | None = None
    """Learning rate after the warm-up: cosine to zero, step (times 0.1 every --step-epochs), or constant. None: cosine."""
    step_epochs: Count | None = None
    """step: epochs between two reductions of the learning rate. None: 7."""
    label_smoothing: Share | None = None
    """Label smoothing of the loss. None: the preset's, or 0."""
    mixup: NonNegative | None = None
    """Blend pairs of inputs (cached features, or images) and their labels, with a share drawn from Beta(mixup, mixup) for
    every batch (Zhang et al., 2018); 0: off. None: the preset's, or the head's."""
    augment: Augmentation | None = None
    """none, flip, or crop (the paper's random resized crop and flip). With none, a frozen extractor runs once. None: the
    preset's, or the head's."""

    def recipe(self) -> Mapping[str, Any]:
        return presets.TRAINING

    def without_effect(self) -> Iterator[tuple[str, Iterable[str]]]:
        yield from super().without_effect()
        if self.chosen("lr_schedule") != "step":
            yield "the learning rate falls in steps with --lr-schedule step only", ("step_epochs",)

    def filled(self) -> Self:
        """The configuration with the usual value of every option that was left at None."""
        missing = {name: value for name, value in presets.TRAINING.items() if getattr(self, name) is None}
        return replace(self, **missing)
