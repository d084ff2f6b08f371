"""The configuration of an extractor, and the options that each extractor reads."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from difflens.choices import ExtractorName, Precision
from difflens.errors import DiffLensError
from difflens.ranges import Count, Depth, Range, Seed

if TYPE_CHECKING:
    from difflens.backbones.base import Backbone
    from difflens.extractors.base import Extractor


_OPTIONS: dict[ExtractorName, tuple[str, ...]] = {
    "frozen": (),
    "feedback": ("feedback_blocks", "checkpoint_activations"),
    "finetuned": ("from_block", "layer_decay", "checkpoint_activations"),
}
"""The options that not all extractors read."""


def options_without_effect(extractor: ExtractorName) -> Iterator[tuple[str, Iterable[str]]]:
    """Yield the options that `extractor` does not read: the reason, and their names."""
    for name, options in _OPTIONS.items():
        idle = [option for option in options if option not in _OPTIONS[extractor]]
        yield f"the {extractor} extractor does not read options of {name}", idle
    if extractor == "finetuned":
        yield "a fine-tuned backbone keeps float32 weights", ("precision",)


@dataclass(frozen=True)
class ExtractorConfig:
    """The settings of an extractor, apart from its backbone.

    Attributes:
        name: the kind of extractor.
        blocks, noise_steps: the places that are read: each block at each noise step.
        seed: seed of the noise.
        feedback_blocks: feedback: the decoder blocks that are sent back. None: chosen by the backbone.
        from_block: finetuned: the first block that is trained.
        precision: floating-point format of the frozen backbone.
        draws: the number of noise samples that the maps are averaged over.
        checkpoint: feedback, finetuned: recompute the second pass, or the trained blocks, in the backward
            pass. It takes less memory, and steps are slower.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: ExtractorName
    blocks: tuple[Count, ...]
    noise_steps: tuple[Annotated[int | float, Range(0, 10**6)], ...]
    seed: Seed = 0
    feedback_blocks: tuple[Count, ...] | None = None
    from_block: Count = 1
    precision: Precision = "float32"
    draws: Depth = 1
    checkpoint: bool = False

    def build(self, backbone: "Backbone") -> "Extractor":
        """Return the extractor on `backbone`, whose weights are converted to `precision`.

        Raises:
            DiffLensError: a setting has no effect on this extractor, or the backbone has no such place.
        """
        import torch

        from difflens.extractors.feedback import FeedbackExtractor
        from difflens.extractors.finetuned import FineTunedExtractor
        from difflens.extractors.frozen import FrozenExtractor

        if self.checkpoint and self.name == "frozen":
            raise DiffLensError("--checkpoint-activations is for extractors that are trained, not for frozen")
        if self.precision == "float32" and backbone.dtype != torch.float32:
            raise DiffLensError(
                f"{backbone.spec} was converted to {str(backbone.dtype).removeprefix('torch.')}: load it "
                "again to read it in float32"
            )
        if self.precision != "float32":
            if self.name == "finetuned":
                raise DiffLensError("a fine-tuned backbone keeps float32 weights: leave out --precision")
            backbone.convert(getattr(torch, self.precision))
        common = backbone, self.blocks, self.noise_steps, self.seed
        if self.name == "frozen":
            return FrozenExtractor(*common, draws=self.draws)
        trained: FeedbackExtractor | FineTunedExtractor
        if self.name == "feedback":
            trained = FeedbackExtractor(*common, feedback_blocks=self.feedback_blocks, draws=self.draws)
        else:
            trained = FineTunedExtractor(*common, from_block=self.from_block, draws=self.draws)
        trained.checkpoint = self.checkpoint
        return trained
