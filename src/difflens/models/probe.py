"""A probe: a head on the maps of an extractor."""

from typing import Any

from torch import Tensor, nn

from difflens.errors import DiffLensError
from difflens.extractors.base import Extractor
from difflens.heads.base import Head
from difflens.training.optimisers import ParameterGroup


class FeatureModel(nn.Module):
    """A head on an extractor's maps."""

    extractor: Extractor
    head: nn.Module

    def __init__(self, extractor: Extractor, head: nn.Module):
        super().__init__()
        self.extractor, self.head = extractor, head

    @property
    def trainable_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def parameter_groups(
        self, learning_rate: float, weight_decay: float, layer_decay: float | None
    ) -> list[ParameterGroup]:
        """What is trained, at which rate: all at the same, but a fine-tuned backbone block by block if that decays."""
        decay = 1.0 if layer_decay is None else layer_decay
        blocks = self.extractor.trained_blocks if decay != 1 else {}
        groups = [
            ParameterGroup(parameters, learning_rate * decay**depth, weight_decay)
            for depth, parameters in enumerate(reversed(blocks.values()), start=1)
        ]
        grouped = {id(parameter) for group in groups for parameter in group.parameters}
        others = [parameter for parameter in self.parameters() if id(parameter) not in grouped]
        return [ParameterGroup(others, learning_rate, weight_decay), *groups]

    def own_state(self) -> dict[str, Tensor]:
        """Everything training changes: the head, feedback layers with their statistics, fine-tuned weights."""
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        buffers = {name for name, _ in self.named_buffers() if name.startswith("extractor.backbone.")}
        return {name: value for name, value in self.state_dict().items() if name not in frozen | buffers}

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        """Load what `own_state` gave; DiffLensError if it is of another model."""
        mine = self.own_state()
        different = sorted({*state} ^ {*mine}) or sorted(
            name for name in mine if mine[name].shape != state[name].shape
        )
        if different:
            raise DiffLensError(f"the weights are of another model: {different[0]} does not fit")
        self.load_state_dict(state, strict=False)


class Probe(FeatureModel):
    """Images to logits."""

    head: Head

    def __init__(self, extractor: Extractor, head: Head):
        super().__init__(extractor, head)

    def forward(self, images: Tensor, index: Tensor, draw: int = 0) -> Tensor:
        """Logits (B, num_classes) of images (B, C, S, S) in [-1, 1]; `index`, `draw` as for extractors."""
        return self.head(self.extractor(images, index, draw))


class DenseProbe(FeatureModel):
    """Images to a class for every pixel, or to objects."""

    def forward(self, images: Tensor, index: Tensor, draw: int, **more: Any) -> Any:
        """What the head makes of the maps of images (B, C, S, S) in [-1, 1]; it takes `more`."""
        return self.head(self.extractor(images, index, draw), **more)
