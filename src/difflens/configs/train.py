"""Options of the training of a classifier."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from difflens import presets
from difflens.choices import Augmentation, ScheduleKind
from difflens.configs.options import (
    Epochs,
    NonNegative,
    OptimiserOptions,
    ReadingOptions,
    SeedOptions,
    Share,
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ReadingOptions, OptimiserOptions, SeedOptions):
    """The training of a classifier, with the same options for all heads and extractors."""

    epochs: Epochs | None = None
    """Epochs of training. None: the preset's, or the head's, which are increased for few images."""
    lr_schedule: ScheduleKind | None = None
    """Learning rate after the warm-up: cosine to zero, step (times 0.1 every --step-epochs), or constant.
    None: the preset's, or cosine."""
    step_epochs: Epochs | None = None
    """step: epochs between two reductions of the learning rate. None: 7."""
    label_smoothing: Share | None = None
    """Label smoothing of the loss, 0 to 1. None: the preset's, or 0."""
    mixup: NonNegative | None = None
    """Mix pairs of inputs (cached features, or images) and their labels in a proportion that each batch draws
    from Beta(mixup, mixup) (Zhang et al., 2018); 0: no mixup. None: the preset's, or the head's."""
    augment: Augmentation | None = None
    """none; flip, which mirrors an image with probability 1/2; or crop, the paper's random resized crop and
    flip. With none, a frozen extractor reads each image once. None: the preset's, or the extractor's."""

    def recipe(self) -> Mapping[str, Any]:
        return presets.TRAINING

    def without_effect(self) -> Iterator[tuple[str, Iterable[str]]]:
        yield from super().without_effect()
        if self.chosen("lr_schedule") != "step":
            yield "the learning rate falls in steps with --lr-schedule step only", ("step_epochs",)

    def filled(self) -> Self:
        """Return the configuration with options that are None set to the values of `presets.TRAINING`."""
        missing = {name: value for name, value in presets.TRAINING.items() if getattr(self, name) is None}
        return replace(self, **missing)
