"""The configuration of every extractor."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from difflens.choices import ExtractorName, Precision
from difflens.errors import DiffLensError

if TYPE_CHECKING:
    from difflens.backbones.base import Backbone
    from difflens.extractors.base import Extractor


_OPTIONS: dict[ExtractorName, tuple[str, ...]] = {
    "feedback": ("feedback_blocks", "checkpoint_activations"),
    "finetuned": ("from_block", "layer_decay"),
}
"""Options that a single extractor reads."""


def options_without_effect(extractor: ExtractorName) -> Iterator[tuple[str, Iterable[str]]]:
    """Options that `extractor` does not read: the reason, and their names."""
    for name, options in _OPTIONS.items():
        if name != extractor:
            yield f"the {extractor} extractor does not read options of {name}", options
    if extractor == "finetuned":
        yield "a fine-tuned backbone keeps float32 weights", ("precision",)


@dataclass(frozen=True)
class ExtractorConfig:
    """What an extractor needs besides its backbone.

    Attributes:
        checkpoint: less memory for slower steps, with feedback.
    """

    name: ExtractorName
    blocks: tuple[int, ...]
    noise_steps: tuple[int, ...]
    seed: int = 0
    feedback_blocks: tuple[int, ...] | None = None
    from_block: int = 1
    precision: Precision = "float32"
    draws: int = 1
    checkpoint: bool = False

    def build(self, backbone: "Backbone") -> "Extractor":
        """The extractor on `backbone`, whose weights become `precision`."""
        import torch

        from difflens.extractors.feedback import FeedbackExtractor
        from difflens.extractors.finetuned import FineTunedExtractor
        from difflens.extractors.frozen import FrozenExtractor

        if self.checkpoint and self.name != "feedback":
            raise DiffLensError(
                "--checkpoint-activations is for the feedback extractor: others make no second pass"
            )
        if self.precision != "float32":
            if self.name == "finetuned":
                raise DiffLensError("a fine-tuned backbone keeps float32 weights: leave out --precision")
            backbone.to(getattr(torch, self.precision))
        common = backbone, self.blocks, self.noise_steps, self.seed
        if self.name == "feedback":
            extractor = FeedbackExtractor(*common, feedback_blocks=self.feedback_blocks, draws=self.draws)
            extractor.checkpoint = self.checkpoint
            return extractor
        if self.name == "finetuned":
            return FineTunedExtractor(*common, from_block=self.from_block, draws=self.draws)
        return FrozenExtractor(*common, draws=self.draws)
